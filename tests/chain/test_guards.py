"""What the past of a run says of a target: the error to expect, how far to trust, and where it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import Lines
from safetensors.numpy import save_file

from hubextrap import api
from hubextrap.errors import MethodError
from hubextrap.hub import read_provenance
from hubextrap.methods import farthest_horizon
from hubextrap.opening import Run
from hubextrap.recipe import Recipe, parse_recipe
from hubextrap.statistics import (
    BacktestCandidate,
    GramTable,
    backtest_table,
    brief_backtest,
    judge_run,
    trust,
)
from hubextrap.statistics.backtesting import BRIEF_TENSORS

DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
FORCED = api.MergeOptions(force=True)


def recipe_of(target: int | list[int] = 400, method: str = "two_point", **sections: Any) -> Recipe:
    content: dict[str, Any] = {
        "trajectory": {"repo": str(DEMO), "steps": {"max": 200}},
        "merge_method": method,
        "parameters": {"target_step": target},
    }
    return parse_recipe(yaml.safe_dump(content | sections))


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "run.safetensors"
    api.scan(Run.of(recipe_of()).trajectory, out=path)
    return path


MOVING = ["late_lines", "least_squares", "low_rank", "two_point"]


@pytest.mark.parametrize("method", MOVING)
def test_a_target_beyond_the_past_is_refused_by_plan_and_merge_alike(method: str, tmp_path: Path) -> None:
    recipe = recipe_of(2857, method)  # longest rehearsal: 40 → 200, horizon 4; 4·e^1.2 = 13.28, step 2856
    (problem,) = api.plan(recipe, out=tmp_path / "out").problems
    assert problem.startswith(
        "step 2857 (horizon 13.3) lies beyond all that the past of this run can rehearse"
    )
    assert "horizons up to 4, which speak for none beyond step 2856 (horizon 13.3)" in problem
    assert "--force" in problem
    with pytest.raises(MethodError) as caught:
        api.merge(recipe, out=tmp_path / "out")
    assert str(caught.value) == problem
    assert not list(tmp_path.iterdir())
    assert api.plan(recipe, settings=FORCED).problems == ()
    assert api.plan(recipe_of(2856, method)).problems == ()


@pytest.mark.parametrize("method", ["persistence", "average", "ema"])
def test_what_predicts_no_motion_goes_to_any_step(method: str) -> None:
    assert api.plan(recipe_of(9000, method)).problems == ()
    still = {"parameters": {"target_step": 9000, "damping": 0}}
    assert api.plan(recipe_of(method="two_point", **still)).problems == ()


def test_a_rule_of_some_tensors_that_moves_is_enough(tmp_path: Path) -> None:
    rules = [{"match": "*norm*", "method": "two_point"}]
    mixed = recipe_of(method="persistence", parameters={"target_step": 9000, "tensors": rules})
    with pytest.raises(MethodError, match="lies beyond all that the past"):
        api.merge(mixed, out=tmp_path / "out")


def test_a_forced_target_is_warned_of_everywhere(tmp_path: Path) -> None:
    lines = Lines()
    (made,) = api.merge(recipe_of(3000), out=tmp_path / "out", settings=FORCED, progress=lines).predictions
    (warning,) = made.warnings
    assert "step 2856 (horizon 13.3)" in warning
    assert f"warning: {warning}" in lines.said
    assert warning in (tmp_path / "out" / "README.md").read_text()


def test_force_does_not_make_a_method_serve_that_cannot(tmp_path: Path) -> None:
    recipe = recipe_of(9000, "calibrated")
    with pytest.raises(MethodError, match="calibrated cannot predict") as caught:
        api.merge(recipe, out=tmp_path / "out", settings=FORCED)
    assert "late_lines" in str(caught.value)
    api.merge(recipe_of(9000, "late_lines"), out=tmp_path / "out", settings=FORCED)  # as the message says


def test_two_checkpoints_have_no_past_and_are_taken(tmp_path: Path) -> None:
    two = {"trajectory": {"repo": str(DEMO), "steps": {"only": [0, 200]}}}
    (made,) = api.merge(recipe_of(**two), out=tmp_path / "out").predictions
    assert made.warnings == ()
    (note,) = made.notes
    assert note.startswith("2 checkpoints have no past to rehearse")
    assert note in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["merge", "--out", "out"], id="merge"),
        pytest.param(["run", "--out", "out"], id="run"),
        pytest.param(["plan"], id="plan"),
    ],
)
def test_quiet_hides_no_warning(
    command: list[str],
    scan_file: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipe_of(800).to_yaml())
    verb, *options = command
    for form in ([], ["--json"]):
        shutil.rmtree("out", ignore_errors=True)
        result = cli(verb, "recipe.yaml", *options, "--scan", scan_file, "--quiet", *form)
        assert result.code == 0, result
        assert (
            "warning: step 800 (horizon 3) lies beyond step 300 (horizon 0.5), up to which the past of this "
            "run trusts two_point" in result.err
        )
        assert "step 300" in result.out
        assert "0.6" in result.out
    said = json.loads(result.out)
    said = said if isinstance(said, dict) else {"predictions": said}
    warnings = said["warnings"] if verb == "plan" else said["predictions"][0]["warnings"]
    assert any("lies beyond step 300" in line for line in warnings)
    Path("recipe.yaml").write_text(recipe_of(9000).to_yaml())
    refused = cli(verb, "recipe.yaml", *options[:-1], *["out2"] * bool(options), "--quiet")
    assert refused.code == 1
    assert cli(verb, "recipe.yaml", *options[:-1], *["out2"] * bool(options), "--quiet", "--force").code == 0


def test_what_the_past_trusts_is_what_a_backtest_of_the_same_rules_says(
    scan_file: Path, tmp_path: Path
) -> None:
    for method in ("calibrated", "two_point"):
        recipe = recipe_of(400, method)
        with Run.of(recipe, scan=scan_file) as run:
            table = run.known_table()
            assert table is not None
            verdict = judge_run(backtest_table(table, [BacktestCandidate.of(method)]))
        (made,) = api.merge(recipe, out=tmp_path / method, scan=scan_file).predictions
        trusted = made.provenance.trusted
        assert trusted is not None
        assert (trusted.horizon, trusted.step) == (verdict.reach, verdict.reach_step)
        card = (tmp_path / method / "README.md").read_text()
        assert f"trusts this method up to **step {trusted.step}**, horizon {trusted.horizon:g}" in card
        assert read_provenance(tmp_path / method) == made.provenance


def test_what_is_trusted_nowhere_is_said_so() -> None:
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(2, 8, 500)), axis=1)
    walk -= walk[:, :1]
    table = GramTable(
        tuple(range(0, 80, 10)), ("a", "b"), np.array([500, 500]), walk @ walk.transpose(0, 2, 1)
    )
    found = trust(judge_run(brief_backtest(recipe_of(90).rules, table, False, 1.0)), 70)
    assert found is not None
    assert (found.horizon, found.step, found.said) == (0.0, 70, "step 70")
    one = replace(table, steps=(0,), gram=table.gram[:, :1, :1])
    assert trust(judge_run(brief_backtest(recipe_of(90).rules, one, False, 1.0)), 0) is None


def test_a_brief_backtest_is_a_part_of_the_whole_one() -> None:
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.normal(size=(70, 26, 30)) + 0.5, axis=1) * np.linspace(1, 2, 70)[:, None, None]
    walk -= walk[:, :1]
    names = tuple(f"t{number}" for number in range(70))
    table = GramTable(tuple(range(0, 260, 10)), names, np.full(70, 30), walk @ walk.transpose(0, 2, 1))
    rules = recipe_of(300).rules
    brief = brief_backtest(rules, table, False, 1.0)
    assert len(brief.rows) == 150
    assert len(table.most_moved(BRIEF_TENSORS).tensors) == BRIEF_TENSORS
    whole = backtest_table(table.most_moved(BRIEF_TENSORS), [BacktestCandidate("recipe", rules)])
    errors = {(row.last_step, row.target_step): row.relative_error for row in whole.rows}
    assert [row.relative_error for row in brief.rows] == [
        errors[row.last_step, row.target_step] for row in brief.rows
    ]
    assert max(row.horizon for row in brief.rows) <= 1


def test_the_farthest_horizon_of_a_run_is_served_and_none_beyond(tmp_path: Path) -> None:
    steps = (0, 10, 30, 70)
    for step in steps:
        (tmp_path / f"step_{step}").mkdir()
        save_file({"w": np.full(4, step, np.float32)}, tmp_path / f"step_{step}" / "model.safetensors")
        (tmp_path / f"step_{step}" / "config.json").write_text("{}")
    farthest = int(70 + 70 * farthest_horizon(steps))
    for target, problems in ((farthest, 0), (farthest + 1, 1)):
        recipe = recipe_of(target, trajectory={"repo": str(tmp_path)})
        assert len(api.plan(recipe).problems) == problems


def of_parameters(checkpoints: int, target: int, method: str, **parameters: Any) -> Recipe:
    """A recipe for the first so many checkpoints of the demo run."""
    steps = (0, 40, 80, 100, 120, 160, 200)[:checkpoints]
    listed = [{"model": str(DEMO / f"step_{step}"), "step": step} for step in steps]
    own = {"target_step": target} | parameters
    return recipe_of(target, method, trajectory={"checkpoints": listed}, parameters=own)


@pytest.mark.parametrize("method", ["average", "ema", "persistence"])
def test_of_one_checkpoint_nothing_is_said(method: str, tmp_path: Path) -> None:
    recipe = of_parameters(1, 300, method)
    report = api.plan(recipe, out=tmp_path / "out")
    assert (report.problems, report.warnings, report.horizons) == ((), (), (None,))
    (prediction,) = api.merge(recipe, out=tmp_path / "out").predictions
    assert (prediction.warnings, prediction.provenance.horizon) == ((), None)


@pytest.mark.parametrize(
    ("checkpoints", "target", "method"),
    [(7, 5000, "two_point"), (7, 5000, "average"), (2, 50, "two_point"), (3, 81, "least_squares")],
)
def test_a_limit_of_what_nobody_knows_is_refused_by_plan_too(
    checkpoints: int, target: int, method: str, tmp_path: Path
) -> None:
    recipe = of_parameters(checkpoints, target, method, max_expected_error=1.0)
    (problem,) = api.plan(recipe, out=tmp_path / "out", settings=FORCED).problems
    assert "so max_expected_error 1 cannot be kept" in problem
    with pytest.raises(MethodError) as caught:
        api.merge(recipe, out=tmp_path / "out", settings=FORCED)
    assert str(caught.value) == problem
