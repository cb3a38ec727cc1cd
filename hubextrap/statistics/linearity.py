"""How straight single weights run against the step: filters, R² histograms and the random-walk yardstick.

The filters are those of the released code of arXiv 2601.04537: a weight counts when it spans more than 1e-4
over the checkpoints and takes at least 4 distinct values. R² is Pearson's, squared, against the real step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MIN_RANGE = 1e-4
MIN_DISTINCT = 4
BINS = 200
"""Bins of an R² histogram over [0, 1]; the last one holds 1."""
LINEAR = 0.7
"""R² above which the paper calls a weight or a token linear; the edge of a bin."""
_FIRST_LINEAR = round(LINEAR * BINS)
UNMOVED, SMALL_RANGE, FEW_VALUES = BINS, BINS + 1, BINS + 2
"""Where a table of counts, BINS + 3 long, counts the weights that are left out, by the first reason found."""


@dataclass(frozen=True, slots=True)
class Linearity:
    """R² of many weights, and those that were left out."""

    histogram: NDArray[np.int64]
    """(BINS,): kept weights by R²."""
    unmoved: int
    """The same in all checkpoints."""
    small_range: int
    """Moved by ``MIN_RANGE`` or less."""
    few_values: int
    """Moved by more, but with fewer than ``MIN_DISTINCT`` values."""
    median_stderr: float | None = None
    """Standard errors of ``median``, ``share_linear`` and ``share_kept``, where a sample was looked at and
    can say them."""
    share_linear_stderr: float | None = None
    share_kept_stderr: float | None = None

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64]) -> Linearity:
        """From a table of counts, (BINS + 3,)."""
        return cls(counts[:BINS], int(counts[UNMOVED]), int(counts[SMALL_RANGE]), int(counts[FEW_VALUES]))

    @classmethod
    def of_sample(
        cls, counts: NDArray[np.int64], by_group: NDArray[np.int64], elements: NDArray[np.int64]
    ) -> Linearity:
        """Of tensors whose weights were sampled in groups.

        The standard errors are a jackknife's over the groups of each tensor: figures are made again with
        a tensor's counts scaled up from its other groups.

        Args:
            counts: (N, BINS + 3), of all weights: `spread_counts` of those drawn.
            by_group: (N, G, BINS + 3), of those drawn.
            elements: (N,).
        """
        found = cls.from_counts(counts.sum(axis=0))
        if not found.kept:
            return found
        groups, drawn = by_group.shape[1], by_group.sum(axis=(1, 2))
        factors = (1.0 - drawn / np.maximum(elements, 1)) * (groups - 1) / groups
        total, rows = counts.sum(axis=0).astype(np.float64), factors > 0
        some = by_group[rows].astype(np.float64)
        kept = np.empty((3, groups, len(some)))
        for group in range(groups):
            others = some.sum(axis=1) - some[:, group]
            scale = elements[rows] / others.sum(axis=1)
            histograms = (total - counts[rows] + others * scale[:, None])[:, :BINS].clip(min=0.0)
            if not histograms.any(axis=1).all():
                return found  # all that was kept is in one group
            kept[0, group] = _medians(histograms)
            kept[1, group] = histograms[:, _FIRST_LINEAR:].sum(axis=1) / histograms.sum(axis=1)
            kept[2, group] = histograms.sum(axis=1) / total.sum()
        variances = ((kept - kept.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) @ factors[rows]
        median, linear, share = np.sqrt(variances).tolist()
        return replace(found, median_stderr=median, share_linear_stderr=linear, share_kept_stderr=share)

    @property
    def kept(self) -> int:
        return int(self.histogram.sum())

    @property
    def elements(self) -> int:
        return self.kept + self.unmoved + self.small_range + self.few_values

    @property
    def share_kept(self) -> float:
        """Share of the weights that pass the filters; 0 where there are no weights."""
        return self.kept / self.elements if self.elements else 0.0

    @property
    def median(self) -> float | None:
        """Median R² of the kept weights, interpolated in its bin; None when none was kept."""
        return float(_medians(self.histogram[None])[0]) if self.kept else None

    @property
    def share_linear(self) -> float | None:
        """Share of the kept weights with an R² above ``LINEAR``; None when none was kept."""
        return float(self.histogram[_FIRST_LINEAR:].sum() / self.kept) if self.kept else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without the histogram; standard errors where there are any."""
        stderrs = {
            "share_kept_stderr": self.share_kept_stderr,
            "median_r_squared_stderr": self.median_stderr,
            "share_r_squared_above_0.7_stderr": self.share_linear_stderr,
        }
        return {
            "elements": self.elements,
            "share_kept": self.share_kept,
            "unmoved": self.unmoved,
            "small_range": self.small_range,
            "few_values": self.few_values,
            "median_r_squared": self.median,
            "share_r_squared_above_0.7": self.share_linear,
            **{name: stderr for name, stderr in stderrs.items() if stderr is not None},
        }


def _medians(histograms: NDArray[Any]) -> NDArray[np.float64]:
    """(N,): the median of each histogram of (N, BINS), interpolated in its bin; none is empty."""
    below = np.cumsum(histograms, axis=1)
    half = below[:, -1:] / 2
    bins = (below < half).sum(axis=1)
    rows = np.arange(len(histograms))
    inside = histograms[rows, bins]
    return np.asarray((bins + (half[:, 0] - (below[rows, bins] - inside)) / inside) / BINS)


@dataclass(frozen=True, slots=True)
class RandomWalk:
    """What weights that only wander would show at the same steps: the figure to beat."""

    median: float
    share_linear: float


def r_squared(steps: Sequence[int] | NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """Squared Pearson correlation with the step, in float64.

    Args:
        steps: K, not all the same.
        values: (..., K).

    Returns:
        (...); 0 where the values do not vary.
    """
    centred = np.asarray(steps, dtype=np.float64)
    centred = centred - centred.mean()
    values = np.asarray(values, dtype=np.float64)
    # a power of two changes no digit of what comes out, and no square of any scale is 0 or infinite
    values = np.ldexp(values, -np.frexp(np.abs(values).max(axis=-1, keepdims=True))[1])
    deviations = values - values.mean(axis=-1, keepdims=True)
    variation = (deviations**2).sum(axis=-1)
    covariation = deviations @ centred
    scale = (centred**2).sum() * variation
    varies = np.ptp(values, axis=-1) > 0
    return np.where(varies, np.minimum(covariation**2 / np.where(varies, scale, 1.0), 1.0), 0.0)


def count_linearity(steps: Sequence[int], values: NDArray[Any]) -> NDArray[np.int64]:
    """The table of counts of a few weights, plainly: the yardstick of the streaming pass.

    Args:
        values: (n, K).

    Returns:
        (BINS + 3,).
    """
    values = np.asarray(values, dtype=np.float64)
    ordered = np.sort(values, axis=1)
    distinct = 1 + (np.diff(ordered, axis=1) > 0).sum(axis=1)
    spread = ordered[:, -1] - ordered[:, 0]
    place = np.minimum(r_squared(steps, values) * BINS, BINS - 1).astype(np.int64)
    place[distinct < MIN_DISTINCT] = FEW_VALUES
    place[spread <= MIN_RANGE] = SMALL_RANGE
    place[spread == 0] = UNMOVED
    return np.bincount(place, minlength=BINS + 3).astype(np.int64)


def spread_counts(counts: NDArray[np.int64], elements: int) -> NDArray[np.int64]:
    """What a table of counts of a sample says of all elements: whole numbers in its proportions.

    Args:
        counts: (BINS + 3,), of one element at least.
    """
    bounds = np.rint(np.cumsum(counts) * (elements / counts.sum())).astype(np.int64)
    bounds[-1] = elements
    return np.asarray(np.diff(bounds, prepend=0), dtype=np.int64)


def random_walk(steps: Sequence[int], walks: int = 100_000) -> RandomWalk:
    """R² of Gaussian random walks observed at ``steps``: by simulation, always with the same seed.

    The standard error of the median is about 0.002 with 26 steps.
    """
    generator = np.random.default_rng(0)
    deviation = np.sqrt(np.diff(np.asarray(steps, dtype=np.float64)))
    found = []
    chunk = max(1, 2**15 // len(steps))  # stays in the caches
    for start in range(0, walks, chunk):
        count = min(chunk, walks - start)
        moves = generator.standard_normal((count, len(deviation))) * deviation
        positions = np.concatenate([np.zeros((count, 1)), np.cumsum(moves, axis=1)], axis=1)
        found.append(r_squared(steps, positions))
    result = np.concatenate(found)
    return RandomWalk(float(np.median(result)), float((result > LINEAR).mean()))
