"""The parts of the page in reading order: what each shows, when to worry, its plot and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.figures import BESIDE, percent, with_stderr
from hubextrap.reporting import scores, weights
from hubextrap.scans.logprobs import MIN_CHANGE
from hubextrap.statistics import backtest_view, horizon_classes, pair_counts
from hubextrap.statistics.linearity import LINEAR, MIN_DISTINCT, MIN_RANGE

if TYPE_CHECKING:
    from hubextrap.reporting.accuracy import Accuracy
    from hubextrap.reporting.style import Draw
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest

MAX_ACCURACY_PLOTS = 6
"""A suite has dozens of subtasks; the rest is in the evaluation's own table."""


@dataclass(frozen=True, slots=True)
class Section:
    """One plot with its words."""

    name: str
    """Of its PNG, and its anchor in the page."""
    title: str
    shows: str
    worry: str
    draw: Draw
    height: float
    """Inches."""
    headings: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    """The figures behind the plot, as text."""
    note: str = ""
    """What the figures' headings do not say."""


def build_sections(scan: Scan, backtest: Backtest, accuracies: Sequence[Accuracy]) -> list[Section]:
    """All sections that this scan and these evaluations can fill."""
    found = [
        _accuracy(number, accuracy) for number, accuracy in enumerate(accuracies[:MAX_ACCURACY_PLOTS], 1)
    ]
    if any(pair_counts(backtest)):
        found.append(_backtest(backtest))
    if len(scan.steps) > 3:
        found.append(_direction(scan, backtest.rounded))
    if scan.linearity().kept:
        found += [_r_squared(scan), _heat_map(scan)]
    if scan.logprobs is not None and len(scan.logprobs.r_squared()):
        found.append(_logprobs(scan))
    if weights.chosen_examples(scan):
        found.append(_examples(scan, backtest.rounded))
    if scan.gram_table.total()[-1, -1] > 0 and len(scan.steps) > 2:
        found.append(_explained(scan))
    return found


def _accuracy(number: int, accuracy: Accuracy) -> Section:
    gains = scores.gain(accuracy)
    said = [
        f"{label} scores {value:.3f}, the last observed checkpoint {last:.3f}"
        + ("" if real is None else f", the real one {real:.3f}")
        for label, value, last, real in gains
    ]
    return Section(
        f"accuracy-{number}",
        f"Scores: {accuracy.title}",
        "Each point is a checkpoint that was evaluated, with its 95% interval"
        + (f": {'; '.join(said)}." if said else "."),
        "Worry when a prediction does not lie above the last observed checkpoint by more than the "
        "intervals: then it is no better than what is there already. This, not the weights, is the last "
        "word.",
        partial(scores.draw_accuracy, accuracy=accuracy),
        3.4,
        ("checkpoint", "step", "score", "± standard error"),
        [
            (
                f"{point.label}: {point.place}",
                "–" if point.step is None else str(point.step),
                f"{point.value:.4f}",
                "–" if point.stderr is None else f"{point.stderr:.4f}",
            )
            for point in accuracy.points
        ],
    )


def _backtest(backtest: Backtest) -> Section:
    counts = pair_counts(backtest)
    classes = zip(horizon_classes(backtest), counts, strict=True)
    titles, total = [f"{title}: {count}" for title, count in classes], ["total"] * backtest.rounded
    return Section(
        "backtest",
        "Rehearsals: how far off would a prediction have been?",
        f"Each method predicted {sum(counts)} times a checkpoint that the run did reach, knowing only "
        "earlier ones. The error is the distance to the real weights, as a share of the distance that the "
        "last known checkpoint had: 1 is what doing nothing gives, 0 would be perfect."
        + " Both distances are those of the signal, without the rounding to 16 bits."
        * backtest.rounded,
        "Worry when the lines come near 1: above it a method does harm. Worry too when few rehearsals "
        "stand behind a point (the table counts them), or when your target is farther ahead than they "
        "went.",
        partial(scores.draw_backtest, backtest=backtest),
        4.9,
        ("method", *titles, "worst", "expected", *total),
        [
            (
                name,
                *(with_stderr(*figure) for figure in figures),
            )
            for name, figures in backtest_view.rows(backtest)
        ],
        "Mean errors by horizon, (target − last) ÷ (last − first), in brackets the step that this is from "
        f"step {backtest.steps[-1]}, and how many rehearsals; then the worst of all, and the mean error that "
        "was forecast from the checkpoints known at the time."
        + " Total: the mean of all against the checkpoints as they are stored, rounding included."
        * backtest.rounded
        + f" {BESIDE}." * (backtest.sampled is not None),
    )


def _direction(scan: Scan, rounded: bool) -> Section:
    origins, from_first, from_half = weights.direction(scan, rounded)
    stderrs = weights.direction_stderrs(scan, rounded) or ([None] * len(origins),) * 2
    return Section(
        "direction",
        "Direction: does the past point at the future?",
        "For each checkpoint, the angle between the way behind it and the way from it to step "
        f"{scan.steps[-1]}: a cosine of 1 goes straight on, 0 is a right angle."
        + " Of the signal, without the rounding to 16 bits."
        * rounded,
        f"Worry when the line from step {scan.steps[0]} lies well below the other: the run began in another "
        "direction, and a line through its start multiplies that transient. Take a later base_step, or a "
        "fit over the last half.",
        partial(weights.draw_direction, scan=scan, rounded=rounded),
        3.3,
        ("last observed step", f"from step {scan.steps[0]}", "from half way"),
        [
            (str(step), with_stderr(first, one), with_stderr(half, other))
            for step, first, half, one, other in zip(origins, from_first, from_half, *stderrs, strict=True)
        ],
    )


def _r_squared(scan: Scan) -> Section:
    found, walk = scan.linearity(), scan.random_walk
    shares = weights.shown_shares(found.histogram)
    median = with_stderr(found.median, found.median_stderr)
    linear = percent(found.share_linear, found.share_linear_stderr)
    left = percent(1 - found.share_kept, found.share_kept_stderr, 1)
    left_out = (
        f"{left} of the weights are left out: they moved by {MIN_RANGE:g} or less, or took fewer than "
        f"{MIN_DISTINCT} values."
    )
    if (drawn_from := scan.sampled_in_words) is not None:
        left_out += f" All this is estimated {drawn_from}."
    return Section(
        "r-squared",
        "Straightness: R² of every weight" if drawn_from is None else "Straightness: R² of single weights",
        f"How well a straight line in the step describes each of {found.kept:,} weights. The median is "
        f"{median}, and {linear} lie above {LINEAR}; a random walk would give "
        f"{walk.median:.2f} and {walk.share_linear:.0%}. {left_out}",
        "Worry when the blue bars follow the orange outline: then the weights wander. The reverse is no "
        "comfort: R² looks back, and a high one has gone with predictions that ruin the model.",
        partial(weights.draw_r_squared, shares=shares, steps=scan.steps, what="weights"),
        3.3,
        ("weights", "number"),
        [
            ("kept", f"{found.kept:,}"),
            ("did not move", f"{found.unmoved:,}"),
            ("moved by 1e-4 or less", f"{found.small_range:,}"),
            (f"took fewer than {MIN_DISTINCT} values", f"{found.few_values:,}"),
        ],
    )


def _heat_map(scan: Scan) -> Section:
    kinds, layers, values = weights.heat_map(scan)
    stderrs = (
        np.full(values.shape, None) if scan.weights is None else weights.heat_map(scan, "median_stderr")[2]
    )
    lowest = np.unravel_index(int(np.nanargmin(values)), values.shape)
    least = with_stderr(values[lowest], stderrs[lowest])
    place = kinds[lowest[0]] + ("" if layers[lowest[1]] == "–" else f" of layer {layers[lowest[1]]}")
    return Section(
        "heat-map",
        "Where the weights move straight",
        f"The median R² in every kind of module and layer; the least straight is {place}, at {least}. Grey "
        "cells have no tensor, or none that moved enough."
        + ("" if scan.sampled_in_words is None else f" Estimated {scan.sampled_in_words}."),
        "Worry when one row or one end of the layers is much darker: give those tensors their own rule "
        "(persistence keeps the last checkpoint's), and see whether the rehearsals improve.",
        partial(weights.draw_heat_map, scan=scan),
        1.3 + 0.3 * len(kinds),
        ("module", *(f"layer {layer}" if layer != "–" else "no layer" for layer in layers)),
        [
            (kind, *map(with_stderr, row, beside))
            for kind, row, beside in zip(kinds, values, stderrs, strict=True)
        ],
    )


def _examples(scan: Scan, rounded: bool) -> Section:
    examples = weights.chosen_examples(scan)
    return Section(
        "examples",
        "Examples: single weights and their lines",
        "Weights drawn by chance, from the least to the most straight among those drawn. Each point is a "
        "checkpoint, and the line fits them best."
        + " Where points form stairs, the weight was rounded to 16 bits."
        * rounded,
        "Worry when points bend away from their line towards the end: the line is then dominated by the "
        "past, and continues a motion that is over.",
        partial(weights.draw_examples, scan=scan),
        1.0 + 1.55 * -(-len(examples) // 2),
        ("tensor", "R²"),
        [(tensor, f"{fit:.3f}") for tensor, fit, _ in examples],
    )


def _explained(scan: Scan) -> Section:
    shares, walk = weights.explained(scan.gram_table.gram), weights.walk_explained(scan.steps)
    found = weights.explained_stderrs(scan.gram_table)
    stderrs = [None] * len(shares) if found is None else found.tolist()
    return Section(
        "explained-variance",
        "Rank: how many directions the run takes",
        "The share of the motion that the leading directions of each tensor hold. One holds "
        f"{percent(shares[0], stderrs[0])}; in a random walk at these steps it would hold {walk[0]:.0%}.",
        "Worry when the blue line is no higher than the orange one: then low_rank keeps noise. A high "
        "share does not by itself make rank 1 a good prediction; the rehearsals say whether it is.",
        partial(weights.draw_explained, scan=scan),
        3.2,
        ("rank", "this run", "a random walk"),
        [
            (str(rank), percent(share, stderr, 2), f"{reference:.2%}")
            for rank, (share, stderr, reference) in enumerate(
                zip(shares[:10], stderrs[:10], walk[:10], strict=True), 1
            )
        ],
    )


def _logprobs(scan: Scan) -> Section:
    assert scan.logprobs is not None
    summary, fits = scan.logprobs.as_dict(), scan.logprobs.r_squared()
    shares = weights.r_squared_shares(fits)
    return Section(
        "log-probabilities",
        "Straightness: R² of token log-probabilities",
        "How well a straight line in the step describes the log-probability of each token. Of "
        f"{summary['tokens']:,} tokens in {summary['responses']:,} fixed responses, {len(fits):,} changed by "
        f"more than {MIN_CHANGE} from the first to the last checkpoint and are drawn here. Their median R² "
        f"is {np.median(fits):.2f}; a random walk would give {scan.random_walk.median:.2f}.",
        "Worry when few tokens were kept: responses that the run hardly changed say little. As with "
        "weights, a high R² describes the past.",
        partial(weights.draw_r_squared, shares=shares, steps=scan.steps, what="tokens"),
        3.3,
        ("tokens", "number"),
        [("kept", f"{len(fits):,}"), ("changed too little", f"{summary['tokens'] - len(fits):,}")],
    )
