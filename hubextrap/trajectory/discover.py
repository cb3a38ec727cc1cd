"""From a reference to pinned checkpoints in step order: the only way that the rooms above get checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import (
    AmbiguousTrajectory,
    ReferenceNotFound,
    StepError,
    TrajectoryError,
    UnsupportedCheckpoint,
    wrong_argument,
)
from hubextrap.foreign_text import own_lines
from hubextrap.progress import SilentProgress
from hubextrap.step_names import INNER_FOLDERS, read_step
from hubextrap.trajectory.adapters_of_run import listed_of_one_kind, selected_of_one_kind, with_base
from hubextrap.trajectory.checkpoint import (
    ADAPTER,
    UNKNOWN_STEP,
    Checkpoint,
    PassedOver,
    Series,
    Trajectory,
)
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.elsewhere import models_elsewhere, pinned_commit
from hubextrap.trajectory.hub_files import list_entries
from hubextrap.trajectory.layouts import series_by_layout
from hubextrap.trajectory.listing import files_of_checkpoint, looked_into
from hubextrap.trajectory.pins import Pins
from hubextrap.trajectory.reference import Reference, parse_reference, reference_text
from hubextrap.trajectory.sameness import same_weights
from hubextrap.trajectory.search import search_of
from hubextrap.trajectory.selection import (
    TrajectoryOptions,
    check_distinct,
    place_of,
    scaled_by,
    select_steps,
)
from hubextrap.trajectory.series import A_PREDICTION, UNLIKE, in_step_order, table_of
from hubextrap.trajectory.weights import OTHER
from hubextrap.trajectory.wholeness import with_begun_ones_passed_over, without_unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory.search import Search

_NAMES_SHOWN = 8


def find_series(reference: str, *, pattern: str | None = None, pins: Pins | None = None) -> list[Series]:
    """Everything in a reference that looks like a series of checkpoints, in every layout.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        TrajectoryError: the pattern has no ``{step}``.
    """
    found = series_by_layout(search_of(reference, pattern, pins))
    return [series for layout in found for series in layout]


def find_trajectory(
    reference: Path | str,
    options: TrajectoryOptions | None = None,
    *,
    pins: Pins | None = None,
    progress: Progress | None = None,
    **named: Any,
) -> Trajectory:
    """The checkpoints of one run, pinned, with the bytes of their weights.

    Args:
        reference: a local folder, ``org/name``, ``org/name@revision:folder`` or ``hf://…``.
        options: which checkpoints; all of the one series that is there if not given.
        pins: what the command has pinned so far.
        named: fields of `TrajectoryOptions`, instead of ``options``: ``max_step=800``.

    Raises:
        ReferenceNotFound, AccessDenied: a reference leads nowhere, or is not open to this token.
        AmbiguousTrajectory: several series are there and ``series`` does not settle which.
        StepError: a step is missing, there twice, or none is left.
        TrajectoryError: nothing is found.
    """
    progress, pins, reference = progress or SilentProgress(), pins or Pins(), reference_text(reference)
    if options is not None and not isinstance(options, TrajectoryOptions):
        raise wrong_argument("options", "TrajectoryOptions, or None", options)
    asked = replace(options or TrajectoryOptions(), **named)
    chosen = _choose(reference, asked.pattern, asked.series, pins)
    scaled = scaled_by(chosen, asked.step_scale)
    check_distinct(scaled.checkpoints, reference)
    selected = select_steps(scaled, reference, asked, base_at_0=True)
    seen: dict[Checkpoint, Mapping[str, int]] = {}
    without: list[PassedOver] = []
    if not chosen.files_known:
        selected = with_weights(selected, reference, asked.steps, progress, seen, without)
    elif asked.steps is None:
        _tell(progress, selected, [over for over in scaled.passed_over if asked.takes(over.checkpoint.step)])
    selected, scaled = _whole_ones(selected, scaled, reference, asked, seen, pins, progress)
    named_steps = asked.steps is not None
    selected, scaled = selected_of_one_kind(selected, scaled, reference, progress, named=named_steps)
    if not any(one.kind == ADAPTER for one in selected):
        select_steps(scaled, reference, asked)  # only adapters have a step 0 without a file
    base = None if asked.base is None else _base_for(selected, asked.base, reference, pins)
    selected, base = with_base(selected, base, from_step_0=asked.takes(0) and 0 in (asked.steps or (0,)))
    found = _trajectory(selected, chosen.pattern, progress, scaled, base)
    passed = [over for over in (*scaled.passed_over, *without) if asked.takes(over.checkpoint.step)]
    return replace(found, passed_over=tuple(sorted(passed, key=lambda over: over.checkpoint.step)))


def _whole_ones(
    selected: tuple[Checkpoint, ...],
    series: Series,
    reference: str,
    asked: TrajectoryOptions,
    seen: dict[Checkpoint, Mapping[str, int]],
    pins: Pins,
    progress: Progress,
) -> tuple[tuple[Checkpoint, ...], Series]:
    """Those that were selected, and the whole series, without what is being written just now."""
    passed = {over.checkpoint.step for over in series.passed_over}
    newer = [one.step for one in series.checkpoints if one.step > selected[-1].step]
    if set(newer) - passed and asked.max_step is not None:
        return selected, series  # its newest checkpoints are not among them

    def files_of(checkpoint: Checkpoint) -> Mapping[str, int]:
        if checkpoint not in seen:
            seen[checkpoint] = dict(files_of_checkpoint(checkpoint, checkpoint.name, pins)[0])
        return seen[checkpoint]

    kept, left_out = without_unfinished(
        selected, reference, files_of, progress, named=asked.steps is not None
    )
    gone = {over.checkpoint.step for over in left_out}
    there = tuple(one for one in series.checkpoints if one.step not in gone)
    return kept, replace(series, checkpoints=there, passed_over=(*series.passed_over, *left_out))


def find_recipe_trajectory(
    recipe: Recipe, progress: Progress | None = None, *, pins: Pins | None = None
) -> Trajectory:
    """The checkpoints that a recipe observes, pinned, in step order: once per command, which hands them on.

    Args:
        pins: what the command has pinned so far.

    Raises:
        TrajectoryError: they cannot be found, pinned or put in order.
    """
    section = recipe.trajectory
    if section.checkpoints is not None:
        listed = [(entry.model, entry.step) for entry in section.checkpoints]
        return pin_checkpoints(listed, base=section.base, pins=pins, progress=progress)
    assert section.repo is not None
    said = section.steps
    asked = TrajectoryOptions(
        said.pattern, said.series, said.min, said.max, said.only, section.base, said.scale
    )
    return find_trajectory(section.repo, asked, pins=pins, progress=progress)


def pin_checkpoints(
    pairs: Iterable[tuple[str, int]],
    *,
    base: str | None = None,
    pins: Pins | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """A trajectory of checkpoints that were listed one by one, as (reference, step).

    Of adapters, too, these are all: the base model is step 0 where it is listed there, or is ``base``.

    Raises:
        ReferenceNotFound, AccessDenied, UnsupportedCheckpoint: a reference leads to no model.
        StepError: a step is negative or listed twice, no checkpoint is, or adapters and whole models are.
    """
    pairs, pins = list(pairs), pins or Pins()
    if not pairs:
        raise StepError("the list of checkpoints is empty")
    if negative := [f"{reference} at step {step}" for reference, step in pairs if step < 0]:
        raise StepError(f"steps count from 0: {', '.join(negative)}")
    progress = progress or SilentProgress()
    with progress.stage("pin checkpoints", len(pairs), "checkpoints") as stage:
        checkpoints = map_concurrently(
            lambda pair: resolve_checkpoint(pair[0], step=pair[1], pins=pins), pairs, stage
        )
    ordered = in_step_order(checkpoints)
    check_distinct(ordered, what := "the list of checkpoints")
    ordered = listed_of_one_kind(ordered, what)
    named = None if base is None else _base_for(ordered, base, what, pins)
    ordered, named = with_base(ordered, named, from_step_0=base is not None)
    return _trajectory(ordered, "listed", progress, base=named)


def _trajectory(
    checkpoints: tuple[Checkpoint, ...],
    pattern: str,
    progress: Progress,
    whole: Series | None = None,
    base: Checkpoint | str | None = None,
) -> Trajectory:
    found = Trajectory(checkpoints, pattern, whole, same_weights(checkpoints), base)
    for note in found.notes:
        progress.warn(note)
    return found


def resolve_checkpoint(
    reference: Path | str, *, step: int | None = None, pins: Pins | None = None
) -> Checkpoint:
    """One reference, pinned, with the bytes of its weights.

    Args:
        step: its step; where None, the one its name says, or ``UNKNOWN_STEP``.
        pins: what the command has pinned so far.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        UnsupportedCheckpoint: there are no weights of any kind.
    """
    reference, pins = reference_text(reference), pins or Pins()
    where = parse_reference(reference)
    step = _step_of(where) if step is None else step
    if where.folder is not None:
        checkpoint = Checkpoint(step, None, "", None, str(where.folder))
    else:
        commit = pinned_commit(where, pins)
        revision = "" if where.in_bucket else where.revision or "main"
        checkpoint = Checkpoint(step, where.repo, revision, commit, where.path)
    checkpoint, weights, files = looked_into(checkpoint, reference)
    if weights is not None:
        return checkpoint
    elsewhere = models_elsewhere(where, pins)
    if where.in_bucket and not files:
        raise ReferenceNotFound(f"{reference}: nothing lies there in the bucket", repo=where.repo)
    if where.path and not list_entries(where.repo, checkpoint.commit or "", where.path, reference):
        what = f"{reference}: no folder {where.path!r} in {where.repo}@{checkpoint.revision}"
        raise ReferenceNotFound(what + (elsewhere and f"; {elsewhere}"), repo=where.repo)
    raise UnsupportedCheckpoint(
        f"{reference}: no weight files in it ({_shown(_names(files))}); "
        f"{elsewhere or 'name the folder with them'}",
        repo=checkpoint.repo,
    )


def _choose(reference: str, pattern: str | None, choice: str | None, pins: Pins) -> Series:
    """The one series of the first layout that has any (that fits ``choice``)."""
    search = search_of(reference, pattern, pins)
    for layout in map(with_begun_ones_passed_over, series_by_layout(search)):
        fitting = layout
        if choice is not None:
            names = [(one, (one.pattern, one.label)) for one in layout]
            fitting = [one for one, called in names if choice in called]
            fitting = fitting or [one for one, called in names if any(n.startswith(choice) for n in called)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            what = f"{reference}: there are {len(fitting)} series of checkpoints; choose one by its name"
            how = "with `trajectory.steps.series` in a recipe, or --series:"
            raise AmbiguousTrajectory(own_lines(f"{what}, {how}", *table_of(fitting)))
    if search.found:
        there = table_of(search.found)
        raise TrajectoryError(own_lines(f"{reference}: no series {choice!r}; there are:", *there))
    raise TrajectoryError(f"{reference}: no checkpoints found; {_why_none(search)}")


def _why_none(search: Search) -> str:
    """What was there instead of checkpoints, and what to name."""
    folder, revision = search.reference.folder, search.reference.revision
    if folder is not None and not search.seen and next(folder.glob("*.safetensors"), None) is not None:
        return "it holds the weights of one model itself; name the folder that holds the whole run"
    looked_for = f"is like {search.pattern!r}" if search.pattern is not None else "says a step"
    seen = "there is no folder in it"
    if folder is None:
        seen = f"nothing in it has a name that {looked_for}"
    if search.seen:
        seen = f"none of these names {looked_for} and holds weights: {_shown(search.seen)}"
    whole = "" if revision is None else f" Leave out @{revision} to look at the whole repo."
    return (
        f"{seen}.{whole} Give a pattern such as 'step_{{step}}' (--pattern), the folder "
        "(org/name:folder), or list the checkpoints one by one (trajectory.checkpoints in a recipe)"
    )


def with_weights(
    checkpoints: tuple[Checkpoint, ...],
    reference: str,
    steps: Sequence[int] | None,
    progress: Progress,
    seen: dict[Checkpoint, Mapping[str, int]] | None = None,
    passed: list[PassedOver] | None = None,
) -> tuple[Checkpoint, ...]:
    """The checkpoints that hold weights of some kind, with their bytes; others are told of and left out.

    Args:
        seen: gets names and bytes of the files of each.
        passed: gets those that are left out.

    Raises:
        StepError: one of ``steps``, which the user named, holds none.
        TrajectoryError: none of them holds any.
    """
    with progress.stage("list checkpoints", len(checkpoints), "checkpoints") as stage:
        looks = map_concurrently(lambda one: looked_into(one, one.name), checkpoints, stage)
    kinds = {weights.kind for _, weights, _ in looks if weights is not None and not weights.predicted}
    kept: list[Checkpoint] = []
    passed_over: list[PassedOver] = [] if passed is None else passed
    for checkpoint, weights, files in looks:
        if weights is None:
            why = f"no weights among {_shown(_names(files))}"
        elif weights.predicted:
            why = A_PREDICTION
        elif weights.kind == OTHER and kinds == {ADAPTER, OTHER}:
            why = UNLIKE[OTHER]
        else:
            kept.append(checkpoint)
            if seen is not None:
                seen[checkpoint] = dict(files)
            continue
        passed_over.append(over := PassedOver(checkpoint, why))
        if steps is not None:
            raise StepError(
                f"{reference}: step {checkpoint.step} cannot be taken, {over}", step=checkpoint.step
            )
    _tell(progress, kept, passed_over)
    if not kept:
        raise TrajectoryError(
            f"{reference}: none of its {len(checkpoints)} places is a checkpoint; {passed_over[0]}. If the "
            "weights lie in a folder, name it: org/name:folder"
        )
    return tuple(kept)


def _tell(progress: Progress, kept: Sequence[Checkpoint], passed_over: Iterable[PassedOver]) -> None:
    """Say what is left out; a place that is newer than all that is kept may be half-written."""
    last = kept[-1].step if kept else -1
    for over in passed_over:
        newer = over.checkpoint.step > last and over.why != A_PREDICTION
        (progress.warn if newer else progress.say)(f"left out step {over.checkpoint.step}, {over}")


def _base_for(checkpoints: tuple[Checkpoint, ...], base: str, reference: str, pins: Pins) -> Checkpoint | str:
    """The base that the user named, before the first checkpoint: that of adapters is looked for where it is
    needed, and a local folder is named in full until then."""
    if checkpoints[0].step == 0 and checkpoints[0].kind != ADAPTER:
        raise StepError(
            f"{reference}: step 0 is already there, {place_of(checkpoints[0])}; drop the base {base}, or "
            "leave that step out",
            step=0,
        )
    if any(one.kind == ADAPTER for one in checkpoints):
        return str(Path(base).resolve()) if Path(base).is_dir() else base
    found = resolve_checkpoint(base, step=0, pins=pins)
    if found.kind == ADAPTER:
        raise UnsupportedCheckpoint(
            f"{base}: holds an adapter, so it is no base; name the model that it was trained on",
            repo=found.repo,
        )
    return found


def _step_of(where: Reference) -> int:
    """The step that a reference's names say."""
    if where.folder is not None:
        folder = where.folder
        while folder.name in INNER_FOLDERS:
            folder = folder.parent
        names = [folder.name]
    else:
        names = [where.path, where.revision or "", where.repo.rpartition("/")[2]]
    found = next((name for name in map(read_step, names) if name is not None), None)
    return UNKNOWN_STEP if found is None else found.step


def _names(files: Iterable[tuple[str, int]]) -> list[str]:
    return [name for name, _ in files]


def _shown(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
