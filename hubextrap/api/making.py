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
    from hubextrap.tensors import Journal
    from hubextrap.tensors.interfaces import Sink


def make_in(
    staging: Staging, beside: Sequence[Mapping[str, bytes]], plan: MergePlan, run: Run, settings: MergeOptions
) -> list[MergeOutput]:
    """Make each target's output in its folder, with the files that lie beside its shards."""
    for folder, files in zip(staging.folders, beside, strict=True):
        write_files(folder, files)
    sinks = [LocalSink(*place) for place in zip(staging.folders, staging.journals, strict=True)]
    return make_outputs(plan, run, settings, sinks, staging.journals)


def make_outputs(
    plan: MergePlan, run: Run, settings: MergeOptions, sinks: Sequence[Sink], journals: Sequence[Journal]
) -> list[MergeOutput]:
    """`run_plan` on a run's checkpoints; one sink and one journal per target."""
    return engine.run_plan(  # numba is imported with it, when all that can be wrong before is known
        plan,
        run.sources,
        sinks,
        journals=journals,
        progress=run.progress,
        device=settings.device,
        allow_non_finite=settings.allow_non_finite,
    )
