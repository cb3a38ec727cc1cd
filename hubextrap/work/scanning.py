"""A scan that travels: units are runs of consecutive tensors, whose Gram matrices others put together.

A tensor is never split, and its blocks are added up in their order, so the scan is the same to the last bit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hubextrap.engine.budget import NO_LIMIT, Budget, Buffers
from hubextrap.engine.defaults import MiB
from hubextrap.engine.scan_plan import ScanPlan, plan_scan
from hubextrap.errors import CorruptFile
from hubextrap.notebooks import and_more
from hubextrap.scans.scan import EXAMPLES
from hubextrap.scans.tensor_scan import TensorScan
from hubextrap.statistics.linearity import BINS
from hubextrap.tensors.assembled import forms_of
from hubextrap.work.hands import ReadingHands, left_as_json, read_in
from hubextrap.work.kinds import Work, checkpoint_as_json, checkpoint_from_json, own_versions
from hubextrap.work.layouts import forms_as_json, forms_from_json, layouts_as_json, layouts_from_json
from hubextrap.work.plan import (
    compare_labels,
    compare_sizes,
    compared_as_json,
    compared_from_json,
    shared_and_listed,
    stamps_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.progress import Progress
    from hubextrap.tensors.assembled import Forms
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.work.kinds import Compared, Stamp
    from hubextrap.work.records import Record

LEAST_BYTES, MOST_BYTES = 256 * MiB, 4096 * MiB
"""What a unit reads at least and at most, where a tensor is no larger: below the least, starting it takes
longer than reading; above the most, much is lost with a worker."""
UNITS = 128
"""Units that there are at least, where each has its least to read."""
MOST_RECORD = 40_000_000
"""Bytes of a unit's record."""
_DIGITS = 22
"""Bytes of a number in it."""


@dataclass(frozen=True)
class ScanWork(Work):
    """Tensors under K checkpoints, cut into runs of consecutive ones; and files that several runs read."""

    checkpoints: tuple[Checkpoint, ...]
    stamps: tuple[Mapping[str, Stamp], ...]
    """As in `WorkPlan`."""
    scan: ScanPlan
    tied: bool
    """The last checkpoint's tie_word_embeddings."""
    starts: tuple[int, ...]
    """The first tensor of each run."""
    reference_share: float | None = None
    """As `engine.scan.scan_trajectory` takes it."""
    compared: Compared = ()
    forms: tuple[Forms, ...] = ()
    """As in `WorkPlan`."""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """What stands for each checkpoint's bytes."""
    cache: bool = False
    versions: Mapping[str, str] = field(default_factory=own_versions)
    digest: str = ""

    kind = "scan"

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Checkpoint],
        sources: Sequence[Source],
        scan: ScanPlan,
        fingerprint: Mapping[str, str],
        *,
        tied: bool,
        reference_share: float | None = None,
        cache: bool = False,
    ) -> ScanWork:
        """The work of a scan, cut into runs."""
        starts = tuple(_starts(scan))
        plan = cls(
            tuple(checkpoints), stamps_of(sources, scan), scan, tied, starts, reference_share, cache=cache
        )
        compared = shared_and_listed([plan.run(unit) for unit in range(len(starts))], scan.layouts, sources)
        forms = tuple(map(forms_of, sources))
        return replace(plan, compared=compared, forms=forms if any(forms) else (), fingerprint=fingerprint)

    def run(self, unit: int) -> tuple[TensorInputs, ...]:
        """The tensors of a unit."""
        return self.scan.tensors[self.starts[unit] : (*self.starts, len(self.scan.tensors))[unit + 1]]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """By the first tensor of each run."""
        runs = [self.run(unit) for unit in range(len(self.starts))]
        first = (f"{run[0].name}{and_more(len(run))}" for run in runs)
        return (*first, *compare_labels(self.compared, self.scan))

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        read = (sum(tensor.bytes_stored for tensor in self.run(unit)) for unit in range(len(self.starts)))
        return (*read, *compare_sizes(self.compared, self.scan))

    def bytes_of(self, unit: int) -> int:
        return self._sizes[unit]

    @property
    def peak_memory(self) -> int:
        return self.scan.buffers.peak_memory

    @property
    def threads(self) -> int:
        return self.scan.buffers.workers

    def one_thread(self) -> ScanWork:
        return replace(self, scan=replace(self.scan, buffers=self.scan.buffers.one_worker()))

    def hands(self, progress: Progress) -> ScanHands:
        return ScanHands(self, progress)

    def same_results(self, other: ScanWork) -> bool:
        mine, theirs = ((one.fingerprint, one.stamps, one.reference_share) for one in (self, other))
        return mine == theirs

    def found(self, records: Mapping[int, Record]) -> dict[str, TensorScan]:
        """What the records of all runs say, by tensor.

        Raises:
            CorruptFile: one does not say what a scan's says.
        """
        tensors: dict[str, TensorScan] = {}
        for unit in self.free_units:
            wanted = [(tensor.name, tensor.elements) for tensor in self.run(unit)]
            try:
                found = [TensorScan.from_json(one) for one in records[unit].content["tensors"]]
                if [(one.name, one.elements) for one in found] != wanted:
                    raise ValueError("it is of other tensors")
                if any(len(one.gram) != len(self.scan.steps) for one in found):
                    raise ValueError("it is of other checkpoints")
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise CorruptFile(
                    f"the record of unit {unit} ({self.labels[unit]}) is none of a scan's ({error}); remove "
                    "it, and the unit is done again"
                ) from error
            tensors.update((one.name, one) for one in found)
        return tensors

    def _content(self) -> dict[str, Any]:
        return {
            "checkpoints": list(map(checkpoint_as_json, self.checkpoints, self.stamps)),
            "layouts": layouts_as_json(self.scan.layouts),
            "tied": self.tied,
            "buffers": list(astuple(self.scan.buffers)),
            "starts": list(self.starts),
            "reference_share": self.reference_share,
            **forms_as_json(self.forms),
            "compared": compared_as_json(self.compared),
            "fingerprint": dict(self.fingerprint),
            "cache": self.cache,
        }

    @classmethod
    def _from_content(cls, stated: Mapping[str, Any], digest: str) -> ScanWork:
        pairs = [checkpoint_from_json(one) for one in stated["checkpoints"]]
        # which tensors are scanned follows from the headers
        scan = plan_scan(
            [checkpoint.step for checkpoint, _ in pairs],
            layouts_from_json(stated["layouts"]),
            tied=stated["tied"],
            budget=Budget(NO_LIMIT),
        )
        return cls(
            checkpoints=tuple(checkpoint for checkpoint, _ in pairs),
            stamps=tuple(stamps for _, stamps in pairs),
            scan=replace(scan, buffers=Buffers(*stated["buffers"])),
            starts=tuple(stated["starts"]),
            compared=compared_from_json(stated["compared"]),
            forms=forms_from_json(stated),
            digest=digest,
            **{
                name: stated[name] for name in ("tied", "reference_share", "fingerprint", "cache", "versions")
            },
        )


class ScanHands(ReadingHands):
    """Reads runs of tensors."""

    def __init__(self, plan: ScanWork, progress: Progress) -> None:
        checkpoints = read_in(plan.checkpoints, plan.stamps, plan.forms)
        super().__init__(plan, checkpoints, plan.scan.layouts, progress, cache=plan.cache)
        self._plan = plan

    def make(self, unit: int) -> dict[str, Any]:
        from hubextrap.engine.scan import scan_part  # imports numba

        plan = self._plan
        found, left = scan_part(
            plan.scan,
            self.sources,
            plan.run(unit),
            reference_share=plan.reference_share,
            shared=self.shared,
            progress=self._progress,
        )
        return {"tensors": [one.as_json() for one in found], "left": left_as_json(left)}


def _starts(scan: ScanPlan) -> Iterator[int]:
    """The first tensor of each run."""
    sizes = [tensor.bytes_read for tensor in scan.tensors]
    most = min(MOST_BYTES, max(LEAST_BYTES, sum(sizes) // UNITS))
    count = len(scan.steps)
    numbers = count**2 + 2 * (BINS + 3) + EXAMPLES * (1 + count)
    tensors_at_most = max(1, MOST_RECORD // (_DIGITS * numbers))
    first, size = 0, 0
    for number, bytes_read in enumerate(sizes):
        full = size + bytes_read > most or number - first == tensors_at_most
        if number == 0 or (full and number > first):
            yield number
            first, size = number, 0
        size += bytes_read
