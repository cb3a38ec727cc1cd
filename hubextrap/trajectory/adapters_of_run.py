"""Runs of adapters: all checkpoints are adapters, and at step 0 stands the base model that they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import StepError
from hubextrap.trajectory.checkpoint import ADAPTER, BASE, UNTOUCHED_BASE, Checkpoint, PassedOver
from hubextrap.trajectory.series import UNLIKE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Series


def selected_of_one_kind(
    selected: Sequence[Checkpoint], series: Series, reference: str, progress: Progress, *, named: bool
) -> tuple[tuple[Checkpoint, ...], Series]:
    """Those that were selected, and their series, without the adapters where there are whole models too.

    A whole model at step 0 of a run that consists of adapters otherwise is their base, and of that kind.

    Args:
        named: whether the user named the steps.

    Raises:
        StepError: the steps that the user named are of both kinds.
    """
    kept, adapters = _split(selected)
    if not adapters:
        return kept, series
    if named:
        raise _of_both(reference, adapters[0], kept[-1], "name steps of one kind")
    progress.warn(
        f"left out {len(adapters)} of {len(selected)} checkpoints, which are adapters unlike the others, the "
        f"first at step {adapters[0].step}; to predict from the adapters, select their steps alone"
    )
    gone = {one.step for one in (*adapters, *series.checkpoints) if one.kind == ADAPTER}
    over = tuple(PassedOver(one, UNLIKE[ADAPTER]) for one in series.checkpoints if one.step in gone)
    there = tuple(one for one in series.checkpoints if one.step not in gone)
    return kept, replace(series, checkpoints=there, passed_over=(*series.passed_over, *over))


def listed_of_one_kind(listed: Sequence[Checkpoint], what: str) -> tuple[Checkpoint, ...]:
    """The same of checkpoints that the user listed one by one; ``what`` names the list.

    Raises:
        StepError: they are of both kinds.
    """
    kept, adapters = _split(listed)
    if adapters:
        remedy = "list checkpoints of one kind; the base model of adapters may be listed at step 0"
        raise _of_both(what, adapters[0], kept[-1], remedy)
    return kept


def with_base(
    checkpoints: tuple[Checkpoint, ...], named: Checkpoint | str | None, *, from_step_0: bool
) -> tuple[tuple[Checkpoint, ...], Checkpoint | str | None]:
    """The checkpoints with the base at step 0, and the base model of a run of adapters where it is known.

    Args:
        checkpoints: of one kind.
        named: the base that the user named; found, where they are whole models.
        from_step_0: whether a run of adapters without a step 0 of its own begins with the untouched base.
    """
    if not any(one.kind == ADAPTER for one in checkpoints):
        return (named, *checkpoints) if isinstance(named, Checkpoint) else checkpoints, None
    if checkpoints[0].kind == BASE:
        return (UNTOUCHED_BASE, *checkpoints[1:]), checkpoints[0]
    if from_step_0 and checkpoints[0].step > 0:
        checkpoints = (UNTOUCHED_BASE, *checkpoints)
    return checkpoints, named


def _split(checkpoints: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], tuple[Checkpoint, ...]]:
    """Those to take, in order, and the adapters among whole models, which are none of them."""
    adapters = tuple(one for one in checkpoints if one.kind == ADAPTER)
    models = tuple(one for one in checkpoints if one.kind != ADAPTER)
    if adapters and [one.step for one in models] == [0]:
        return (replace(models[0], kind=BASE), *adapters), ()
    return (models, adapters) if models else (adapters, ())


def _of_both(what: str, adapter: Checkpoint, model: Checkpoint, remedy: str) -> StepError:
    return StepError(
        f"{what}: step {adapter.step} does not go with step {model.step}: {adapter.name} is an adapter, and "
        f"{model.name} a whole model; {remedy}",
        step=adapter.step,
    )
