"""A package's fitted methods, installed: rehearsals, expected errors, damping and rows like built-in ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from harness import ROOT
from numpy.typing import NDArray
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.errors import BrokenMethod, MethodError
from hubextrap.evaluation import Harness
from hubextrap.methods import Rule, calibrating, coefficients, denoised_gram, find_method, rehearse
from hubextrap.methods.checking import call_fitted
from hubextrap.recipe import Recipe, load_recipe, parse_recipe
from hubextrap.scans import Scan
from hubextrap.statistics import BacktestCandidate, GramTable, backtest_table
from hubextrap.trajectory import find_trajectory

DEMO = ROOT / "demo" / "data" / "rlvr-C"
PACKAGE = Path(__file__).parent / "package"
STEPS = (0, 40, 80, 100, 120, 160, 200)


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package, built and installed into a folder of its own that this process imports from."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "sources")
    shutil.copy(calibrating.__file__, folder / "sources" / "fitted_methods" / "twin.py")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=folder / "sources", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder / "site-packages", "zip")  # all that installing such a wheel is
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site-packages")
        find_method.cache_clear()
        yield folder / "site-packages"
    find_method.cache_clear()


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "demo.safetensors"
    api.scan(find_trajectory(str(DEMO)), out=path)
    return path


@pytest.fixture(scope="module")
def table(scan_file: Path) -> GramTable:
    return Scan.load(scan_file).gram_table


def written(folder: Path, method: str, parameters: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"trajectory: {{repo: '{DEMO}', steps: {{max: 200}}}}\n"
        f"merge_method: {method}\nparameters: {{{parameters}}}\n"
    )
    return path


def recipe_of(method: str, parameters: str, folder: Path) -> Recipe:
    return parse_recipe(written(folder, method, parameters).read_text())


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_commands_of_a_process_of_its_own_know_them(site: Path, scan_file: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(site)!r}); from hubextrap.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "backtest", str(scan_file), "--json", "--quiet"],
        capture_output=True,
        check=True,
        text=True,
    )
    rows = json.loads(done.stdout)["rows"]
    ours, theirs, third = (
        [row for row in rows if row["method"] == name] for name in ("calibrated", "twin", "slowing")
    )
    assert [row | {"method": ""} for row in theirs] == [row | {"method": ""} for row in ours]
    assert {(row["last_step"], row["target_step"]) for row in third} == {
        (row["last_step"], row["target_step"]) for row in ours
    }
    assert any(row["expected_relative_error"] is not None for row in third)
    assert not [row for row in rows if row["method"] == "broken"], "it needs a parameter"


def unnamed(content: bytes, method: str) -> bytes:
    """Without the method's name, and without the digest of what holds it."""
    content = re.sub(
        rb"<!-- hubextrap: verdict -->.*?\n<!--", b"", content, flags=re.DOTALL
    )  # in plain words
    return re.sub(rb'"digest": "\w+"', b"", content.replace(method.encode(), b"METHOD"))


@pytest.mark.slow
@pytest.mark.parametrize("damping", ["1.0", "0.5", "auto"])
def test_a_copy_of_calibrated_is_calibrated_but_for_its_name(
    damping: str, tmp_path: Path, scan_file: Path
) -> None:
    found = {}
    for name in ("calibrated", "twin"):
        folder = tmp_path / name
        folder.mkdir()
        recipe = written(folder, name, f"target_step: [240, 300], damping: {damping}")
        merged = command("merge", recipe, "--out", folder / "out")
        assert merged.exit_code == 0, merged.output
        planned = command("plan", recipe, "--out", folder / "other", "--json", "--scan", scan_file)
        files = {
            str(path.relative_to(folder)): unnamed(path.read_bytes(), name)
            for path in (folder / "out").rglob("*")
            if path.is_file()
        }
        assert any(path.endswith("model.safetensors") for path in files)
        found[name] = (
            files,
            json.loads(planned.stdout.replace(name, "METHOD"))["expected_relative_errors"],
        )
    assert found["twin"] == found["calibrated"]
    assert found["twin"][1][0] is not None


def test_a_copy_of_calibrated_has_its_place_in_the_report(scan_file: Path, tmp_path: Path) -> None:
    assert command("report", scan_file, "--out", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert "slowing" in page
    table = command("backtest", scan_file, "--quiet").stdout
    figures = {
        name: re.findall(r"\d\.\d{3}", next(line for line in table.splitlines() if line.startswith(name)))
        for name in ("twin", "calibrated lines")
    }
    assert figures["twin"] == figures["calibrated lines"] != []


def reckoned(table: GramTable, target: int, damping: float = 1.0) -> float:
    """The expected error of `slowing` at the last checkpoint: each rehearsal knows what it had seen."""
    slowing = find_method("slowing").function
    rehearsals = rehearse(table.steps, target)
    errors = []
    for origin, to in zip(rehearsals.origins, rehearsals.targets, strict=True):
        error = real = 0.0
        count = origin + 1
        motion = np.zeros(len(table.steps))
        motion[to], motion[origin] = 1.0, -1.0
        for gram in table.gram:
            moved = np.zeros(len(table.steps))
            try:
                moved[:count] = slowing(
                    table.steps[:count], table.steps[to], denoised_gram(gram[:count, :count])
                )
            except MethodError:
                moved[:] = np.nan
            off = damping * moved - motion
            error, real = error + off @ gram @ off, real + motion @ gram @ motion
        errors.append((error / real) ** 0.5)
    return rehearsals.mean(np.array(errors))


@pytest.mark.parametrize(("damping", "share"), [("1.0", 1.0), ("0.5", 0.5)])
def test_expected_errors_come_from_fits_that_had_not_seen_the_target(
    damping: str, share: float, table: GramTable, tmp_path: Path
) -> None:
    seen = GramTable(STEPS, table.tensors, table.elements, table.gram[:, :7, :7])
    assert table.steps[:7] == STEPS
    recipe = recipe_of("slowing", f"target_step: 300, damping: {damping}", tmp_path)
    merged = api.merge(recipe, out=tmp_path / "out").predictions[0].provenance
    assert merged.expected_relative_error == pytest.approx(reckoned(seen, 300, share), abs=2**-19)
    predicted = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    gram = seen.gram[seen.tensors.index(name)]
    moved = find_method("slowing").function(STEPS, 300, denoised_gram(gram))
    states = [load_file(DEMO / f"step_{step}" / "model.safetensors")[name] for step in STEPS]
    expected = states[-1] + share * sum(
        c * state.astype(np.float64) for c, state in zip(moved, states, strict=True)
    )
    assert predicted[name] == pytest.approx(expected, rel=1e-4, abs=2e-6)


def test_damping_of_auto_and_a_limit_on_the_error(tmp_path: Path) -> None:
    auto = api.merge(
        recipe_of("slowing", "target_step: 300, damping: auto", tmp_path), out=tmp_path / "auto"
    ).predictions[0]
    assert auto.provenance.expected_relative_error is not None
    said = command(
        "merge",
        written(tmp_path, "slowing", "target_step: 300, max_expected_error: 0.01"),
        "--out",
        tmp_path / "x",
    )
    assert isinstance(said.exception, MethodError)
    assert "above max_expected_error 0.01" in str(said.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("damping", [1.0, 0.5, "auto"])
@pytest.mark.parametrize("method", ["slowing", "twin"])
def test_a_row_knows_nothing_of_what_came_later(method: str, damping: float | str, table: GramTable) -> None:
    tried = [BacktestCandidate("it", (Rule(("*",), method, {}, damping),))]  # type: ignore[arg-type]
    cut = GramTable(table.steps[:6], table.tensors, table.elements, table.gram[:, :6, :6])
    rows = {(row.last_step, row.target_step): row for row in backtest_table(table, tried).rows}
    known = backtest_table(cut, tried).rows
    assert known
    for row in known:
        same = rows[row.last_step, row.target_step]
        assert row.expected_relative_error == same.expected_relative_error
        assert row.relative_error == pytest.approx(same.relative_error, rel=1e-12)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one tensor", r"broken returned displacements of shape \(7,\) for 7 checkpoints, not \(2, 7\)"),
        ("nan", r"displacements that are not finite in float32: \[nan, 0.0"),
        ("sum", r"broken returned displacements that sum to 1e-06, not 0"),
        ("raises", r"broken failed on 7 checkpoints up to step 200 \(ZeroDivisionError: no way\)"),
        ("writes", r"broken failed on 7 checkpoints .* \(ValueError: assignment destination is read-only\)"),
    ],
)
def test_a_broken_promise_is_one_error_before_any_weight_is_read(
    how: str, message: str, tmp_path: Path
) -> None:
    recipe = written(tmp_path, "broken", f"target_step: 300, how: {how}")
    planned = command("plan", recipe, "--json")
    assert planned.exit_code == 1
    (problem,) = json.loads(planned.stdout)["problems"]
    with pytest.raises(BrokenMethod, match=message) as error:
        api.merge(load_recipe(recipe), out=tmp_path / "out")
    assert str(error.value) == problem
    assert not (tmp_path / "out").exists()


def test_a_failure_in_a_rehearsal_is_no_missing_row(table: GramTable) -> None:
    tried = [BacktestCandidate.of("broken", how="early")]
    with pytest.raises(BrokenMethod, match="broken failed on 2 checkpoints up to step 40"):
        backtest_table(table, tried)
    with pytest.raises(BrokenMethod, match="broken failed on 2 checkpoints up to step 40"):
        coefficients(
            "broken", STEPS, 300, {"how": "early"}, damping="auto", gram_matrix=table.gram[0, :7, :7]
        )


def test_many_tensors_at_once_are_each_as_alone(table: GramTable) -> None:
    seen: NDArray[np.float64] = table.gram[:, :7, :7]
    rules: Sequence[Rule] = [
        Rule(("*",), method, parameters, damping)  # type: ignore[arg-type]
        for method, parameters in (
            ("calibrated", {}),
            ("slowing", {"ridge": 0.5}),
            ("low_rank", {"rank": 2}),
            ("two_point", {"base_step": "auto"}),
        )
        for damping in (1.0, 0.3, "auto")
    ]
    for rule in rules:
        together = rule.coefficients(STEPS, [240, 300], seen)
        alone = np.stack([rule.coefficients(STEPS, [240, 300], gram) for gram in seen])
        assert together.shape == (len(seen), 2, 7)
        assert np.array_equal(together, alone), rule


@pytest.mark.slow
def test_a_sweep_measures_a_copy_like_calibrated_and_again_with_each_release(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    labels: list[str] = []
    real = Harness.measure
    monkeypatch.setattr(
        Harness, "measure", lambda self, label, *rest: labels.append(label) or real(self, label, *rest)
    )
    found = {}
    for name in ("calibrated", "twin"):
        recipe = written(tmp_path, name, "target_step: 300")
        with recipe.open("a") as file:
            file.write(
                f"evaluate: {{task_files: ['{DEMO / 'problems.jsonl'}'], limit: 20, against: [last]}}\n"
            )
        labels.clear()
        result = api.sweep(load_recipe(recipe), tmp_path / name, damping=[0.5, 1])
        found[name] = result.model_dump_json().replace(name, "METHOD")
        assert sorted(labels) == ["last", "prediction 300", "prediction 300 × 0.5"]
    assert found["twin"] == found["calibrated"]
    api.sweep(load_recipe(recipe), tmp_path / "twin", damping=[0.5, 1])
    assert len(labels) == 3
    (metadata,) = site.glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    find_method.cache_clear()
    api.sweep(load_recipe(recipe), tmp_path / "twin", damping=[0.5, 1])
    assert sorted(labels[3:]) == ["prediction 300", "prediction 300 × 0.5"]


def test_all_tensors_of_a_rule_are_fitted_in_one_call_within_the_memory(
    table: GramTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "hubextrap.methods.checking.call_fitted",
        lambda method, steps, target, gram, values: (
            shapes.append(gram.shape) or call_fitted(method, steps, target, gram, values)
        ),
    )
    recipe = recipe_of("slowing", "target_step: 300", tmp_path)
    api.merge(recipe, out=tmp_path / "whole")
    tensors = len(table.tensors)
    assert shapes.count((tensors, 7, 7)) == 1
    assert not [shape for shape in shapes if shape[0] == 1]
    shapes.clear()
    monkeypatch.setattr("hubextrap.statistics.calibration.FIT_MEMORY", 1)
    api.merge(recipe, out=tmp_path / "parts")
    assert shapes.count((1, 7, 7)) == tensors
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
