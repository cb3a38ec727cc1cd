"""The one series of checkpoints that a command takes of those that a reference holds."""

from __future__ import annotations

from pathlib import PurePosixPath
from shlex import quote
from typing import TYPE_CHECKING

from hubextrap.errors import AmbiguousTrajectory, HubExtrapError, TrajectoryError
from hubextrap.foreign_text import own_lines
from hubextrap.step_names import StepName, read_step
from hubextrap.trajectory.counters import pattern_of_numbers, pattern_over
from hubextrap.trajectory.layouts import series_by_layout
from hubextrap.trajectory.listing import shown_names
from hubextrap.trajectory.search import search_of
from hubextrap.trajectory.series import extent_of, table_of, worth_choosing
from hubextrap.trajectory.wholeness import with_begun_ones_passed_over

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Series
    from hubextrap.trajectory.pins import Pins
    from hubextrap.trajectory.search import Search


def choose_series(
    reference: str, pattern: str | None, choice: str | None, pins: Pins, progress: Progress
) -> Series:
    """The one series of the first layout that has any (that fits ``choice``).

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        AmbiguousTrajectory: several fit.
        TrajectoryError: nothing is found, or fits.
    """
    search = search_of(reference, pattern, pins)
    for layout in map(with_begun_ones_passed_over, series_by_layout(search)):
        fitting: Sequence[Series] = layout
        if choice is not None:
            names = [(one, (one.pattern, one.label)) for one in layout]
            fitting = [one for one, called in names if choice in called]
            fitting = fitting or [one for one, called in names if any(n.startswith(choice) for n in called)]
        if len(fitting) > 1:
            fitting, others = worth_choosing(fitting)
            if others and len(fitting) == 1:
                listed = ", ".join(f"{one.label} ({one.weights}, {extent_of(one)})" for one in others)
                progress.say(f"left out {listed}; --series takes another than {fitting[0].label}")
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            what = f"{reference}: there are {len(fitting)} series of checkpoints; choose one by its name"
            how = "with `trajectory.steps.series` in a recipe, or --series:"
            together = _together(reference, fitting, pins) if pattern is None else ()
            raise AmbiguousTrajectory(own_lines(f"{what}, {how}", *table_of(fitting), *together))
    if search.found:
        there = table_of(search.found)
        raise TrajectoryError(own_lines(f"{reference}: no series {choice!r}; there are:", *there))
    raise TrajectoryError(f"{reference}: no checkpoints found; {_why_none(search, reference, pins)}")


def _together(reference: str, series: Sequence[Series], pins: Pins) -> tuple[str, ...]:
    """The pattern that reads these series as one, where there is one: it has been tried."""
    names = [StepName(one.pattern, checkpoint.step, "") for one in series for checkpoint in one.checkpoints]
    pattern = pattern_over(names)
    found = None if pattern is None else _tried(reference, pattern, pins)
    if pattern is None or found is None or len(found.checkpoints) != len(names):
        return ()
    return (f"or take them as one run, {extent_of(found)}: --pattern {quote(pattern)}",)


def _tried(reference: str, pattern: str, pins: Pins) -> Series | None:
    """The one series that a pattern reads, where it reads one, and no step of it twice."""
    try:
        found = next(filter(None, series_by_layout(search_of(reference, pattern, pins))), [])
    except HubExtrapError:
        return None
    steps = [checkpoint.step for one in found for checkpoint in one.checkpoints]
    return found[0] if len(found) == 1 and len(set(steps)) == len(steps) else None


def _why_none(search: Search, reference: str, pins: Pins) -> str:
    """What was there instead of checkpoints, and what to name."""
    folder, revision = search.reference.folder, search.reference.revision
    if folder is not None and not search.seen and next(folder.glob("*.safetensors"), None) is not None:
        return "it holds the weights of one model itself; name the folder that holds the whole run"
    looked_for = f"is like {search.pattern!r}" if search.pattern is not None else "says a step"
    seen = "there is no folder in it"
    if folder is None:
        seen = f"nothing in it has a name that {looked_for}"
    if search.seen:
        seen = f"none of these names {looked_for} and holds weights: {shown_names(search.seen)}"
    whole = "" if revision is None else f" Leave out @{revision} to look at the whole repo."
    own = (folder or PurePosixPath(search.reference.path)).name
    above = ""
    if search.pattern is None and read_step(own) is not None:
        above = (
            f". {own} says a step itself; if it is one checkpoint, name the folder that holds the whole run"
        )
    pattern = pattern_of_numbers(name.strip("'").removesuffix("/") for name in search.seen)
    found = None if pattern is None else _tried(reference, pattern, pins)
    example = "Give a pattern such as 'step_{step}' (--pattern),"
    if pattern is not None and found is not None and len(found.checkpoints) > 1:
        example = (
            f"If its numbers count steps, --pattern {quote(pattern)} takes {extent_of(found)}; else name"
        )
    return (
        f"{seen}.{whole} {example} the folder (org/name:folder), or list the checkpoints one by one "
        f"(trajectory.checkpoints in a recipe){above}"
    )
