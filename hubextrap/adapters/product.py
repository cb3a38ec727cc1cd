"""Σ c_k·ΔW_k of adapters as a checkpoint: the engine adds the base's rows to it as it reads both.

Products are made of the range that is read, never whole, in `engine.product_loops`: an element depends on
nothing but its row and its column of the factors, so the bytes do not depend on ranges, threads or memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.adapters.recompress import stacked
from hubextrap.adapters.virtual import (
    factor_sizes,
    finite_terms,
    stored_terms,
    write_sum,
)
from hubextrap.compiling import MachineCode
from hubextrap.errors import SourceError
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.kept import Kept
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo
from hubextrap.tensors.virtual import VirtualSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubextrap.adapters.recompress import Matrices
    from hubextrap.adapters.run import AdapterRun
    from hubextrap.adapters.virtual import Rows

PRODUCT_FILE = "product.safetensors"
_KEPT = 64 * 2**20
"""Bytes of factors that are kept."""
_MULTIPLY = MachineCode("hubextrap.engine", ("product_loops", "casts"), "multiply")


class ProductSource(VirtualSource):
    """What one prediction adds to the base: F64 tensors, made as they are read. Thread-safe.

    Tensors that were trained whole are no addition but the prediction itself. Those that no adapter changes
    are in the layout as the base stores them, and cannot be read.

    Args:
        rows: tensor of the base → float64 (K,), the coefficients.
        base: the base's layout.
        step: the target's.

    Attributes:
        memory: bytes that it takes beside the engine's buffers.
    """

    def __init__(self, run: AdapterRun, rows: Rows, base: CheckpointLayout, *, step: int) -> None:
        name = f"the adapters' product at step {step}"
        super().__init__(name, CheckpointLayout(name, (_shard(base, run.layouts[-1]),), None))
        self._run, self._rows = run, rows
        self._factors = Kept(self._stacked, lambda pair: sum(one.nbytes for one in pair), _KEPT)
        # two are kept in any case; a third is read, laid side by side, and put in one piece meanwhile
        sizes = factor_sizes(run, rows)
        largest = max(sizes, default=0)
        self.memory = min(max(_KEPT, 2 * largest), sum(sizes)) + 3 * largest

    def fill(self, info: TensorInfo, start: int, out: NDArray[np.uint8]) -> None:
        if info.name in self._run.last.whole:
            write_sum(stored_terms(self._run, info.name, self._rows(info.name)), start, out, info.dtype)
        elif info.name not in self._run.last.factors:
            what = f"{self.name}: no adapter changes {info.name}; read it of the base"
            raise SourceError(what, file=info.file)
        elif pair := self._factors(info.name):
            write_product(*pair, start, out)
        else:
            out[:] = 0

    def _stacked(self, name: str) -> tuple[Matrices, Matrices] | tuple[()]:
        terms = finite_terms(self._run, name, self._rows(name))
        return stacked(terms) if terms else ()


def write_product(left: Matrices, right: Matrices, start: int, out: NDArray[np.uint8]) -> None:
    """Write left[e]·right[e] for each e, float64, from element ``start`` on, as much as ``out`` has room for.

    Args:
        left: (E, rows, r), in one piece.
        right: (E, r, columns), likewise.

    Raises:
        ValueError: they do not fit together, or there are fewer elements.
    """
    (experts, rows, inner), columns = left.shape, right.shape[2]
    stop = start + len(out) // 8
    if right.shape[:2] != (experts, inner) or not 0 <= start <= stop <= experts * rows * columns:
        raise ValueError(f"elements {start} to {stop} of {left.shape} by {right.shape}")
    lefts, rights, made = (_address(one) for one in (left, right, out))
    while start < stop:
        (expert, row), column = divmod(start // columns, rows), start % columns
        if column or stop - start < columns:  # a part of a row
            count, width = 1, min(columns - column, stop - start)
        else:
            count, width = min(rows - row, (stop - start) // columns), columns
        one, other = (expert * rows + row) * inner, expert * inner * columns + column
        _MULTIPLY(lefts + 8 * one, rights + 8 * other, made, count, inner, width, columns)
        start, made = start + count * width, made + 8 * count * width


def _shard(base: CheckpointLayout, changed: CheckpointLayout) -> ShardInfo:
    """The base's tensors in its order, those that change as F64; then what the base lacks.

    Where names or shapes differ from the base's, the merge's plan says so, as of any two checkpoints.
    """
    deltas, offset, tensors = changed.tensors, 0, []
    for name, info in (
        base.tensors | {one: deltas[one] for one in deltas if one not in base.tensors}
    ).items():
        shape, dtype = (deltas[name].shape, "F64") if name in deltas else (info.shape, info.dtype)
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        tensors.append(TensorInfo(name, dtype, shape, PRODUCT_FILE, offset, nbytes))
        offset += nbytes
    return ShardInfo(PRODUCT_FILE, offset, tuple(tensors))


def _address(array: NDArray[np.float64] | NDArray[np.uint8]) -> int:
    """Where an array lies: the compiled loop knows no strides."""
    if not array.flags.c_contiguous:
        raise ValueError("an array that is not in one piece")
    return int(array.__array_interface__["data"][0])
