"""Not tests: runs whose weights move exactly with the area under a learning rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hubextrap.recipe import Recipe, parse_recipe

PEAK, WARMUP, TOTAL = 3e-6, 20, 100
STATE = "trainer_state.json"
STEPS = tuple(range(0, 61, 10))


def linear(step: float) -> float:
    """Up to the peak at step 20, and down to 0 at step 100."""
    return PEAK * max(0.0, min(step / WARMUP, (TOTAL - step) / (TOTAL - WARMUP)))


def area(step: float) -> float:
    """Under `linear`, over its peak: 10 at the peak, 50 at the end."""
    if step <= WARMUP:
        return step**2 / (2 * WARMUP)
    left = max(0.0, TOTAL - step)
    return WARMUP / 2 + (TOTAL - WARMUP) / 2 - left**2 / (2 * (TOTAL - WARMUP))


def constant(step: float) -> float:
    return PEAK


def state(step: int, rate: Callable[[float], float] = linear, every: int = 5, **own: Any) -> dict[str, Any]:
    """What a Trainer writes into trainer_state.json at a step."""
    history: list[dict[str, Any]] = []
    for at in range(every, step + 1, every):
        history.append({"step": at, "learning_rate": rate(at), "loss": 0.5})
        if at % 20 == 0:
            history.append({"step": at, "eval_loss": 0.25})
    return {"global_step": step, "max_steps": TOTAL, "log_history": history} | own


@dataclass
class Moving:
    """Makes checkpoints from a model at step 0."""

    start: Path
    """A checkpoint."""
    turn: float = 0.0
    """How far the way leaves a line."""
    _start: dict[str, NDArray[np.float32]] = field(init=False)
    _ways: list[dict[str, NDArray[np.float64]]] = field(init=False)

    def __post_init__(self) -> None:
        dice = np.random.default_rng(0)
        self._start = load_file(self.start / "model.safetensors")
        self._ways = [
            {name: dice.normal(size=values.shape) for name, values in self._start.items()} for _ in range(2)
        ]

    def weights(self, time: float) -> dict[str, NDArray[np.float32]]:
        """Those at a time, in full-rate steps."""
        one, other = self._ways
        there, beside = 1e-3 * time, 1e-3 * self.turn * np.sin(time / 8)
        return {
            name: (values + there * one[name] + beside * other[name]).astype(np.float32)
            for name, values in self._start.items()
        }

    def run(
        self,
        root: Path,
        steps: Iterable[int] = STEPS,
        *,
        times: Callable[[float], float] = area,
        rate: Callable[[float], float] | None = linear,
        every: int = 5,
        name: str = "checkpoint-{}",
    ) -> Path:
        """Folders of a run; a state beside each, unless ``rate`` is None."""
        for step in steps:
            folder = root / name.format(step)
            folder.mkdir(parents=True)
            for file in self.start.iterdir():
                if file.name != "model.safetensors":
                    (folder / file.name).write_bytes(file.read_bytes())
            save_file(self.weights(times(step)), folder / "model.safetensors", {"format": "pt"})
            if rate is not None:
                (folder / STATE).write_text(json.dumps(state(step, rate, every)))
        return root

    def is_at(self, folder: Path, time: float) -> bool:
        """Whether a model has the weights of a time, to rounding."""
        found, wanted = load_file(folder / "model.safetensors"), self.weights(time)
        return found.keys() == wanted.keys() and all(
            np.allclose(found[name], wanted[name], rtol=3e-6, atol=3e-6) for name in wanted
        )


def recipe(
    repo: Path | str, target: int | list[int] | dict[str, Any] = 80, method: str = "two_point", **own: Any
) -> Recipe:
    """A recipe for a run; ``trajectory`` and ``parameters`` are added to, other sections as they are."""
    aim: dict[str, Any] = {"target": target} if isinstance(target, dict) else {"target_step": target}
    content = {
        "trajectory": {"repo": str(repo)} | own.pop("trajectory", {}),
        "merge_method": method,
        "parameters": aim | own.pop("parameters", {}),
    }
    return parse_recipe(yaml.safe_dump(content | own, sort_keys=False))
