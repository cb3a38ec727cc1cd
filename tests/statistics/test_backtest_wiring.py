"""Backtests and fitted predictions as a user meets them: commands, recipes, provenance, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from harness import Lines
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hubextrap
from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.errors import MethodError, ReferenceNotFound, StepError
from hubextrap.methods import coefficients
from hubextrap.recipe import parse_recipe
from hubextrap.scans import Scan
from hubextrap.trajectory import find_trajectory

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "demo" / "data" / "rlvr-C"


def recipe_of(method: str, parameters: str, until: int = 200) -> hubextrap.Recipe:
    return parse_recipe(
        f"trajectory: {{repo: '{DEMO}', steps: {{max: {until}}}}}\n"
        f"merge_method: {method}\nparameters: {{{parameters}}}\n"
    )


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "demo.safetensors"
    api.scan(find_trajectory(str(DEMO)), out=path)
    return path


def test_a_scan_gives_rows_and_a_table(scan_file: Path) -> None:
    result = command("backtest", str(scan_file), "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    verdict, rows = found["verdict"], found["rows"]
    assert (verdict["level"], verdict["mark"], verdict["reach_step"]) == ("good", "✓", 800)
    keys = {"method", "last_step", "target_step", "relative_error", "expected_relative_error"}
    assert all(keys <= set(row) for row in rows)
    table = command("backtest", str(scan_file), "--quiet")
    assert "calibrated" in table.stdout
    assert table.stdout.startswith(f"✓ {verdict['headline']}\n")
    assert "1 is the last checkpoint as it is" in table.stdout


def test_the_reach_of_a_run_that_does_not_start_at_0(tmp_path: Path) -> None:
    """Twice step 400 would be 800; the way observed is 360 steps."""
    out = tmp_path / "late.safetensors"
    api.scan(find_trajectory(str(DEMO), min_step=40), out=out)
    table = command("backtest", str(out), "--quiet").stdout
    assert "up to step 760 (horizon 1)" in table.splitlines()[0]
    assert "horizon: 0.25 is step 490, 0.5 is step 580, 1 is step 760" in table
    assert "800" not in table


def test_a_folder_a_recipe_and_its_scan_agree(scan_file: Path) -> None:
    from_scan = {row.method: row for row in api.backtest(Scan.load(scan_file)).rows}
    from_folder = {row.method: row for row in api.backtest(find_trajectory(str(DEMO))).rows}
    assert from_scan == from_folder
    found = api.backtest(recipe_of("two_point", "target_step: 500, base_step: 100", until=400))
    mine = [row for row in found.rows if row.method == "recipe"]
    assert {row.last_step for row in mine} == {120, 160, 200}


def test_too_few_checkpoints_and_misplaced_options(scan_file: Path) -> None:
    with pytest.raises(StepError, match="a backtest needs three checkpoints"):
        api.backtest(find_trajectory(str(DEMO), max_step=40))
    result = command("backtest", str(scan_file), "--max-step", "100")
    assert result.exit_code == 2
    assert "--max-step is for a REF" in result.stderr
    missing = command("backtest", "none.safetensors", "--quiet")
    assert isinstance(missing.exception, ReferenceNotFound)
    assert str(missing.exception).startswith("none.safetensors: no such file; make it with `hubextrap scan`")


@pytest.mark.parametrize(
    ("method", "parameters", "own", "damping", "expected"),
    [
        ("calibrated", "target_step: 300", {}, 1.0, 0.42),
        ("low_rank", "target_step: 300, rank: 2, damping: auto", {"rank": 2}, "auto", 0.59),
        ("two_point", "target_step: 300, base_step: auto", {"base_step": "auto"}, 1.0, 0.57),
    ],
)
def test_the_merge_is_what_the_tensors_own_gram_matrices_say(
    tmp_path: Path, method: str, parameters: str, own: dict[str, object], damping: object, expected: float
) -> None:
    result = api.merge(recipe_of(method, parameters), out=tmp_path / "out")
    predicted = load_file(tmp_path / "out" / "model.safetensors")
    steps = [0, 40, 80, 100, 120, 160, 200]
    states = [load_file(DEMO / f"step_{step}" / "model.safetensors") for step in steps]
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        weights = torch.stack([state[name].flatten() for state in states]).double().numpy()
        deltas = weights - weights[0]
        c = coefficients(method, steps, 300, own, damping=damping, gram_matrix=deltas @ deltas.T)  # type: ignore[arg-type]
        assert predicted[name].flatten().numpy() == pytest.approx(c @ weights, rel=1e-4, abs=2e-6)
    provenance = result.predictions[0].provenance
    assert {rule.match for rule in provenance.coefficients} == set(states[0])
    assert provenance.expected_relative_error == pytest.approx(expected, abs=0.1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"expected error: **{provenance.expected_relative_error:.2f}**" in card
    assert "The coefficients of 22 other tensors or rules are in `hubextrap.json`." in card


def test_without_a_fit_nothing_is_scanned(tmp_path: Path) -> None:
    listening = Lines()
    result = api.merge(recipe_of("two_point", "target_step: 300"), out=tmp_path / "out", progress=listening)
    assert result.predictions[0].provenance.expected_relative_error is None
    assert not [line for line in listening.said if "reading every checkpoint" in line]


def test_a_limit_on_the_expected_error(tmp_path: Path) -> None:
    with pytest.raises(
        MethodError,
        match=r"^step 300: the expected relative error is 0\.\d+ .* above max_expected_error 0\.1",
    ):
        api.merge(recipe_of("two_point", "target_step: 300, max_expected_error: 0.1"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    forced = api.MergeOptions(force=True)
    with pytest.raises(MethodError, match=r"step 9000: the past .* 0\.9 cannot be kept"):
        api.merge(
            recipe_of("two_point", "target_step: 9000, max_expected_error: 0.9"),
            out=tmp_path / "out",
            settings=forced,
        )
    result = api.merge(
        recipe_of("two_point", "target_step: 300, max_expected_error: 0.9"), out=tmp_path / "out"
    )
    assert result.predictions[0].provenance.expected_relative_error is not None


def test_poor_and_thin_expectations_are_said(tmp_path: Path) -> None:
    listening = Lines()
    api.merge(recipe_of("low_rank", "target_step: 240"), out=tmp_path / "out", progress=listening)
    assert any(
        line.startswith("warning: step 240: the expected error is ") and "at the task" in line
        for line in listening.said
    )
    listening = Lines()
    api.merge(recipe_of("calibrated", "target_step: 1100"), out=tmp_path / "far", progress=listening)
    assert any("only 2 earlier checkpoints could rehearse it" in line for line in listening.said)


def test_a_horizon_that_the_past_has_not_seen_is_refused_before_any_read(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"step 9000 is horizon 44, .* calibrated cannot predict it"):
        api.merge(recipe_of("calibrated", "target_step: 9000"), out=tmp_path / "out")


def test_a_plan_reads_no_weights_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(DEMO, run)
    recipe = parse_recipe(
        f"trajectory: {{repo: '{run}', steps: {{max: 200}}}}\n"
        "merge_method: calibrated\nparameters: {target_step: 300}\n"
    )
    report = api.plan(recipe, out=tmp_path / "out")
    assert report.problems == ()
    assert report.rules == (("*", "calibrated", ({},)),)
    assert report.expected_relative_errors == (None,)
    assert any("are read once more before the merge" in note for note in report.notes)
    with api.Run.of(recipe) as opened:
        api.merge(recipe, out=tmp_path / "out", run=opened)
        known = api.plan(recipe, out=tmp_path / "other", run=opened)
    assert known.expected_relative_errors[0] == pytest.approx(0.42, abs=0.15)
    assert len(known.rules) == 30


def test_a_model_with_integers_keeps_them(tmp_path: Path) -> None:
    """Buffers are no part of a scan, and are copied."""
    generator = np.random.default_rng(0)
    slope = generator.normal(size=(4, 8)).astype(np.float32)
    for step in (0, 10, 20, 30, 40):
        folder = tmp_path / "run" / f"step_{step}"
        folder.mkdir(parents=True)
        noise = 0.1 * generator.normal(size=(4, 8)).astype(np.float32)
        save_file(
            {"w": torch.from_numpy(slope * step / 40 + noise), "position_ids": torch.arange(8)},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text("{}")
    recipe = parse_recipe(
        f"trajectory: {{repo: '{tmp_path / 'run'}'}}\n"
        "merge_method: calibrated\nparameters: {target_step: 60}\n"
    )
    api.merge(recipe, out=tmp_path / "out")
    predicted = load_file(tmp_path / "out" / "model.safetensors")
    assert predicted["position_ids"].tolist() == list(range(8))
    assert torch.isfinite(predicted["w"]).all()
