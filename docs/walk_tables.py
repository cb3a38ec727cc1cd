"""The tables of docs/walk.md on runs with one right answer a problem: the walk's rules, and telling signs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from measured_run import CALIBRATED, METHODS, Array, MeasuredRun, Origin, figure, gain, markdown
from numpy.typing import NDArray

ORIGINS = (100, 200, 300)  # the last checkpoint up to there
REACHES = (1.5, 2, 3)
PROMPTS, SAMPLES, DRAWS = 64, 4, 300
HARM = 0.005
RULES = ("calibrated at the target", "own greedy answers", "own correct rollouts", "best point (an oracle)")
MAX_TOKENS = 8

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Walk:
    """One origin's predictions at the points of the grid, P of them, on all N problems."""

    run: str
    last: int
    horizons: Array
    """(P,), of which the first is 0: the last checkpoint."""
    accuracies: Array
    """(P, N): exact probabilities that a sample is right."""
    right: Array
    """(P, N): log-probabilities of the right answers."""
    greedy: Array
    """(P, N): of the last checkpoint's own greedy answers."""

    def within(self, reach: float) -> Walk | None:
        """Up to a target; None where it could not be predicted."""
        if not np.isclose(self.horizons, reach - 1).any():
            return None
        near = self.horizons <= reach - 1 + 1e-9
        parts = (self.horizons[near], self.accuracies[near], self.right[near], self.greedy[near])
        return Walk(self.run, self.last, *parts)

    def chosen(self, rule: str, prompts: Places, rollouts: Array, others: Array) -> int:
        """The point that a rule takes when it knows some prompts.

        Args:
            rollouts: how many of each prompt's samples were right; each is the right answer.
            others: (P,) accuracies on the other problems, which only the oracle knows.
        """
        if rule == RULES[0]:
            return len(self.horizons) - 1
        if rule == RULES[1]:
            return int(self.greedy[:, prompts].mean(1).argmax())
        if rule == RULES[2]:
            return int((self.right[:, prompts] @ rollouts).argmax())
        return int(others.argmax())


def walks(run: MeasuredRun, origins: Sequence[int] = ORIGINS) -> list[Walk]:
    """One per origin; along the learning rate where the run's files have it."""
    return [walk(run.origin_at(step)) for step in origins]


def walk(origin: Origin) -> Walk:
    run = origin.run
    run.become_step(origin.last)
    greedy_answers = run.greedy_answers(run.questions, MAX_TOKENS)
    right, greedy = [], []
    points = origin.walk()
    for mixture in points.values():
        run.become(mixture)
        right.append(run.logprobs(run.right_answers))
        greedy.append(run.logprobs(greedy_answers))
    horizons = np.array(list(points))
    return Walk(run.name, origin.last, horizons, np.exp(right), np.array(right), np.array(greedy))


def draws(found: Walk, seed: int) -> Iterator[tuple[Places, Array, Places]]:
    """Random prompts, the right ones of their samples, and the other problems.

    A sample is right with the probability that the last checkpoint gives the one right answer, so how many
    are right needs no samples of the model.
    """
    random = np.random.default_rng([seed, found.last])
    count = found.accuracies.shape[1]
    for _ in range(DRAWS):
        order = random.permutation(count)
        prompts = order[:PROMPTS]
        yield prompts, random.binomial(SAMPLES, found.accuracies[0, prompts]).astype(float), order[PROMPTS:]


def gains(found: Walk, rule: str, reach: float, seed: int = 0) -> Array | None:
    """(DRAWS,) accuracy on the other problems less the last checkpoint's."""
    near = found.within(reach)
    if near is None:
        return None
    result = []
    for prompts, rollouts, others in draws(found, seed):
        accuracies = near.accuracies[:, others].mean(1)
        result.append(accuracies[near.chosen(rule, prompts, rollouts, accuracies)] - accuracies[0])
    return np.array(result)


def rule_table(found: Sequence[Walk]) -> str:
    """Mean gain (share of draws below −.005, the worst draw) of each rule."""
    rows = []
    for rule in RULES:
        cells = []
        for reach in REACHES:
            all_gains = [some for one in found if (some := gains(one, rule, reach)) is not None]
            together = np.concatenate(all_gains)
            share, worst = float((together < -HARM).mean()), float(together.min())
            said = "0" if share == 0 else f"{figure(share, 2)}, {gain(worst)}"
            cells.append(f"{gain(float(together.mean()))} ({said})")
        rows.append([rule, *cells])
    return markdown(["rule", *(f"up to {reach}×" for reach in REACHES)], rows)


def origin_table(found: Sequence[Walk], reaches: Sequence[float] = REACHES[1:]) -> str:
    """Every origin: what `calibrated` gives at the target, and what the walk by own greedy answers gives."""
    head = ["run", "origin", "accuracy there"]
    head += [f"{reach}×: calibrated, walk, best point" for reach in reaches]
    rows = []
    for one in found:
        cells = []
        for reach in reaches:
            if one.within(reach) is None:
                cells.append("the past is too short")
                continue
            means = [gains(one, RULES[index], reach) for index in (0, 1, 3)]
            cells.append(", ".join(gain(float(some.mean())) for some in means if some is not None))
        rows.append([one.run, str(one.last), figure(float(one.accuracies[0].mean())), *cells])
    return markdown(head, rows)


@dataclass(frozen=True)
class Sign:
    """What was known of one prediction beforehand, and what came of it."""

    method: str
    horizon: float
    growth: float
    expected: float
    fall: float
    gained: float


SIGN_REACHES = (1.25, 1.5, 2, 3)


def signs(run: MeasuredRun) -> Iterator[Sign]:
    """Of predictions by three methods from every second origin on, from the sixth checkpoint."""
    for count in range(6, len(run.steps) + 1, 2):
        origin = Origin(run, count)
        run.become_step(origin.last)
        greedy_answers = run.greedy_answers(run.questions, MAX_TOKENS)
        own, accuracy = run.logprobs(greedy_answers).mean(), run.accuracies().mean()
        for reach in SIGN_REACHES:
            time = origin.time_at(reach - 1)
            expected = origin.expected(time)
            if expected is None:  # then `calibrated` predicts nothing either
                continue
            for method in METHODS:
                mixture = origin.mixture(time, method)
                run.become(mixture)
                fall = float(own - run.logprobs(greedy_answers).mean())
                gained = float(run.accuracies().mean() - accuracy)
                yield Sign(method, reach - 1, growth(origin, mixture), expected, fall, gained)


def growth(origin: Origin, mixture: Array) -> float:
    """The largest ‖predicted − first‖/‖last − first‖ of a tensor."""
    gram = origin.table.gram
    squares = np.einsum("ni,nij,nj->n", mixture, gram, mixture)
    return float(np.sqrt(np.max(squares / gram[:, -1, -1])))


def auc(values: Array, bad: Places) -> float:
    """How often a bad prediction has the larger value than a good one."""
    one, other = values[bad.astype(bool)], values[~bad.astype(bool)]
    return float(((one[:, None] > other).mean() + (one[:, None] >= other).mean()) / 2)


def sign_table(found: Sequence[Sign]) -> str:
    """How well each sign tells the predictions that are worse than the last checkpoint."""
    bad = np.array([sign.gained < 0 for sign in found])
    rows = [
        [words, figure(auc(np.array([getattr(sign, name) for sign in found]), bad))]
        for name, words in (
            ("fall", "fall of the log-probability of own greedy answers"),
            ("growth", "largest growth of a tensor"),
            ("horizon", "horizon"),
            ("expected", "error of the weights that `calibrated` expects"),
        )
    ]
    return markdown(["sign", f"AUC ({len(found)} predictions, {int(bad.sum())} of them bad)"], rows)


def fall_table(found: Sequence[Sign]) -> str:
    """How many were worse than the last checkpoint, by how far own answers fell and by what was expected."""
    own = [sign for sign in found if sign.method == CALIBRATED]
    rows = []
    for words, name, signs_taken, edges in (
        ("own greedy answers fall, nats per answer", "fall", found, (-np.inf, 0, 0.1, 0.5, np.inf)),
        ("error that `calibrated` expects of itself", "expected", own, (0, 0.5, 0.6, 0.8, np.inf)),
    ):
        for low, high in pairwise(edges):
            some = [sign.gained for sign in signs_taken if low <= getattr(sign, name) < high]
            if low == -np.inf:
                between = "not at all"
            else:
                between = f"from {figure(low, 1)}" + ("" if high == np.inf else f" to {figure(high, 1)}")
            worse = sum(value < 0 for value in some)
            rows.append([words, between, str(len(some)), str(worse)])
    return markdown(["sign", "value", "predictions", "worse than the last checkpoint"], rows)
