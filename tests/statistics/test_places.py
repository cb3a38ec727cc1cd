"""The weights that a sample takes."""

from __future__ import annotations

import numpy as np
import pytest

from hubextrap.scans.places import STRETCH, places_of
from hubextrap.statistics.table import GROUPS


@pytest.mark.parametrize("size", [64, 1000, 4096, 5 * STRETCH])
@pytest.mark.parametrize(
    "elements", [0, 1, 63, 64, 65, 4096, 4097, 8 * STRETCH - 1, 8 * STRETCH, 10**6, 10**9 + 7]
)
def test_places(elements: int, size: int) -> None:
    found = places_of("model.layers.0.mlp.up_proj.weight", elements, size)
    kept = found.in_tensor()
    assert len(kept) == min(size, elements) == sum(found.groups) == len(set(kept.tolist()))
    assert ((kept >= 0) & (kept < elements)).all()
    assert len(found.ranges) <= GROUPS
    ends = [first + count for first, count in found.ranges]
    assert all(first >= end for (first, _), end in zip(found.ranges[1:], ends, strict=False))
    assert max(found.groups) - min(found.groups) <= 1
    read = np.concatenate([np.arange(first, first + count) for first, count in found.ranges or [(0, 0)]])
    np.testing.assert_array_equal(read[found.inside], kept)
    for group in np.split(kept, np.cumsum(found.groups)[:-1]):
        assert (np.diff(group) > 0).all()
    assert places_of("model.layers.0.mlp.up_proj.weight", elements, size) is found


def test_places_follow_from_the_name_and_the_number_of_elements_alone() -> None:
    """Pinned: a saved scan is appended to by later versions."""
    kept = places_of("model.norm.weight", 10**7, 64).in_tensor()
    assert kept[:3].tolist() == PINNED
    assert places_of("model.norm2.weight", 10**7, 64).in_tensor().tolist() != kept.tolist()
    assert places_of("model.norm.weight", 10**7, 64, seed=1).in_tensor().tolist() != kept.tolist()


PINNED = [1439398, 1441740, 1442630]
