"""A walk on the bundled run: what it chooses, what it writes, and that it goes on where it was stopped."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import Lines, held, weights_read
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.api import merge, plan, run, verify, walk
from hubextrap.api.answering import LastAnswers
from hubextrap.api.merging import Made
from hubextrap.cli.app import app
from hubextrap.cli.markdown import plan_markdown
from hubextrap.cli.summaries import print_plan
from hubextrap.durable.places import lock_folder
from hubextrap.errors import EvaluationError, HubExtrapError, OutputError, RecipeError
from hubextrap.evaluation import own_answers
from hubextrap.evaluation.walk_report import WalkPoint, WalkReport, walk_markdown
from hubextrap.hub import PushTarget, read_provenance
from hubextrap.localhub import LocalHub
from hubextrap.logits import ExtrapolatedForCausalLM
from hubextrap.progress import SilentProgress
from hubextrap.recipe import Recipe, parse_recipe

CPU: Any = {"device": "cpu"}


@pytest.fixture
def prompts(trajectory: Path, tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join((trajectory / "problems.jsonl").read_text().splitlines()[:6]))
    return path


@pytest.fixture
def recipe_for(trajectory: Path) -> Callable[..., Recipe]:
    def make(
        target: Any = 300, method: str = "least_squares", repo: object = trajectory, **sections: Any
    ) -> Recipe:
        own = {"through_last": True} if method == "least_squares" else {}
        content = {
            "trajectory": {"repo": str(repo), "steps": {"max": 200}},
            "merge_method": method,
            "parameters": {"target_step": target} | own,
        }
        return parse_recipe(yaml.safe_dump(content | sections))

    return make


@pytest.fixture
def backwards(trajectory: Path, recipe_for: Callable[..., Recipe]) -> Recipe:
    """A run that unlearns: whatever lies ahead is worse still."""
    listed = [
        {"model": str(trajectory / f"step_{real}"), "step": step} for real, step in ((400, 0), (200, 200))
    ]
    return recipe_for(280, "two_point", trajectory={"checkpoints": listed})


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was really scored, in its order."""
    values: list[float] = []
    real = LastAnswers.logprob_under

    def counting(self: LastAnswers, *arguments: Any) -> float:
        values.append(real(self, *arguments))
        return values[-1]

    monkeypatch.setattr(LastAnswers, "logprob_under", counting)
    return values


def by_hand(trajectory: Path, out: Path, prompts: Path) -> tuple[float, float]:
    """The mean log-probability of step 200's greedy answers, under that step and under ``out``."""
    tokenizer: Any = AutoTokenizer.from_pretrained(trajectory / "step_200")
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        for folder in (trajectory / "step_200", out)
    ]
    sums: list[list[float]] = [[], []]
    for line in prompts.read_text().splitlines():
        context = tokenizer(json.loads(line)["question"]).input_ids
        tokens = list(context)
        while tokens[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                tokens.append(int(models[0](torch.tensor([tokens])).logits[0, -1].argmax()))
        for place, model in enumerate(models):
            with torch.no_grad():
                found = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
            steps = range(len(context), len(tokens))
            sums[place].append(sum(float(found[step - 1, tokens[step]]) for step in steps))
    last, chosen = (float(np.mean(each)) for each in sums)
    return last, chosen


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_step_is_where_own_answers_are_likeliest_and_what_is_written_is_its_merge(
    recipe_for: Callable[..., Recipe], trajectory: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = walk(recipe_for(), prompts, out=out, **CPU)
    report = result.walk
    assert [point.step for point in report.curve] == [200, 220, 240, 270, 300]
    assert [point.horizon for point in report.curve] == [0.0, 0.1, 0.2, 0.35, 0.5]
    assert report.best.value == max(point.value for point in report.curve)
    assert (report.method, report.up_to, report.prompts, report.answers) == ("least_squares", 300, 6, 6)
    last, chosen = by_hand(trajectory, out, prompts)
    assert report.curve[0].value == pytest.approx(last, abs=1e-4)
    assert report.best.value == pytest.approx(chosen, abs=1e-4)
    assert report.gained == pytest.approx(chosen - last, abs=2e-4)
    merge(recipe_for(report.chosen), out=tmp_path / "merged")
    assert weights(out) == weights(tmp_path / "merged")

    assert verify(out).problems == ()
    assert WalkReport.model_validate_json((out / "walk.json").read_text()) == report
    assert f"| {report.chosen} |" in (out / "walk.md").read_text()
    provenance = read_provenance(out / "hubextrap.json")
    assert provenance.target_step == report.chosen
    assert provenance.parameters["walk"]["values"].keys() == {"200", "220", "240", "270", "300"}
    assert parse_recipe(provenance.recipe).target_steps == (report.chosen,)
    assert f"likeliest at step {report.chosen}" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "out", "prompts.jsonl"]


@pytest.mark.slow
def test_the_recipe_may_say_it(
    recipe_for: Callable[..., Recipe],
    prompts: Path,
    tmp_path: Path,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direct = walk(recipe_for(240), prompts, out=tmp_path / "direct", **CPU)
    recipe = recipe_for({"up_to": 240, "by": "own_answers", "prompts": str(prompts)})
    assert parse_recipe(recipe.to_yaml()).walk == recipe.walk
    merged = merge(recipe, out=tmp_path / "merged", progress=lines)
    assert merged.walk == direct.walk
    assert merged.predictions[0].step == direct.walk.chosen
    assert weights(tmp_path / "merged") == weights(tmp_path / "direct")
    cost = "draws 6 answers of at most 3,072 tokens in all from the last checkpoint, and scores"
    assert any(cost in line and "at 3 steps: at most 9,216 tokens" in line for line in lines.said)
    ran = run(recipe, out=tmp_path / "ran")
    assert ran.walk == direct.walk
    for refused in (walk, api.sweep, api.complete):
        with pytest.raises(RecipeError):
            refused(recipe, prompts)  # type: ignore[operator]


def test_a_plan_says_what_it_costs_and_reads_no_weights(
    hub: LocalHub,
    repo_id: str,
    recipe_for: Callable[..., Recipe],
    trajectory: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.create_repo(repo_id)
    for step in (0, 100, 200):
        folder = trajectory / f"step_{step}"
        hub.commit(repo_id, {file.name: file for file in folder.iterdir()}, revision=f"step_{step}")
    hub.requests.clear()
    target = {"up_to": 400, "prompts": str(prompts), "limit": 3, "max_tokens": 10}
    report = plan(recipe_for(target, repo=repo_id), out=tmp_path / "out")
    assert report.problems == ()
    assert weights_read(hub) == []
    assert "3 answers of at most 30 tokens in all" in report.notes[0]
    assert "at most 210 tokens" in report.notes[0]
    assert report.notes[1].endswith("at steps 220, 240, 270, 300, 350, 400")
    print_plan(Path("mine.yaml"), report)
    assert "walk to   step 400, horizon 1\n" in capsys.readouterr().out
    assert "| walk to step |" in plan_markdown(Path("mine.yaml"), report)
    prompts.write_text("{}")
    (problem,) = plan(recipe_for(target, repo=repo_id), out=tmp_path / "out").problems
    assert "prompts.jsonl, line 1: needs one text" in problem


def test_where_the_last_checkpoint_is_best_it_is_what_is_written(
    backwards: Recipe, trajectory: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = walk(backwards, prompts, out=out, **CPU)
    report = result.walk
    assert (report.chosen, report.method, report.gained, report.stays) == (200, "persistence", 0.0, True)
    assert all(point.value < report.curve[0].value for point in report.curve[1:])
    assert result.prediction is not None
    assert result.prediction.identical_to_last
    written, last = (load_file(folder / "model.safetensors") for folder in (out, trajectory / "step_200"))
    assert all(np.array_equal(written[name], last[name]) for name in last)
    assert read_provenance(out / "hubextrap.json").merge_method == "persistence"
    assert "The last checkpoint itself, step 200, is best" in (out / "walk.md").read_text()


@pytest.mark.slow
def test_an_equal_step_is_the_nearest(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LastAnswers, "logprob_under", lambda *_: -1.0)
    assert walk(recipe_for(), prompts, out=tmp_path / "out", **CPU).walk.stays
    monkeypatch.setattr(LastAnswers, "logprob_under", lambda *_: float("-inf"))
    assert walk(recipe_for(), prompts, out=tmp_path / "broken", **CPU).walk.stays
    assert json.loads((tmp_path / "broken" / "walk.json").read_text())["curve"][0]["value"] == "-Infinity"


@pytest.mark.parametrize(
    "count", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_walk_that_was_stopped_measures_nothing_twice(
    recipe_for: Callable[..., Recipe],
    prompts: Path,
    tmp_path: Path,
    scored: list[float],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    whole = walk(recipe_for(), prompts, out=tmp_path / "whole", **CPU)
    assert len(scored) == 5
    scored.clear()
    stopping = LastAnswers.load
    loads = 0

    def load(self: LastAnswers, which: Any) -> Any:
        nonlocal loads
        loads += 1
        if loads == count + 2:  # the first is for the answers
            raise KeyboardInterrupt
        return stopping(self, which)

    with monkeypatch.context() as patch:
        patch.setattr(LastAnswers, "load", load)
        if count == 5:
            patch.setattr("hubextrap.api.merging.prepare", load_nothing)
        with pytest.raises(KeyboardInterrupt):
            walk(recipe_for(), prompts, out=tmp_path / "out", **CPU)
    assert len(scored) == count
    assert (tmp_path / ".out.walk").is_dir()
    drawn: list[Any] = []
    monkeypatch.setattr(own_answers, "draw_answers", drawn.append)
    again = walk(recipe_for(), prompts, out=tmp_path / "out", **CPU)
    assert len(scored) == 5
    assert again.walk == whole.walk
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    for name in ("walk.json", "hubextrap.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / ".out.walk").exists()


def test_what_a_kill_at_the_very_end_leaves_goes_with_the_next_call(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, place = tmp_path / "out", tmp_path / ".out.walk"
    with monkeypatch.context() as patch:
        patch.setattr("hubextrap.api.merging.Made.settle", load_nothing)
        with pytest.raises(KeyboardInterrupt):
            walk(recipe_for(240), prompts, out=out, **CPU)
    before = weights(out)
    assert place.is_dir()
    (tmp_path / ".out.partial").rename(tmp_path / "gone")  # it is removed first
    with pytest.raises(OutputError, match="out: is there already and not empty"):
        walk(recipe_for(240), prompts, out=out, **CPU)
    assert not place.exists()
    assert weights(out) == before


def test_a_walk_whose_output_is_whole_measures_nothing_and_writes_nothing_again(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, scored: list[float]
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hubextrap.api.merging.Made.settle", load_nothing)
        with pytest.raises(KeyboardInterrupt):
            walk(recipe_for(240), prompts, out=out, **CPU)
    before, count = (out / "model.safetensors").stat().st_mtime_ns, len(scored)
    assert walk(recipe_for(240), prompts, out=out, **CPU).folder == out
    assert ((out / "model.safetensors").stat().st_mtime_ns, len(scored)) == (before, count)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts.jsonl"]


def test_a_place_that_another_walk_has_taken_over_stays(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may begin once the first has chosen, and finds at its end that the output is there."""
    settle = Made.settle

    def second(self: Made) -> None:
        lock = lock_folder(tmp_path / ".out.walk", "out", print)
        settle(self)
        os.close(lock)

    monkeypatch.setattr(Made, "settle", second)
    walk(recipe_for(220), prompts, out=tmp_path / "out", **CPU)
    assert (tmp_path / ".out.walk" / "measured").is_dir()


def test_full_rate_steps(
    recipe_for: Callable[..., Recipe], trajectory: Path, prompts: Path, tmp_path: Path
) -> None:
    """Of 200 steps of a rate that falls to 0 at step 250, 120 were at the full rate."""
    section = {
        "repo": str(trajectory),
        "steps": {"max": 200},
        "clock": {"schedule": "linear", "total_steps": 250},
    }
    target = {"up_to": {"full_rate_steps": 60}, "prompts": str(prompts)}
    report = merge(recipe_for(target, trajectory=section), out=tmp_path / "out").walk
    assert report is not None
    assert [point.step for point in report.curve] == [200, 212, 224, 242, 260]
    assert [point.horizon for point in report.curve] == pytest.approx([0, 0.1, 0.2, 0.35, 0.5], abs=0.01)
    assert report.at_peak_rate
    assert f"likeliest at step {report.chosen} at the peak rate" in walk_markdown(report)
    provenance = read_provenance(tmp_path / "out" / "hubextrap.json")
    assert provenance.parameters["walk"]["at_peak_rate"]
    again = parse_recipe(provenance.recipe)
    assert again.parameters.target is not None
    plain = recipe_for(300, trajectory=section).model_copy(update={"parameters": again.parameters})
    merge(plain, out=tmp_path / "merged")
    assert weights(tmp_path / "out") == weights(tmp_path / "merged")


def load_nothing(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_other_prompts_or_settings_are_measured_anew(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, scored: list[float]
) -> None:
    recipe, out = recipe_for(220), tmp_path / "out"

    def stopped(**how: Any) -> int:
        scored.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hubextrap.api.merging.prepare", load_nothing)
            with pytest.raises(KeyboardInterrupt):
                walk(recipe, prompts, out=out, **CPU, **how)
        return len(scored)

    assert stopped() == 2
    assert stopped() == 0
    assert stopped(max_tokens=3) == 2
    assert stopped(dtype="bfloat16") == 2
    prompts.write_text(prompts.read_text().partition("\n")[0])
    assert stopped() == 2


@pytest.mark.slow
def test_a_walk_that_was_killed_ends_as_if_it_had_not_been(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_for(600, "calibrated").to_yaml())
    arguments = ["walk", str(recipe), "--prompts", str(prompts), "-q", "--out"]
    command = [sys.executable, "-m", "hubextrap", *arguments]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    measured = tmp_path / ".out.walk" / "measured"
    before: dict[str, int] = {}
    wanted = 1
    for _ in range(6):
        stays = held("hubextrap.api.answering:LastAnswers.logprob_under", wanted - len(before) + 2)
        killed = subprocess.Popen([*stays, *arguments, str(tmp_path / "out")], stdout=subprocess.DEVNULL)
        while killed.poll() is None and len(list(measured.glob("*.json"))) < wanted:
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        before = {path.name: path.stat().st_mtime_ns for path in measured.glob("*.json")}
        if (tmp_path / "out").exists():
            break
        wanted = len(before) + 2
    assert wanted > 3, "it was never killed between two measurements"
    if not (tmp_path / "out").exists():
        subprocess.run([*command, str(tmp_path / "out")], check=True, stdout=subprocess.DEVNULL)
    for name in ("model.safetensors", "walk.json", "hubextrap.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_model_is_in_memory_at_a_time(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubextrap.logits.loading import Models

    alive: list[Any] = []
    most = 0
    real = Models.load

    def load(*arguments: Any, **where: Any) -> Any:
        nonlocal most
        model = real(*arguments, **where)
        alive.append(weakref.ref(model))
        most = max(most, sum(one() is not None for one in alive))
        return model

    monkeypatch.setattr(Models, "load", load)
    walk(recipe_for(), prompts, out=tmp_path / "out", **CPU)
    assert len(alive) == 6
    assert most == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no problem"),
        ('{"question": "1+1="}\n{"answer": "2"}', r"line 2: needs one text, in the field question or prompt"),
        ('{"question": "1", "prompt": "2"}', "line 1: needs one text"),
        ('{"prompt": 3}', "line 1: needs one text"),
        ('{"prompt": " "}', "line 1: the text is empty"),
        ('{"prompt": "\\ud800"}', "line 1: not valid JSON"),
        ("[1]", "line 1: has to be a JSON object"),
        ("{", "line 1: "),
        ("\xff", "is not UTF-8"),
    ],
)
def test_a_bad_prompts_file_names_its_line(
    content: str, said: str, recipe_for: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(EvaluationError, match=f"bad.jsonl.*{said}"):
        walk(recipe_for(), tmp_path / "bad.jsonl", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.slow
def test_what_is_no_walk(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path, trajectory: Path
) -> None:
    out = tmp_path / "out"

    def refused(said: str, *given: Any, recipe: Recipe | None = None, **how: Any) -> None:
        with pytest.raises(HubExtrapError, match=said):
            walk(recipe or recipe_for(), *given, **{"out": out} | how)
        assert not out.exists()
        assert not list(tmp_path.glob(".*"))

    refused("nothing to ask.*--prompts")
    refused("give either prompts", prompts, tasks=["radd"])
    refused("no such file|No such file", tmp_path / "absent.jsonl")
    refused("samples has no effect with own_answers", prompts, by="own_answers", samples=2)
    refused("seed has no effect with own_answers", prompts, seed=1)
    refused("seed has no effect without samples", prompts, by="score", seed=1)
    refused("format has no effect with own_answers", prompts, format="exact")
    refused("format has no effect on tasks", tasks=["a"], by="score", format="exact")
    refused("include_path has no effect without tasks", prompts, include_path=["x"])
    refused("not beyond the last checkpoint, step 200", prompts, recipe=recipe_for(200))
    refused("up to one target", prompts, recipe=recipe_for([300, 400]))
    refused("persistence predicts nothing", prompts, recipe=recipe_for(300, "persistence"))
    refused("write one into it, or give an output folder", prompts, out=None)
    refused("force.*has no effect on a walk", prompts, settings=api.MergeOptions(force=True))
    refused("unknown task: 'none_such'", tasks="none_such")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OutputError, match="full: is there already and not empty"):
        walk(recipe_for(), prompts, out=tmp_path / "full")
    (tmp_path / ".out.walk").mkdir()
    (tmp_path / ".out.walk" / "mine").touch()
    with pytest.raises(OutputError, match=r"\.out\.walk: cannot be written: File exists"):
        walk(recipe_for(), prompts, out=out)
    target = {"up_to": 300, "prompts": str(prompts)}
    assert ".out.walk: cannot be written" in plan(recipe_for(target), out=out).problems[0]


@pytest.mark.parametrize(("method", "own"), [("average", {}), ("ema", {}), ("two_point", {"damping": 0.0})])
def test_a_method_that_predicts_no_motion_is_one_model(
    method: str,
    own: dict[str, float],
    recipe_for: Callable[..., Recipe],
    prompts: Path,
    tmp_path: Path,
    scored: list[float],
) -> None:
    recipe = recipe_for(300, method)
    recipe = recipe.model_copy(update={"parameters": recipe.parameters.model_copy(update=own)})
    report = walk(recipe, prompts, out=tmp_path / "out", **CPU).walk
    assert [point.step for point in report.curve] == [200, 220, 240, 270, 300]
    assert len({point.value for point in report.curve[1:]}) == 1
    assert len(scored) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts.jsonl"]


@pytest.mark.slow
def test_a_step_where_the_weights_overflow_counts_as_broken(
    recipe_for: Callable[..., Recipe], trajectory: Path, prompts: Path, tmp_path: Path
) -> None:
    steps = {0: "first", 200: "last"}
    for name in steps.values():
        shutil.copytree(trajectory / "step_200", tmp_path / name)
    weights = load_file(tmp_path / "first" / "model.safetensors")
    broken = weights["model.layers.0.mlp.down_proj.weight"]
    broken[...] = 3e38
    save_file(weights, tmp_path / "first" / "model.safetensors", {"format": "pt"})
    listed = [{"model": str(tmp_path / name), "step": step} for step, name in steps.items()]
    recipe = recipe_for(500, "two_point", trajectory={"checkpoints": listed})
    result = walk(recipe, prompts, out=tmp_path / "out", **CPU)
    assert result.walk.stays
    assert result.walk.curve[-1].value == -np.inf  # 1.5 × 3e38 is no float32
    with pytest.raises(HubExtrapError, match="are NaN or infinite"):
        merge(recipe, out=tmp_path / "merged")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    line = ["walk", str(tmp_path / "recipe.yaml"), "--prompts", str(prompts), "--device", "cpu", "--json"]
    printed = CliRunner().invoke(app, [*line, "-q", "--out", str(tmp_path / "again")])

    def none(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(printed.stdout, parse_constant=none)["walk"]["curve"][-1]["value"] == "-Infinity"


def test_the_curve_beside_a_broken_last_checkpoint() -> None:
    values = (-np.inf, -np.inf, -1.0)
    curve = tuple(WalkPoint(step=step, horizon=step - 1, value=value) for step, value in enumerate(values, 1))
    report = WalkReport(
        by="own_answers", up_to=3, prompts=1, answers=1, answer_tokens=1, curve=curve, chosen=3, method="x"
    )
    assert report.gained == np.inf
    rows = [line.split("|")[4].strip() for line in walk_markdown(report).splitlines()[2:5]]
    assert rows == ["", "+0.000", "+inf"]


def test_the_report_names_the_methods_of_some_tensors(
    recipe_for: Callable[..., Recipe], backwards: Recipe, prompts: Path, tmp_path: Path
) -> None:
    """``persistence`` says that the last checkpoint itself is best."""
    rule = {"match": "*mlp*", "method": "two_point"}
    recipe = recipe_for(220, parameters={"target_step": 220, "tensors": [rule]}, method="persistence")
    report = walk(recipe, prompts, out=tmp_path / "out", **CPU).walk
    assert report.method == ("persistence" if report.stays else "persistence, two_point")
    assert not report.stays


def test_steps_that_the_past_forbids_are_left_out(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(1500, "calibrated")
    limited = recipe.parameters.model_copy(update={"max_expected_error": 0.45})
    report = walk(
        recipe.model_copy(update={"parameters": limited}), prompts, out=tmp_path / "out", **CPU
    ).walk
    assert report.left_out
    assert {1500} <= {each.step for each in report.left_out}
    assert not {each.step for each in report.left_out} & {point.step for point in report.curve}
    said = (tmp_path / "out" / "walk.md").read_text()
    assert "Step 1500 was left out: " in said
    assert "left out: step " not in said
    impossible = recipe.parameters.model_copy(update={"max_expected_error": 0.01})
    with pytest.raises(HubExtrapError, match="above max_expected_error"):
        walk(recipe.model_copy(update={"parameters": impossible}), prompts, out=tmp_path / "none", **CPU)


def test_what_is_warned_of_is_the_chosen_step(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path
) -> None:
    class Warned(SilentProgress):
        def warn(self, line: str) -> None:
            lines.append(line)

    lines: list[str] = []
    result = walk(recipe_for(1500, "calibrated"), prompts, out=tmp_path / "out", progress=Warned(), **CPU)
    assert result.prediction is not None
    assert lines
    assert lines == list(result.prediction.warnings)
    assert all(f"step {result.walk.chosen}" in line for line in lines)


@pytest.mark.slow
def test_labels(recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path) -> None:
    right = walk(recipe_for(), prompts, out=tmp_path / "right", samples=3, seed=1, **CPU).walk
    assert (right.by, right.prompts) == ("correct_answers", 6)
    assert 0 < right.answers < 18
    assert right.score_of_last == right.answers / 18
    assert right.score_of_chosen is not None
    again = walk(recipe_for(), prompts, out=tmp_path / "again", samples=3, seed=1, **CPU).walk
    assert again == right
    score = walk(recipe_for(), prompts, out=tmp_path / "score", by="score", samples=2, **CPU).walk
    assert score.answers == 12
    assert {round(point.value * 12, 6) % 1 for point in score.curve} == {0}
    assert score.curve[0].value > 0
    labels = [json.loads(line) for line in prompts.read_text().splitlines()]
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("\n".join(json.dumps(label | {"answer": "none"}) for label in labels))
    with pytest.raises(EvaluationError, match="none of the last checkpoint's 12 answers is right"):
        walk(recipe_for(), wrong, out=tmp_path / "wrong", samples=2, **CPU)
    with pytest.raises(EvaluationError, match="none of 6 answers at any of 5 steps is right"):
        walk(recipe_for(), wrong, out=tmp_path / "none", by="score", **CPU)
    wrong.write_text(json.dumps({"question": "1+1="}))
    with pytest.raises(EvaluationError, match="line 1: needs an answer"):
        walk(recipe_for(), wrong, out=tmp_path / "wrong", by="score", **CPU)


@pytest.mark.slow
def test_a_task_s_problems(recipe_for: Callable[..., Recipe], demo_tasks: Path, tmp_path: Path) -> None:
    how: Any = {"tasks": ["radd"], "include_path": [demo_tasks], "limit": 4, **CPU}
    own = walk(recipe_for(240), out=tmp_path / "own", **how).walk
    assert (own.prompts, own.answers) == (4, 4)
    score = walk(recipe_for(240), out=tmp_path / "score", by="score", **how).walk
    assert {point.value * 4 % 1 for point in score.curve} == {0}
    with pytest.raises(EvaluationError, match="unknown task"):
        walk(recipe_for(240), tasks=["radd_of_none"], out=tmp_path / "none", **CPU)


@pytest.mark.slow
def test_logits(recipe_for: Callable[..., Recipe], prompts: Path, trajectory: Path, tmp_path: Path) -> None:
    recipe = recipe_for(240, space="logits")
    report = walk(recipe, prompts, **CPU).walk
    result = walk(recipe, prompts, out=tmp_path / "out", **CPU)
    assert result.walk == report
    assert result.prediction is None
    mixed = ExtrapolatedForCausalLM.from_pretrained(tmp_path / "out")
    assert mixed.mixture is not None
    assert mixed.mixture.target_step == report.chosen
    tokenizer: Any = mixed.tokenizer
    asked = [json.loads(line)["question"] for line in prompts.read_text().splitlines()]
    last: Any = AutoModelForCausalLM.from_pretrained(trajectory / "step_200").eval()
    answers = own_answers.draw_answers(last, tokenizer, asked)
    assert report.best.value == pytest.approx(own_answers.mean_logprob(mixed, tokenizer, answers), abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts.jsonl"]
    with pytest.raises(RecipeError, match="writes no weights"):
        walk(recipe, prompts, push=[PushTarget("me/x")])


def test_to_the_hub(
    hub: LocalHub,
    repo_id: str,
    logged_in: str,
    recipe_for: Callable[..., Recipe],
    prompts: Path,
    tmp_path: Path,
) -> None:
    section = {"repo": repo_id, "revision": "at_{target_step}"}
    result = walk(recipe_for(240, push=section), prompts, **CPU)
    assert result.prediction is not None
    assert result.prediction.target is not None
    assert result.prediction.target.revision == f"at_{result.walk.chosen}"
    assert verify(f"{repo_id}@at_{result.walk.chosen}").problems == ()
    pushed = walk(recipe_for(240), prompts, push=[PushTarget(repo_id, "other")], **CPU)
    assert pushed.walk == result.walk
    from huggingface_hub import constants, hf_hub_download

    file = hf_hub_download(repo_id, "walk.json", revision="other")
    assert WalkReport.model_validate_json(Path(file).read_text()) == result.walk
    assert not list(Path(constants.HF_HOME, "hubextrap", "walk").iterdir())


def test_the_command(
    recipe_for: Callable[..., Recipe], backwards: Recipe, prompts: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_for(240).to_yaml())
    line = ["walk", str(recipe), "--prompts", str(prompts), "--device", "cpu"]
    printed = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "out"), "-q"])
    assert printed.exit_code == 0, printed.output
    words = " ".join(printed.stdout.split())
    assert re.search(r"chosen by a walk: of the steps 200 … 240 .* likeliest at step \d+ \(horizon", words)
    assert "wrote" in words or "written to" in words
    assert printed.stderr == ""
    recipe.write_text(backwards.to_yaml())
    as_json = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "stays"), "-q", "--json"])
    assert as_json.exit_code == 0, as_json.output
    said = json.loads(as_json.stdout)
    assert (said["walk"]["method"], said["walk"]["chosen"], said["walk"]["gained"]) == (
        "persistence",
        200,
        0.0,
    )
    assert said["prediction"]["provenance"]["merge_method"] == "persistence"
    wrong = CliRunner().invoke(
        app, [*line, "--out", str(tmp_path / "x"), "--by", "own_answers", "--samples", "2"]
    )
    assert wrong.exit_code != 0


@pytest.mark.slow
def test_never_much_worse_than_the_last_checkpoint_and_better_on_average(rlvr: Path, tmp_path: Path) -> None:
    """On all 500 problems, by the exact probability of the right answer."""
    gains: dict[int, list[float]] = {2: [], 3: []}
    for name in ("A", "C"):
        folder = rlvr / f"rlvr-{name}"
        lines = (folder / "problems.jsonl").read_text().splitlines()
        picked = np.random.default_rng(0).choice(len(lines), 64, replace=False)
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("\n".join(lines[place] for place in picked))
        for origin, times in itertools.product((100, 200, 300), gains):
            out = tmp_path / f"{name}-{origin}-{times}"
            section = {"repo": str(folder), "steps": {"max": origin}}
            content = {"trajectory": section, "merge_method": "calibrated"}
            recipe = content | {"parameters": {"target_step": origin * times}}
            report = walk(parse_recipe(yaml.safe_dump(recipe)), prompts, out=out, **CPU).walk
            last = folder / f"step_{report.curve[0].step}"
            gains[times].append(chance(out, lines) - chance(last, lines))
    assert min(gains[2] + gains[3]) >= -0.005, gains
    assert np.mean(gains[2]) >= 0.03, gains


def chance(folder: Path, lines: list[str]) -> float:
    """The mean probability of the right answers, exactly."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    problems = [json.loads(line) for line in lines]
    answers = tuple(
        (*tokenizer(problem["answer"], add_special_tokens=False).input_ids, tokenizer.eos_token_id)
        for problem in problems
    )
    right = own_answers.OwnAnswers(tuple(problem["question"] for problem in problems), answers)
    return float(np.exp(own_answers.answer_logprobs(model, tokenizer, right, batch_size=64)).mean())


@pytest.mark.slow
def test_a_section_without_prompts_asks_what_is_evaluated(
    recipe_for: Callable[..., Recipe], prompts: Path, tmp_path: Path
) -> None:
    """``target_step: {up_to: 400, by: own_answers}`` is whole with an evaluate section, or with --prompts."""
    bare = recipe_for({"up_to": 300, "by": "own_answers"})
    section = {"task_files": [str(prompts)], "limit": 4, "max_tokens": 6}
    evaluated = recipe_for({"up_to": 300, "by": "own_answers"}, evaluate=section)
    assert any("nothing to ask" in problem for problem in plan(bare, out=tmp_path / "a").problems)
    with pytest.raises(RecipeError, match="nothing to ask"):
        merge(bare, out=tmp_path / "a")
    assert merge(evaluated, out=tmp_path / "b").walk == walk(evaluated, out=tmp_path / "c").walk
    given = walk(bare, prompts, limit=4, max_tokens=6, out=tmp_path / "d").walk
    assert (
        given.chosen == walk(recipe_for(300), prompts, limit=4, max_tokens=6, out=tmp_path / "e").walk.chosen
    )
    with pytest.raises(RecipeError, match="by has no effect"):
        walk(bare, prompts, by="score", out=tmp_path / "f")
