"""Which places that are named like checkpoints are none, and what is said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import StepError, TrajectoryError, UnsupportedCheckpoint
from hubextrap.foreign_text import own_lines
from hubextrap.trajectory.checkpoint import ADAPTER, PassedOver
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.converting import UNREADABLE, how_to_convert
from hubextrap.trajectory.listing import looked_into, shown_names
from hubextrap.trajectory.series import A_PREDICTION, UNLIKE
from hubextrap.trajectory.weights import CANNOT_BE_READ, OTHER, Weights

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Checkpoint, Trajectory

_STEPS_SHOWN = 8


def with_weights(
    checkpoints: tuple[Checkpoint, ...],
    reference: str,
    steps: Sequence[int] | None,
    progress: Progress,
    seen: dict[Checkpoint, Mapping[str, int]] | None = None,
    passed: list[PassedOver] | None = None,
) -> tuple[Checkpoint, ...]:
    """The checkpoints that hold weights which can be read, or of some kind where none can, with their bytes;
    others are told of and left out.

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
        why = _why_not(weights, kinds, files)
        if why is None:
            kept.append(checkpoint)
            if seen is not None:
                seen[checkpoint] = dict(files)
            continue
        passed_over.append(over := PassedOver(checkpoint, why))
        if steps is not None:
            raise StepError(
                f"{reference}: step {checkpoint.step} cannot be taken, {over}", step=checkpoint.step
            )
    tell_left_out(progress, kept, passed_over)
    if not kept:
        raise TrajectoryError(
            f"{reference}: none of its {len(checkpoints)} places is a checkpoint; {passed_over[0]}. If the "
            "weights lie in a folder, name it: org/name:folder"
        )
    return tuple(kept)


def _why_not(weights: Weights | None, kinds: Collection[str], files: Sequence[tuple[str, int]]) -> str | None:
    """Why a place with these weights is no checkpoint of a run that holds such kinds of them; None if it
    is."""
    if weights is None:
        return f"no weights among {shown_names([name for name, _ in files])}"
    if weights.predicted:
        return A_PREDICTION
    if weights.kind != OTHER or kinds == {OTHER}:
        return None
    return UNLIKE[OTHER] if kinds == {ADAPTER, OTHER} else weights.said


def tell_left_out(progress: Progress, kept: Sequence[Checkpoint], passed_over: Iterable[PassedOver]) -> None:
    """Say what is left out, those in one note that are so for one reason; a place that is newer than all that
    is kept may be half-written."""
    last = kept[-1].step if kept else -1
    alike: dict[tuple[bool, str], list[PassedOver]] = {}
    for over in passed_over:
        newer = over.checkpoint.step > last and over.why != A_PREDICTION
        alike.setdefault((newer, over.why), []).append(over)
    for (newer, why), found in alike.items():
        those = sorted(found, key=lambda over: over.checkpoint.step)
        steps = [over.checkpoint.step for over in those]
        said = f"left out step {steps[0]}, {those[0]}"
        if len(those) > 1:
            more = f" and {len(steps) - _STEPS_SHOWN} more" if len(steps) > _STEPS_SHOWN else ""
            listed = ", ".join(map(str, steps[:_STEPS_SHOWN])) + more
            said = f"left out {len(those)} steps ({listed}): {why}; the first is {those[0].checkpoint.name}"
        first, *rest = how_to_convert(over.checkpoint for over in those) or ("",)
        said += first and f"; {first}"
        (progress.warn if newer else progress.say)(own_lines(said, *rest))


def refuse_unreadable(trajectory: Trajectory) -> None:
    """Refuse checkpoints of a form that is not read, all at once.

    Raises:
        UnsupportedCheckpoint: says how they can be converted.
    """
    found = [one for one in trajectory.checkpoints if one.weights in UNREADABLE]
    if not found:
        return
    others = f"; {len(found) - 1} more checkpoints lie so" if len(found) > 1 else ""
    first, *rest = how_to_convert(found)
    said = str(found[0].note).removeprefix(CANNOT_BE_READ)
    raise UnsupportedCheckpoint(
        own_lines(f"{found[0].name}: {said}{others}; {first}", *rest),
        step=found[0].step,
        repo=found[0].repo,
    )
