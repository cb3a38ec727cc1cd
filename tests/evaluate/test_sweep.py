"""A sweep on the bundled run: one read of each checkpoint, nothing measured twice, stopped and gone on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import held
from typer.testing import CliRunner

from hubextrap.api import MergeOptions, merge, scan, sweep
from hubextrap.cli.app import app
from hubextrap.errors import EvaluationError, OutputError, RecipeError
from hubextrap.evaluation import Answering, EvaluationOptions, Harness, TaskFile
from hubextrap.evaluation.sweep_report import SweepResult
from hubextrap.localhub import LocalHub
from hubextrap.recipe import Recipe, load_recipe, parse_recipe
from hubextrap.trajectory import TrajectoryOptions, find_trajectory

STEPS = (0, 40, 80, 100, 120, 160, 200)


@pytest.fixture
def on_hub(hub: LocalHub, repo_id: str, trajectory: Path) -> str:
    hub.create_repo(repo_id)
    for step in STEPS:
        folder = trajectory / f"step_{step}"
        hub.commit(repo_id, {file.name: file for file in folder.iterdir()}, revision=f"step_{step}")
    hub.requests.clear()
    return repo_id


@pytest.fixture
def recipe_for(trajectory: Path) -> Callable[..., Recipe]:
    def make(repo: str | Path, *, target: int = 300, **evaluate: Any) -> Recipe:
        section = {
            "task_files": [str(trajectory / "problems.jsonl")],
            "limit": 60,
            "batch_size": 60,
            "against": ["last"],
        }
        text = yaml.safe_dump(
            {
                "trajectory": {"repo": str(repo), "steps": {"max": 200}},
                "merge_method": "least_squares",
                "parameters": {"target_step": target, "through_last": True},
                "evaluate": section | evaluate,
            }
        )
        return parse_recipe(text)

    return make


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of what was really measured."""
    labels: list[str] = []
    real = Harness.measure

    def counting(self: Harness, label: str, checkpoint: Any) -> Any:
        found = real(self, label, checkpoint)
        labels.append(label)
        return found

    monkeypatch.setattr(Harness, "measure", counting)
    return labels


def weight_reads(hub: LocalHub) -> dict[str, int]:
    """Bytes of each revision's weights that were asked for by range, headers included."""
    read: Counter[str] = Counter()
    for request in hub.requests:
        found = re.search(
            r"bytes=(\d+)-(\d+)", {k.lower(): v for k, v in request.headers.items()}.get("range", "")
        )
        if request.method == "GET" and ".safetensors" in request.path and found:
            read[request.path] += int(found[2]) - int(found[1]) + 1
    return dict(read)


@pytest.mark.slow
def test_each_checkpoint_is_read_once_for_the_whole_grid(
    hub: LocalHub,
    on_hub: str,
    recipe_for: Callable[..., Recipe],
    measured: list[str],
    trajectory: Path,
    tmp_path: Path,
) -> None:
    recipe = recipe_for(on_hub)
    result = sweep(recipe, tmp_path / "sweep", horizons=[0.5, 1], damping=[0.4, 1])
    labels = [f"prediction {step}{by}" for step in (300, 400) for by in (" × 0.4", "")]
    assert [candidate.label for candidate in result.candidates] == labels
    assert sorted(measured) == sorted(["last", *labels])
    size = (trajectory / "step_0" / "model.safetensors").stat().st_size
    reads = weight_reads(hub)
    assert len(reads) == len(STEPS)
    assert all(size * 0.9 < read < size * 1.1 for read in reads.values())

    hub.requests.clear()
    measured.clear()
    again = sweep(recipe, tmp_path / "sweep", horizons=[0.5, 1], damping=[0.4, 1])
    assert again == result
    assert measured == []
    assert weight_reads(hub) == {}

    wider = sweep(recipe, tmp_path / "sweep", horizons=[0.5, 1, 1.5], damping=[0.4, 1, 0])
    assert sorted(measured) == ["prediction 300 × 0", "prediction 500", "prediction 500 × 0.4"]
    rows = {row.label: row for row in wider.all_problems.rows}
    assert {row.label for row in again.all_problems.rows} < rows.keys()
    # with damping 0 every step is the last checkpoint, so it was measured once for all
    for step in (300, 400, 500):
        assert rows[f"prediction {step} × 0"].scores == rows["last"].scores
        assert rows[f"prediction {step} × 0"].step == step


def test_what_is_measured_is_what_a_merge_writes(
    recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path
) -> None:
    from hubextrap.evaluation import evaluate

    result = sweep(recipe_for(trajectory), tmp_path / "sweep", horizons=[0.5], damping=[0.7])
    assert result.is_better
    best = load_recipe(tmp_path / "sweep" / "best.yaml")
    assert best.target_steps == (300,)
    assert best.parameters.damping == 0.7
    merge(best, out=tmp_path / "merged")
    file = TaskFile(trajectory / "problems.jsonl", "exact")
    table = evaluate([("a", str(tmp_path / "merged"))], task_files=[file], limit=60, batch_size=60)
    found = {row.label: row for row in result.all_problems.rows}
    assert found["prediction 300 × 0.7"].scores == table.rows[0].scores


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on(
    hub: LocalHub, on_hub: str, recipe_for: Callable[..., Recipe], measured: list[str], tmp_path: Path
) -> None:
    recipe = recipe_for(on_hub)
    original = Harness.measure

    def stopping(self: Harness, label: str, checkpoint: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        return original(self, label, checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Harness, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe, tmp_path / "sweep", horizons=[0.5, 1])
    assert measured == ["last", "prediction 300"]
    assert len(list((tmp_path / "sweep" / "predictions").iterdir())) == 1
    hub.requests.clear()
    result = sweep(recipe, tmp_path / "sweep", horizons=[0.5, 1])
    assert measured[2:] == ["prediction 400"]
    assert weight_reads(hub) == {}
    assert not (tmp_path / "sweep" / "predictions").exists()
    untouched = sweep(recipe, tmp_path / "other", horizons=[0.5, 1])
    assert untouched == result


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_as_if_it_had_not_been(
    recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_for(trajectory).to_yaml())
    arguments = ["sweep", str(recipe), "--horizons", "0.25,0.5,1", "-q", "--out"]
    stopped = held("hubextrap.api.answering:LastAnswers.logprob_under", 1) + arguments
    killed = subprocess.Popen([*stopped, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    measured = tmp_path / "killed" / "measured"
    while killed.poll() is None and len(list(measured.glob("*.json"))) < 2:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    before = {path.name: path.stat().st_mtime_ns for path in measured.glob("*.json")}
    assert 2 <= len(before) < 4, "killed too early or too late to show anything"
    for folder in ("killed", "whole"):
        command = [sys.executable, "-m", "hubextrap", *arguments, str(tmp_path / folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert {name: (measured / name).stat().st_mtime_ns for name in before} == before
    results = [(tmp_path / folder / "sweep.json").read_bytes() for folder in ("killed", "whole")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_other_settings_or_problems_are_measured_anew(
    recipe_for: Callable[..., Recipe], trajectory: Path, measured: list[str], tmp_path: Path
) -> None:
    sweep(recipe_for(trajectory), tmp_path / "sweep")
    assert measured == ["last", "prediction 300"]
    problems = tmp_path / "problems.jsonl"
    lines = (trajectory / "problems.jsonl").read_text().splitlines()
    problems.write_text("\n".join(lines[:-1]))
    for changed in ({"seed": 1}, {"task_files": [str(problems)]}):
        measured.clear()
        sweep(recipe_for(trajectory, **changed), tmp_path / "sweep")
        assert measured == ["last", "prediction 300"]
    measured.clear()
    problems.write_text("\n".join(lines))  # the same file elsewhere
    sweep(recipe_for(trajectory, task_files=[str(problems)]), tmp_path / "sweep")
    assert measured == []


def test_every_setting_counts(tmp_path: Path) -> None:
    problem = json.dumps({"question": "1+1=", "answer": "2", "choices": ["1", "2"]})
    (tmp_path / "p.jsonl").write_text(problem)
    tasks: dict[str, Any] = {"task_files": [TaskFile(tmp_path / "p.jsonl", "exact")]}
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"limit": 1},
        {"batch_size": 8},
        {"apply_chat_template": True},
        {"dtype": "bfloat16"},
        {"device": "cpu:0"},
        {"answering": Answering(max_tokens=9)},
        {"answering": Answering(repeats=4)},
        {"answering": Answering(repeats=4, temperature=0.5)},
        {"task_files": [TaskFile(tmp_path / "p.jsonl", "choice")]},
    ]
    found = [Harness(EvaluationOptions(**tasks | change)).fingerprint() for change in changes]
    assert len(set(found)) == len(changes)
    assert Harness(EvaluationOptions(**tasks)).fingerprint() == found[0]


@pytest.mark.slow
def test_a_chat_template_changed_in_place_is_measured_anew(
    recipe_for: Callable[..., Recipe], trajectory: Path, measured: list[str], tmp_path: Path
) -> None:
    """Scores hang on what lies beside the weights as well."""
    for step in (100, 200):
        shutil.copytree(trajectory / f"step_{step}", tmp_path / "run" / f"step_{step}")
    recipe = recipe_for(tmp_path / "run", limit=8)
    sweep(recipe, tmp_path / "sweep")
    sweep(recipe, tmp_path / "sweep")
    assert measured == ["last", "prediction 300"]
    (tmp_path / "run" / "step_200" / "chat_template.jinja").write_text("{{ messages }}")
    sweep(recipe, tmp_path / "sweep")
    assert measured == ["last", "prediction 300"] * 2


@pytest.mark.slow
def test_the_way_counts_from_the_first_checkpoint_and_rows_have_the_steps_of_now(
    recipe_for: Callable[..., Recipe], trajectory: Path, measured: list[str], tmp_path: Path
) -> None:
    for step in (100, 200):
        shutil.copytree(trajectory / f"step_{step}", tmp_path / "run" / f"step_{step}")
    text = recipe_for(tmp_path / "run", limit=8).to_yaml()
    result = sweep(parse_recipe(text), tmp_path / "sweep", horizons=[0.5])
    assert [candidate.step for candidate in result.candidates] == [250]
    measured.clear()
    text = text.replace("max: 200", "max: 600\n    scale: 3")
    scaled = sweep(parse_recipe(text), tmp_path / "sweep", horizons=[0.5])
    assert measured == ["prediction 750"]
    assert {row.label: row.step for row in scaled.all_problems.rows} == {"last": 600, "prediction 750": 750}


def test_a_damping_that_the_run_chooses_is_called_so(
    recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(trajectory, limit=8)
    parameters = recipe.parameters.model_copy(update={"damping": "auto"})
    result = sweep(recipe.model_copy(update={"parameters": parameters}), tmp_path / "sweep")
    assert [(each.label, each.damping) for each in result.candidates] == [("prediction 300 × auto", "auto")]
    saved = SweepResult.model_validate_json((tmp_path / "sweep" / "sweep.json").read_text())
    assert saved == result


@pytest.mark.slow
def test_what_a_scan_knows_is_not_read_again(
    hub: LocalHub, on_hub: str, recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path
) -> None:
    text = recipe_for(on_hub, limit=8).to_yaml().replace("least_squares", "calibrated")
    recipe = parse_recipe(text.replace("  through_last: true\n", ""))
    size = (trajectory / "step_0" / "model.safetensors").stat().st_size
    tables = []
    for file, passes in ((None, 2), (tmp_path / "run.safetensors", 1)):
        if file is not None:
            scan(recipe, out=file)
        hub.requests.clear()
        tables.append(sweep(recipe, tmp_path / f"sweep{passes}", damping=[0.4, 1], scan=file).all_problems)
        reads = weight_reads(hub)
        assert len(reads) == len(STEPS)
        assert all(abs(read / size - passes) < 0.1 for read in reads.values())
    assert tables[0] == tables[1]


def test_few_shot_examples_count_as_the_problems_do(tmp_path: Path) -> None:
    def fingerprint(example: str, shots: int) -> str:
        for split, answer in (("test", "1"), ("train", example)):
            (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": "?", "answer": answer}))
        options = EvaluationOptions(["shots"], include_path=[tmp_path], num_fewshot=shots)
        return Harness(options).fingerprint()

    (tmp_path / "shots.yaml").write_text(
        "task: shots\ndataset_path: json\ntest_split: test\nfewshot_split: train\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl, train: {tmp_path}/train.jsonl}}}}\n"
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    one, same, other = fingerprint("2", 1), fingerprint("2", 1), fingerprint("3", 1)
    assert one == same != other
    assert fingerprint("2", 0) == fingerprint("3", 0)


@pytest.mark.slow
def test_own_answers_tell_what_a_prediction_has_lost(
    recipe_for: Callable[..., Recipe], trajectory: Path, measured: list[str], tmp_path: Path
) -> None:
    """The column is the change under each prediction; what was measured without it is not measured again."""
    from hubextrap.evaluation.own_answers import draw_answers, mean_logprob
    from hubextrap.evaluation.sweep_report import GridPoint, sweep_markdown
    from hubextrap.logits import load_tokenizer
    from hubextrap.logits.loading import load_causal_lm
    from hubextrap.trajectory import resolve_checkpoint

    recipe, out = recipe_for(trajectory, limit=8), tmp_path / "sweep"
    result = sweep(recipe, out, horizons=[0.5, 4])
    near, far = result.candidates
    last = resolve_checkpoint(str(trajectory / "step_200"))
    tokenizer: Any = load_tokenizer(last)
    lines = (trajectory / "problems.jsonl").read_text().splitlines()[:8]
    answers = draw_answers(load_causal_lm(last), tokenizer, [json.loads(line)["question"] for line in lines])
    for point in (near, far):
        merge(recipe_for(trajectory, target=point.step), out=tmp_path / f"{point.step}")
        made = resolve_checkpoint(str(tmp_path / f"{point.step}"))
        under = [mean_logprob(load_causal_lm(each), tokenizer, answers) for each in (made, last)]
        assert point.own_answers == pytest.approx(under[0] - under[1], abs=1e-4)
    assert not near.own_answers_fell
    assert far.own_answers_fell
    assert far.own_answers is not None
    assert f"| {far.own_answers:+.3f} (fell) |" in sweep_markdown(result)
    assert "fell by 0.5 nats per answer or more" in (out / "sweep.md").read_text()
    assert [
        GridPoint(label="x", step=1, damping=1.0, own_answers=v).own_answers_fell for v in (-0.5, -0.49)
    ] == [
        True,
        False,
    ]
    measured.clear()
    assert sweep(recipe, out, horizons=[0.5, 4]) == result
    assert measured == []


def test_choices_have_no_own_answers(
    recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path
) -> None:
    problem = {"question": "1+1=", "answer": 0, "choices": ["2", "3"]}
    (tmp_path / "choices.jsonl").write_text("\n".join([json.dumps(problem)] * 4))
    section = {"task_files": [str(tmp_path / "choices.jsonl")], "format": "choice", "limit": None}
    result = sweep(recipe_for(trajectory, **section), tmp_path / "sweep")
    assert result.candidates[0].own_answers is None
    assert "own answers" not in (tmp_path / "sweep" / "sweep.md").read_text()


def test_the_command(recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_for(trajectory, against=["last", "base", "target"]).to_yaml())
    out = tmp_path / "sweep"
    arguments = ["sweep", str(recipe), "--out", str(out), "--horizons", "0.5,1", "-q"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    assert "prediction 300 (chosen)" in printed.stdout or "prediction 400 (chosen)" in printed.stdout
    assert "target 400" in printed.stdout
    assert f"hubextrap merge {out / 'best.yaml'} --out DIR" in printed.stdout
    result = SweepResult.model_validate_json((out / "sweep.json").read_text())
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert SweepResult.model_validate_json(as_json.stdout) == result
    assert {path.name for path in out.iterdir()} >= {"measured", "sweep.json", "sweep.md", "best.yaml"}
    assert str(tmp_path) not in (out / "sweep.md").read_text()
    wrong = CliRunner().invoke(app, [*arguments, "--damping", "half"])
    assert wrong.exit_code == 2
    assert "has to be numbers" in wrong.output


@pytest.mark.slow
def test_what_the_past_says_of_each_prediction_is_kept(
    recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(trajectory)
    scan(find_trajectory(str(trajectory), TrajectoryOptions(max_step=200)), out=tmp_path / "scan.safetensors")
    result = sweep(recipe, tmp_path / "sweep", scan=tmp_path / "scan.safetensors")
    (point,) = result.candidates
    assert (point.horizon, point.trusted_up_to) == (0.5, "step 300")
    assert point.expected_relative_error is not None
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "| on the half that decides | step | horizon | expected error | trusted up to |" in table
    assert f"| 300 | 0.5 | {point.expected_relative_error:.3f} | step 300 |" in table
    assert (
        sweep(recipe, tmp_path / "sweep").candidates == result.candidates
    )  # without a scan, from what is kept


def test_what_is_no_sweep(recipe_for: Callable[..., Recipe], trajectory: Path, tmp_path: Path) -> None:
    recipe = recipe_for(trajectory)
    with pytest.raises(
        RecipeError,
        match=r"--horizons -0\.5: a horizon is .*, so 0 is step 200, .*; give one from 0 on",
    ):
        sweep(recipe, tmp_path / "a", horizons=[-0.5, 1])
    with pytest.raises(RecipeError, match=r"--damping 1\.5: has to be from 0"):
        sweep(recipe, tmp_path / "a", damping=[1.5])
    with pytest.raises(RecipeError, match="add an evaluate section"):
        sweep(recipe.model_copy(update={"evaluate": None}), tmp_path / "a")
    with pytest.raises(EvaluationError, match="3 problems cannot be halved"):
        sweep(recipe_for(trajectory, limit=3), tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="full: is there already and holds no sweep"):
        sweep(recipe, tmp_path / "full", settings=MergeOptions())
