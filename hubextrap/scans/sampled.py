"""The sampled weights that a scan keeps, so that a later checkpoint costs its own sample only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.sample_sizes import LEAST_SAMPLE, MOST_SAMPLE
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class SampledWeights:
    """The sampled weights of N tensors under K checkpoints, see `places.places_of`."""

    size: int
    """Weights of each tensor, where it has as many."""
    dtypes: tuple[tuple[str, ...], ...]
    """K × N: safetensors names, as stored."""
    stored: tuple[NDArray[np.uint8], ...]
    """K: the bytes of all tensors' weights, one tensor after the other."""

    def of_tensor(self, checkpoint: int, row: int, elements: Sequence[int]) -> NDArray[np.uint8]:
        """The bytes of one tensor's weights. Args: elements: of the N tensors."""
        sizes = self.sizes(checkpoint, elements)
        start = int(sizes[:row].sum())
        return self.stored[checkpoint][start : start + int(sizes[row])]

    def sizes(self, checkpoint: int, elements: Sequence[int]) -> NDArray[np.int64]:
        """(N,): bytes of each tensor's weights. Args: elements: of the N tensors."""
        width = {dtype: DTYPES[dtype].itemsize for dtype in set(self.dtypes[checkpoint])}
        widths = np.array([width[dtype] for dtype in self.dtypes[checkpoint]], np.int64)
        return np.asarray(np.minimum(np.asarray(elements, np.int64), self.size) * widths, dtype=np.int64)

    def as_json(self) -> dict[str, Any]:
        """What a scan's file says of them beside their bytes; one name where all tensors have one dtype."""
        dtypes = [names[0] if len(set(names)) == 1 else list(names) for names in self.dtypes]
        return {"size": self.size, "dtypes": dtypes}


def sampled_weights(
    stated: dict[str, Any], stored: Sequence[NDArray[np.uint8]], elements: Sequence[int]
) -> SampledWeights:
    """What a scan's file holds, checked. Args: elements: of the N tensors.

    Raises:
        ValueError, KeyError, TypeError: it cannot be.
    """
    size, given = stated["size"], stated["dtypes"]
    if stated.keys() != {"size", "dtypes"} or type(size) is not int:
        raise ValueError("weights: does not hold size and dtypes")
    if not LEAST_SAMPLE <= size <= MOST_SAMPLE:
        raise ValueError(f"weights: its size is not from {LEAST_SAMPLE} to {MOST_SAMPLE}")
    if not isinstance(given, list) or len(given) != len(stored):
        raise ValueError("weights: does not hold the dtypes of each checkpoint")
    if not all(isinstance(one, (str, list)) for one in given):
        raise ValueError("weights: its dtypes are not names")
    count = len(elements)
    dtypes = tuple((one,) * count if isinstance(one, str) else tuple(one) for one in given)
    for names in dtypes:
        if len(names) != count or not all(isinstance(name, str) and name in DTYPES for name in names):
            raise ValueError("weights: its dtypes are not one of safetensors for each tensor")
    found = SampledWeights(size, dtypes, tuple(stored))
    for k, weights in enumerate(found.stored):
        if len(weights) != found.sizes(k, elements).sum():
            raise ValueError(f"weights: those of checkpoint {k} are not as many as its tensors have")
    return found
