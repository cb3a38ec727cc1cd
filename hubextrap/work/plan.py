"""A plan that travels: JSON that says all that a worker needs but the bytes of the checkpoints.

It names each checkpoint by its commit, or by path with sizes and times of a local one's files, and holds what
their headers say, the coefficients, where the output goes, and the versions whose arithmetic it counts on.
It states its own sha256, which every record repeats. It holds no secret: a worker logs in by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.engine.inputs import shared_files
from hubextrap.errors import CorruptFile
from hubextrap.hub.target import PushTarget
from hubextrap.lazy import by_name
from hubextrap.tensors.assembled import beneath
from hubextrap.work.kinds import Work, checkpoint_as_json, checkpoint_from_json, own_versions
from hubextrap.work.layouts import (
    forms_as_json,
    forms_from_json,
    layouts_as_json,
    layouts_from_json,
    merge_as_json,
    merge_from_json,
)
from hubextrap.work.shard_records import ShardRecord, shard_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.engine.plan import MergePlan
    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.progress import Progress
    from hubextrap.tensors.assembled import Forms
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.work.kinds import Compared, Hands, Stamp
    from hubextrap.work.records import Record


@dataclass(frozen=True)
class Output:
    """Where the shards of one target go."""

    folder: str | None = None
    """An absolute path that every worker sees."""
    push: PushTarget | None = None
    """Or straight to the Hub."""


@dataclass(frozen=True)
class WorkPlan(Work):
    """What is to be done, cut into units that are numbered from 0 on.

    The first units are the output's shards, each for all targets at once. After them come the input files of
    the Hub that go into several shards: none of their workers reads such a file as a whole, so a unit of its
    own compares it with the hash that the Hub lists, once those shards are made.
    """

    checkpoints: tuple[Checkpoint, ...]
    stamps: tuple[Mapping[str, Stamp], ...]
    """For each checkpoint, those of its weight files, as they are stored."""
    merge: MergePlan
    outputs: tuple[Output, ...]
    """One per target."""
    compared: Compared = ()
    """The files that have units of their own, with the shards that are made from each."""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """What decides the output's bytes; see `api.fingerprint`."""
    cache: bool = False
    device: str = "cpu"
    allow_non_finite: bool = False
    forms: tuple[Forms, ...] = ()
    """In which each checkpoint is read; empty where all are read as they are stored."""
    finish: Mapping[str, Any] = field(default_factory=dict)
    """What whoever does the last step has to know; JSON values."""
    versions: Mapping[str, str] = field(default_factory=own_versions)
    digest: str = ""
    """Of its JSON; set where it was read or written."""

    kind = "merge"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What messages call each unit."""
        return (*(shard.file for shard in self.merge.shards), *compare_labels(self.compared, self.merge))

    @property
    def shard_units(self) -> range:
        return self.free_units

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        read = (shard.bytes_read for shard in self.merge.shards)
        return (*read, *compare_sizes(self.compared, self.merge))

    def bytes_of(self, unit: int) -> int:
        return self._sizes[unit]

    @property
    def peak_memory(self) -> int:
        return self.merge.peak_memory

    @property
    def threads(self) -> int:
        return self.merge.buffers.workers

    @property
    def gpus(self) -> int:
        return int(self.device != "cpu")

    def needs_folders(self) -> str | None:
        local = [one.path for one in self.checkpoints if one.repo is None]
        local += [one.folder or "nowhere" for one in self.outputs if one.push is None]
        if self.finish.get("out") is not None:
            local.append(str(self.finish["out"]))
        return f"the folder {local[0]}" if local else None

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(output.folder for output in self.outputs if output.folder is not None)

    def one_thread(self) -> WorkPlan:
        return replace(self, merge=replace(self.merge, buffers=self.merge.buffers.one_worker()))

    def hands(self, progress: Progress) -> Hands:
        found: Hands = by_name("hubextrap.work.making:MergeHands")(self, progress)  # stands above this
        return found

    def shard_record(self, record: Record) -> ShardRecord:
        """What the record of a shard says.

        Raises:
            CorruptFile: it is none of that shard's.
        """
        shard = self.merge.shards[record.unit]
        return shard_record(record, shard, len(self.checkpoints), len(self.outputs))

    def is_there(self, record: Record) -> bool:
        """Whether it says what a shard's says, and its shards lie in their folders, as large as planned.

        Of those on the Hub, the commit tells.
        """
        if record.unit not in self.shard_units:
            return True
        try:
            shards = self.shard_record(record).shards
        except CorruptFile:
            return False
        places = [one.folder for one in self.outputs]
        return all(
            _has_size(Path(folder, shard.file), shard.size)
            for folder, shard in zip(places, shards, strict=True)
            if folder is not None
        )

    def same_results(self, other: WorkPlan) -> bool:
        """Whether it makes the same bytes of the same files in the same place."""
        same = other.fingerprint == self.fingerprint and other.outputs == self.outputs
        same = same and (other.stamps, other.compared) == (self.stamps, self.compared)
        return same and other.allow_non_finite == self.allow_non_finite

    def _content(self) -> dict[str, Any]:
        return {
            "checkpoints": list(map(checkpoint_as_json, self.checkpoints, self.stamps)),
            "layouts": layouts_as_json(self.merge.layouts),
            "merge": merge_as_json(self.merge),
            **forms_as_json(self.forms),
            "compared": compared_as_json(self.compared),
            "outputs": [asdict(one) for one in self.outputs],
            "fingerprint": dict(self.fingerprint),
            "options": {name: getattr(self, name) for name in ("cache", "device", "allow_non_finite")},
            "finish": dict(self.finish),
        }

    @classmethod
    def _from_content(cls, stated: Mapping[str, Any], digest: str) -> WorkPlan:
        pairs = [checkpoint_from_json(one) for one in stated["checkpoints"]]
        return cls(
            checkpoints=tuple(checkpoint for checkpoint, _ in pairs),
            stamps=tuple(stamps for _, stamps in pairs),
            merge=merge_from_json(stated["merge"], layouts_from_json(stated["layouts"])),
            outputs=tuple(
                Output(one["folder"], None if one["push"] is None else PushTarget(**one["push"]))
                for one in stated["outputs"]
            ),
            compared=compared_from_json(stated["compared"]),
            forms=forms_from_json(stated),
            fingerprint=stated["fingerprint"],
            finish=stated["finish"],
            versions=stated["versions"],
            digest=digest,
            **stated["options"],
        )  # fmt: skip


def compare_labels(compared: Compared, plan: MergePlan | ScanPlan) -> list[str]:
    """What messages call the units that compare a file."""
    return [f"{file} of step {plan.steps[k]}" for (k, file), _ in compared]


def compare_sizes(compared: Compared, plan: MergePlan | ScanPlan) -> list[int]:
    """Bytes that the units read which compare a file."""
    sizes = [{one.file: one.size for one in layout.shards} for layout in plan.layouts]
    return [sizes[k][file] for (k, file), _ in compared]


def compared_as_json(compared: Compared) -> list[Any]:
    """What `compared_from_json` takes."""
    return [[k, file, list(units)] for (k, file), units in compared]


def compared_from_json(stated: Sequence[Any]) -> Compared:
    """`Work.compared`."""
    return tuple(((k, file), tuple(units)) for k, file, units in stated)


def stamps_of(sources: Sequence[Source], plan: MergePlan | ScanPlan) -> tuple[dict[str, Stamp], ...]:
    """The stamps of the stored files that each source's weights are read from."""
    from hubextrap.tensors.local import LocalSource

    found = []
    for source, layout in zip(sources, plan.layouts, strict=True):
        stamps: dict[str, Stamp] = {}
        stored, files = beneath(source, [shard.file for shard in layout.shards])
        there = stored.files()
        for file in files:
            if isinstance(stored, LocalSource):
                size, time, *_ = stored.stamp(file)
                stamps[file] = size, time
            else:
                stamps[file] = there[file].size, there[file].digest
        found.append(stamps)
    return tuple(found)


def files_to_compare(merge: MergePlan, sources: Sequence[Source]) -> Compared:
    """`Work.compared` of a merge."""
    return shared_and_listed([shard.tensors for shard in merge.shards], merge.layouts, sources)


def shared_and_listed(
    parts: Sequence[Sequence[TensorInputs]], layouts: Sequence[CheckpointLayout], sources: Sequence[Source]
) -> Compared:
    """`Work.compared` of units that read these tensors: the shared files that the Hub lists a hash of."""
    found = shared_files(parts, layouts)
    return tuple(
        (key, units)
        for key, units in sorted(found.items())
        if sources[key[0]].files()[key[1]].digest is not None
    )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
