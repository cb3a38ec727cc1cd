"""Every output says by which clock it counts, where that is not the step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_lines import Ended, run_main
from runs_on_a_clock import STATE, Moving, area, linear, recipe
from safetensors.numpy import load_file

from hubextrap.api import merge
from hubextrap.clocks import RateClock, read_rate_file
from hubextrap.errors import CorruptFile, RecipeError
from hubextrap.evaluation.sweep_report import SweepResult
from hubextrap.hub.provenance_checks import read_provenance
from hubextrap.logits import recipe_mixture
from hubextrap.recipe import load_recipe
from hubextrap.recipe.models import one_by_one
from hubextrap.scans import Scan

SAID = f"/run/checkpoint-60/{STATE} up to step 60; linear to step 100"
PUBLISHED = f"{STATE} up to step 60; linear to step 100"


@pytest.fixture
def here(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the run in it, and recipes."""
    monkeypatch.chdir(run.parent)
    for name, target in (("step", 80), ("rate", {"full_rate_steps": 30})):
        Path(f"{name}.yaml").write_text(recipe("run", target).to_yaml())
    return run.parent


def ran(*arguments: str) -> Ended:
    ended = run_main(*arguments)
    assert ended.code == 0, ended
    return ended


def test_plan(here: Path) -> None:
    ended = ran("plan", "step.yaml", "--summary", "plan.md")
    assert SAID in ended.out
    assert "Clock: learning rate" in Path("plan.md").read_text()
    report = json.loads(ran("plan", "step.yaml", "--json").out)
    assert SAID in report["clock"]
    assert report["horizons"] == pytest.approx([(area(80) - area(60)) / area(60)], abs=1e-5)
    at_peak = ran("plan", "rate.yaml").out
    assert "30 full-rate steps after step 60, as if the learning rate had stayed at its peak" in at_peak
    steps = json.loads(ran("plan", str(_by_steps(here)), "--json").out)
    assert steps["clock"] == "steps"


def _by_steps(here: Path) -> Path:
    path = here / "by_steps.yaml"
    path.write_text(recipe("run", 80, trajectory={"clock": "steps"}).to_yaml())
    return path


def test_merge_and_run(here: Path) -> None:
    ended = ran("merge", "step.yaml", "--out", "merged", "--summary", "merge.md")
    assert SAID in ended.err
    assert PUBLISHED in ended.out
    assert "linear to step 100" in Path("merge.md").read_text()
    card = Path("merged/README.md").read_text()
    assert "clock: learning rate" in card
    assert "Times are full-rate steps" in card
    found = read_provenance(Path("merged"))
    assert found.clock is not None
    assert found.clock.said.startswith("learning rate (trainer_state.json up to step 60")
    assert str(here) not in Path("merged/hubextrap.json").read_text()
    ended = ran("run", "rate.yaml", "--out", "ran")
    assert "predicted step 90 at the peak rate from steps up to 60" in ended.out
    by_steps = ran("merge", str(_by_steps(here)), "--out", "steps")
    assert "clock:" not in by_steps.out
    assert "note: the learning rate changed in this run, and steps were asked for" in by_steps.err


def test_a_provenance_claims_times_that_can_be(here: Path) -> None:
    ran("merge", "step.yaml", "--out", "merged")
    content = json.loads(Path("merged/hubextrap.json").read_text())
    content["clock"]["times"][2] = content["clock"]["times"][1]
    content.pop("sha256", None)
    Path("merged/hubextrap.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFile):
        read_provenance(Path("merged"))


@pytest.mark.slow
def test_backtest(here: Path) -> None:
    assert SAID in "".join(ran("backtest", "run").out.splitlines())
    rows = json.loads(ran("backtest", "run", "--json", "-q").out)["rows"]
    assert all(SAID in row["clock"] for row in rows)
    by_steps = ran("backtest", "run", "--clock", "steps", "--json", "-q")
    assert "clock" not in json.loads(by_steps.out)["rows"][0]
    Path("rates.csv").write_text("step,learning_rate\n" + "".join(f"{at},{linear(at)}\n" for at in range(61)))
    assert "rates.csv up to step 60" in ran("backtest", "run", "--clock", "rates.csv").out
    lost = run_main("backtest", "run", "--clock", "rate.csv")
    assert lost.code == 1
    assert "rate.csv" in lost.err


def test_a_clock_that_is_none(here: Path) -> None:
    for word in ("lr", "learning-rate", "cosine", ""):
        ended = run_main("backtest", "run", f"--clock={word}")
        assert ended.code in (1, 2), word
        assert "learning_rate" in ended.err, (word, ended.err)


@pytest.mark.slow
def test_scan_and_report(here: Path) -> None:
    ran("scan", "run", "--out", "scan.safetensors", "-q")
    rates = Scan.load("scan.safetensors").rates
    assert rates is not None
    assert rates.steps[-1] == 60
    ended = ran("report", "scan.safetensors", "--out", "page.html")
    assert "Horizons are counted by the learning rate" in ended.out
    page = Path("page.html").read_text()
    assert PUBLISHED in page
    assert str(here) not in page
    ran("report", "scan.safetensors", "--out", "steps.html", "--clock", "steps")
    assert "counted by the learning rate" not in Path("steps.html").read_text()
    assert "some targets are left out" in page
    Path("run/checkpoint-60", STATE).write_text("poison")
    ended = ran("scan", "run", "--out", "other.safetensors")
    assert "so the scan holds no learning rates" in ended.err


@pytest.mark.slow
def test_sweep(here: Path, moving: Moving) -> None:
    problems = [{"question": f"1+{digit}=", "answer": str(digit)} for digit in range(8)]
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    given = recipe("run", evaluate={"task_files": ["problems.jsonl"], "against": ["last", "target"]})
    Path("sweep.yaml").write_text(given.to_yaml())
    ended = ran("sweep", "sweep.yaml", "--out", "swept", "--horizons", "0,0.1,0.5,2")
    result = SweepResult.model_validate_json(Path("swept/sweep.json").read_text())
    clock = RateClock(read_rate_file(here / "run" / "checkpoint-60" / STATE))
    assert clock.step_at(1.1 * area(60)) is not None
    labels = [each.label for each in result.candidates]
    # the schedule ends at time 50, which 1.25 times what was observed already is behind
    assert labels[:2] == ["prediction 60", f"prediction {round(float(clock.step_at(1.1 * area(60)) or 0))}"]
    assert labels[2:] == [f"prediction {60 + round(h * area(60))} at the peak rate" for h in (0.5, 2)]
    assert result.clock.startswith("learning rate")
    for text in (ended.out, Path("swept/sweep.md").read_text()):
        assert "linear to step 100" in " ".join(text.split())
    assert str(here) not in Path("swept/sweep.md").read_text()
    assert str(here) not in result.clock


def test_one_of_a_sweep_is_a_recipe_of_its_own(here: Path, moving: Moving) -> None:
    """Also where it is no step of the run."""
    settled = recipe("run", {"full_rate_steps": [20, 30]}).settled_at(60)
    for each, count in zip(one_by_one(settled), (20, 30), strict=True):
        one = settled.model_copy(update={"parameters": settled.parameters.model_copy(update=each)})
        Path("best.yaml").write_text(one.to_yaml())
        merge(load_recipe(Path("best.yaml")), out=here / f"best {count}")
        assert moving.is_at(here / f"best {count}", area(60) + count)


def test_logits(here: Path) -> None:
    mixed = recipe("run", {"full_rate_steps": [20, 30]}, space="logits")
    for count in (20, 30):
        alpha = (area(60) + count) / area(60)
        found = recipe_mixture(mixed, target_step=60 + count)
        assert found.coefficients == pytest.approx((1 - alpha, alpha), abs=1e-5)
    Path("logits.yaml").write_text(recipe("run", {"full_rate_steps": 20}, space="logits").to_yaml())
    ended = ran("generate", "logits.yaml", "1+1=", "--max-new-tokens", "2")
    assert SAID in ended.err


def test_in_lm_eval(here: Path) -> None:
    """The model `hubextrap` takes a recipe that predicts full-rate steps, and makes the same weights."""
    pytest.importorskip("lm_eval")
    from hubextrap.lm_eval_plugin import HubextrapLM

    ran("merge", "rate.yaml", "--out", "merged")
    model = HubextrapLM(recipe="rate.yaml", device="cpu")
    merged = load_file("merged/model.safetensors")
    found = model.model.state_dict()
    assert all(np.array_equal(found[name].numpy(), values) for name, values in merged.items())
    Path("several.yaml").write_text(recipe("run", {"full_rate_steps": [20, 30]}).to_yaml())
    for arguments in ({"recipe": "rate.yaml", "target_step": 90}, {"recipe": "several.yaml"}):
        with pytest.raises(RecipeError, match="give it one number of them, and no target_step"):
            HubextrapLM(**arguments, device="cpu")


@pytest.mark.slow
def test_there_is_no_real_one_to_compare_with(here: Path, moving: Moving) -> None:
    """A step of that number may be there: it was not trained at the peak rate."""
    moving.run(here / "run", (80,))
    problems = [{"question": f"1+{digit}=", "answer": str(digit)} for digit in range(4)]
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    section = {"task_files": ["problems.jsonl"], "against": ["last", "target"]}
    observed = {"steps": {"max": 60}}
    for name, target, rows in (("rate", {"full_rate_steps": 20}, 2), ("step", 80, 3)):
        given = recipe("run", target, trajectory=observed, evaluate=section)
        Path(f"{name}.yaml").write_text(given.to_yaml())
        ended = ran("run", f"{name}.yaml", "--out", name, "--output", f"{name}.json")
        assert ("is not compared: the run had no steps at the peak rate there" in ended.err) == (rows == 2)
        assert len(json.loads(Path(f"{name}.json").read_text())["rows"]) == rows
