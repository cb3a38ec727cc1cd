"""What commands say of a sample of the weights: figures with standard errors, and once what they are of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from command_lines import Ended, run_main

import hubextrap
from hubextrap.cli.scan import print_scan
from hubextrap.evaluation.sweep_report import GridPoint
from hubextrap.figures import margin, percent, with_stderr
from hubextrap.scans import Scan
from hubextrap.statistics import candidates, plain_name

DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
OF = "from a sample of 512 weights per tensor"
FIGURE = r"\d\.\d{3} ± \d\.\d{3}"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scans of the bundled run: of a sample, and of all weights."""
    folder = tmp_path_factory.mktemp("scans")
    hubextrap.scan(str(DEMO), sample=512, out=folder / "sampled.safetensors")
    hubextrap.scan(str(DEMO), out=folder / "exact.safetensors")
    return folder


@pytest.fixture
def here(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with the run, both scans and a recipe that fits nothing to weights."""
    monkeypatch.chdir(tmp_path)
    for name in ("sampled", "exact"):
        Path(f"{name}.safetensors").symlink_to(scans / f"{name}.safetensors")
    Path("run").symlink_to(DEMO)
    recipe = {
        "trajectory": {"repo": "run"},
        "merge_method": "late_lines",
        "parameters": {"target_step": 600},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def done(*words: str) -> Ended:
    ended = run_main(*words, "-q")
    assert ended.code == 0, ended
    return ended


def words(text: str) -> str:
    return " ".join(text.split())


def test_how_figures_are_written() -> None:
    assert with_stderr(0.5512, 0.0123) == "0.55 ± 0.01"
    assert with_stderr(0.5512, None, 3) == "0.551"
    assert with_stderr(None, 0.1) == with_stderr(float("nan"), None) == "–"
    assert [margin(one) for one in (0.0, 0.004, 0.0001, None)] == [" ± 0.00", " ± 0.004", " ± <0.001", ""]
    assert [percent(0.555, one) for one in (None, 0.021)] == ["56%", "56% ± 2%"]


def test_a_backtest(here: Path) -> None:
    text = done("backtest", "sampled.safetensors", "--summary", "sum.md").out
    names = [plain_name(one.name) for one in candidates()]
    rows = [line for line in text.splitlines() for name in names if line.startswith(f"{name}  ")]
    assert len(rows) == len(names)
    assert all(len(re.findall(FIGURE, row)) == 6 for row in rows), rows
    assert text.count(OF) == 1
    assert "± is one standard error; that of a mean is an upper bound" in text
    summary = Path("sum.md").read_text()
    assert len(re.findall(FIGURE, summary)) >= 6 * len(names)
    assert summary.count(OF) == 1
    exact = done("backtest", "exact.safetensors", "--summary", "exact.md").out
    assert "±" not in exact + Path("exact.md").read_text()
    assert "With fit: {sample: 512} under its parameters, a method that is fitted to weights" in words(text)
    assert "fit:" not in exact
    assert "a sample" not in exact + Path("exact.md").read_text()


def test_a_backtest_in_a_narrow_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = done("backtest", "sampled.safetensors").out
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    row = next(place for place, line in enumerate(lines) if line.startswith("calibrated lines"))
    assert len(re.findall(r"\d\.\d{3}", lines[row])) == len(re.findall(r"± \d\.\d{3}", lines[row + 1])) == 6
    assert OF in words(text)
    assert all(plain_name(one.name) in text for one in candidates())


def test_a_backtest_as_json(here: Path) -> None:
    said = json.loads(done("backtest", "sampled.safetensors", "--json").out)
    for row in said["rows"]:
        assert row["relative_error_stderr"] >= 0
        assert (row["expected_relative_error"] is None) == (row["expected_relative_error_stderr"] is None)
        assert "signal_error_stderr" not in row
    assert said["verdict"]["rehearsals"]["mean_error_stderr"] > 0
    exact = done("backtest", "exact.safetensors", "--json").out
    assert "stderr" not in exact
    assert "turns" not in exact


def test_a_scan(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scan, exact = (Scan.load(f"{name}.safetensors") for name in ("sampled", "exact"))
    kinds = len(scan.kinds()) + 1
    for width in ("200", "80"):
        monkeypatch.setenv("COLUMNS", width)
        print_scan("run", scan)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= int(width)
        assert text.count("± ") == 4 * kinds + 1
        assert f"All figures are {OF}; ± is one standard error." in words(text)
        assert "norms are exact" not in text
    print_scan("run", exact)
    assert "±" not in capsys.readouterr().out
    said, whole = scan.as_dict(), exact.as_dict()
    new = {"median_r_squared_stderr", "share_kept_stderr", "share_r_squared_above_0.7_stderr"}
    new |= {"delta_norm_stderr"}
    assert said.keys() - whole.keys() == new
    assert {tuple(kind.keys() - whole["kinds"][0].keys()) for kind in said["kinds"]} == {
        tuple(said["kinds"][0].keys() - whole["kinds"][0].keys())
    }
    assert said["kinds"][0].keys() - whole["kinds"][0].keys() == new
    # within four of its own standard errors of what all weights say
    for step, norm in said["delta_norm"].items():
        assert abs(norm - whole["delta_norm"][step]) <= 4 * said["delta_norm_stderr"][step]
    apart = abs(said["median_r_squared"] - whole["median_r_squared"])
    assert apart <= 4 * said["median_r_squared_stderr"] < 0.1


@pytest.mark.slow
def test_a_prediction(here: Path) -> None:
    text = done(
        "predict", "run", "--to", "600", "--scan", "sampled.safetensors", "--out", "p", "--summary", "s.md"
    ).out
    assert f"sample     figures are {OF}; ± is one standard error" in text
    assert re.search(r"expected error 0\.\d\d ± 0\.0\d+ \(14 rehearsals\)", text.splitlines()[0])
    assert OF in Path("s.md").read_text()
    card, said = Path("p/README.md").read_text(), json.loads(Path("p/hubextrap.json").read_text())
    assert re.search(r"- expected error: \*\*0\.\d\d ± 0\.0\d+\*\*, by the run's own past", card)
    assert f"what was compared and fitted comes {OF}; ± is one standard error" in card
    drawn = "by name and number of elements"
    assert said["sample"] == {"weights_per_tensor": 512, "drawn": drawn, "groups": 4}
    assert 0 < said["expected_relative_error_stderr"] < 0.02
    hubextrap.verify("p")


@pytest.mark.slow
def test_a_plan_and_a_merge(here: Path) -> None:
    text = done("plan", "recipe.yaml", "--scan", "sampled.safetensors", "--out", "m", "--summary", "s.md").out
    assert re.search(
        rf"horizon 0\.5, expected relative error {FIGURE} \(1: the last checkpoint as it is\)", text
    )
    assert words(text).count(f"All figures are {OF}; ± is one standard error.") == 1
    assert re.search(rf"\| {FIGURE[:2]}\.\d+ ± \d\.\d+ \|", Path("s.md").read_text())
    assert Path("s.md").read_text().count(OF) == 1
    report = hubextrap.plan("recipe.yaml", scan="sampled.safetensors", out="m")
    assert re.search(FIGURE, report._repr_html_())
    assert OF in report._repr_html_()
    assert report.as_dict()["expected_relative_error_stderrs"][0] > 0
    text = done(
        "merge", "recipe.yaml", "--scan", "sampled.safetensors", "--out", "m", "--summary", "s.md"
    ).out
    assert re.search(rf"expected relative error {FIGURE}", text)
    assert text.count(OF) == 1
    made = hubextrap.merge("recipe.yaml", scan="sampled.safetensors", out="n")
    assert re.search(rf"expected relative error {FIGURE}", repr(made.predictions[0]))
    exact = hubextrap.plan("recipe.yaml", scan="exact.safetensors", out="o").as_dict()
    assert not exact.keys() & {"expected_relative_error_stderrs", "sampled"}
    assert "±" not in done("merge", "recipe.yaml", "--scan", "exact.safetensors", "--out", "o").out
    assert "stderr" not in Path("o/hubextrap.json").read_text()
    assert "sample" not in Path("o/hubextrap.json").read_text()
    # of a rule that needs no weights, the weights are the same
    assert Path("m/model.safetensors").read_bytes() == Path("o/model.safetensors").read_bytes()


def test_a_sweep() -> None:
    """Its table is among those of 80 columns."""
    point = GridPoint(label="step 1500", step=1500, damping=1.0, expected_relative_error=0.578)
    assert "stderr" not in point.model_dump_json()
    sampled_point = point.model_copy(update={"expected_relative_error_stderr": 0.012})
    assert sampled_point.model_dump()["expected_relative_error_stderr"] == 0.012
    assert GridPoint.model_validate(sampled_point.model_dump(mode="json")) == sampled_point


def test_a_notebook(here: Path) -> None:
    found = hubextrap.backtest("sampled.safetensors")
    html = found._repr_html_()
    assert len(re.findall(FIGURE, html)) == 6 * len(found.methods)
    assert html.count(OF) == 1
    assert "±" not in hubextrap.backtest("exact.safetensors")._repr_html_()


@pytest.mark.slow
def test_a_report(here: Path) -> None:
    pytest.importorskip("matplotlib")
    text = done("report", "sampled.safetensors", "--out", "a.html").out
    assert words(text).count(OF) == 1
    assert re.search(r"on average 0\.\d\d ± 0\.0\d+ times as far", words(text))
    assert "±" not in done("report", "exact.safetensors", "--out", "a.html").out
