"""lm-eval on adapters: the figures of the merged models, and the base read once for a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from adapter_runs import write_adapter_run
from harness import Lines
from lm_eval.api.instance import Instance
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hubextrap import api
from hubextrap.errors import EvaluationError, ReferenceNotFound, UnsupportedCheckpoint
from hubextrap.evaluation import EvaluationTable, evaluate
from hubextrap.evaluation.backend import check_adapters
from hubextrap.evaluation.model import CheckpointModel
from hubextrap.evaluation.options import Backend, EvaluationOptions, TaskFile
from hubextrap.logits import Mixture, load_tokenizer
from hubextrap.logits.loading import Models
from hubextrap.progress import SilentProgress
from hubextrap.recipe import parse_recipe
from hubextrap.trajectory import Checkpoint, find_trajectory, resolve_checkpoint
from hubextrap.trajectory.checkpoint import UNTOUCHED_BASE

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STEPS = (4, 8)
CHOICES = ["0", "1", "23", "4567", "9"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_adapter_run(tmp_path / "run", STEPS)


@pytest.fixture
def choice_file(tmp_path: Path) -> TaskFile:
    path = tmp_path / "choices.jsonl"
    rows = [{"question": f"{n}+{7 * n % 11}=", "choices": CHOICES, "answer": n % 5} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskFile(path, "choice")


def merge(run: Path, step: int, folder: Path) -> Checkpoint:
    """What peft's own `merge_and_unload` makes of a step, in float32."""
    base = AutoModelForCausalLM.from_pretrained(run / "base")
    model = PeftModel.from_pretrained(base, str(run / f"step_{step}")) if step else None
    (base if model is None else model.merge_and_unload()).save_pretrained(folder)
    for file in (run / "base").glob("*token*"):
        shutil.copy(file, folder)
    return resolve_checkpoint(folder, step=step)


def log_likelihoods(models: Models, checkpoint: Checkpoint, questions: list[str]) -> list[float]:
    """Of every choice behind every question, by lm-eval's own model."""
    loaded: Any = models.load(checkpoint)
    tokenizer = load_tokenizer(checkpoint, bases=models.bases)
    model = CheckpointModel("x", loaded, tokenizer, batch_size=16, progress=SilentProgress())
    asked = [(question, choice) for question in questions for choice in CHOICES]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(asked)]
    return [value for value, _ in model.loglikelihood(requests)]


class Taking(SilentProgress):
    """Takes a file away as soon as the second row begins."""

    def __init__(self, file: Path) -> None:
        self.file, self.rows = file, []  # type: ignore[var-annotated]

    def say(self, line: str) -> None:
        self.rows.append(line.partition(":")[0])
        if len(self.rows) == 2:
            self.file.unlink()


def scores(table: EvaluationTable) -> dict[str, list[float]]:
    return {row.label: [score.value for score in row.scores] for row in table.rows}


@pytest.mark.slow
def test_the_base_is_read_once_for_all_rows(run: Path, tmp_path: Path, choice_file: TaskFile) -> None:
    last = resolve_checkpoint(run / "step_8")
    rows = [
        ("merged", merge(run, 4, tmp_path / "whole" / "4")),
        ("base", UNTOUCHED_BASE),
        ("last", last),
        ("other", resolve_checkpoint(run / "step_4")),
        ("base again", resolve_checkpoint(run / "base")),
    ]
    expected = evaluate(
        [
            ("base", merge(run, 0, tmp_path / "whole" / "0")),
            ("last", merge(run, 8, tmp_path / "whole" / "8")),
            ("other", rows[0][1]),
        ],
        task_files=[choice_file],
    )
    taking = Taking(run / "base" / "model.safetensors")
    table = evaluate(rows, task_files=[choice_file], progress=taking)
    assert taking.rows == ["base", "last", "other", "base again", "merged"]
    assert [row.label for row in table.rows] == [label for label, _ in rows]
    found = scores(table)
    assert found.pop("merged") == found["other"]
    assert found.pop("base again") == found["base"]
    assert found == scores(expected)
    assert table.rows[1].reference == str(run / "base")
    assert [row.step for row in table.rows][:4] == [4, 0, 8, 4]
    with pytest.raises(UnsupportedCheckpoint, match="no weight files"):
        evaluate(rows[1:3], task_files=[choice_file])


def test_log_likelihoods_are_those_of_the_merged_models(run: Path, tmp_path: Path) -> None:
    questions, models = ["12+30=", "7+5=", "945+922="], Models()
    for step in (8, 4, 0):
        checkpoint = resolve_checkpoint(run / f"step_{step}") if step else UNTOUCHED_BASE
        found = log_likelihoods(models, checkpoint, questions)
        merged = merge(run, step, tmp_path / f"whole_{step}")
        assert found == pytest.approx(log_likelihoods(Models(), merged, questions), abs=1e-5)


def test_a_base_that_the_user_names(run: Path, tmp_path: Path, choice_file: TaskFile) -> None:
    config = run / "step_8" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"base_model_name_or_path": "/no/where"}))
    with pytest.raises(ReferenceNotFound, match="--base"):
        evaluate([("last", run / "step_8")], task_files=[choice_file])
    named = evaluate([("last", run / "step_8")], task_files=[choice_file], base_model=run / "base")
    assert (
        scores(named)["last"]
        == scores(evaluate([("last", merge(run, 8, tmp_path / "8"))], task_files=[choice_file]))["last"]
    )


@pytest.mark.slow
def test_a_real_run(rlvr: Path, demo_tasks: Path, tmp_path: Path) -> None:
    """Greedy accuracies as they were measured in training; log-likelihoods of the merged models."""
    run = rlvr / "rlvr-F"
    steps = (0, 40, 80)
    trajectory = find_trajectory(str(run), steps=steps)
    rows = list(zip(map(str, steps), trajectory.checkpoints, strict=True))
    table = evaluate(rows, ["radd"], include_path=[demo_tasks], batch_size=250)
    known = json.loads((run / "results.json").read_text())["accuracy"]
    expected = [known[str(step)]["greedy"] for step in steps]
    assert [row.scores[0].value for row in table.rows] == pytest.approx(expected, abs=0.0021)
    questions, models = ["526+850=", "110+939=", "945+922=", "405+975="], Models()
    for step in (400, 200):
        found = log_likelihoods(models, resolve_checkpoint(run / f"step_{step}"), questions)
        merged = merge(run, step, tmp_path / str(step))
        assert found == pytest.approx(log_likelihoods(Models(), merged, questions), abs=1e-4)


@pytest.mark.parametrize(
    ("backend", "executor", "words"),
    [("vllm", "local", "--as merged"), ("hf", "ray", "leave out --executor"), ("hf", "local", None)],
)
def test_adapters_are_refused_where_only_whole_models_are_taken(
    run: Path, backend: Backend, executor: str, words: str | None
) -> None:
    adapter, base = resolve_checkpoint(run / "step_4"), resolve_checkpoint(run / "base")
    mixed = Mixture.of([base, adapter], [-1, 2])
    check_adapters([base], backend, executor)
    for item in (adapter, mixed):
        if words is None:
            check_adapters([item], backend, executor)
            continue
        with pytest.raises(EvaluationError, match=words):
            check_adapters([base, item], backend, executor)


@pytest.mark.slow
def test_scores_of_a_step_are_kept_with_its_base(
    tmp_path: Path, choice_file: TaskFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 0 has no files by which two runs' bases could be told apart."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    runs = [write_adapter_run(tmp_path / name, STEPS, seed=seed) for seed, name in enumerate("ab")]
    shutil.copytree(runs[0], tmp_path / "c")
    for config in (tmp_path / "c").glob("*/adapter_config.json"):  # the same adapters on another base
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"base_model_name_or_path": str(runs[1] / "base")}))
    options = EvaluationOptions(task_files=[choice_file])
    for folder, known in ((runs[0], 0), (runs[1], 0), (tmp_path / "c", 1), (runs[0], 3)):
        lines = Lines()
        found = api.evaluate_steps(folder, options, progress=lines)
        assert found.steps == (0, *STEPS)
        said = [line for line in lines.said if "measured before" in line]
        assert said == ([f"{known} of 3 checkpoints were measured before"] if known else [])


@pytest.mark.slow
def test_a_sweep_and_its_own_answers(run: Path, tmp_path: Path, demo_tasks: Path) -> None:
    """Predictions lie in a folder of the sweep, where the base that they name is not."""
    for config in run.glob("*/adapter_config.json"):
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"base_model_name_or_path": "base"}))
    recipe = parse_recipe(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: [12, 16]}}\n"
        f"evaluate: {{tasks: [radd], include_path: [{demo_tasks}], limit: 6, against: [last, base]}}\n"
    )
    swept = api.sweep(recipe, tmp_path / "out")
    labels = [row.label for row in swept.all_problems.rows]
    assert labels == ["last", "base", "prediction 12", "prediction 16"]
    assert all(point.own_answers is not None for point in swept.candidates)
    assert swept.candidates[0].own_answers != swept.candidates[1].own_answers
