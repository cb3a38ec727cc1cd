"""What the pass found for one tensor, and the file beside the output that keeps it until all are found."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.errors import OutputError
from hubextrap.output_files import refuse_file
from hubextrap.statistics.linearity import BINS
from hubextrap.tensors.journal import sealed_line, unsealed_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_FORMAT = "2"
_BEGINNING = b'{"fingerprint": {"the journal'


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


class ScanJournal:
    """Finished tensors as JSON lines, the first line saying what is scanned. One process a file.

    A line that a kill cut short, or that is not as it was written, is dropped when the journal is opened
    again, and so is everything behind it.

    Attributes:
        finished: by name.
        changed: the parts of the fingerprint that an earlier scan had otherwise, so that it begins anew.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        """Open the journal at ``path``, or begin it.

        Raises:
            OutputError: it cannot be read or written, or another scan holds it.
        """
        self._path = path
        self.finished: dict[str, TensorScan] = {}
        self.changed: tuple[str, ...] = ()
        fingerprint = {"the journal's format": _FORMAT, **fingerprint}
        try:
            refuse_file(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(path, flags, 0o666), "a+b")
            self._file.seek(0)
            beginning = self._file.read(len(_BEGINNING))
        except OSError as error:
            raise self._failed(error) from error
        if beginning != _BEGINNING[: len(beginning)]:
            self._file.close()
            raise OutputError(
                f"{path}: is there, and not what a scan that was stopped left; move it away, or choose "
                "another --out"
            )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OutputError(f"{path}: another scan is at it; wait for it to end, or stop it") from None
        except OSError:
            pass  # no locks on this file system
        try:
            self._file.seek(0)
            intact = self._take_over(fingerprint)
            self._file.truncate(intact)
            if not intact:
                self._append({"fingerprint": fingerprint})
        except OSError as error:
            raise self._failed(error) from error

    def record(self, found: TensorScan) -> None:
        """Keep a finished tensor.

        Raises:
            OutputError: the disk did not take it.
        """
        arrays: dict[str, NDArray[Any]] = {
            "gram": found.gram,
            "counts": found.counts,
            "sample_counts": found.sample_counts,
            "example_places": found.example_places,
            "example_values": found.example_values,
        }
        line: dict[str, Any] = {name: array.tolist() for name, array in arrays.items()}
        # JSON has no NaN
        line["example_values"] = [[None if x != x else x for x in row] for row in line["example_values"]]
        line["inputs"] = found.inputs
        try:
            self._append({"tensor": found.name, "elements": found.elements, **line})
        except OSError as error:
            raise self._failed(error) from error
        self.finished[found.name] = found

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file once what it held is saved elsewhere."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _take_over(self, fingerprint: Mapping[str, str]) -> int:
        """Read what an earlier scan left; returns how many bytes of it are to stay."""
        intact = 0
        for raw in self._file:
            line = unsealed_line(raw)
            if line is None:
                break
            try:
                if not intact:
                    before = line["fingerprint"]
                    self.changed = tuple(
                        part
                        for part in {**before, **fingerprint}
                        if before.get(part) != fingerprint.get(part)
                    )
                    if self.changed:
                        return 0
                else:
                    found = _tensor(line)
                    self.finished[found.name] = found
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                break
            intact += len(raw)
        return intact

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(sealed_line(line))
        self._file.flush()

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: cannot be written: {error.strerror}; make room, or choose another --out"
        )


def _tensor(line: Mapping[str, Any]) -> TensorScan:
    """ValueError, KeyError, TypeError or OverflowError on what is no tensor's record."""
    found = TensorScan(
        line["tensor"],
        line["elements"],
        np.array(line["gram"], dtype=np.float64),
        np.array(line["counts"], dtype=np.int64),
        np.array(line["sample_counts"], dtype=np.int64),
        np.array(line["example_places"], dtype=np.int64),
        np.array(line["example_values"], dtype=np.float32),
        tuple(bytes.fromhex(digest).hex() for digest in line["inputs"]),
    )
    like = TensorScan.empty(found.name, found.elements, len(found.gram), len(found.example_places))
    for name in ("gram", "counts", "sample_counts", "example_places", "example_values"):
        if getattr(found, name).shape != getattr(like, name).shape:
            raise ValueError(f"{name} has another shape")
    if not isinstance(found.name, str) or found.counts.sum() != found.elements:
        raise ValueError("counts contradicts elements")
    return found
