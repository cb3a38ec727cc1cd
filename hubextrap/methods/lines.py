"""The methods whose coefficients follow from the steps alone: a straight line through the weights.

Each takes the K steps of the observed checkpoints, in increasing order, and the target step, and returns K
float64 coefficients c that sum to 1; the prediction is Σ c_k·W_k. Steps are what the checkpoints carry,
never positions in a list, so irregular spacing is exact. Where the learning rate is the clock, they are times
(`clocks.Timeline`), and only ``base_step`` goes on naming a checkpoint by its step.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from hubextrap.clocks import in_words, names_of
from hubextrap.errors import MethodError
from hubextrap.methods.rehearsal import denoised_gram, rehearse, squared_distances

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


LATE = ((0.5, 0.55), (0.75, 0.25))
"""Of `late_lines`: where each line begins, as a share of the observed way, and how much of it is taken.
On five runs it had errors of .562 .479 .311 .324 .311; the half line alone .616 .564 .349 .406 .323."""
SAME_LENGTH = math.log(1.5)
GRID = 2.0**-20
"""Coefficients that follow from weights are multiples of it. Eigenvectors and solutions differ in their last
digits with the processor's kernels (by 1e-16 to 1e-11, measured), and every byte of a prediction would too.
It moves a prediction by at most half of it per checkpoint, times the distance to that checkpoint."""


def persistence(steps: Sequence[float], target_step: float) -> NDArray[np.float64]:
    """The last checkpoint as it is: the baseline that every prediction has to beat."""
    result = np.zeros(len(steps))
    result[-1] = 1.0
    return result


def two_point(
    steps: Sequence[float],
    target_step: float,
    *,
    base_step: int | Literal["auto"] | None = None,
    gram_matrix: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The line through the checkpoint at ``base_step`` and the last one (arXiv 2601.04537).

    The last checkpoint gets α = (target − base)/(last − base), the base 1 − α, all others 0. ExPO
    (arXiv 2404.16792) is the same with α = 1 + α_ExPO.

    Args:
        base_step: an observed step before the last one; the first checkpoint when None. A base past the
            early transient of a run usually predicts better. ``auto``: the one whose share of the observed
            way would have predicted the run's own past best.
        gram_matrix: (K, K) inner products of the tensor's deltas, for ``auto``.

    Raises:
        MethodError: no checkpoint has ``base_step``, it is the last one, or ``auto`` finds no such horizon.
    """
    return _two_point_prepared(steps, gram_matrix, base_step=base_step)(target_step)


def _two_point_prepared(
    steps: Sequence[float],
    gram: NDArray[np.float64] | None,
    *,
    base_step: int | Literal["auto"] | None = None,
) -> Callable[[float], NDArray[np.float64]]:
    """`two_point` for one target after another: (…, K) coefficients of (…, K, K) Gram matrices."""
    *earlier, last = names_of(steps)
    if not earlier:
        raise MethodError(
            f"two_point needs two checkpoints, but only step {last} is there; add an earlier one"
        )
    if base_step == "auto":
        assert gram is not None
        return partial(_line_from, steps, partial(_best_base, steps, squared_distances(denoised_gram(gram))))
    if base_step is not None and base_step not in earlier:
        raise MethodError(
            f"base_step {base_step} is not an observed step before the last one ({last}); "
            f"choose one of {', '.join(map(str, earlier))}"
        )
    place = 0 if base_step is None else earlier.index(base_step)
    places = np.full(() if gram is None else gram.shape[:-2], place, dtype=np.intp)
    return partial(_line_from, steps, lambda _: places)


two_point.prepared = _two_point_prepared  # type: ignore[attr-defined]


def _line_from(
    steps: Sequence[float], find_base: Callable[[float], NDArray[np.intp]], target_step: float
) -> NDArray[np.float64]:
    """(…, K): the lines through the last checkpoint and those at (…) places."""
    places = find_base(target_step)
    bases = np.asarray(steps, dtype=np.float64)[places]
    alpha = (target_step - bases) / (steps[-1] - bases)
    result = np.zeros((*places.shape, len(steps)))
    np.put_along_axis(result, places[..., None], (1.0 - alpha)[..., None], axis=-1)
    result[..., -1] = alpha
    return result


def least_squares(
    steps: Sequence[float],
    target_step: float,
    *,
    window: int | Literal["half"] | None = None,
    through_last: bool = False,
) -> NDArray[np.float64]:
    """The least-squares line of every weight against the step, read at the target.

    c = [1, s*]·pinv([1, s]), in its closed form 1/n + (s*−s̄)(s_k−s̄)/Σ(s−s̄)² on the real steps.

    Args:
        window: fit only the last ``window`` checkpoints (at least 2); all of them when None. ``half``: those
            in the last half of the observed way, which keeps the early transient out at any length of it.
        through_last: make the line pass through the last checkpoint: only its slope is fitted, as
            (s*−s_last)(s_k−s_last)/Σ(s−s_last)². The prediction then starts from the best weights known.

    Raises:
        MethodError: ``window`` is below 2 or above the number of checkpoints, or there is only one.
    """
    if len(steps) < 2:
        raise MethodError(
            f"least_squares needs two checkpoints, but only step {names_of(steps)[0]} is there; add "
            "an earlier one"
        )
    if window == "half":
        middle = (steps[0] + steps[-1]) / 2
        count = max(2, sum(step >= middle for step in steps))
    else:
        count = len(steps) if window is None else window
    if not 2 <= count <= len(steps):
        raise MethodError(
            f"window {count} does not fit: a line needs at least 2 checkpoints and {len(steps)} are there; "
            f"give a window from 2 to {len(steps)}, or leave it out to use all"
        )
    fitted = np.asarray(steps[-count:], dtype=np.float64)
    # fsum: right to the last digit, whatever the order in which a processor's kernels would add
    centre = fitted[-1] if through_last else math.fsum(fitted) / count
    offsets = fitted - centre
    result = np.zeros(len(steps))
    result[-count:] = (target_step - centre) * offsets / math.fsum(offsets**2)
    if not through_last:
        result[-count:] += 1.0 / count
    return sum_to_one(result)


def late_lines(steps: Sequence[float], target_step: float) -> NDArray[np.float64]:
    """.55 of the line over the last half of the steps, and .25 of that over the last quarter.

    Both are least-squares lines through the last checkpoint, which gets the rest. Nothing is fitted to the
    past: the rule to beat.

    Raises:
        MethodError: there is only one checkpoint.
    """
    if len(steps) < 2:
        raise MethodError(
            f"late_lines needs two checkpoints, but only step {names_of(steps)[0]} is there; add an "
            "earlier one"
        )
    result = np.zeros(len(steps))
    for begin, weight in LATE:
        start = steps[0] + begin * (steps[-1] - steps[0])
        count = max(2, sum(step >= start for step in steps))
        result += weight * least_squares(steps, target_step, window=count, through_last=True)
    return sum_to_one(result)  # the last checkpoint gets the rest


def _best_base(steps: Sequence[float], squares: NDArray[np.float64], target_step: float) -> NDArray[np.intp]:
    """(…): the place of the base whose share of the observed way would have done best in the rehearsals.

    Args:
        squares: (…, K, K), `squared_distances`.
    """
    rehearsals = rehearse(steps, target_step)
    if not len(rehearsals):
        raise MethodError(
            f"base_step: auto cannot choose: no prediction within the {len(steps)} checkpoints up "
            f"to step {names_of(steps)[-1]} reaches as far as {in_words(steps, target_step)}; give "
            "a step, or a nearer target"
        )
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    origins, targets = rehearsals.origins[:, None], rehearsals.targets[:, None]
    shares = times[:-1] / times[-1]
    # (R, B): in each rehearsal, the checkpoint before the origin that lies at the same share of its way
    gaps = np.abs(times[None, None, :] - shares[:, None] * times[origins][..., None])
    bases = np.argmin(np.where(np.arange(len(steps)) < origins[..., None], gaps, np.inf), axis=-1)
    way = (times[targets] - times[origins]) / (times[origins] - times[bases])
    flat = squares.reshape(*squares.shape[:-2], -1)
    real, size, less = (
        flat.take(one * len(steps) + other, axis=-1)
        for one, other in ((origins, targets), (origins, bases), (targets, bases))
    )
    # ‖x_j − x_k + way·(x_j − x_b)‖², relative to real + way²·back, is 1 − way·(across − real − back) of it
    less -= real
    less -= size
    less *= way
    size *= way**2
    size += real
    if size.min(initial=np.inf) > 0:
        less /= size
    else:
        less = np.divide(less, size, out=np.ones_like(less), where=size > 0)
    # with irregular steps the share may not be there: a line half or twice as long says nothing of this one
    off = np.abs(np.log((times[origins] - times[bases]) / times[origins] / (1.0 - shares)))
    weights = rehearsals.weights[:, None] * (off <= SAME_LENGTH)
    total = weights.sum(axis=0)
    rehearsed = total >= 0.5 * rehearsals.weights.sum()
    less *= weights
    sums = total - less.sum(axis=-2)
    means = np.divide(sums, total, out=np.full_like(sums, np.inf), where=rehearsed)
    # of equals the first, not the one that rounding favours
    return np.asarray(np.argmin(on_grid(means), axis=-1))


def on_grid(values: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The nearest multiples of ``GRID``."""
    return np.asarray(np.rint(values / GRID) * GRID)


def sum_to_one(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A copy of (…, K) ``values`` with the last of each row set to 1 − Σ of the others."""
    result: NDArray[np.float64] = values.copy()
    cells = result / GRID
    if np.array_equal(cells, np.rint(cells)) and np.abs(cells).sum(axis=-1).max(initial=0.0) < 2.0**52:
        result[..., -1] = 1.0 - result[..., :-1].sum(axis=-1)  # of multiples of the grid every sum is exact
        return result
    for row in result.reshape(-1, result.shape[-1]):  # views into the copy
        row[-1] = 1.0 - math.fsum(row[:-1])
    return result
