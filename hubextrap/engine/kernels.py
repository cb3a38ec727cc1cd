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
even; what is too large becomes non-finite. Accumulation is in float64 when the output is F64 or the plan is
wide (u = 2^-53); F64 inputs of other outputs are rounded to float32 first otherwise, as mergekit does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.compiling import MachineCode
from hubextrap.engine.formats import CODES, NON_FINITE, SMALL
from hubextrap.engine.units import Made
from hubextrap.errors import MethodError
from hubextrap.tensors.devices import device_problem
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.units import Combination

BLOCK = 2048
"""Elements that are combined at once: one input, widened, and a few sums stay in the first-level cache."""

_FORMATS = np.array([SMALL.get(name, (0,) * 4) for name in CODES], np.int32)
"""A row for each code: the fields of its `formats.Small`, or zeros that nothing looks at."""
_COPY, _FIRST, _NEXT, _LINE = range(4)
"""What `loops` does with an input and a sum."""

_IN_FLOAT32, _IN_FLOAT64, _COUNT, _COMPARE, _WIDEN = (
    MachineCode("hubextrap.engine", ("loops", "casts"), name)
    for name in ("combine_in_float32", "combine_in_float64", "count_non_finite", "compare", "widen")
)


class Combiner:
    """The scratch memory of one worker, and the combinations over it. Not thread-safe; gives up the GIL.

    Args:
        targets: how many outputs there are at most.
        itemsize: bytes of the widest accumulation: 8 if some output is F64 or the plan is wide, else 4.
        block: elements that are combined at once.
    """

    def __init__(self, targets: int, itemsize: int = 4, block: int = BLOCK) -> None:
        self._block = block
        memory = np.zeros((targets + 1) * block * itemsize + 64, np.uint8)
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
        wide: bool = False,
    ) -> list[Made]:
        """Write combination t of the inputs to ``outputs[t]``.

        Args:
            inputs: the bytes of n elements each, 1-D and in one piece, aligned or not.
            dtypes: what each input stores, by safetensors name, any in ``comparison.FLOATS``.
            combinations: one per output; ``indices`` are positions in ``inputs``.
            outputs: the bytes of n elements each, likewise; they overlap no input.
            dtype: what the outputs store.
            last: the position of the last checkpoint in ``inputs``, if it is there.
            wide: sum in float64, whatever the outputs store.

        Returns:
            What is known of each output.

        Raises:
            ValueError: an array of another size, or more outputs than there is scratch memory for.
        """
        itemsize = DTYPES[dtype].itemsize
        elements = len(outputs[0]) // itemsize
        sums = np.dtype(np.float64 if wide or dtype == "F64" else np.float32)
        if (len(outputs) + 1) * self._block * sums.itemsize > len(self._scratch):
            raise ValueError(f"no memory for {len(outputs)} sums of {sums}")
        stored = [
            (_address(data, elements * DTYPES[name].itemsize), CODES[name])
            for data, name in zip(inputs, dtypes, strict=True)
        ]
        # where a target's bytes are copied from, or 0
        copied = [
            stored[one.indices[0]][0] if one.kind == "copy" and dtypes[one.indices[0]] == dtype else 0
            for one in combinations
        ]
        made = [_address(output, elements * itemsize) for output in outputs]
        steps, weights = _steps(combinations, copied, stored)
        compared = last is not None and dtypes[last] == dtype
        found = np.zeros((len(made), 2), np.int64)
        # the loop takes the address of one array of numbers, among them the addresses of tables
        tables = (
            np.array(steps, np.int64),
            np.array(weights, sums),
            np.array(list(zip(made, copied, strict=True)), np.int64),
            found,
            _FORMATS,
        )
        sizes = len(steps), len(made), elements, CODES[dtype], itemsize
        compared_to = stored[last][0] if last is not None and compared else 0
        job = (*map(_address, tables), *sizes, *NON_FINITE[dtype], compared_to)
        fields = np.array([*job, _address(self._scratch), self._block], np.int64)
        (_IN_FLOAT64 if sums == np.float64 else _IN_FLOAT32)(_address(fields))
        return [Made(count, compared and not differs) for count, differs in found.tolist()]


def _steps(
    combinations: Sequence[Combination], copied: Sequence[int], stored: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int, int, int]], list[float]]:
    """What goes into the sums, input by input: its address and dtype, the sum, how; and with which weight.

    Input by input, so that what has to be widened is widened once for all sums.
    """
    terms = sorted(
        (k, position, target, weight)
        for target, combination in enumerate(combinations)
        for position, (k, weight) in enumerate(zip(combination.indices, combination.weights, strict=True))
        if not copied[target]
    )
    steps = [
        (*stored[k], target, _operation(combinations[target], position)) for k, position, target, _ in terms
    ]
    return steps, [weight for _, _, _, weight in terms]


def _operation(combination: Combination, position: int) -> int:
    """What is done with the input at a position of a combination."""
    if combination.kind == "sum":
        return _NEXT if position else _FIRST
    return _LINE if position else _COPY


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
    """Write what ``data`` holds, of any dtype in ``comparison.FLOATS``, to ``out`` as float32.

    Args:
        data: the bytes of n elements.
        out: (n,)

    Raises:
        ValueError: it holds another number of elements.
    """
    size = DTYPES[dtype].itemsize
    _WIDEN(_address(data, len(out) * size), CODES[dtype], len(out), _address(out), _address(_FORMATS))


def check_device(device: str, *, wide: bool = False) -> None:
    """Refuse a device that cannot make a merge's bytes.

    Args:
        wide: whether the merge sums in float64 what is stored in less.

    Raises:
        MethodError: it is no CUDA device, is not there, or gives other bytes than this CPU.
    """
    if device == "cpu":
        return
    if wide:
        raise MethodError(
            f"device {device}: sums of adapters are taken in float64 on the CPU alone; write cpu"
        )
    if (problem := device_problem(device)) is not None:
        raise MethodError(problem)
    from hubextrap.engine import torch_kernels

    torch_kernels.check_device(device, Combiner(2).combine)


def _address(array: NDArray[Any], size: int | None = None) -> int:
    """Where an array lies, which has to be of ``size`` bytes: compiled loops look at no bounds."""
    if not array.flags.c_contiguous or size not in (None, array.nbytes):
        raise ValueError(f"{array.nbytes} bytes where {size} are wanted in one piece")
    return int(array.__array_interface__["data"][0])
