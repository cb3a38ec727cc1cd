"""What the pass found for one tensor, and the file beside the output that keeps it until all are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.durable.log import Log
from hubextrap.statistics.linearity import BINS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_ARRAYS = {
    "gram": np.float64,
    "counts": np.int64,
    "sample_counts": np.int64,
    "example_places": np.int64,
    "example_values": np.float32,
}


@dataclass(frozen=True, slots=True)
class TensorScan:
    """One tensor under K checkpoints. The arrays are filled while it is read."""

    name: str
    elements: int
    gram: NDArray[np.float64]
    """(K, K)."""
    counts: NDArray[np.int64]
    """(BINS + 3,)."""
    sample_counts: NDArray[np.int64]
    """(BINS + 3,): the same of the weights that were drawn."""
    example_places: NDArray[np.int64]
    """(E,): −1 where there is none."""
    example_values: NDArray[np.float32]
    """(E, K): NaN where there is none."""
    inputs: tuple[str, ...] = ()
    """A hash of what was read of each checkpoint."""

    @classmethod
    def empty(cls, name: str, elements: int, checkpoints: int, examples: int) -> TensorScan:
        """One of which nothing has been read."""
        return cls(
            name,
            elements,
            np.zeros((checkpoints, checkpoints)),
            np.zeros(BINS + 3, np.int64),
            np.zeros(BINS + 3, np.int64),
            np.full(examples, -1, np.int64),
            np.full((examples, checkpoints), np.nan, np.float32),
        )

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        arrays: dict[str, Any] = {name: getattr(self, name).tolist() for name in _ARRAYS}
        # JSON has no NaN
        arrays["example_values"] = [[None if x != x else x for x in row] for row in arrays["example_values"]]
        return {"tensor": self.name, "elements": self.elements, **arrays, "inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> TensorScan:
        """The same to the last bit.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError: it is none.
        """
        arrays: dict[str, Any] = {name: np.array(stated[name], dtype) for name, dtype in _ARRAYS.items()}
        inputs = tuple(bytes.fromhex(digest).hex() for digest in stated["inputs"])
        found = cls(stated["tensor"], stated["elements"], **arrays, inputs=inputs)
        like = cls.empty(found.name, found.elements, len(found.gram), len(found.example_places))
        for name in _ARRAYS:
            if getattr(found, name).shape != getattr(like, name).shape:
                raise ValueError(f"{name} has another shape")
        if not isinstance(found.name, str) or found.counts.sum() != found.elements:
            raise ValueError("counts does not add up to elements")
        return found


class ScanJournal(Log):
    """The finished tensors of one scan.

    Attributes:
        finished: by name.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        """See `Log`."""
        self.finished: dict[str, TensorScan] = {}
        remedy = "make room, or choose another --out"
        super().__init__(path, fingerprint, remedy=remedy, beside_output_of="scan")

    def record(self, found: TensorScan) -> None:
        """Keep a finished tensor.

        Raises:
            OutputError: the disk did not take it.
        """
        self._note(found.as_json())
        self.finished[found.name] = found

    def _take(self, record: dict[str, Any]) -> None:
        found = TensorScan.from_json(record)
        self.finished[found.name] = found
