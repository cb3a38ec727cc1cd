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

from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.compiling import compiled
from hubextrap.engine.casts import (
    SMALL,
    counted,
    fused,
    load,
    number_like,
    rounded,
    rounded_to_bf16,
    store,
    widened,
)
from hubextrap.engine.comparison import FLOATS
from hubextrap.engine.units import Made
from hubextrap.errors import MethodError
from hubextrap.statistics.bits import number_of
from hubextrap.tensors.devices import device_problem
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.units import Combination

BLOCK = 2048
"""Elements that are combined at once: one input, widened, and a few sums stay in the first-level cache."""

_F64, _F32, _F16, _BF16 = range(4)
_CODES = {name: code for code, name in enumerate(FLOATS)}
_FORMATS = np.array([SMALL.get(name, (0,) * 7) for name in FLOATS], np.int32)
_NON_FINITE = {
    "F64": (0x7FF << 52, 0x7FF << 52),
    "F32": (0x7F800000, 0x7F800000),
    "F16": (0x7C00, 0x7C00),
    "BF16": (0x7F80, 0x7F80),
    "F8_E4M3": (0x7F, 0x7F),
    "F8_E5M2": (0x7C, 0x7C),
    "F8_E4M3FNUZ": (0xFF, 0x80),
    "F8_E5M2FNUZ": (0xFF, 0x80),
}
"""Bits to look at in a number, and what they are in one that is not finite."""

_COPY, _FIRST, _NEXT, _LINE = range(4)
"""What is done with a widened input and a sum."""
_BYTE, _HALF, _WORD, _LONG = np.uint8(0), np.uint16(0), np.uint32(0), np.uint64(0)
_SINGLE, _DOUBLE = np.float32(0), np.float64(0)


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
        zero = np.float64(0) if dtype == "F64" else np.float32(0)
        addresses = [_address(data) for data in inputs]
        copied = [c.kind == "copy" and dtypes[c.indices[0]] == dtype for c in combinations]
        terms, weights = _terms(combinations, copied)
        same_dtype = last is not None and dtypes[last] == dtype
        found = np.zeros((len(outputs), 2), np.int64)
        _combine(
            np.array([(place, _CODES[name]) for place, name in zip(addresses, dtypes, strict=True)]),
            np.array(terms, np.int64).reshape(-1, 3),
            np.array(weights, zero.dtype),
            np.array(
                [
                    (_address(output), addresses[combination.indices[0]] if as_it_is else 0)
                    for output, combination, as_it_is in zip(outputs, combinations, copied, strict=True)
                ]
            ),
            _CODES[dtype],
            itemsize,
            len(outputs[0]) // itemsize,
            addresses[last] if last is not None and same_dtype else 0,
            _address(self._scratch),
            zero,
            _FORMATS,
            *_NON_FINITE[dtype],
            found,
        )
        return [Made(int(count), same_dtype and not differs) for count, differs in found]


def _terms(
    combinations: Sequence[Combination], copied: Sequence[bool]
) -> tuple[list[tuple[int, int, int]], list[float]]:
    """(input, output, what to do) in the order of the inputs, and each one's weight; none of what is copied."""
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
    if dtype not in _NON_FINITE:
        return 0
    size = DTYPES[dtype].itemsize
    return int(_count(_address(data), len(data) // size, size, *_NON_FINITE[dtype]))


def same_bytes(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two runs of bytes are equal."""
    return len(one) == len(other) and bool(_same(_address(one), _address(other), len(one)))


def widen(data: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> None:
    """Write what ``data`` holds, of any dtype in ``comparison.FLOATS``, to ``out`` as float32."""
    _widen(_address(data), _CODES[dtype], 0, len(out), _address(out), _SINGLE, _FORMATS)


def check_device(device: str) -> None:
    """Refuse a device that cannot make a merge's bytes.

    Raises:
        MethodError: it is no CUDA device, is not there, or gives other bytes than this CPU.
    """
    if device == "cpu":
        return
    if (problem := device_problem(device)) is not None:
        raise MethodError(problem)
    from hubextrap.engine import torch_kernels

    torch_kernels.check_device(device, Combiner(2))


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@compiled
def _combine(inputs, terms, weights, outputs, code, itemsize, elements, last, scratch, zero, formats, mask, special, found):  # type: ignore[no-untyped-def]  # noqa: E501  # fmt: skip
    step = BLOCK * weights.itemsize
    for start in range(0, elements, BLOCK):
        count = min(BLOCK, elements - start)
        held = -1
        for j in range(len(terms)):
            k, target, operation = terms[j, 0], terms[j, 1], terms[j, 2]
            if k != held:
                _widen(inputs[k, 0], inputs[k, 1], start, count, scratch, zero, formats)
                held = k
            _add(operation, weights[j], scratch, scratch + (1 + target) * step, count, zero)
        for target in range(len(outputs)):
            made = outputs[target, 0] + start * itemsize
            if outputs[target, 1]:
                _copy(outputs[target, 1] + start * itemsize, made, count * itemsize)
            else:
                _round(scratch + (1 + target) * step, count, made, code, zero, formats)
            found[target, 0] += _count(made, count, itemsize, mask, special)
            if last and not found[target, 1]:
                found[target, 1] = not _same(made, last + start * itemsize, count * itemsize)


@compiled
def _widen(address, code, start, count, made, zero, formats):  # type: ignore[no-untyped-def]
    """The numbers of an input as the accumulator's."""
    shift, rebias, special, infinity = formats[code, 0], formats[code, 1], formats[code, 2], formats[code, 3]
    if code == _BF16:
        for i in range(count):
            store(made, i, number_like(zero, number_of(load(address, start + i, _HALF))))
    elif code == _F32:
        for i in range(count):
            store(made, i, number_like(zero, load(address, start + i, _SINGLE)))
    elif code == _F64:
        for i in range(count):
            store(made, i, number_like(zero, load(address, start + i, _DOUBLE)))
    elif code == _F16:
        for i in range(count):
            bits = load(address, start + i, _HALF)
            store(made, i, number_like(zero, widened(bits, shift, rebias, special, infinity)))
    else:
        for i in range(count):
            bits = load(address, start + i, _BYTE)
            store(made, i, number_like(zero, widened(bits, shift, rebias, special, infinity)))


@compiled(cache=False)
def _add(operation, weight, values, sums, count, zero):  # type: ignore[no-untyped-def]
    """One term of a combination."""
    if operation == _NEXT:
        for i in range(count):
            store(sums, i, fused(weight, load(values, i, zero), load(sums, i, zero)))
    elif operation == _FIRST:
        for i in range(count):
            store(sums, i, fused(weight, load(values, i, zero), zero))
    elif operation == _COPY:
        for i in range(count):
            store(sums, i, load(values, i, zero))
    else:
        for i in range(count):
            base = load(sums, i, zero)
            # mergekit sums the deltas from +0, so it never returns −0 here
            store(sums, i, base + (load(values, i, zero) - base) * weight + zero)


@compiled(cache=False)
def _round(sums, count, made, code, zero, formats):  # type: ignore[no-untyped-def]
    """The sums as the output stores them. Of a float64 sum that is F64."""
    shift, rebias, special = formats[code, 0], formats[code, 1], formats[code, 2]
    nan, payload, unsigned = formats[code, 4], formats[code, 5], formats[code, 6]
    if code in (_F32, _F64):
        for i in range(count):
            store(made, i, load(sums, i, zero))
    elif code == _BF16:
        for i in range(count):
            store(made, i, rounded_to_bf16(load(sums, i, _SINGLE)))
    elif code == _F16:
        for i in range(count):
            number = load(sums, i, _SINGLE)
            store(made, i, rounded(number, _HALF, shift, rebias, special, nan, payload, unsigned))
    else:
        for i in range(count):
            number = load(sums, i, _SINGLE)
            store(made, i, rounded(number, _BYTE, shift, rebias, special, nan, payload, unsigned))


@compiled
def _count(address, count, itemsize, mask, special):  # type: ignore[no-untyped-def]
    """Numbers of which the bits in ``mask`` are ``special``."""
    total = 0
    for start in range(0, count, BLOCK):
        found = _WORD
        stop = min(start + BLOCK, count)
        if itemsize == 2:
            for i in range(start, stop):
                found = counted(found, load(address, i, _HALF), mask, special)
        elif itemsize == 4:
            for i in range(start, stop):
                found = counted(found, load(address, i, _WORD), mask, special)
        elif itemsize == 1:
            for i in range(start, stop):
                found = counted(found, load(address, i, _BYTE), mask, special)
        else:
            for i in range(start, stop):
                found = counted(found, load(address, i, _LONG), mask, special)
        total += np.int64(found)
    return total


@compiled
def _same(one, other, size):  # type: ignore[no-untyped-def]
    """Whether two runs of bytes are equal."""
    whole = size // 8
    differs = _LONG
    for start in range(0, whole, BLOCK):
        for i in range(start, min(start + BLOCK, whole)):
            differs |= load(one, i, _LONG) ^ load(other, i, _LONG)
        if differs:
            return False
    for i in range(8 * whole, size):
        differs |= load(one, i, _BYTE) ^ load(other, i, _BYTE)
    return differs == 0


@compiled(cache=False)
def _copy(source, made, size):  # type: ignore[no-untyped-def]
    for i in range(size):
        store(made, i, load(source, i, _BYTE))
