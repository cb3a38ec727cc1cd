"""The table of docs/adapters.md: a run of LoRA adapters, predicted in its products, and in its factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measured_run import METHODS, Array, MeasuredRun, figure, markdown
from safetensors.torch import load_file

from hubextrap import Run
from hubextrap.adapters.recompress import recompressed

Changes = Mapping[str, Array]
"""By the base's name of each tensor: what is added to it, (rows, columns)."""

LASTS, AHEAD = (80, 120, 160, 200, 240, 280), (50, 120)
PAIRS = tuple((last, last + further) for last in LASTS for further in AHEAD)
"""The last step that is known, and the one that is predicted from there."""
EXACT, APART = "the products, exact", "A and B by themselves"
CUTS = (8, 6, 4)
"""Ranks; the run's own is the first."""


class MeasuredAdapters(MeasuredRun):
    """A run whose every checkpoint is an adapter of one scaling, its base in the folder `base`."""

    def read(self, opened: Run) -> Path:
        adapters = opened.adapters
        assert adapters is not None
        ones = [1.0] * len(self.steps)
        self._terms = {name: adapters.terms(name, ones) for name in self.table.tensors}
        base = self.folder / "base"
        self._base = {name: one.double() for name, one in load_file(base / "model.safetensors").items()}
        return base

    def deltas(self, tensor: str, dtype: str) -> Array:
        """(K, elements): how far each checkpoint's product is from the first one's, in float32."""
        assert dtype == "F32"
        products = [one.scale * one.left[0] @ one.right[0] for one in self._terms[tensor]]
        stored = np.array(products).astype(np.float32).reshape(len(products), -1).astype(np.float64)
        return np.asarray(stored - stored[0])

    def at_step(self, step: int) -> Changes:
        """What one checkpoint adds to the base."""
        alone = np.eye(len(self.steps))[[self.steps.index(step)]]
        return self.products(np.repeat(alone, len(self._terms), axis=0))

    def products(self, mixture: Array, rank: int | None = None) -> Changes:
        """Σ c_k·s·B_k·A_k, for (N, k) coefficients of the first k checkpoints; cut where a rank is given."""
        changes = {}
        for (name, terms), row in zip(self._terms.items(), mixture, strict=True):
            weighted = [(c * one.scale, one.left, one.right) for c, one in zip(row, terms, strict=False) if c]
            left, right, _ = recompressed(weighted, rank)
            changes[name] = left[0] @ right[0]
        return changes

    def factors(self, mixture: Array) -> Changes:
        """s·(Σ c_k·B_k)·(Σ c_k·A_k), which is something else."""
        changes = {}
        for (name, terms), row in zip(self._terms.items(), mixture, strict=True):
            left, right = (
                np.tensordot(row, np.array([side[0] for side in sides[: len(row)]], np.float64), 1)
                for sides in ([one.left for one in terms], [one.right for one in terms])
            )
            changes[name] = terms[0].scale * left @ right
        return changes

    def accuracy(self, changes: Changes) -> float:
        """Of the base with these changes: the mean probability that one sample at temperature 1 is right."""
        merged = {name: self._base[name] + torch.from_numpy(one) for name, one in changes.items()}
        state = {name: one.float() for name, one in (self._base | merged).items()}
        self.model.load_state_dict(state, strict=False)  # tied weights
        return float(self.accuracies().mean())


@dataclass(frozen=True)
class Prediction:
    """Of a step that was observed, by one method in one way."""

    method: str
    way: str
    error: float
    """Of the weights; 1 is the last checkpoint's own."""
    accuracy: float | None
    """None where it was not asked for."""


def predictions(run: MeasuredAdapters) -> Iterator[Prediction]:
    """All of `PAIRS`, by every method: exact, by the factors, and cut to each rank."""
    for last, target in PAIRS:
        origin = run.origin_at(last)
        goal, known = run.at_step(target), run.at_step(last)
        for method in METHODS:
            mixture = origin.mixture(origin.clock.time_of(target), method)
            ways = {EXACT: run.products(mixture), APART: run.factors(mixture)}
            ways |= {cut(rank): run.products(mixture, rank) for rank in CUTS}
            for way, changes in ways.items():
                error = distance(changes, goal) / distance(known, goal)
                yield Prediction(method, way, error, run.accuracy(changes))


def cut(rank: int) -> str:
    return f"cut to rank {rank}"


def distance(one: Changes, other: Changes) -> float:
    """‖one − other‖, over all tensors."""
    return float(np.sqrt(sum(np.sum((one[name] - other[name]) ** 2) for name in one)))


def tables(run: MeasuredAdapters) -> str:
    """Error and accuracy of each method in each way, means over the predictions."""
    found = list(predictions(run))
    ways = [EXACT, APART, *map(cut, CUTS)]
    rows = []
    for method in METHODS:
        cells = []
        for way in ways:
            some = [one for one in found if (one.method, one.way) == (method, way)]
            means = (np.mean([getattr(one, name) for one in some]) for name in ("error", "accuracy"))
            cells.append(" / ".join(figure(float(mean)) for mean in means))
        rows.append([f"`{method}`", *cells])
    for words, step in (("the last checkpoint", 0), ("the real one", 1)):
        accuracies = {one: run.accuracy(run.at_step(one)) for one in sorted({pair[step] for pair in PAIRS})}
        mean = float(np.mean([accuracies[pair[step]] for pair in PAIRS]))
        rows.append([words, f"{1 - step} / {figure(mean)}", *[""] * (len(ways) - 1)])
    return markdown(["method", *ways], rows)
