"""What the docs show is what the code takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from hubextrap.clocks import SCHEDULES, schedule_problems
from hubextrap.methods import coefficients, method_names, register_method, registry
from hubextrap.recipe import (
    EvaluateSection,
    PushSection,
    Recipe,
    StepSelection,
    TensorNames,
    TrajectorySection,
    parse_recipe,
)

DOCS = Path(__file__).parent.parent.parent / "docs"
TEXT = {name: (DOCS / f"{name}.md").read_text() for name in ("recipes", "methods", "clocks")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", TEXT)
def test_recipes_in_the_docs_are_valid(page: str) -> None:
    recipes = blocks(page, "yaml")
    assert recipes
    for text in recipes:
        parse_recipe(text, page)


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (Recipe, ""),
        (TrajectorySection, "trajectory."),
        (StepSelection, "trajectory.steps."),
        (TensorNames, "trajectory.tensors."),
        (PushSection, "push."),
        (EvaluateSection, "evaluate."),
    ],
)
def test_every_key_is_described(model: type[BaseModel], prefix: str) -> None:
    for key in (info.alias or name for name, info in model.model_fields.items()):
        assert f"`{prefix}{key}" in TEXT["recipes"] or f"`.{key}`" in TEXT["recipes"], f"{prefix}{key}"


def test_every_schedule_is_described() -> None:
    for name in SCHEDULES:
        (row,) = [line for line in TEXT["clocks"].splitlines() if line.startswith(f"| `{name}` |")]
        problem = dict(schedule_problems({"schedule": name, "unknown": 1}))["unknown"]
        takes = problem.rpartition(" takes ")[2]
        assert set(re.findall(r"`(\w+)`", row)) >= set(takes.split(", ")) - {"nothing else"}


def test_every_method_is_described() -> None:
    for name in method_names():
        assert f"| `{name}` |" in TEXT["methods"]


def test_the_method_of_your_own_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    scope: dict[str, object] = {}
    exec(blocks("methods", "python")[0], scope)
    register_method("last_slope", scope["last_slope"])  # type: ignore[arg-type]
    result = coefficients("last_slope", [0, 100, 200], 400, {"gain": 0.5})
    assert np.array_equal(result, [0, -1, 2])
    exec(blocks("methods", "python")[1], scope)
    register_method("momentum", scope["momentum"])  # type: ignore[arg-type]
    moved = [0, 8, 10]  # the last motion agrees with four times itself: it is made once more
    result = coefficients("momentum", [0, 100, 200], 400, {"reach": 0.5}, gram_matrix=np.outer(moved, moved))
    assert np.array_equal(result, [0, -1, 2])
    registry.find_method.cache_clear()
