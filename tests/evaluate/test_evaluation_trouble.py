"""What makes figures wrong or a run fail is noticed and said; the libraries' own noise is not heard."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hubextrap.cli.app import app
from hubextrap.errors import EvaluationError, OutputError, ReferenceNotFound
from hubextrap.evaluation import EvaluationTable, evaluate

GREEDY = ("radd", "exact_match", "none")


def copy_of(checkpoint: Path, folder: Path, **generation: object) -> Path:
    """A copy of a checkpoint with other generation defaults."""
    shutil.copytree(checkpoint, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return folder


def test_a_checkpoints_own_length_limit_does_not_cut_answers(
    trajectory: Path, demo_tasks: Path, tmp_path: Path
) -> None:
    short = copy_of(trajectory / "step_400", tmp_path / "short", max_new_tokens=2)
    table = evaluate([("a", str(short))], ["radd"], include_path=[demo_tasks], limit=100, batch_size=100)
    score = table.rows[0].score(GREEDY)
    assert score is not None
    assert score.value > 0.9


def test_generation_defaults_that_differ_are_noted(
    trajectory: Path, demo_tasks: Path, tmp_path: Path
) -> None:
    other = copy_of(trajectory / "step_400", tmp_path / "other", repetition_penalty=1.3)
    rows = [("prediction", str(other)), ("last", str(trajectory / "step_200"))]
    table = evaluate(rows, ["radd"], include_path=[demo_tasks], limit=5)
    assert table.notes[1] == (
        "The checkpoints' own generation defaults differ (prediction: {'repetition_penalty': 1.3}; "
        "last: none): where a task leaves these open, its figures are not comparable."
    )


def test_nothing_of_the_libraries_is_heard_and_everything_is_put_back(
    trajectory: Path,
    demo_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import lm_eval.api.task
    import lm_eval.evaluator
    from transformers.utils import logging as transformers_logging

    monkeypatch.chdir(tmp_path)  # git has something to say about a folder that is no repository
    before = (
        {name: logging.getLogger(name).level for name in ("lm_eval", "transformers", "datasets")},
        transformers_logging.is_progress_bar_enabled(),
        lm_eval.api.task.tqdm,
        lm_eval.evaluator.get_git_commit_hash,
    )
    rows = [("a", str(trajectory / "step_0"))]
    evaluate(rows, ["radd", "radd_sampled"], include_path=[demo_tasks], limit=3)
    assert capfd.readouterr() == ("", "")
    after = (
        {name: logging.getLogger(name).level for name in ("lm_eval", "transformers", "datasets")},
        transformers_logging.is_progress_bar_enabled(),
        lm_eval.api.task.tqdm,
        lm_eval.evaluator.get_git_commit_hash,
    )
    assert after == before


def test_models_that_cannot_be_loaded(trajectory: Path, demo_tasks: Path, tmp_path: Path) -> None:
    def run(folder: Path) -> None:
        evaluate([("a", str(folder))], ["radd"], include_path=[demo_tasks], limit=2)

    pickled = copy_of(trajectory / "step_0", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(EvaluationError, match=r"pickled: pytorch_model\.bin is a pickle"):
        run(pickled)

    remote = copy_of(trajectory / "step_0", tmp_path / "remote")
    config = json.loads((remote / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EvaluationError, match="remote: transformers cannot load it: "):
        run(remote)
    assert not (tmp_path / "ran").exists()

    cut = copy_of(trajectory / "step_0", tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(EvaluationError, match=r"cut: .* cannot load it: SafetensorError"):
        run(cut)


def test_a_task_that_fails_while_it_runs(trajectory: Path, demo_tasks: Path, tmp_path: Path) -> None:
    too_long = (demo_tasks / "radd" / "radd.yaml").read_text().replace("max_gen_toks: 6", "max_gen_toks: 64")
    (tmp_path / "long.yaml").write_text(too_long)
    shutil.copy(demo_tasks / "radd" / "radd.py", tmp_path / "radd.py")
    text = (tmp_path / "radd.py").read_text()
    line = next(line for line in text.splitlines() if line.startswith("PROBLEMS"))
    (tmp_path / "radd.py").write_text(
        text.replace(line, f"PROBLEMS = Path({str(trajectory)!r}) / 'problems.jsonl'")
    )
    with pytest.raises(EvaluationError, match=r"step_0: radd: lm-eval failed: .*maximum"):
        evaluate([("a", str(trajectory / "step_0"))], ["radd"], include_path=[tmp_path], limit=2)


def test_what_is_wrong_is_said_before_a_model_is_loaded(
    trajectory: Path, demo_tasks: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"not a model")
    rows = [("a", str(broken))]
    with pytest.raises(EvaluationError, match="unknown task: 'raddd'"):
        evaluate(rows, ["raddd"], include_path=[demo_tasks])
    with pytest.raises(ReferenceNotFound, match="absent: no such local folder"):
        evaluate([*rows, ("b", str(tmp_path / "absent"))], ["radd"], include_path=[demo_tasks])
    with pytest.raises(EvaluationError, match="a is there twice"):
        evaluate([*rows, *rows], ["radd"], include_path=[demo_tasks])
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate([], ["radd"], include_path=[demo_tasks])


def test_the_command_prints_saves_and_compares(trajectory: Path, demo_tasks: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    arguments = ["eval", str(trajectory / "step_400"), "--tasks", "radd", "--include-path", str(demo_tasks)]
    arguments += [
        "--against",
        f"last={trajectory / 'step_200'}",
        "--against",
        f"base={trajectory / 'step_0'}",
    ]
    arguments += ["--limit", "50", "--batch-size", "50", "-q"]
    printed = CliRunner().invoke(app, [*arguments, "--output", str(results)])
    assert printed.exit_code == 0, printed.output
    table = EvaluationTable.load(results)
    assert [row.label for row in table.rows] == ["step_400", "last", "base"]
    for row in table.rows:
        score = row.score(GREEDY)
        assert score is not None
        assert f"{score.value:.3f} ± {score.stderr:.3f}" in printed.stdout
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert EvaluationTable.model_validate_json(as_json.stdout) == table


def test_the_command_refuses_with_one_line(trajectory: Path, demo_tasks: Path, tmp_path: Path) -> None:
    arguments = ["eval", str(trajectory / "step_0"), "--tasks", "radd", "--include-path", str(demo_tasks)]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path)])
    assert isinstance(result.exception, OutputError)
    assert str(result.exception).startswith(f"{tmp_path}: a folder; name the file")
    assert len(str(result.exception).splitlines()) == 1
    both = CliRunner().invoke(app, [*arguments, "--against", "last", "--no-against"])
    assert both.exit_code == 2
