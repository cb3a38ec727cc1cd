"""A prediction made from local folders finds its last and base checkpoint, and only what really went in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import run_main
from harness import Lines
from safetensors.numpy import load_file, save_file

from hubextrap import api
from hubextrap.errors import EvaluationError
from hubextrap.evaluation import compared_checkpoints
from hubextrap.localhub import LocalHub
from hubextrap.recipe import parse_recipe

STEPS = (0, 100, 200)

Predict = Callable[..., Path]


@pytest.fixture
def run(trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps 0, 100, 200 and 400 of the bundled run; the current folder holds them."""
    monkeypatch.chdir(tmp_path)
    for step in (*STEPS, 400):
        shutil.copytree(trajectory / f"step_{step}", tmp_path / "run" / f"step_{step}")
    return tmp_path / "run"


@pytest.fixture
def predict(run: Path) -> Predict:
    def make(out: str = "predicted", method: str = "two_point", target: int = 400, **trajectory: Any) -> Path:
        section = {"repo": "run", "steps": {"max": 200}} | trajectory
        recipe = {
            "trajectory": {key: value for key, value in section.items() if value is not None},
            "merge_method": method,
            "parameters": {"target_step": target},
        }
        api.merge(parse_recipe(yaml.safe_dump(recipe)), out=out)
        return Path(out)

    return make


def rows(
    prediction: Path | str, against: Sequence[str] | None = None, run: str | None = None
) -> dict[str, str]:
    """Label to the last parts of the place."""
    found = compared_checkpoints([str(prediction)], against, run=run)
    return {label: "/".join(Path(item.path).parts[-2:]) for label, item in found[1:]}


ALL = {"last": "run/step_200", "base": "run/step_0", "target": "run/step_400"}


def test_they_are_found_where_the_recipe_says(predict: Predict, run: Path, tmp_path: Path) -> None:
    assert rows(predict()) == ALL
    assert rows(predict("absolute", repo=str(run))) == ALL  # hubextrap.json keeps the last part
    assert rows(predict("run/inside", repo=str(run))) == ALL
    (tmp_path / "deeper").mkdir()
    assert rows(predict("deeper/predicted")) == ALL
    listed = [{"model": f"run/step_{step}", "step": step} for step in STEPS]
    assert rows(predict("listed", repo=None, steps=None, checkpoints=listed)) == {
        "last": "run/step_200", "base": "run/step_0"
    }  # fmt: skip


@pytest.mark.parametrize("method", ["low_rank", "late_lines", "persistence"])
def test_whatever_the_method(predict: Predict, method: str) -> None:
    assert rows(predict(method=method)) == ALL


def test_names_and_steps_as_the_recipe_reads_them(predict: Predict, run: Path, tmp_path: Path) -> None:
    for step in (*STEPS, 400):
        (tmp_path / "verl" / f"after-{step // 100}" / "actor").mkdir(parents=True)
        (run / f"step_{step}").rename(tmp_path / "verl" / f"after-{step // 100}" / "actor" / "huggingface")
    steps = {"pattern": "after-{step}/actor/huggingface", "max": 200, "scale": 100}
    found = compared_checkpoints([str(predict(repo="verl", steps=steps))])
    assert [(label, item.step, Path(item.path).parts[-3]) for label, item in found[1:]] == [
        ("last", 200, "after-2"), ("base", 0, "after-0"), ("target", 400, "after-4")
    ]  # fmt: skip


def test_what_lies_elsewhere_is_named_with_run(
    predict: Predict, run: Path, tmp_path: Path, lines: Lines
) -> None:
    prediction = predict()
    run.rename(tmp_path / "moved")
    found = compared_checkpoints([str(prediction)], progress=lines)
    assert [label for label, _ in found] == ["prediction"]
    assert "name the run that it came from: --run FOLDER" in lines.said[0]
    assert rows(prediction, run="moved") == {
        role: place.replace("run", "moved") for role, place in ALL.items()
    }
    assert rows(prediction, ["last"], "moved") == {"last": "moved/step_200"}


def test_another_run_is_none_of_them(predict: Predict, run: Path, tmp_path: Path) -> None:
    """Names and sizes are alike; the prediction is not its sum."""
    prediction = predict()
    file = run / "step_200" / "model.safetensors"
    save_file({name: 1.001 * values for name, values in load_file(file).items()}, file, {"format": "pt"})
    assert rows(prediction) == {}
    with pytest.raises(
        EvaluationError, match=r"--run run: .* of the prediction is not their sum; name the run"
    ):
        rows(prediction, run="run")
    shutil.rmtree(run / "step_200")
    with pytest.raises(
        EvaluationError, match=r"--run run: it holds no step 200, the last that .*predicted was"
    ):
        rows(prediction, run="run")
    shutil.copytree(run / "step_100", run / "step_200")
    (run / "step_200" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(EvaluationError, match=r"has 5 bytes, and what went in had"):
        rows(prediction, run="run")


def test_a_copy_of_what_lay_on_the_hub_is_known_by_its_hash(
    hub: LocalHub, repo_id: str, run: Path, predict: Predict, lines: Lines
) -> None:
    hub.create_repo(repo_id)
    for step in STEPS:
        files = {file.name: file.read_bytes() for file in (run / f"step_{step}").iterdir()}
        hub.commit(repo_id, files, revision=f"step_{step}")
    prediction = predict(repo=repo_id)
    assert rows(prediction, run="run") == ALL
    content = bytearray((run / "step_200" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "step_200" / "model.safetensors").write_bytes(content)
    with pytest.raises(
        EvaluationError, match=r"step_200/model\.safetensors: holds other bytes than what went in"
    ):
        rows(prediction, run="run")


def test_a_base_from_the_hub_stays_the_commit_that_is_pinned(
    hub: LocalHub, repo_id: str, run: Path, predict: Predict
) -> None:
    hub.create_repo(repo_id)
    (run / "step_0").rename("base")
    files = {file.name: file.read_bytes() for file in Path("base").iterdir()}
    hub.commit(repo_id, files)
    prediction = predict(base=repo_id)
    found = compared_checkpoints([str(prediction)])
    assert [(label, item.name) for label, item in found[1:]] == [
        ("last", str(run / "step_200")), ("base", f"{repo_id}@main"), ("target", str(run / "step_400"))
    ]  # fmt: skip
    file = run / "step_100" / "model.safetensors"
    save_file({name: -values for name, values in load_file(file).items()}, file, {"format": "pt"})
    assert "last" in rows(prediction)  # it does not count in a line through two
    file = run / "step_200" / "model.safetensors"
    save_file({name: -values for name, values in load_file(file).items()}, file, {"format": "pt"})
    assert set(rows(prediction)) == {"base"}


def test_a_run_without_effect_is_refused(predict: Predict) -> None:
    with pytest.raises(EvaluationError, match=r"--run run: none of the models has a hubextrap\.json"):
        rows("run/step_0", run="run")
    for against in ([], ["last=run/step_200"], ["run/step_100"]):
        with pytest.raises(EvaluationError, match=r"--run run: has no effect: .* none of them is asked for"):
            rows(predict(f"p{len(against)}{''.join(against)[:1]}"), against, "run")


def test_a_stranger_s_recipe_has_no_disk_searched(predict: Predict, run: Path, tmp_path: Path) -> None:
    """Absolute paths, and folders above, are not gone through."""
    (tmp_path / "here").mkdir()
    prediction = predict("here/predicted")
    file = prediction / "hubextrap.json"
    for named in (str(run), "..", "../..", "/", "~"):
        content = json.loads(file.read_text())
        content["recipe"] = content["recipe"].replace("repo: run", f"repo: {named}")
        del content["digest"]
        other = Path(
            shutil.copytree(prediction, tmp_path / "here" / f"other{len(named)}", dirs_exist_ok=True)
        )
        (other / "hubextrap.json").write_text(json.dumps(content))
        assert rows(other) == {}, named


@pytest.mark.slow
def test_eval_prints_what_the_prediction_is_beside_its_last_checkpoint(
    predict: Predict, run: Path, trajectory: Path, tmp_path: Path
) -> None:
    """The command line as a whole process."""
    predict()

    def evaluated(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        measure = ["--task-file", str(trajectory / "problems.jsonl"), "--limit", "20", "--quiet"]
        command = [sys.executable, "-m", "hubextrap", "eval", "predicted", *measure, *arguments]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=os.environ, check=False
        )
        assert ended.returncode == code, ended
        return ended

    said = evaluated().stdout
    assert all(f" {label} " in said for label in ("prediction", "last", "base", "target"))
    run.rename(tmp_path / "moved")
    said = evaluated().stdout
    assert "Name their run: --run FOLDER" in said
    assert " last " not in said.partition("There is nothing")[0]
    assert " last " in evaluated("--run", "moved").stdout
    assert "--run" in evaluated("--run", "moved", "--no-against", code=2).stderr


def test_the_note_follows_the_table(predict: Predict, run: Path, trajectory: Path, tmp_path: Path) -> None:
    predict()
    run.rename(tmp_path / "moved")
    arguments = [
        "eval",
        "predicted",
        "--task-file",
        str(trajectory / "problems.jsonl"),
        "--limit",
        "4",
        "--quiet",
    ]
    assert "Name their run: --run FOLDER" in run_main(*arguments).out
    as_json = run_main(*arguments, "--json")
    assert "Name their run: --run FOLDER" in as_json.err
    assert [row["label"] for row in json.loads(as_json.out)["rows"]] == ["prediction"]
    assert "Name their run" not in run_main(*arguments, "--no-against").out
