"""`hubextrap report` takes a run, a recipe or a scan of it, as `backtest` does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hubextrap import ReadingOptions, api
from hubextrap.cli.app import app
from hubextrap.errors import HubExtrapError, OutputError, RecipeError
from hubextrap.scans import Scan
from hubextrap.trajectory import find_trajectory

DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
RECIPE = f"""trajectory: {{repo: {DEMO}, steps: {{max: 120}}}}
merge_method: two_point
parameters: {{target_step: 200, base_step: 40}}
"""


def embedded(page: Path) -> dict[str, object]:
    _, _, rest = page.read_text().partition('id="data">')
    return dict(json.loads(rest.partition("</script>")[0]))


@pytest.mark.slow
def test_a_run_folder(tmp_path: Path) -> None:
    """As one command: it is scanned, and the page is what `report` makes of a scan."""
    command = [sys.executable, "-m", "hubextrap", "report", str(DEMO), "--max-step=120"]
    done = subprocess.run(
        [*command, "--out", "page.html", "--json", "-q"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["page"], said["plots"]) == ("page.html", [])
    assert said["verdict"]["headline"] in (tmp_path / "page.html").read_text()
    scan = api.scan(find_trajectory(str(DEMO), max_step=120))
    again = api.report(scan, out=tmp_path / "again.html", title=DEMO.name)
    assert said["verdict"]["headline"] == again.headline
    assert embedded(tmp_path / "page.html")["gram"] == embedded(tmp_path / "again.html")["gram"]
    refused = subprocess.run(
        [sys.executable, "-m", "hubextrap", "report", "none/there", "--base", "x", "--out", "page.html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert refused.returncode != 0
    assert "permissions" not in refused.stderr


@pytest.mark.slow
def test_a_recipe(tmp_path: Path) -> None:
    """Its checkpoints are observed, and its own rules rehearsed."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(
        app, ["report", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "a.html"), "-q"]
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "a.html").read_text()
    assert "<h1>recipe.yaml</h1>" in text
    assert ">recipe</th>" in text
    assert embedded(tmp_path / "a.html")["steps"] == [0, 40, 80, 100, 120]


def test_options_without_effect(scan_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    for reference in (scan_file, recipe):
        done = CliRunner().invoke(
            app, ["report", str(reference), "--max-step", "100", "--out", str(tmp_path / "a.html")]
        )
        assert done.exit_code == 2
        assert "--max-step is for a REF" in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "a.html").exists()
    with pytest.raises(RecipeError, match="settings have no effect on the report of a scan"):
        api.report(scan_file, settings=ReadingOptions(), out=tmp_path / "a.html")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["trajectory", "scan", "path", "recipe"])
def test_from_python(what: str, scan_file: Path, scan: Scan, tmp_path: Path) -> None:
    from hubextrap.recipe import parse_recipe

    run = {
        "scan": scan,
        "path": str(scan_file),
        "trajectory": find_trajectory(str(DEMO), max_step=100),
        "recipe": parse_recipe(RECIPE),
    }[what]
    found = api.report(run, out=tmp_path / "a.html")  # type: ignore[arg-type]
    assert found.verdict.headline == found.headline
    assert (tmp_path / "a.html").is_file()


def test_what_is_wrong_is_found_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("hubextrap.api.reporting.scan_run", reads)
    (tmp_path / "a.html").write_text("something else")
    with pytest.raises(OutputError, match="is there already"):
        api.report(DEMO, out=tmp_path / "a.html")
    with pytest.raises(HubExtrapError, match=r"none\.json"):
        api.report(DEMO, out=tmp_path / "b.html", evaluations=[tmp_path / "none.json"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HubExtrapError, match=r"hubextrap\[report\]"):
        api.report(DEMO, out=tmp_path / "b.html")
