"""A run of small checkpoints, and what a prediction of it is worth: shared by the tables of docs/."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubextrap import Run, find_trajectory
from hubextrap.clocks import Clock
from hubextrap.errors import MethodError
from hubextrap.evaluation.own_answers import OwnAnswers, answer_logprobs, draw_answers
from hubextrap.methods import Rule, persistence
from hubextrap.statistics import GramTable, expect_of_last

Array = NDArray[np.float64]

GRID = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Horizons at which the walk evaluates a prediction, of which 0 is the last checkpoint itself."""
HALF_LINE, CALIBRATED = "least_squares(half, through_last)", "calibrated"
METHODS = ("two_point(last/2)", HALF_LINE, CALIBRATED)
BATCH = 256


class MeasuredRun:
    """The checkpoints of one run up to some step, and a model that takes any mixture of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name.removeprefix("rlvr-")
        with Run.of(find_trajectory(str(folder))) as opened:
            self.table = opened.gram_table("the tables need Gram matrices")
            self.steps = self.table.steps
            like = self.read(opened)
        self.model = AutoModelForCausalLM.from_pretrained(like, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(like)
        lines = (folder / "problems.jsonl").read_text().splitlines()
        self.problems: list[dict[str, str]] = [json.loads(line) for line in lines]
        self.questions = [problem["question"] for problem in self.problems]

    def read(self, opened: Run) -> Path:
        """Read what `become` needs; returns a folder with a model of the kind, and its tokenizer."""
        folders = [self.folder / f"step_{step}" for step in self.steps]
        files = [load_file(folder / "model.safetensors") for folder in folders]
        self._weights = {name: torch.stack([file[name] for file in files]) for name in self.table.tensors}
        return folders[-1]

    def deltas(self, tensor: str, dtype: str) -> Array:
        """(K, elements): how far each checkpoint is from the first, after a cast to F32 or BF16."""
        stored = self._weights[tensor].flatten(1).to(torch.bfloat16 if dtype == "BF16" else torch.float32)
        return (stored.double() - stored[0].double()).numpy()

    @cached_property
    def right_answers(self) -> OwnAnswers:
        """Of problems that have one right answer each."""
        texts = [problem["answer"] + self.tokenizer.eos_token for problem in self.problems]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return OwnAnswers(tuple(self.questions), tuple(map(tuple, ids)))

    def become(self, mixture: Array) -> None:
        """Make the model Σ c_k·W_k, for (N, k) coefficients of the first k checkpoints."""
        self.model.load_state_dict(
            {
                name: torch.tensordot(torch.tensor(row), self._weights[name][: len(row)].double(), 1).float()
                for name, row in zip(self.table.tensors, mixture, strict=True)
            },
            strict=False,  # buffers
        )

    def become_step(self, step: int) -> None:
        """Make the model one of the checkpoints."""
        self.become(self._alone(self.steps.index(step)))

    def origin_at(self, step: int) -> Origin:
        """The run as it was seen when the last checkpoint up to ``step`` was its last one."""
        return Origin(self, sum(known <= step for known in self.steps))

    def greedy_answers(self, questions: Sequence[str], max_tokens: int) -> OwnAnswers:
        return draw_answers(self.model, self.tokenizer, questions, max_tokens=max_tokens, batch_size=BATCH)

    def logprobs(self, answers: OwnAnswers) -> Array:
        """Of each answer, in nats."""
        return answer_logprobs(self.model, self.tokenizer, answers, batch_size=BATCH)

    def accuracies(self) -> Array:
        """The exact probability of each problem that one sample at temperature 1 is its one right answer."""
        return np.exp(self.logprobs(self.right_answers))

    def _alone(self, index: int) -> Array:
        return np.tile(np.eye(index + 1)[index], (len(self.table.tensors), 1))


class Origin:
    """The first ``count`` checkpoints of a run, and predictions from them."""

    def __init__(self, run: MeasuredRun, count: int, clock: Clock | None = None) -> None:
        """
        Args:
            clock: as it was known at the last of these checkpoints; the run's own when None.
        """
        self.run, self.count = run, count
        self.steps = run.steps[:count]
        self.last = self.steps[-1]
        table = run.table
        self.clock = (clock or table.clock).known_at(self.last)
        self.table = GramTable(
            self.steps, table.tensors, table.elements, table.gram[:, :count, :count], self.clock
        )
        self.times = self.table.times

    def time_at(self, horizon: float) -> float:
        """The time of a horizon, (t − last)/(last − first)."""
        return self.times[-1] + horizon * (self.times[-1] - self.times[0])

    def mixture(self, time: float, method: str = CALIBRATED) -> Array:
        """(N, count) coefficients of a prediction by one of `METHODS`.

        Raises:
            MethodError: the past is too short for it.
        """
        rule = self._rule(method)
        found = rule.coefficients(self.times, [time], self.table.gram if rule.needs_gram_matrix else None)
        return np.broadcast_to(found[..., 0, :], (len(self.table.tensors), self.count))

    def expected(self, time: float) -> float | None:
        """The error of the weights that the past lets expect of `calibrated`; None where it cannot say."""
        return expect_of_last([self._rule(CALIBRATED)], self.table, time, rounded=False).total

    def _rule(self, method: str) -> Rule:
        if method == CALIBRATED:
            return Rule(("*",), "calibrated")
        if method == HALF_LINE:
            return Rule(("*",), "least_squares", {"window": "half", "through_last": True})
        base = max(step for step in self.steps if step <= self.last / 2)
        return Rule(("*",), "two_point", {"base_step": base})

    def walk(self, horizons: Iterable[float] = GRID) -> dict[float, Array]:
        """The mixtures of the last checkpoint (0) and of the calibrated predictions that the past serves."""
        last = persistence(self.steps, self.last)
        points = {0.0: np.tile(last, (len(self.table.tensors), 1))}
        for horizon in horizons:
            try:
                points[horizon] = self.mixture(self.time_at(horizon))
            except MethodError:
                continue
        return points


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float, places: int = 3) -> str:
    """As these pages write shares: `.048`."""
    return f"{value:.{places}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{places}f}"


def gain(value: float) -> str:
    """A difference of shares: `+.048`."""
    return ("+" if value >= 0 else "−") + figure(abs(value))
