"""From the journals of a place to the records of those who work for it, and back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, OutputError
from hubextrap.executors.submission import SUBMITTED, Submission
from hubextrap.work.merging import target_shards
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import DONE, Record, Records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubextrap.executors.watching import Submitted, Watching
    from hubextrap.tensors import Journal
    from hubextrap.work.merging import TargetShards
    from hubextrap.work.places import Place


def note_shards(journal: Journal, target: TargetShards) -> None:
    """Put in a journal what is on record and not in it.

    Raises:
        OutputError: the disk did not take it.
    """
    for file, shard in target.shards.items():
        if journal.finished.get(file) != shard:
            journal.inputs[file] = target.inputs[file]
            journal.identical &= target.identical
            journal.record(shard)


def take_records(work: Path, fingerprint: Mapping[str, str], journals: Sequence[Journal]) -> None:
    """Put in the journals of an output's folders what others have made for it, if that is of the same bytes.

    Raises:
        OutputError: the disk did not take it.
    """
    with suppress(HubExtrapError):
        place = FolderPlace(work)
        plan = WorkPlan.load(place)
        if plan.fingerprint != fingerprint or len(plan.outputs) != len(journals):
            return
        found = Records(place, plan.digest).found(plan.shard_units)
        there = {unit: one for unit, one in found.items() if plan.is_there(one)}
        for journal, target in zip(journals, target_shards(plan, there), strict=True):
            note_shards(journal, target)


def add_from_journals(
    plan: WorkPlan, kept: Records, records: dict[int, Record], journals: Sequence[Journal]
) -> None:
    """Put on record what an earlier run of this process's kind has made.

    What comes from a file that is compared at the end is made again: a journal does not say what was read.
    """
    if not journals:  # of a push: what the Hub has is not known here
        return
    again = {unit for _, units in plan.compared for unit in units}
    for unit in plan.shard_units:
        file = plan.labels[unit]
        if unit in records or unit in again or not all(file in one.finished for one in journals):
            continue
        inputs = journals[0].inputs[file]
        shards = [
            {**asdict(one.finished[file]), "identical": one.identical, "small": None} for one in journals
        ]
        content = {
            "shards": shards, "inputs": list(inputs.digests), "compared": inputs.compared, "left": []
        }  # fmt: skip
        records[unit] = Record(unit, plan.digest, content)
        kept.put(records[unit])


def refuse_at_work(work: Path, what: str, fingerprint: Mapping[str, str], *, detached: bool) -> None:
    """Refuse to go on where jobs that were submitted may write.

    Args:
        detached: for work that is submitted, or was: only jobs of something else are in its way then.

    Raises:
        OutputError: says how to have them stop. HubExtrapError: the queue gives no answer.
    """
    if detached:
        refuse_others(work, fingerprint)
    else:
        refuse_submitted(work, what)


def refuse_others(work: Path, fingerprint: Mapping[str, str]) -> None:
    """Refuse to take the place of work that was submitted while its jobs may write there.

    Args:
        fingerprint: of what is submitted, or finished: jobs of the same go on.

    Raises:
        OutputError: says how to have them stop. HubExtrapError: the queue gives no answer.
    """
    place = FolderPlace(work)
    with suppress(HubExtrapError):
        if WorkPlan.load(place).fingerprint == fingerprint:
            return
    refuse_jobs(place)


def refuse_jobs(place: Place) -> None:
    """Refuse while jobs that were submitted for something else may write there.

    Raises:
        OutputError, HubExtrapError: as `refuse_others`.
    """
    others = Submission.load(place)
    if others is None or not queue_of(others).alive(others.every_job):
        return
    raise OutputError(
        f"{place.name}: jobs that were submitted before, for another recipe or other checkpoints, still work "
        f"there; `{in_queue(place, others).how_to_cancel}` ends them, then submit again"
    )


def refuse_submitted(work: Path, what: str) -> None:
    """Refuse to go on by oneself while others are at work.

    Raises:
        OutputError: says who is, and how to have them stop.
    """
    place = FolderPlace(work)
    if (others := Submission.load(place)) is None:
        return
    said = in_queue(place, others)
    raise OutputError(
        f"{what}: was submitted to {others.executor}; `hubextrap finish {quote(str(work))} --wait` waits for "
        f"it and does the last step. To go on without it: `{said.how_to_cancel}`, then "
        f"`rm {quote(str(work / SUBMITTED))}`",
        file=work,
    )


def is_submitted(work: Path) -> bool:
    """Whether others may be at work there."""
    return (work / SUBMITTED).exists()


def units_on_record(work: Path) -> int:
    """How many units of a plan are done."""
    return len(FolderPlace(work).names(DONE))


def in_queue(place: Place, others: Submission) -> Submitted:
    """The jobs that a plan's units were handed to, and how to watch and cancel them."""
    return queue_of(others).commands(place, others.every_job)


def queue_of(others: Submission) -> Watching:
    """The queue that it was handed to."""
    from hubextrap.executors.detached import executor_of

    return executor_of(others)
