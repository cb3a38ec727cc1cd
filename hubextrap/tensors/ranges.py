"""Neighbouring byte ranges joined, so that one request or one preadv serves several tensors.

For the engine: a request to the Hub costs a round trip (20-200 ms) whatever its size, a gap costs only its
bytes. Read a RemoteSource in spans of 8 MiB and more, a few at a time; a ``max_gap`` of 256 KiB is fair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of a file to read at once."""

    start: int
    stop: int
    """First byte after it."""
    members: tuple[int, ...]
    """Which of the given ranges lie in it: their positions in the list, in file order."""


def coalesce(ranges: Sequence[tuple[int, int]], max_gap: int, max_size: int) -> list[Span]:
    """Join ranges of one file at most ``max_gap`` bytes apart into spans of at most ``max_size`` bytes.

    A range larger than ``max_size`` stays whole, as a span of its own.

    Args:
        ranges: first byte and length of each, in any order.
        max_gap: bytes between two ranges that are rather read than skipped.
        max_size: bytes of a span.

    Returns:
        Spans in file order; every range is a member of exactly one.
    """
    spans: list[Span] = []
    members: list[int] = []
    first = end = 0
    for index in sorted(range(len(ranges)), key=ranges.__getitem__):
        start, stop = ranges[index][0], sum(ranges[index])
        if members and start - end <= max_gap and max(stop, end) - first <= max_size:
            members.append(index)
            end = max(stop, end)
            continue
        if members:
            spans.append(Span(first, end, tuple(members)))
        members, first, end = [index], start, stop
    if members:
        spans.append(Span(first, end, tuple(members)))
    return spans
