"""From stored numbers to float32 and back, for loops that numba compiles: single operations on bits.

Each is the few instructions of LLVM that do it, and in a loop all become vectors. Numbers are read and
written at any address. Casts are torch's on x86 to the bit, those of NaN included: a NaN becomes 0xFFFF as
BF16, keeps its sign and the upper bits of its payload as F16, and its sign alone as a float8.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from hubextrap.compiling import inlined

_WORD, _FLOAT = ir.IntType(32), ir.FloatType()
_SIGN, _INFINITY, _QUIET = 0x80000000, 0x7F800000, 0x400000


@inlined
def load(typing_context, address, index, like):  # type: ignore[no-untyped-def]
    """Number ``index`` of those at ``address``, of the type of ``like``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(builder, *arguments), align=1)

    return like(address, index, like), build


@inlined
def store(typing_context, address, index, number):  # type: ignore[no-untyped-def]
    """Write number ``index`` of those at ``address``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(builder, *arguments), align=1)
        return context.get_dummy_value()

    return types.void(address, index, number), build


@inlined
def fused(typing_context, one, other, total):  # type: ignore[no-untyped-def]
    """one · other + total, rounded once.

    A processor without FMA calls C's fma for it: slowly, and to the same bits.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return total(one, other, total), build


@inlined
def number_like(typing_context, like, stored):  # type: ignore[no-untyped-def]
    """A float of any size, or the bits of a BF16, as the type of ``like``: the nearest, ties to even."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, kind = arguments[1], stored
        if isinstance(stored, types.Integer):  # a bfloat16 is the upper half of a float32
            word = builder.shl(builder.zext(number, _WORD), _word(16))
            number, kind = builder.bitcast(word, _FLOAT), types.float32
        return context.cast(builder, number, kind, like)

    return like(like, stored), build


@inlined
def counted(typing_context, total, word, mask, value):  # type: ignore[no-untyped-def]
    """``total``, uint32, and one more where the bits of ``word`` in ``mask`` are those of ``value``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, word, *given = arguments
        mask, value = (builder.trunc(one, word.type) if word.type.width < 64 else one for one in given)
        found = builder.icmp_unsigned("==", builder.and_(word, mask), value)
        return builder.add(total, builder.zext(found, _WORD))

    return types.uint32(total, word, mask, value), build


@inlined
def widened(typing_context, bits, shift, rebias, special, nan):  # type: ignore[no-untyped-def]
    """float32 of the bits of a small float, which `formats.Small` describes; denormals are exact."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, shift, rebias, special, nan = arguments
        sign_bit = bits.type.width - 1
        word = builder.zext(bits, _WORD)
        magnitude = builder.and_(word, _word(2**sign_bit - 1))
        sign = builder.shl(builder.lshr(word, _word(sign_bit)), _word(31))
        # read as a float32 it is 2^rebias too small; the multiplication is exact, and makes denormals normal
        shifted = builder.shl(magnitude, shift)
        scale = builder.bitcast(_exponent(builder, builder.add(rebias, _word(127))), _FLOAT)
        number = builder.bitcast(builder.fmul(builder.bitcast(shifted, _FLOAT), scale), _WORD)
        # NaN is what lies above infinity, or what is special where there is none
        no_infinity = builder.zext(builder.icmp_unsigned("==", special, nan), _WORD)
        is_nan = builder.icmp_unsigned(">", magnitude, builder.sub(special, no_infinity))
        lifted = builder.select(is_nan, _word(_INFINITY | _QUIET), _word(_INFINITY))
        finite = builder.icmp_unsigned("<", magnitude, special)
        chosen = builder.select(finite, number, builder.or_(shifted, lifted))
        return builder.bitcast(builder.or_(chosen, sign), _FLOAT)

    return types.float32(bits, shift, rebias, special, nan), build


@inlined
def rounded(typing_context, number, like, shift, rebias, special, nan):  # type: ignore[no-untyped-def]
    """The bits of the small float nearest to a float32, ties to even, of the type of ``like``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, like, shift, rebias, special, nan = arguments
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
        # what is too large has no sign where that makes it NaN
        signed = builder.select(
            builder.icmp_unsigned("==", special, nan), special, builder.or_(special, sign)
        )
        too_large = builder.icmp_unsigned(">=", finite, special)
        result = builder.select(too_large, signed, builder.or_(finite, sign))
        payload = builder.and_(kept, builder.xor(special, _word(2**sign_bit - 1)))
        is_nan = builder.icmp_unsigned(">", magnitude, _word(_INFINITY))
        as_nan = builder.or_(builder.or_(nan, payload), sign)
        return builder.trunc(builder.select(is_nan, as_nan, result), like.type)

    return like(number, like, shift, rebias, special, nan), build


@inlined
def rounded_to_odd(typing_context, number):  # type: ignore[no-untyped-def]
    """The float32 from which any smaller float is rounded as from ``number``, a float64 or float32 itself.

    What no float32 holds becomes that neighbour of it whose last bit is 1: it is no tie, and it lies on the
    same side of each tie, as smaller floats have two bits less at least (Boldo and Melquiond, IEEE
    Transactions on Computers 57(4), 2008).
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (number,) = arguments
        if number.type == _FLOAT:
            return number
        nearest = builder.fptrunc(number, _FLOAT)
        word, back = builder.bitcast(nearest, _WORD), builder.fpext(nearest, number.type)
        # bits of floats are in the order of their magnitudes: one less is the neighbour towards 0
        long = ir.IntType(64)
        magnitudes = [
            builder.and_(builder.bitcast(one, long), ir.Constant(long, 2**63 - 1)) for one in (back, number)
        ]
        away = builder.zext(builder.icmp_unsigned(">", *magnitudes), _WORD)
        odd = builder.or_(builder.sub(word, away), _word(1))
        inexact = builder.fcmp_ordered("one", back, number)  # of a NaN it is not
        return builder.bitcast(builder.select(inexact, odd, word), _FLOAT)

    return types.float32(number), build


@inlined
def rounded_to_bf16(typing_context, number):  # type: ignore[no-untyped-def]
    """The bits of the bfloat16 nearest to a float32, ties to even."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.bitcast(arguments[0], _WORD)
        odd = builder.and_(builder.lshr(word, _word(16)), _word(1))
        nearest = builder.lshr(builder.add(builder.add(word, _word(0x7FFF)), odd), _word(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(is_nan, _word(0xFFFF), nearest), ir.IntType(16))

    return types.uint16(number), build


def _word(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _exponent(builder: Any, value: Any) -> Any:
    """``value`` in the place where a float32 has its exponent."""
    return builder.shl(value, _word(23))


def _place(builder: Any, address: Any, index: Any, number: Any) -> Any:
    return builder.gep(builder.inttoptr(address, ir.PointerType(number.type)), [index])
