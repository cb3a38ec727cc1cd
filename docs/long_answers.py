"""The table of docs/walk.md on long answers with many right ways: the run `demo/data/rlvr-L`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measured_run import Array, MeasuredRun, figure, gain, markdown

from hubextrap.evaluation.own_answers import draw_answers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
import worked_sums

PROMPTS, SAMPLES = 64, 4
PROMPTS_STEP = 10**6  # no run reaches it: the prompts are in no training and not held out
ORIGINS = (1 / 3, 1 / 2, 2 / 3)  # of the run
REACHES = (2, 3)
GREEDY, RIGHT, DRAWN, SCORE = "own greedy answers", "own correct rollouts", "own samples, unfiltered", "score"
TARGET, ORACLE = "calibrated at the target", "best point (an oracle)"
RULES = (TARGET, GREEDY, RIGHT, DRAWN, SCORE, ORACLE)


@dataclass(frozen=True)
class Point:
    """A horizon of one walk."""

    horizon: float
    accuracy: Array
    """Of each held-out problem, the share of right samples."""
    seen: dict[str, float]
    """What a rule goes by: the mean log-probability of the last checkpoint's answers, in nats per answer; or
    the share of new samples of the prompts that were right."""


@dataclass(frozen=True)
class Walk:
    last: int
    points: tuple[Point, ...]

    def chosen(self, rule: str, reach: float) -> Point:
        """The point that a rule takes, of those up to ``reach`` times the last step."""
        within = [point for point in self.points if point.horizon <= reach - 1 + 1e-9]
        if rule == TARGET:
            return within[-1]
        if rule == ORACLE:
            return max(within, key=lambda point: float(point.accuracy.mean()))
        return max(within, key=lambda point: point.seen[rule])


def walks(run: MeasuredRun) -> list[Walk]:
    end = run.steps[-1]
    return [walk(run, round(share * end)) for share in ORIGINS]


def walk(run: MeasuredRun, last: int, samples: int = 16) -> Walk:
    """The walk from one checkpoint, whose accuracy at each point is sampled on the held-out problems."""
    origin = run.origin_at(last)
    asked = worked_sums.training_problems(PROMPTS_STEP, 1, PROMPTS, seed=0)
    prompts = [problem.question for problem in asked]
    run.become_step(origin.last)
    drawn = draw_answers(
        run.model,
        run.tokenizer,
        prompts,
        samples=SAMPLES,
        max_tokens=worked_sums.MAX_NEW_TOKENS,
        batch_size=256,
    )
    right = worked_sums.rewarder(run.tokenizer)(drawn.answers, drawn.prompts)
    answers = {
        GREEDY: run.greedy_answers(prompts, worked_sums.MAX_NEW_TOKENS),
        RIGHT: drawn.only([bool(one) for one in right]),
        DRAWN: drawn,
    }
    held_out = [worked_sums.Problem(**problem) for problem in run.problems]
    points = []
    for horizon, mixture in origin.walk().items():
        run.become(mixture)
        seen = {rule: float(run.logprobs(some).mean()) for rule, some in answers.items()}
        seen[SCORE] = float(np.mean(worked_sums.accuracy(run.model, run.tokenizer, asked, SAMPLES, seed=1)))
        accuracy = np.array(worked_sums.accuracy(run.model, run.tokenizer, held_out, samples))
        points.append(Point(horizon, accuracy, seen))
    return Walk(origin.last, tuple(points))


def curve_table(found: Sequence[Walk]) -> str:
    """Every point of every walk."""
    head = [
        "origin",
        "predicted step",
        "accuracy",
        "own greedy answers",
        "own correct rollouts",
        "own samples",
        SCORE,
    ]
    rows = []
    for one in found:
        for point in one.points:
            error = float(np.std(point.accuracy, ddof=1) / len(point.accuracy) ** 0.5)
            accuracy = f"{figure(float(point.accuracy.mean()))} ± {figure(error)}"
            seen = [f"{point.seen[rule]:.2f}".replace("-", "−") for rule in (GREEDY, RIGHT, DRAWN)]
            seen.append(figure(point.seen[SCORE]))
            rows.append([str(one.last), f"{one.last * (1 + point.horizon):.0f}", accuracy, *seen])
    return markdown(head, rows)


def rule_table(found: Sequence[Walk]) -> str:
    """What each rule gains over the last checkpoint, by origin and target, with the step that it chose."""
    head = ["rule", *(f"{one.last} → {reach * one.last}" for reach in REACHES for one in found)]
    rows = []
    for rule in RULES:
        cells = []
        for reach in REACHES:
            for one in found:
                point = one.chosen(rule, reach)
                gained = point.accuracy - one.points[0].accuracy
                error = float(np.std(gained, ddof=1) / len(gained) ** 0.5)
                step = f"{one.last * (1 + point.horizon):.0f}"
                cells.append(f"{gain(float(gained.mean()))} ± {figure(error)} ({step})")
        rows.append([rule, *cells])
    return markdown(head, rows)
