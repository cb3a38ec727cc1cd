"""An open run serves the recipe that it was opened for, until it is closed; options say what can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT

import hubextrap
from hubextrap import MergeOptions, ReadingOptions, Run
from hubextrap.errors import RecipeError, SourceError
from hubextrap.recipe import Recipe, parse_recipe
from hubextrap.trajectory import find_trajectory

DEMO = ROOT / "demo" / "data" / "rlvr-C"


def recipe_of(until: int, **sections: Any) -> Recipe:
    content: dict[str, Any] = {
        "trajectory": {"repo": str(DEMO), "steps": {"max": until}},
        "merge_method": "two_point",
        "parameters": {"target_step": 240},
    }
    return parse_recipe(yaml.safe_dump(content | sections))


def test_a_closed_run_reads_no_more(tmp_path: Path) -> None:
    recipe = recipe_of(100)
    with Run.of(recipe) as opened:
        assert hubextrap.plan(recipe, run=opened).problems == ()
    for use in (lambda: hubextrap.merge(recipe, out=tmp_path / "out", run=opened), opened.scan_weights):
        with pytest.raises(SourceError, match="this run is closed"):
            use()
    assert "this run is closed" in hubextrap.plan(recipe, run=opened).problems[0]
    assert not (tmp_path / "out").exists()


def test_a_run_of_other_checkpoints_makes_nothing(tmp_path: Path) -> None:
    """The card and hubextrap.json would quote a recipe that did not make the weights."""
    with Run.of(recipe_of(100)) as opened:
        for use in (hubextrap.plan, hubextrap.merge):
            with pytest.raises(RecipeError, match="another trajectory"):
                use(recipe_of(120), out=tmp_path / "out", run=opened)
        other = recipe_of(100, merge_method="persistence")
        assert hubextrap.plan(other, out=tmp_path / "out", run=opened).problems == ()
    with Run.of(find_trajectory(str(DEMO), max_step=120)) as found:
        assert hubextrap.plan(recipe_of(120), run=found).target_steps == (240,)


@pytest.mark.parametrize("options", [ReadingOptions, MergeOptions])
@pytest.mark.parametrize("value", [0, -1, True, None, "2", 1.5])
@pytest.mark.parametrize("name", ["memory", "workers"])
def test_memory_and_workers_are_whole_numbers(name: str, value: object, options: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=f"^{name}: has to be a whole number"):
        options(**{name: value})


@pytest.mark.parametrize("settings", [ReadingOptions(workers=1), {"workers": 1}])
def test_options_of_something_else(settings: Any, tmp_path: Path) -> None:
    recipe = recipe_of(100)
    with Run.of(recipe) as opened:
        for use in (
            lambda: hubextrap.plan(recipe, settings=settings),
            lambda: hubextrap.plan(recipe, settings=settings, run=opened),
            lambda: hubextrap.merge(recipe, out=tmp_path / "out", settings=settings),
            lambda: hubextrap.run(recipe, out=tmp_path / "out", settings=settings),
            lambda: hubextrap.sweep(recipe, tmp_path / "out", settings=settings),
        ):
            with pytest.raises(RecipeError, match="give MergeOptions"):
                use()
    assert not (tmp_path / "out").exists()
