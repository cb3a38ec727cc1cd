"""The arithmetic: linear combinations of tensors, in one compiled pass over blocks that stay in the cache.

Bit-identical to mergekit 0.1.5 (dtype float32, any out_dtype) on a processor with FMA, which is every x86
since 2013, whatever the chunk:

- ``sum`` is mergekit's linear with normalize: false. It starts at +0 and does one fused multiply-add (one
  rounding) per input, in step order. Without FMA this calls C's, for the same bits on every machine; mergekit
  rounds twice there.
- ``line`` is mergekit's task_arithmetic: base + (+0 + α·(last − base)), each operation rounded.

The float32 error, with u = 2^-24 and K inputs: |sum − Σ c·w| ≤ γ·Σ|c·w| with γ = (K+2)u/(1−(K+2)u), as a term
passes at most two roundings of its own (coefficient, product) and K of the additions (Higham, Accuracy and
Stability of Numerical Algorithms, §3.1). A line: K = 2, and |base| + |α|·(|base| + |last|) for the sum of
terms. Each product may add 2^-150 where it underflows. Then comes the one rounding, to the nearest, ties to
even; what is too large becomes non-finite. Accumulation is in float64 when the output is F64 (u = 2^-53); F64
inputs of other outputs are rounded to float32 first, as mergekit does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.compiling import MachineCode
from hubextrap.engine.formats import CODES, NON_FINITE, SMALL
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.units import Combination

BLOCK = 2048
"""Elements that are combined at once: one input, widened, and a few sums stay in the first-level cache."""

_FORMATS = np.array([SMALL.get(name, (0,) * 7) for name in CODES], np.int32)
_COPY, _FIRST, _NEXT, _LINE = range(4)
"""What `loops` does with an input and a sum."""


_IN_FLOAT32, _IN_FLOAT64, _COUNT, _COMPARE, _WIDEN = (
    MachineCode("hubextrap.engine", ("loops", "casts"), name)
    for name in ("combine_in_float32", "combine_in_float64", "count_non_finite", "compare", "widen")
)


@dataclass(frozen=True, slots=True)
class Made:
    """What is known of one target's output."""

    non_finite: int
    """NaN or infinite elements."""
    identical: bool
    """Whether its bytes are the last checkpoint's."""


class Combiner:
    """The scratch memory of one worker, and the combinations over it. Not thread-safe; gives up the GIL.

    Args:
        targets: how many outputs there are at most.
        itemsize: bytes of the widest accumulation: 8 if some output is F64, else 4.
    """

    def __init__(self, targets: int, itemsize: int = 4) -> None:
        memory = np.zeros((targets + 1) * BLOCK * itemsize + 64, np.uint8)
        # a vector that lies in two cache lines takes twice as long to load
        self._scratch = memory[-memory.ctypes.data % 64 :]

    def combine(
        self,
        inputs: Sequence[NDArray[np.uint8]],
        dtypes: Sequence[str],
        combinations: Sequence[Combination],
        outputs: Sequence[NDArray[np.uint8]],
        dtype: str,
        *,
        last: int | None = None,
    ) -> list[Made]:
        """Write combination t of the inputs to ``outputs[t]``.

        Args:
            inputs: the bytes of n elements each.
            dtypes: what each input stores, by safetensors name, any in ``comparison.FLOATS``.
            combinations: one per output; ``indices`` are positions in ``inputs``.
            outputs: the bytes of n elements each.
            dtype: what the outputs store.
            last: the position of the last checkpoint in ``inputs``, if it is there.
        """
        itemsize = DTYPES[dtype].itemsize
        places = [_address(data) for data in inputs]
        copied = [c.kind == "copy" and dtypes[c.indices[0]] == dtype for c in combinations]
        sources = [(place, CODES[name]) for place, name in zip(places, dtypes, strict=True)]
        targets = [
            (_address(output), places[combination.indices[0]] if as_it_is else 0)
            for output, combination, as_it_is in zip(outputs, combinations, copied, strict=True)
        ]
        terms, weights = _terms(combinations, copied)
        compared = last is not None and dtypes[last] == dtype
        found = np.zeros((len(outputs), 2), np.int64)
        tables = [
            np.array(sources, np.int64),
            np.array(terms, np.int64),
            np.array(weights, np.float64 if dtype == "F64" else np.float32),
            np.array(targets, np.int64),
            _FORMATS,
            found,
        ]
        combine = _IN_FLOAT64 if dtype == "F64" else _IN_FLOAT32
        combine(
            *map(_address, tables),
            len(terms),
            len(outputs),
            CODES[dtype],
            itemsize,
            len(outputs[0]) // itemsize,
            places[last] if last is not None and compared else 0,
            *NON_FINITE[dtype],
            _address(self._scratch),
            BLOCK,
        )
        return [Made(int(count), compared and not differs) for count, differs in found]


def _terms(
    combinations: Sequence[Combination], copied: Sequence[bool]
) -> tuple[list[tuple[int, int, int]], list[float]]:
    """(input, output, what to do) in the order of the inputs, and each one's weight; copies have none."""
    terms = []
    for target, combination in enumerate(combinations):
        if copied[target]:
            continue
        for position, (k, weight) in enumerate(zip(combination.indices, combination.weights, strict=True)):
            if combination.kind == "sum":
                operation = _NEXT if position else _FIRST
            else:
                operation = _LINE if position else _COPY
            terms.append(((k, target, operation), weight))
    terms.sort(key=lambda term: term[0][0])
    return [term for term, _ in terms], [weight for _, weight in terms]


def count_non_finite(data: NDArray[np.uint8], dtype: str) -> int:
    """How many elements are NaN or infinite, of any dtype in `DTYPES`; a complex one counts once."""
    if dtype == "C64":
        parts = data.view(np.uint32) & np.uint32(0x7F800000) == 0x7F800000
        return int(np.count_nonzero(parts.reshape(-1, 2).any(axis=1)))
    if dtype not in NON_FINITE:
        return 0
    found, size = np.zeros(1, np.int64), DTYPES[dtype].itemsize
    _COUNT(_address(data), len(data) // size, size, *NON_FINITE[dtype], _address(found))
    return int(found[0])


def same_bytes(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two runs of bytes are equal."""
    if len(one) != len(other):
        return False
    differs = np.zeros(1, np.int64)
    _COMPARE(_address(one), _address(other), len(one), _address(differs))
    return not differs[0]


def widen(data: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> None:
    """Write what ``data`` holds, of any dtype in ``comparison.FLOATS``, to ``out`` as float32."""
    _WIDEN(_address(data), CODES[dtype], len(out), _address(out), _address(_FORMATS))


def check_device(device: str) -> None:
    """Refuse a device that cannot make a merge's bytes.

    Raises:
        MethodError: it is no CUDA device, is not there, or gives other bytes than this CPU.
    """
    if device != "cpu":
        from hubextrap.engine.torch_kernels import check_device as check

        check(device)


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
