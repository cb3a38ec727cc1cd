"""What sources share whose tensors are made when they are read: their files, ranges, and what they keep."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from hubextrap.engine.kernels import Combiner
from hubextrap.engine.plan import combination
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.interfaces import SMALL_FILE, FileInfo, Source, check_range, readable
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from hubextrap.adapters.run import AdapterRun, Term

    Bytes: TypeAlias = NDArray[np.uint8]
    Rows: TypeAlias = Callable[[str], NDArray[np.float64]]
    """Tensor of the base → (K,), the coefficients of one prediction."""

T = TypeVar("T")


class VirtualSource(Source):
    """A checkpoint of one safetensors file, whose tensors are made when they are read. Thread-safe.

    Args:
        shard: the file; ranges of it may be read in any order and any number of times.
        beside: the other files, by their names.
    """

    def __init__(
        self, name: str, shard: ShardInfo, header: bytes = b"", beside: Mapping[str, bytes] | None = None
    ):
        self.name = name
        self.layout = CheckpointLayout(name, (shard,), None)
        self._shard, self._header, self._beside = shard, header, dict(beside or {})
        self._stored = tuple(tensor for tensor in shard.tensors if tensor.nbytes)

    def files(self) -> Mapping[str, FileInfo]:
        sizes = {self._shard.file: self._shard.size} | {
            file: len(data) for file, data in self._beside.items()
        }
        return {file: FileInfo(size) for file, size in sizes.items()}

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        check_range(
            readable(self.files().get(file), self.name, file).size, offset, len(buffer), self.name, file
        )
        if file in self._beside:
            buffer[:] = self._beside[file][offset : offset + len(buffer)]
            return
        view, stop = np.frombuffer(buffer, np.uint8), offset + len(buffer)
        if offset < len(self._header):
            part = self._header[offset:stop]
            view[: len(part)] = np.frombuffer(part, np.uint8)
        number = max(0, bisect_right(self._stored, offset, key=attrgetter("offset")) - 1)
        for info in self._stored[number:]:
            if info.offset >= stop:
                break
            first, last = max(offset, info.offset), min(stop, info.offset + info.nbytes)
            if first < last:
                self._fill_bytes(info, first - info.offset, view[first - offset : last - offset])

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        content = bytearray(readable(self.files().get(file), self.name, file, limit).size)
        self.read(file, 0, memoryview(content))
        return bytes(content)

    def close(self) -> None:
        """Nothing is open here: what the tensors are made from is somebody else's."""

    def fill(self, info: TensorInfo, start: int, out: Bytes) -> None:
        """Write the elements of a tensor from ``start`` on that ``out`` has room for.

        Raises:
            SourceError: what they are made from could not be read, or they are not to be had here.
        """
        raise NotImplementedError

    def _fill_bytes(self, info: TensorInfo, offset: int, out: Bytes) -> None:
        size = DTYPES[info.dtype].itemsize
        start, stop = offset // size, -(-(offset + len(out)) // size)
        if (stop - start) * size == len(out):
            self.fill(info, start, out)
        else:  # a range that begins or ends within an element
            whole = np.empty((stop - start) * size, np.uint8)
            self.fill(info, start, whole)
            out[:] = whole[offset - start * size :][: len(out)]


@dataclass(frozen=True, slots=True)
class StoredTerm:
    """c·W, of a tensor that a file holds."""

    coefficient: float
    source: Source
    info: TensorInfo


def stored_terms(run: AdapterRun, tensor: str, row: NDArray[np.float64]) -> list[StoredTerm]:
    """What Σ c_k·W_k of a tensor that was trained whole consists of; at the base's step it is the base's.

    Args:
        tensor: by the base's name.
        row: (K,)

    Raises:
        HubExtrapError: the base is needed and cannot be had.
    """
    terms = []
    for adapter, source, coefficient in zip(run.adapters, run.sources, row.tolist(), strict=True):
        if coefficient and (adapter is None or source is None):
            terms.append(StoredTerm(coefficient, run.base.source, run.base.layout.tensors[tensor]))
        elif coefficient and adapter is not None and source is not None:
            terms.append(StoredTerm(coefficient, source, adapter.whole[tensor]))
    return terms


def finite_terms(run: AdapterRun, tensor: str, row: NDArray[np.float64]) -> list[Term]:
    """What Σ c_k·s_k·B_k·A_k of a tensor consists of, see `AdapterRun.terms`.

    Raises:
        NonFinite: a checkpoint that takes part holds NaN or infinity.
        SourceError: factors could not be read.
    """
    terms = run.terms(tensor, row.tolist())
    used = (k for k, coefficient in enumerate(row) if coefficient and run.adapters[k] is not None)
    for k, term in zip(used, terms, strict=True):
        if not (np.isfinite(term.left).all() and np.isfinite(term.right).all()):
            raise run.non_finite(k, tensor)
    return terms


def ranks(run: AdapterRun, rows: Rows) -> dict[str, list[int]]:
    """The ranks of the products that a prediction sums up, by the base's name of the tensor."""
    found = {}
    for tensor in run.last.factors:
        used = zip(run.adapters, rows(tensor).tolist(), strict=True)
        found[tensor] = [one.factors[tensor].rank for one, c in used if one is not None and c]
    return found


def factor_sizes(run: AdapterRun, rows: Rows, least: int = 0) -> list[int]:
    """Bytes of each tensor's factors, all that a prediction sums up side by side, in float64.

    Args:
        least: a rank that is taken into account where theirs sum up to less.
    """
    sizes = []
    for tensor, each in ranks(run, rows).items():
        shape = run.last.factors[tensor].shape
        extents = shape[-2:] if len(shape) > 1 else (*shape, 1)
        sizes.append(8 * math.prod(shape[:-2]) * sum(extents) * max(sum(each), least))
    return sizes


def write_sum(terms: Sequence[StoredTerm], start: int, out: Bytes, dtype: str) -> None:
    """Write Σ c·W, summed in float64 and rounded once, of the elements that ``out`` has room for.

    Args:
        terms: of tensors of one shape; coefficients other than 0.
        start: the first element.
        dtype: what ``out`` stores, by safetensors name.

    Raises:
        SourceError: a tensor could not be read.
        ValueError: there are no terms.
    """
    count, inputs = len(out) // DTYPES[dtype].itemsize, []
    for term in terms:
        size = DTYPES[term.info.dtype].itemsize
        stored = np.empty(count * size, np.uint8)
        term.source.read(term.info.file, term.info.offset + start * size, stored.data)
        inputs.append(stored)
    row = combination(np.array([term.coefficient for term in terms]), range(len(terms)))
    if not row.indices:
        raise ValueError("a sum of no terms")
    Combiner(1, 8).combine(inputs, [term.info.dtype for term in terms], [row], [out], dtype, wide=True)


class Kept(Generic[T]):
    """What was made last, each once for all threads that want it, within a number of bytes. Thread-safe.

    Args:
        make: of its key.
        size: bytes of what was made.
        limit: bytes that are kept; the last two are in any case, as threads work on neighbours.
    """

    def __init__(self, make: Callable[[str], T], size: Callable[[T], int], limit: int) -> None:
        self._make, self._size, self._limit = make, size, limit
        self._lock = Lock()
        self._made: OrderedDict[str, Future[T]] = OrderedDict()

    def __call__(self, key: str) -> T:
        """What is made of a key; raises what making it does, and tries it again when asked again."""
        with self._lock:
            there = self._made.get(key)
            future = self._made.setdefault(key, Future())
            self._made.move_to_end(key)
        if there is not None:
            return there.result()
        try:
            future.set_result(self._make(key))
        except BaseException as error:
            with self._lock:
                self._made.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            self._drop()
        return future.result()

    def _drop(self) -> None:
        done = {key: self._size(one.result()) for key, one in self._made.items() if one.done()}
        for key in list(done)[:-2]:
            if sum(done.values()) > self._limit:
                del self._made[key], done[key]
