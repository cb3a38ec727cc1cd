"""``space: logits`` in a recipe: what is mixed, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import Lines

from hubextrap import api
from hubextrap.errors import RecipeError
from hubextrap.evaluation import EvaluationTable
from hubextrap.logits import ExtrapolatedForCausalLM, recipe_mixture
from hubextrap.recipe import Recipe, parse_recipe
from hubextrap.trajectory import find_recipe_trajectory

TASKS = Path(__file__).parents[2] / "demo" / "tasks"


def recipe(repo: Path, parameters: Mapping[str, object] | None = None, **sections: object) -> Recipe:
    content: dict[str, object] = {
        "trajectory": {"repo": str(repo), "steps": {"max": 200}},
        "merge_method": "two_point",
        "parameters": {"target_step": 300} | dict(parameters or {}),
        "space": "logits",
    }
    return parse_recipe(yaml.safe_dump(content | sections))


def test_the_mixture_has_the_coefficients_of_the_method(trajectory_c: Path) -> None:
    line = recipe_mixture(recipe(trajectory_c))
    assert line.target_step == 300
    assert [checkpoint.step for checkpoint in line.checkpoints] == [0, 200]
    assert line.coefficients == (-0.5, 1.5)
    later = recipe_mixture(recipe(trajectory_c, {"base_step": 100, "damping": 0.5}))
    assert later.name == "logits -0.5 × step 100, 1.5 × step 200"
    fitted = recipe_mixture(recipe(trajectory_c, {"window": 4}, merge_method="least_squares"))
    assert [checkpoint.step for checkpoint in fitted.checkpoints] == [100, 120, 160, 200]
    assert sum(fitted.coefficients) == pytest.approx(1)
    assert len(recipe_mixture(recipe(trajectory_c, merge_method="persistence")).checkpoints) == 1


def test_a_target_is_chosen_where_there_are_several(trajectory_c: Path) -> None:
    several = recipe(trajectory_c, {"target_step": [300, 400]})
    assert recipe_mixture(several, target_step=400).coefficients == (-1.0, 2.0)
    with pytest.raises(RecipeError, match=r"several target steps; .* 300, 400"):
        recipe_mixture(several)
    with pytest.raises(RecipeError, match=r"no target step 350; .* 300, 400"):
        recipe_mixture(several, target_step=350)


def test_calibrated_reads_the_weights_of_the_whole_model_once(trajectory_c: Path) -> None:
    calibrated = recipe(trajectory_c, merge_method="calibrated")
    mixture = ExtrapolatedForCausalLM.from_recipe(calibrated).mixture
    assert mixture is not None
    (rule,) = calibrated.rules
    trajectory = find_recipe_trajectory(calibrated)
    gram = api.scan(trajectory).gram_table.total()
    (row,) = rule.coefficients(trajectory.steps, [300], gram)
    assert dict(zip(trajectory.steps, row, strict=True)) == pytest.approx(
        dict.fromkeys(trajectory.steps, 0.0)
        | {one.step: c for one, c in zip(mixture.checkpoints, mixture.coefficients, strict=True)}
    )
    assert np.isclose(sum(mixture.coefficients), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"push": {"repo": "me/model"}},
            r"push goes with space: weights; space: logits writes no weights, so remove it",
        ),
        ({"out_dtype": "bfloat16"}, r"out_dtype goes with space: weights"),
        ({"space": "logit"}, r"space: must be weights or logits, not 'logit'"),
    ],
)
def test_sections_that_go_with_weights(trajectory_c: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(trajectory_c, **change)


def test_parameters_that_go_with_weights(trajectory_c: Path) -> None:
    rules = {"tensors": [{"match": "*norm*", "method": "persistence"}]}
    with pytest.raises(RecipeError, match=r"parameters\.tensors goes with space: weights"):
        recipe(trajectory_c, rules)
    with pytest.raises(RecipeError, match=r"parameters\.tensors: logits are mixed whole"):
        recipe_mixture(recipe(trajectory_c, rules, space="weights"))
    with pytest.raises(RecipeError, match=r"max_expected_error goes with space: weights"):
        recipe(trajectory_c, {"max_expected_error": 0.5})


def test_the_space_decides_the_fingerprint(trajectory_c: Path) -> None:
    assert recipe(trajectory_c).fingerprint() != recipe(trajectory_c, space="weights").fingerprint()
    assert "space: logits" in recipe(trajectory_c).to_yaml()
    assert "space" not in recipe(trajectory_c, space="weights").to_yaml()


@pytest.mark.slow
def test_run_evaluates_the_mixture_in_place_of_merged_weights(trajectory_c: Path, tmp_path: Path) -> None:
    section = {
        "tasks": ["radd"],
        "include_path": str(TASKS),
        "against": ["last", "base", "target", str(trajectory_c / "step_100")],
        "batch_size": 100,
        "limit": 50,
    }
    asked = recipe(trajectory_c, {"target_step": [300, 400]}, evaluate=section)
    result = api.run(asked, output=tmp_path / "results.json")
    assert result.predictions == ()
    near, far = result.tables
    assert [(row.label, row.step) for row in far.rows] == [
        ("prediction", 400), ("last", 200), ("base", 0), ("target", 400), ("step_100", 100)
    ]  # fmt: skip
    assert [row.label for row in near.rows] == ["prediction", "last", "base", "step_100"], (
        "no step 300 is there"
    )
    assert near.rows[0].place == "logits -0.5 × step 0, 1.5 × step 200"
    assert near.notes[0] == "The prediction mixes logits while decoding: -0.5 × step_0, 1.5 × step_200."
    score, last = near.rows[0].scores[0].value, near.rows[1].scores[0].value
    assert score > last + 0.05
    assert EvaluationTable.load(tmp_path / "results.step_400.json") == far


@pytest.mark.slow
@pytest.mark.parametrize("space", ["logits", "weights"])
def test_target_steps_share_what_they_are_compared_with(
    trajectory_c: Path, tmp_path: Path, space: str
) -> None:
    section = {"tasks": ["radd"], "include_path": str(TASKS), "against": ["last"], "limit": 8}
    targets = {"target_step": [300, 400]}
    asked = recipe(trajectory_c, targets, merge_method="calibrated", space=space, evaluate=section)
    lines = Lines()
    result = api.run(asked, out=tmp_path / "out" if space == "weights" else None, progress=lines)
    near, far = result.tables
    assert [(row.label, row.step) for row in near.rows] == [("prediction", 300), ("last", 200)]
    assert [(row.label, row.step) for row in far.rows] == [("prediction", 400), ("last", 200)]
    assert near.last == far.last
    assert sum(line.startswith("prediction: ") for line in lines.said) == 2
    assert sum(line.startswith("last: ") for line in lines.said) == 1
    assert sum(line.startswith("reading every checkpoint once") for line in lines.said) == 1


@pytest.mark.slow
def test_the_real_run_at_step_300(rlvr: Path) -> None:
    section = {
        "tasks": ["radd"],
        "include_path": str(TASKS),
        "against": ["last", "target"],
        "batch_size": 250,
    }
    (table,) = api.run(recipe(rlvr / "rlvr-C", evaluate=section)).tables
    figures = [(row.label, row.step, row.scores[0].value) for row in table.rows]
    assert figures == [("prediction", 300, 0.932), ("last", 200, 0.828), ("target", 300, 0.924)]


def test_what_run_and_merge_refuse(trajectory_c: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"space: logits mixes outputs .* `hubextrap run`"):
        api.merge(recipe(trajectory_c), out=tmp_path / "out")
    with pytest.raises(RecipeError, match="space: logits writes no model"):
        api.run(recipe(trajectory_c))
    asked = recipe(trajectory_c, evaluate={"tasks": ["radd"], "include_path": str(TASKS)})
    with pytest.raises(RecipeError, match=r"--out: .* no weights to write"):
        api.run(asked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_plan_says_that_nothing_is_written(trajectory_c: Path, tmp_path: Path) -> None:
    report = api.plan(recipe(trajectory_c))
    assert report.problems == ()
    assert (report.files, report.bytes_written, report.outputs) == ((), 0, ())
    assert report.rules == (("*", "two_point", ({0: -0.5, 200: 1.5},)),)
    assert report.notes == (
        "space: logits loads the checkpoints with a coefficient and mixes them while decoding",
    )
    with_out = api.plan(recipe(trajectory_c), out=tmp_path / "out")
    assert with_out.problems == ("space: logits writes no weights; leave --out and --push out",)
