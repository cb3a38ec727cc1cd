"""Two checkpoints on the same problems: the difference, how far it can be trusted, and what it says.

The problems are the sample, so they are what is resampled. Where a problem was answered several times, its
figure is the mean of the answers, and how these scatter is part of how the problems' figures scatter.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
_SEED = 20_260_104
_DRAWN_AT_ONCE = 2**22
"""Numbers that a block of resamples may take: 32 MiB."""


@lru_cache(maxsize=1024)
def paired_interval(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[float, float]:
    """The 95 % interval of mean(ours − theirs) by a paired bootstrap over the problems; the same every time.

    The percentile interval of 10,000 resamples is too short where problems, or problems that differ, are
    few: three that all went better would give an interval without width. Two remedies, both without effect on
    many problems: one more difference of the usual size (root mean square of those that are not 0) on either
    side, as Bonett & Price (2012, doi 10.3102/1076998611411915) do for paired proportions; and
    percentiles further out, as far as Student's t is beyond the normal distribution (Hesterberg 2015,
    doi 10.1080/00031305.2015.1089789, section 5.3). Six problems of 500 that all went the same way are then
    the fewest that count as a difference, as in the exact sign test.

    Args:
        ours: one figure per problem, finite.
        theirs: of the same problems, in the same order.

    Raises:
        ValueError: there are no problems, or not the same number of them.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} problems cannot be paired")
    differences = np.subtract(ours, theirs)
    changed = differences[differences != 0]
    if not len(changed):
        return (0.0, 0.0)
    usual = float(np.sqrt(np.mean(changed**2)))
    sample = np.append(differences, [usual, -usual])
    n = len(sample)
    generator = np.random.default_rng(_SEED)
    rows = max(1, _DRAWN_AT_ONCE // n)
    means = np.concatenate(
        [
            sample[generator.integers(n, size=(min(rows, RESAMPLES - start), n), dtype=np.int32)].mean(axis=1)
            for start in range(0, RESAMPLES, rows)
        ]
    )
    normal, tail = NormalDist(), (1 - LEVEL) / 2
    tail = normal.cdf(-math.sqrt(n / (n - 1)) * student_t(1 - tail, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return (float(low), float(high))


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t: scipy's, which lm-eval brings, else the first terms of Cornish and Fisher.

    Saved scores are compared without lm-eval too. At 4 degrees of freedom, those of 3 problems, the terms are
    .3 % off, and what is beyond the quantile 3 in 100,000: less than one of the resamples.
    """
    try:
        from scipy.special import stdtrit
    except ImportError:
        z = NormalDist().inv_cdf(probability)
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / freedom + second / freedom**2 + third / freedom**3
    return float(stdtrit(freedom, probability))
