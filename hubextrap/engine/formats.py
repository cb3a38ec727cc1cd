"""How floating-point numbers are stored, as tables that the compiled loops look things up in."""

from __future__ import annotations

from typing import NamedTuple

from hubextrap.engine.comparison import FLOATS

CODES = {name: code for code, name in enumerate(FLOATS)}
"""What the loops call them, by safetensors name."""


class Small(NamedTuple):
    """How the bits of a float of 8 or 16 bits and a float32 follow from each other, the sign apart."""

    shift: int
    """How many bits more a float32's mantissa has."""
    rebias: int
    """127, a float32's exponent bias, less its own."""
    special: int
    """The least bits that are no finite number. What is too large becomes these: infinity, or NaN if it has
    none."""
    nan: int
    """Bits that are set in every NaN that a cast makes; ``special`` where there is no infinity."""


SMALL = {
    "F16": Small(13, 112, 0x7C00, 0x7E00),
    "F8_E5M2": Small(21, 112, 0x7C, 0x7F),
    # it has no infinity: what is nearer to the 480 that it lacks than to its largest, 448, is NaN
    "F8_E4M3": Small(20, 120, 0x7F, 0x7F),
}
"""By safetensors name."""

NON_FINITE = {
    "F64": (0x7FF << 52, 0x7FF << 52),
    "F32": (0x7F800000, 0x7F800000),
    "F16": (0x7C00, 0x7C00),
    "BF16": (0x7F80, 0x7F80),
    "F8_E4M3": (0x7F, 0x7F),
    "F8_E5M2": (0x7C, 0x7C),
    "F8_E4M3FNUZ": (0xFF, 0x80),
    "F8_E5M2FNUZ": (0xFF, 0x80),
}
"""A mask, and what a number's bits in it are if it is NaN or infinite; by safetensors name."""
