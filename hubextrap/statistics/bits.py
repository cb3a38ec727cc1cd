"""Operations on the bits of bfloat16 and float32 numbers, for loops that numba compiles.

numba has no 16-bit arithmetic (it widens every integer to 64 bits) and no way from an integer to the float of
the same bits; each function here is the few instructions of LLVM that do it. In a loop, all become vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from hubextrap.compiling import inlined
from hubextrap.statistics.linearity import MIN_RANGE

LANES = 16
"""Sums that `dot_products` keeps apart, whatever the length of the processor's vectors."""

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()


@inlined
def pointer_to(typing_context, address, like):  # type: ignore[no-untyped-def]
    """A pointer to numbers of the type of ``like``, from an address."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer
    return pointer(like)(address, like), build


@inlined
def number_of(typing_context, bits):  # type: ignore[no-untyped-def]
    """float32 from its bits, uint32, or from those of a bfloat16, uint16."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _number(builder, arguments[0])

    return types.float32(bits), build


@inlined
def key_of(typing_context, bits):  # type: ignore[no-untyped-def]
    """A signed integer of the same size, in the order of the numbers; -0 and 0 have the same."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sign, magnitude = _parts(builder, arguments[0])
        return builder.sub(builder.xor(magnitude, sign), sign)

    return types.Integer.from_bitwidth(bits.bitwidth, signed=True)(bits), build


@inlined
def spans(typing_context, least, most):  # type: ignore[no-untyped-def]
    """Whether the numbers of two keys are more than ``MIN_RANGE`` apart."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (_number(builder, _bits_of_key(builder, key)) for key in arguments)
        if least.bitwidth == 16:
            # no bfloat16 is so near MIN_RANGE that rounding their difference to float32 could matter
            limit = ir.Constant(_FLOAT, float(np.float32(MIN_RANGE)))
        else:
            low, high = builder.fpext(low, _DOUBLE), builder.fpext(high, _DOUBLE)
            limit = ir.Constant(_DOUBLE, MIN_RANGE)
        return builder.fcmp_ordered(">", builder.fsub(high, low), limit)

    return types.boolean(least, most), build


@inlined
def where_less(typing_context, one, other, yes, no):  # type: ignore[no-untyped-def]
    """``yes`` where one < other, else ``no``; all four are integers of one type."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, chosen, otherwise = arguments
        return builder.select(builder.icmp_signed("<", first, second), chosen, otherwise)

    return yes(one, other, yes, no), build


def _of_two(name: str) -> Any:
    """One of the compiler's own functions of two signed integers of one type."""

    @inlined
    def function(typing_context, one, other):  # type: ignore[no-untyped-def]
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = arguments[0].type
            called = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind, kind]))
            return builder.call(called, arguments)

        return one(one, other), build

    return function


smaller, larger = _of_two("llvm.smin"), _of_two("llvm.smax")


@inlined
def dot_products(typing_context, numbers, count, a0, a1, d0, d1, d2, d3, d4):  # type: ignore[no-untyped-def]
    """Eight inner products of runs of float32: of a0 with d0 to d3, and of a1 with d1 to d4.

    Each is summed in ``LANES`` lanes by fused multiply-adds, and the lanes are added in halves: the same
    operations in the same order on every processor, whatever the length of its vectors.

    Args:
        count: numbers of a run, a multiple of ``LANES``.
        numbers: address of an array of float32, in which the others are places.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tools: Any = cgutils
        base = builder.inttoptr(arguments[0], ir.PointerType(_FLOAT))
        runs = [builder.gep(base, [place]) for place in arguments[2:]]
        kind = ir.VectorType(_FLOAT, LANES)
        fused = tools.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{LANES}f32"
        )
        pairs = [(0, 2), (0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (1, 5), (1, 6)]
        sums = [tools.alloca_once_value(builder, ir.Constant(kind, [0.0] * LANES)) for _ in pairs]
        stride = ir.Constant(arguments[1].type, LANES)
        with tools.for_range(builder, builder.udiv(arguments[1], stride)) as loop:
            place = builder.mul(loop.index, stride)
            rows = [
                builder.load(builder.bitcast(builder.gep(run, [place]), ir.PointerType(kind)), align=4)
                for run in runs
            ]
            for total, (one, other) in zip(sums, pairs, strict=True):
                builder.store(builder.call(fused, [rows[one], rows[other], builder.load(total)]), total)
        results = [_sum_of_lanes(builder, builder.load(total)) for total in sums]
        return context.make_tuple(builder, signature.return_type, results)

    places = (numbers, count, a0, a1, d0, d1, d2, d3, d4)
    tuple_of: Any = types.UniTuple
    return tuple_of(types.float32, 8)(*places), build


def _sum_of_lanes(builder: Any, vector: Any) -> Any:
    count = vector.type.count
    while count > 1:
        count //= 2
        low, high = (
            ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(start, start + count)))
            for start in (0, count)
        )
        vector = builder.fadd(
            builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high)
        )
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _number(builder: Any, bits: Any) -> Any:
    if bits.type.width == 16:  # a bfloat16 is the upper half of a float32
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(bits, word), ir.Constant(word, 16))
    return builder.bitcast(bits, _FLOAT)


def _parts(builder: Any, word: Any) -> tuple[Any, Any]:
    """All ones where the sign bit is set, and the word without it."""
    size = word.type.width
    sign = builder.ashr(word, ir.Constant(word.type, size - 1))
    return sign, builder.and_(word, ir.Constant(word.type, 2 ** (size - 1) - 1))


def _bits_of_key(builder: Any, key: Any) -> Any:
    """Sign and magnitude from two's complement."""
    sign, _ = _parts(builder, key)
    magnitude = builder.sub(builder.xor(key, sign), sign)
    return builder.or_(magnitude, builder.and_(sign, ir.Constant(key.type, -(2 ** (key.type.width - 1)))))
