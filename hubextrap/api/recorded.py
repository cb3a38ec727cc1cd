"""From the journals of a place to the records of those who work for it, and back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, OutputError
from hubextrap.work.merging import is_there, target_shards
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import Record, Records
from hubextrap.work.submitted import submitted_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubextrap.tensors import Journal
    from hubextrap.work.merging import TargetShards


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
        kept = Records(place, plan.digest)
        found = [kept.get(unit) for unit in kept.done() & set(plan.shard_units)]
        there = {one.unit: one for one in found if one is not None and is_there(plan, one)}
        for journal, target in zip(journals, target_shards(plan, there), strict=True):
            note_shards(journal, target)


def add_from_journals(
    plan: WorkPlan, kept: Records, records: dict[int, Record], journals: Sequence[Journal]
) -> None:
    """Put on record what an earlier run of this process's kind has made.

    What comes from a file that is compared at the end is made again: a journal does not say what was read.
    """
    again = {file for _, shards in plan.compared for file in shards}
    for unit in plan.shard_units:
        file = plan.labels[unit]
        if unit in records or file in again or not all(file in one.finished for one in journals):
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


def refuse_submitted(work: Path, what: str) -> None:
    """Refuse to go on by oneself while others are at work.

    Raises:
        OutputError: says who is, and how to have them stop.
    """
    if (others := submitted_to(FolderPlace(work))) is not None:
        raise OutputError(
            f"{what}: {others.label} is making it; `hubextrap finish {work}` says how far it is and does the "
            f"last step. To go on without it: {others.cancel}, then rm {work / 'submitted.json'}",
            file=work,
        )
