"""Carrying out a plan: shards into folders, or wherever their sinks take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap import engine
from hubextrap.api.output import write_files
from hubextrap.tensors import LocalSink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.api.preparing import MergeOptions
    from hubextrap.api.staging import Staging
    from hubextrap.engine import MergeOutput, MergePlan
    from hubextrap.opening import Run
    from hubextrap.tensors.interfaces import Sink, Source


def make_in(
    staging: Staging,
    beside: Sequence[Mapping[str, bytes]],
    plan: MergePlan,
    sources: Sequence[Source],
    run: Run,
    settings: MergeOptions,
) -> list[MergeOutput]:
    """Make each target's output in its folder, with the files that lie beside its shards."""
    for folder, files in zip(staging.folders, beside, strict=True):
        write_files(folder, files)
    sinks = [LocalSink(*place) for place in zip(staging.folders, staging.journals, strict=True)]
    return make_outputs(staging, plan, sources, run, settings, sinks)


def make_outputs(
    staging: Staging,
    plan: MergePlan,
    sources: Sequence[Source],
    run: Run,
    settings: MergeOptions,
    sinks: Sequence[Sink],
) -> list[MergeOutput]:
    """`run_plan`, here or, on a run's checkpoints, by an executor; one sink and one journal per target."""
    if settings.executor != "local":
        from hubextrap.api.distributing import distribute

        return distribute(staging, plan, run, settings, sinks)
    made = engine.run_plan(  # numba is imported with it, when all that can be wrong before is known
        plan,
        sources,
        sinks,
        journals=staging.journals,
        progress=run.progress,
        device=settings.device,
        allow_non_finite=settings.allow_non_finite,
    )
    run.check_unchanged()
    return made
