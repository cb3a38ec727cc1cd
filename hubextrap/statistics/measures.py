"""How long displacements are, by the Gram matrices of some tensors; and what is kept of these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.methods import rounding_share
from hubextrap.methods.rehearsal import leading_directions, motions_between

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@dataclass(eq=False)
class Measure:
    """How long displacements of some tensors are."""

    gram: NDArray[np.float64]
    """(N, K, K)"""

    @cached_property
    def total(self) -> NDArray[np.float64]:
        """(1, K, K)"""
        return np.asarray(self.gram.sum(axis=0, keepdims=True))

    def squares(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,): Σ over the tensors of vᵀ·G·v, for vectors (N or 1, R, K)."""
        products = vectors @ (self.total if len(vectors) == 1 else self.gram)
        products *= vectors
        return np.asarray(np.maximum(products.sum(axis=(0, -1)), 0.0))

    def motions(self, origins: NDArray[np.intp], targets: NDArray[np.intp]) -> NDArray[np.float64]:
        """As `squares`, (R,), of what happened between two checkpoints each."""
        return self.squares(motions_between(origins, targets, self.gram.shape[-1])[None])


@dataclass(eq=False)
class MeasureOfEach(Measure):
    """The same tensor by tensor: what it returns is (R, N)."""

    def squares(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        products = vectors @ self.gram
        products *= vectors
        return np.asarray(products.sum(axis=-1).T)

    def motions(self, origins: NDArray[np.intp], targets: NDArray[np.intp]) -> NDArray[np.float64]:
        norms = np.diagonal(self.gram, axis1=-2, axis2=-1)
        across = self.gram[:, origins, targets]
        return np.asarray((norms[:, origins] + norms[:, targets] - 2.0 * across).T)


@dataclass(eq=False)
class SignalOfEach:
    """The same of the signal."""

    directions: NDArray[np.float64]
    """(N, K, 2)"""

    def squares(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        along = vectors @ self.directions
        along *= along
        return np.asarray(along.sum(axis=-1).T)

    def motions(self, origins: NDArray[np.intp], targets: NDArray[np.intp]) -> NDArray[np.float64]:
        along = self.directions[:, targets] - self.directions[:, origins]
        along *= along
        return np.asarray(along.sum(axis=-1).T)


class Spectra:
    """What methods ask of the same Gram matrices again and again, kept as long as there is room."""

    def __init__(self, room: int = 0) -> None:
        """Args: room: bytes."""
        self._room = room
        self._kept: dict[tuple[str, tuple[str, ...], int], NDArray[np.float64]] = {}

    def directions(self, names: tuple[str, ...], gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, K, 2): `leading_directions`. Args: names: N, by which the matrices are known."""
        return self._of("directions", names, gram, leading_directions)

    def rounding(self, names: tuple[str, ...], gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,): `rounding_share`."""
        return self._of("rounding", names, gram, rounding_share)

    def _of(
        self,
        what: str,
        names: tuple[str, ...],
        gram: NDArray[np.float64],
        function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        key = what, names, gram.shape[-1]
        found = self._kept.get(key)
        if found is None:
            found = function(gram)
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._kept[key] = found
        return found
