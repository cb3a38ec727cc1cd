"""From stored numbers to float32 and back, for loops that numba compiles: single operations on bits.

Each is the few instructions of LLVM that do it, and in a loop all become vectors. Numbers are read and
written at any address. Casts are torch's on x86 to the bit, those of NaN included: a NaN becomes 0xFFFF as
BF16, keeps its sign and the upper bits of its payload as F16, and its sign alone as a float8.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

_WORD, _FLOAT, _BIT = ir.IntType(32), ir.FloatType(), ir.IntType(1)
_SIGN, _INFINITY, _QUIET = 0x80000000, 0x7F800000, 0x400000


def _inlined(typed: Any) -> Any:
    """numba's intrinsic, called with other arguments than ``typed`` has, which mypy need not know."""
    return intrinsic(typed)


@_inlined
def load(typing_context, address, index, like):  # type: ignore[no-untyped-def]
    """Number ``index`` of those at ``address``, of the type of ``like``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(builder, *arguments), align=1)

    return like(address, index, like), build


@_inlined
def store(typing_context, address, index, number):  # type: ignore[no-untyped-def]
    """Write number ``index`` of those at ``address``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(builder, *arguments), align=1)
        return context.get_dummy_value()

    return types.void(address, index, number), build


@_inlined
def fused(typing_context, one, other, total):  # type: ignore[no-untyped-def]
    """one · other + total, rounded once.

    A processor without FMA calls C's fma for it: slowly, and to the same bits.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return total(one, other, total), build


@_inlined
def number_like(typing_context, like, number):  # type: ignore[no-untyped-def]
    """``number``, of any floating-point type, as the type of ``like``: the nearest, ties to even."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[1], number, like)

    return like(like, number), build


@_inlined
def counted(typing_context, total, word, mask, value):  # type: ignore[no-untyped-def]
    """``total``, uint32, and one more where the bits of ``word`` in ``mask`` are those of ``value``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, word, *given = arguments
        mask, value = (builder.trunc(one, word.type) if word.type.width < 64 else one for one in given)
        found = builder.icmp_unsigned("==", builder.and_(word, mask), value)
        return builder.add(total, builder.zext(found, _WORD))

    return types.uint32(total, word, mask, value), build


@_inlined
def widened(typing_context, bits, shift, rebias, special, infinity):  # type: ignore[no-untyped-def]
    """float32 of the bits of a small float, which its `Small` describes; denormals are exact."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, shift, rebias, special, infinity = arguments
        sign_bit = bits.type.width - 1
        word = builder.zext(bits, _WORD)
        magnitude = builder.and_(word, _word(2**sign_bit - 1))
        sign = builder.shl(builder.lshr(word, _word(sign_bit)), _word(31))
        shifted = builder.shl(magnitude, shift)
        scale = builder.bitcast(_exponent(builder, builder.add(rebias, _word(127))), _FLOAT)
        number = builder.bitcast(builder.fmul(builder.bitcast(shifted, _FLOAT), scale), _WORD)
        quiet = builder.select(
            builder.icmp_unsigned(">", magnitude, infinity), _word(_INFINITY | _QUIET), _word(_INFINITY)
        )
        finite = builder.icmp_unsigned("<", magnitude, special)
        chosen = builder.select(finite, number, builder.or_(shifted, quiet))
        return builder.bitcast(builder.or_(chosen, sign), _FLOAT)

    return types.float32(bits, shift, rebias, special, infinity), build


@_inlined
def rounded(typing_context, number, like, shift, rebias, special, nan, payload, unsigned):  # type: ignore[no-untyped-def]
    """The bits of the small float nearest to a float32, ties to even, of the type of ``like``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, like, shift, rebias, special, nan, payload, unsigned = arguments
        one, sign_bit = _word(1), like.type.width - 1
        word = builder.bitcast(number, _WORD)
        magnitude = builder.and_(word, _word(_SIGN - 1))
        sign = builder.shl(builder.lshr(word, _word(31)), _word(sign_bit))
        # a normal number: almost half a unit is added, and the rest of it where the last bit kept is odd
        half = builder.sub(builder.shl(one, builder.sub(shift, one)), one)
        kept = builder.lshr(magnitude, shift)
        nearest = builder.add(builder.add(magnitude, half), builder.and_(kept, one))
        normal = builder.lshr(builder.sub(nearest, _exponent(builder, rebias)), shift)
        # a denormal one: added to a number whose last bit is the least denormal, it is rounded to that
        anchor = _exponent(builder, builder.add(builder.add(rebias, shift), one))
        added = builder.fadd(builder.bitcast(magnitude, _FLOAT), builder.bitcast(anchor, _FLOAT))
        denormal = builder.sub(builder.bitcast(added, _WORD), anchor)
        least = _exponent(builder, builder.add(rebias, one))
        finite = builder.select(builder.icmp_unsigned("<", magnitude, least), denormal, normal)
        too_large = builder.icmp_unsigned(">=", finite, special)
        signed = builder.or_(finite, sign)
        overflow = builder.or_(special, builder.select(builder.trunc(unsigned, _BIT), _word(0), sign))
        result = builder.select(too_large, overflow, signed)
        as_nan = builder.or_(builder.or_(nan, builder.and_(kept, payload)), sign)
        is_nan = builder.icmp_unsigned(">", magnitude, _word(_INFINITY))
        return builder.trunc(builder.select(is_nan, as_nan, result), like.type)

    return like(number, like, shift, rebias, special, nan, payload, unsigned), build


@_inlined
def rounded_to_bf16(typing_context, number):  # type: ignore[no-untyped-def]
    """The bits of the bfloat16 nearest to a float32, ties to even."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.bitcast(arguments[0], _WORD)
        odd = builder.and_(builder.lshr(word, _word(16)), _word(1))
        nearest = builder.lshr(builder.add(builder.add(word, _word(0x7FFF)), odd), _word(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(is_nan, _word(0xFFFF), nearest), ir.IntType(16))

    return types.uint16(number), build


class Small(NamedTuple):
    """How the bits of a float of 8 or 16 bits are told from those of a float32; all without the sign."""

    shift: int
    """How many bits more a float32's mantissa has."""
    rebias: int
    """127 less what its exponent is stored with."""
    special: int
    """The least bits that are no finite number: what a number too large for it becomes."""
    infinity: int
    """The largest bits that are no NaN."""
    nan: int
    payload: int
    """Bits of a NaN's mantissa that are kept beside those of ``nan``."""
    unsigned: int
    """1 where what a number too large becomes has no sign."""


SMALL = {
    "F16": Small(13, 112, 0x7C00, 0x7C00, 0x7E00, 0x1FF, 0),
    "F8_E5M2": Small(21, 112, 0x7C, 0x7C, 0x7F, 0, 0),
    # it has no infinity: what is nearer to the 480 that it lacks than to its largest, 448, is NaN
    "F8_E4M3": Small(20, 120, 0x7F, 0x7E, 0x7F, 0, 1),
}
"""By safetensors name."""


def _word(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _exponent(builder: Any, value: Any) -> Any:
    """Where a float32 has its exponent."""
    return builder.shl(value, _word(23))


def _place(builder: Any, address: Any, index: Any, number: Any) -> Any:
    return builder.gep(builder.inttoptr(address, ir.PointerType(number.type)), [index])
