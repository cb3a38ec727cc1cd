"""Which weights of a tensor a sample takes: a few stretches are read, and single weights drawn inside them.

Weights of one row or column move alike, so weights far apart say more than neighbours; a request to the
Hub costs a round trip whatever it brings, so few stretches are read. The places follow from a tensor's name
and its number of elements alone: every checkpoint, machine and later run takes the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from hubextrap.statistics.table import GROUPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRETCH, LONGEST_STRETCH, STRETCHES_IN_TENSOR = 2**14, 2**16, 160
"""Weights of a stretch: one part in so many of the tensor, within bounds. What counts is how many rows of a
large matrix it sees; 2**16 are 18 rows of a 7B model, and still a small request."""


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """The weights of one tensor that a sample takes."""

    elements: int
    """Of the tensor."""
    ranges: tuple[tuple[int, int], ...]
    """What is read: first element and count of each stretch, in order; ``GROUPS`` of them at most."""
    inside: NDArray[np.int64]
    """(n,): what is kept, as positions in the stretches end to end; group after group, each increasing."""
    groups: tuple[int, ...]
    """Weights of each group: ``GROUPS`` numbers, which add up to n."""

    def in_tensor(self) -> NDArray[np.int64]:
        """(n,): what is kept, as positions in the tensor."""
        starts = np.cumsum([0, *(count for _, count in self.ranges)])
        which = np.searchsorted(starts, self.inside, side="right") - 1
        firsts = np.array([first for first, _ in self.ranges] or [0], np.int64)
        return np.asarray(self.inside - starts[which] + firsts[which], dtype=np.int64)


@lru_cache(maxsize=4096)
def places_of(name: str, elements: int, size: int, seed: int = 0) -> Places:
    """The places of ``size`` weights of a tensor; of all its weights, if it has no more.

    A tensor that a few requests bring whole is read whole, and weights are drawn from all of it. Of a larger
    one, a stretch for each group is read, at random places.

    Args:
        name: of the tensor.
        size: weights to keep.
        seed: another one draws other places; nothing but tests does.
    """
    split = tuple((min(size, elements) + group) // GROUPS for group in range(GROUPS))
    if elements <= size:
        return Places(elements, ((0, elements),) if elements else (), np.arange(elements), split)
    # of run A, the draw of 0 is one of the few whose errors are unlike those of others
    generator = np.random.default_rng([seed + 1, crc32(name.encode()), elements])
    length = max(min(max(elements // STRETCHES_IN_TENSOR, STRETCH), LONGEST_STRETCH), size)
    if elements < 2 * GROUPS * length:  # stretches would be so much of it that they are no draw
        drawn = generator.choice(elements, size, replace=False)
        return Places(elements, ((0, elements),), _in_groups(drawn, split), split)
    slots = np.sort(generator.choice(elements // length, GROUPS, replace=False))
    firsts = slots * length + generator.integers(elements % length + 1)
    parts = [
        group * length + generator.choice(length, count, replace=False) for group, count in enumerate(split)
    ]
    ranges = tuple((int(first), length) for first in firsts)
    return Places(elements, ranges, _in_groups(np.concatenate(parts), split), split)


def _in_groups(drawn: NDArray[np.int64], split: tuple[int, ...]) -> NDArray[np.int64]:
    ends = np.cumsum(split)[:-1]
    return np.concatenate([np.sort(part) for part in np.split(drawn, ends)]).astype(np.int64)
