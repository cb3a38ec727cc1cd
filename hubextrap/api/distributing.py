"""A merge by an executor: the plan goes into a place that all workers see, and their records come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.api.recorded import add_from_journals, note_shards
from hubextrap.engine import MergeOutput
from hubextrap.engine.resuming import input_stamps
from hubextrap.executors.driving import do_all, placed
from hubextrap.executors.named import executor_named
from hubextrap.hub.sink import HubSink
from hubextrap.tensors import LocalSink
from hubextrap.tensors.assembled import forms_of
from hubextrap.work.merging import strike, target_shards
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import Output, WorkPlan, files_to_compare, stamps_of
from hubextrap.work.records import Records

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from hubextrap.api.preparing import MergeOptions
    from hubextrap.api.staging import Staging
    from hubextrap.engine import MergePlan
    from hubextrap.opening import Run
    from hubextrap.tensors.interfaces import Sink


def distribute(
    staging: Staging, plan: MergePlan, run: Run, settings: MergeOptions, sinks: Sequence[Sink]
) -> list[MergeOutput]:
    """`run_plan`, by the executor that the settings name; no byte of a tensor is read here.

    What an earlier run has on record in the staging's place is not made again.

    Raises:
        HubExtrapError: whatever a unit raises, or the executor.
    """
    executor = executor_named(settings.executor)
    place = FolderPlace(staging.work)
    outputs = [output_of(sink) for sink in sinks]
    work = planned(plan, run, settings, outputs, staging.fingerprint)
    work, records = placed(work, place)
    kept, in_folders = Records(place, work.digest), not isinstance(sinks[0], HubSink)
    if in_folders:
        add_from_journals(work, kept, records, staging.journals)
    if records:
        run.progress.say(f"resuming: {len(records)} of {work.units} units are there")
    records = do_all(work, place, executor, records, run.progress)
    made = target_shards(work, records)

    def lost(files: Collection[str]) -> str:
        strike(work, kept, files)
        return "run the same command again, which makes them anew"

    for sink, journal, target in zip(sinks, staging.journals, made, strict=True):
        if isinstance(sink, HubSink):
            sink.adopt(target.shards.values(), target.small, lost)
        else:
            assert isinstance(sink, LocalSink)
            sink.remove_unfinished()
            journal.note_stamps(input_stamps(plan, run.sources))
            note_shards(journal, target)
    return [
        MergeOutput(tuple(target.shards[shard.file] for shard in plan.shards), target.identical)
        for target in made
    ]


def planned(
    plan: MergePlan,
    run: Run,
    settings: MergeOptions,
    outputs: Sequence[Output],
    fingerprint: Mapping[str, str],
    finish: Mapping[str, Any] | None = None,
) -> WorkPlan:
    """The plan as it travels.

    Args:
        finish: see `WorkPlan.finish`.
    """
    sources = run.sources
    forms = tuple(map(forms_of, sources))
    return WorkPlan(
        checkpoints=run.trajectory.checkpoints,
        stamps=stamps_of(sources, plan),
        merge=plan,
        outputs=tuple(outputs),
        compared=files_to_compare(plan, sources),
        forms=forms if any(forms) else (),
        fingerprint=fingerprint,
        cache=settings.cache,
        device=settings.device,
        allow_non_finite=settings.allow_non_finite,
        finish=finish or {},
    )


def output_of(sink: Sink) -> Output:
    """Where a sink's shards go, for those who make them."""
    if isinstance(sink, HubSink):
        return Output(push=sink.target)
    assert isinstance(sink, LocalSink)
    return Output(folder=str(sink.folder.absolute()))
