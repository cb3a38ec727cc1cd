"""The compiled loops of `kernels`: they take addresses and numbers, all int64, and leave results in memory.

numba compiles them, and is imported for that alone; see `hubextrap.compiling`. In `combine`, a block of each
input is widened to the accumulator's dtype and goes into the sums that want it; then each sum is rounded,
counted and compared while it is in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hubextrap.engine.casts import (
    counted,
    fused,
    load,
    number_like,
    rounded,
    rounded_to_bf16,
    rounded_to_odd,
    store,
    widened,
)

_ALONE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_njit: Any = njit(**_ALONE)
"""For what loops are made of; what would call it from elsewhere takes a third of its time to compile."""

# Written out and not imported: machine code that is kept is known by this file and `casts` alone.
_F64, _F32, _F16, _BF16 = range(4)
"""As in `formats.CODES`; the others are stored in one byte."""
_COPY, _FIRST, _NEXT = range(3)
"""As in `kernels`; what is left is a line."""
_BYTE, _HALF, _WORD, _LONG, _SIGNED = np.uint8(0), np.uint16(0), np.uint32(0), np.uint64(0), np.int64(0)
_SINGLE, _DOUBLE, _FIELD = np.float32(0), np.float64(0), np.int32(0)
_RUN = 2**16
"""How many are counted, or compared, before a look at what came out."""


def _combine_in(zero: Any, wide: int) -> Any:
    """`combine`, with sums of the type of ``zero``, ``wide`` bytes each.

    Its scratch memory is a block for an input that is widened, then a block for the sum of each target.
    """
    own_code = _F32 if wide == 4 else _F64

    def combine(job):  # type: ignore[no-untyped-def]
        # as `kernels.Combiner.combine` lays them out: tables, sizes, and what is looked at in the outputs
        steps, weights, targets, found, formats = _five(job, 0)
        taken, made, elements, code, itemsize = _five(job, 5)
        mask, special, last, scratch, block = _five(job, 10)
        for start in range(0, elements, block):
            count, held = min(block, elements - start), 0
            for j in range(taken):
                source, stored, weight = _at(steps, 4 * j), _at(steps, 4 * j + 1), load(weights, j, zero)
                target, operation = _at(steps, 4 * j + 2), _at(steps, 4 * j + 3)
                total = scratch + (1 + target) * block * wide
                if stored == _BF16:
                    _add(operation, weight, source + 2 * start, _HALF, total, count, zero)
                elif stored == own_code:
                    _add(operation, weight, source + wide * start, zero, total, count, zero)
                else:
                    if source != held:
                        _widen(source, stored, start, count, scratch, zero, formats)
                        held = source
                    _add(operation, weight, scratch, zero, total, count, zero)
            for target in range(made):
                output, copied = _at(targets, 2 * target) + start * itemsize, _at(targets, 2 * target + 1)
                if copied:
                    _copy(copied + start * itemsize, output, count * itemsize)
                else:
                    _round(scratch + (1 + target) * block * wide, count, output, code, zero, formats)
                counted_now = _non_finite(output, count, itemsize, mask, special)
                store(found, 2 * target, _at(found, 2 * target) + counted_now)
                if last and not _at(found, 2 * target + 1):
                    differs = _differ(output, last + start * itemsize, count * itemsize)
                    store(found, 2 * target + 1, differs)

    return combine


combine_in_float32, combine_in_float64 = _combine_in(_SINGLE, 4), _combine_in(_DOUBLE, 8)


def widen(address, code, count, made, formats):  # type: ignore[no-untyped-def]
    """Write ``count`` numbers as float32."""
    _widen(address, code, 0, count, made, _SINGLE, formats)


def count_non_finite(address, count, itemsize, mask, special, found):  # type: ignore[no-untyped-def]
    """Write to ``found`` how many numbers there are of which the bits in ``mask`` are ``special``."""
    store(found, 0, _non_finite(address, count, itemsize, mask, special))


def compare(one, other, size, differs):  # type: ignore[no-untyped-def]
    """Write 1 to ``differs`` if two runs of bytes are not equal, else 0."""
    store(differs, 0, _differ(one, other, size))


@_njit
def _at(address, index):  # type: ignore[no-untyped-def]
    return load(address, index, _SIGNED)


@_njit
def _five(address, first):  # type: ignore[no-untyped-def]
    return (
        _at(address, first),
        _at(address, first + 1),
        _at(address, first + 2),
        _at(address, first + 3),
        _at(address, first + 4),
    )


@_njit
def _format(formats, code):  # type: ignore[no-untyped-def]
    """The fields of a `formats.Small`."""
    first = 4 * code
    return (
        load(formats, first, _FIELD),
        load(formats, first + 1, _FIELD),
        load(formats, first + 2, _FIELD),
        load(formats, first + 3, _FIELD),
    )


@_njit
def _widen(address, code, start, count, made, zero, formats):  # type: ignore[no-untyped-def]
    """The numbers of an input as the accumulator's."""
    shift, rebias, special, nan = _format(formats, code)
    if code == _BF16:
        for i in range(count):
            store(made, i, number_like(zero, load(address, start + i, _HALF)))
    elif code == _F32:
        for i in range(count):
            store(made, i, number_like(zero, load(address, start + i, _SINGLE)))
    elif code == _F64:
        for i in range(count):
            store(made, i, number_like(zero, load(address, start + i, _DOUBLE)))
    elif code == _F16:
        for i in range(count):
            bits = load(address, start + i, _HALF)
            store(made, i, number_like(zero, widened(bits, shift, rebias, special, nan)))
    else:
        for i in range(count):
            bits = load(address, start + i, _BYTE)
            store(made, i, number_like(zero, widened(bits, shift, rebias, special, nan)))


@_njit
def _add(operation, weight, values, like, sums, count, zero):  # type: ignore[no-untyped-def]
    """One term of a combination, of values that are stored as ``like`` is."""
    if operation == _NEXT:
        for i in range(count):
            store(sums, i, fused(weight, number_like(zero, load(values, i, like)), load(sums, i, zero)))
    elif operation == _FIRST:
        for i in range(count):
            store(sums, i, fused(weight, number_like(zero, load(values, i, like)), zero))
    elif operation == _COPY:
        for i in range(count):
            store(sums, i, number_like(zero, load(values, i, like)))
    else:
        for i in range(count):
            base = load(sums, i, zero)
            # mergekit sums the deltas from +0, so it never returns −0 here
            store(sums, i, base + (number_like(zero, load(values, i, like)) - base) * weight + zero)


@_njit
def _round(sums, count, made, code, zero, formats):  # type: ignore[no-untyped-def]
    """The sums as the output stores them, rounded once."""
    shift, rebias, special, nan = _format(formats, code)
    if code == _F32:
        for i in range(count):
            store(made, i, number_like(_SINGLE, load(sums, i, zero)))
    elif code == _F64:
        for i in range(count):
            store(made, i, number_like(_DOUBLE, load(sums, i, zero)))
    elif code == _BF16:
        for i in range(count):
            store(made, i, rounded_to_bf16(rounded_to_odd(load(sums, i, zero))))
    elif code == _F16:
        for i in range(count):
            number = rounded_to_odd(load(sums, i, zero))
            store(made, i, rounded(number, _HALF, shift, rebias, special, nan))
    else:
        for i in range(count):
            number = rounded_to_odd(load(sums, i, zero))
            store(made, i, rounded(number, _BYTE, shift, rebias, special, nan))


@_njit
def _non_finite(address, count, itemsize, mask, special):  # type: ignore[no-untyped-def]
    """How many numbers there are of which the bits in ``mask`` are ``special``."""
    total = 0
    for start in range(0, count, _RUN):
        found, stop = _WORD, min(start + _RUN, count)
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
        total += int(found)
    return total


@_njit
def _differ(one, other, size):  # type: ignore[no-untyped-def]
    """1 if two runs of bytes are not equal, else 0."""
    whole, differs = size // 8, _LONG
    for start in range(0, whole, _RUN):
        for i in range(start, min(start + _RUN, whole)):
            differs |= load(one, i, _LONG) ^ load(other, i, _LONG)
        if differs:
            return 1
    for i in range(8 * whole, size):
        differs |= load(one, i, _BYTE) ^ load(other, i, _BYTE)
    return 1 if differs else 0


@_njit
def _copy(source, made, size):  # type: ignore[no-untyped-def]
    for i in range(size):
        store(made, i, load(source, i, _BYTE))
