"""What an evaluation would stop at is found before any weight: `plan` lists what `run` and `sweep` refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import weights_read

from hubextrap import api
from hubextrap.errors import HubExtrapError
from hubextrap.localhub import LocalHub
from hubextrap.recipe import load_recipe

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("logged_in")

CALIBRATED = {"merge_method": "calibrated", "parameters": {"target_step": 40}}
"""All weights are read before the merge, for its coefficients."""
Change = Callable[[Path], object]


def no_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("*token*"), *folder.glob("*vocab*")):
        path.unlink()


def no_chat_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "chat_template"}
    path.write_text(json.dumps(kept))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def unknown_model(folder: Path) -> None:
    path = folder / "config.json"
    changed = {"model_type": "nonsense", "architectures": ["NonsenseForCausalLM"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def pickle_alone(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x" * 100)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


SECTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "task": ({"tasks": ["raddd"], "include_path": "TASKS"}, "tasks", "'raddd' (did you mean radd"),
    "task file": ({"task_files": "absent.jsonl"}, "task_files", "absent.jsonl: cannot be read"),
    "bad line": ({"task_files": "bad.jsonl"}, "task_files", "bad.jsonl, line 2: needs an answer"),
    "advice names it": ({"tasks": ["raddd"], "include_path": "tasks"}, "tasks", "unknown task: 'raddd'"),
    "include path": ({"tasks": "x", "include_path": "absent"}, "include_path", "absent: no such folder"),
    "examples": ({"num_fewshot": 3}, "num_fewshot", "num_fewshot 3 has no effect"),
    "answers": ({"tasks": "arc_easy", "task_files": (), "repeats": 2}, "tasks", "arc_easy: repeats"),
    "no repo": ({"against": ["last", "me/nope"]}, "against", "me/nope: no such repo"),
    "no folder": ({"against": ["./nowhere/step_1"]}, "against", "no such local folder"),
    "no revision": ({"against": "base=RUN@nope"}, "against", "@nope: no such revision"),
}  # fmt: skip
"""Changes of the section; the key that a plan names; what is said."""
MODELS: dict[str, tuple[Change, dict[str, Any], str]] = {
    "no tokenizer": (no_tokenizer, {}, "transformers cannot load its tokenizer"),
    "no chat template": (no_chat_template, {"apply_chat_template": True}, "has no chat template"),
    "unknown model": (unknown_model, {}, "model type `nonsense`"),
    "pickle": (pickle_alone, {}, "pytorch_model.bin is a pickle"),
    "no config": (no_config, {}, "Unrecognized model"),
}
SLOW = ("answers", "bad line", "no folder", "unknown model", "no config")


def cases(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in table]


@pytest.fixture
def run(
    checkpoints: Path, on_hub: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The run on the Hub and, as `run`, in the current folder; its name there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoints, tmp_path / "run")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "p.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    (tmp_path / "bad.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n{"question": "1+1="}\n')
    return on_hub(checkpoints)


def written(text: Any, repo: str) -> Any:
    if isinstance(text, list):
        return [written(one, repo) for one in text]
    tasks = str(Path(__file__).parents[2] / "demo" / "tasks")
    return text.replace("RUN", repo).replace("TASKS", tasks) if isinstance(text, str) else text


def refused(hub: LocalHub, recipe: Path, said: str, out: Path) -> list[str]:
    """The problems of a plan; `run` and `sweep` say one of them, read no weight and make nothing."""
    loaded = load_recipe(recipe)
    hub.requests.clear()
    planned = api.plan(loaded).problems
    ways: list[Callable[[], object]] = [lambda: api.run(loaded), lambda: api.sweep(loaded, out, damping=[1])]
    for way in ways:
        with pytest.raises(HubExtrapError) as error:
            way()
        assert said in str(error.value)
    assert any(said in problem for problem in planned), planned
    assert weights_read(hub) == []
    assert not [request for request in hub.requests if "/commit/" in request.path]
    assert not out.exists()
    return list(planned)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(SECTIONS))
def test_sections(
    hub: LocalHub, run: str, recipe_file: Callable[..., Path], repo_id: str, tmp_path: Path, case: str
) -> None:
    change, key, said = SECTIONS[case]
    section = {"task_files": "p.jsonl"} | {name: written(value, run) for name, value in change.items()}
    section = {name: value for name, value in section.items() if value != ()}
    if "tasks" in section:
        section.pop("task_files", None)
    recipe = recipe_file(run, evaluate=section, push={"repo": f"{repo_id}-out"}, **CALIBRATED)
    (problem,) = refused(hub, recipe, said, tmp_path / "swept")
    line = next(
        n for n, text in enumerate(recipe.read_text().splitlines(), 1) if text.startswith(f"  {key}:")
    )
    assert problem.startswith(f"evaluate.{key} (line {line}): ")
    with pytest.raises(HubExtrapError) as error:
        api.run(load_recipe(recipe))
    of_a_file = error.value.file == "bad.jsonl"
    assert (error.value.file, error.value.line) == (("bad.jsonl", 2) if of_a_file else (str(recipe), line))


@pytest.mark.slow
@pytest.mark.parametrize("of", ["run", "other"])
@pytest.mark.parametrize("case", cases(MODELS))
def test_models(
    hub: LocalHub,
    run: str,
    recipe_file: Callable[..., Path],
    repo_id: str,
    tmp_path: Path,
    case: str,
    of: str,
) -> None:
    """The last checkpoint, as which the prediction loads; or what it is to be compared with."""
    change, section, said = MODELS[case]
    if of == "run" and case in ("pickle", "no config"):
        pytest.skip("no merge takes it")
    folder = tmp_path / "run" / "step_30"
    if of == "other":
        folder = Path(shutil.copytree(folder, tmp_path / "other" / "model"))
        section = {"against": ["last", "./other/model"], **section}
    change(folder)
    of_run = "./run" if of == "run" else run
    section = {"task_files": "p.jsonl", **section}
    recipe = recipe_file(of_run, evaluate=section, push={"repo": f"{repo_id}-out"}, **CALIBRATED)
    refused(hub, recipe, said, tmp_path / "swept")
    if of == "other":  # a merge evaluates nothing
        api.merge(load_recipe(recipe), out=tmp_path / "out")


def test_what_is_gated(
    hub: LocalHub, run: str, recipe_file: Callable[..., Path], repo_id: str, tmp_path: Path
) -> None:
    """Its listing is open, its files are not."""
    gated = repo_id.replace("me/", "you/")
    hub.create_repo(gated, gated="manual")
    hub.commit(gated, {path.name: path for path in (tmp_path / "run" / "step_0").iterdir()})
    section = {"task_files": "p.jsonl", "against": ["last", gated]}
    recipe = recipe_file(run, evaluate=section, push={"repo": f"{repo_id}-out"}, **CALIBRATED)
    refused(hub, recipe, gated, tmp_path / "swept")


@pytest.mark.slow
def test_all_at_once_and_for_run_alone(
    hub: LocalHub, run: str, recipe_file: Callable[..., Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """A plan lists the merge's problems and the evaluation's; a merge stops at its own."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    section = {"tasks": ["raddd"], "against": ["me/nope", f"{run}@nope"]}
    recipe = recipe_file(run, evaluate=section, **CALIBRATED)
    planned = cli("plan", recipe, "--out", "there", "--json", "-q")
    assert planned.code == 1
    found = json.loads(planned.out)
    texts = (
        "there: is there already",
        "unknown task: 'raddd'",
        "me/nope: no such repo",
        "@nope: no such rev",
    )
    for said in texts:
        assert any(said in problem for problem in found["problems"])
    assert any("`hubextrap merge` evaluates nothing" in note for note in found["notes"])
    assert weights_read(hub) == []
    assert cli("merge", recipe, "--out", "made", "-q").code == 0


@pytest.mark.slow
def test_whole_processes(
    hub: LocalHub, run: str, recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onto a folder that is there; without a token; against me/nope; task raddd."""
    monkeypatch.setenv("HF_TOKEN", "")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    push = recipe_file(run, push={"repo": "me/out"}, **CALIBRATED).rename(tmp_path / "push.yaml")
    wrong = {"tasks": "raddd", "against": "me/nope"}
    nope = recipe_file(run, evaluate=wrong, **CALIBRATED)
    rows = (
        (("plan", nope, "--out", "there"), ("there: is there already and not empty", "'raddd'", "me/nope")),
        (("run", nope, "--out", "out"), ("unknown task: 'raddd'",)),
        (("merge", nope, "--out", "there"), ("there: is there already and not empty",)),
        (("run", push), ("me/out@main: no token",)),
    )
    hub.requests.clear()
    for words, texts in rows:
        line = [sys.executable, "-m", "hubextrap", *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done
        for said in texts:
            assert said in " ".join((done.stdout + done.stderr).split()), done
    assert weights_read(hub) == []
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_it_is_said(
    run: str, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no lm-eval is looked at all the same, and neither a plan nor a merge needs it."""
    monkeypatch.setattr("hubextrap.api.measuring.find_spec", lambda name: None)
    monkeypatch.setattr("hubextrap.extras.find_spec", lambda name: None)
    report = api.plan(load_recipe(recipe_file(run, evaluate={"tasks": "raddd"})))
    assert report.problems == ()
    line = "evaluate.tasks (line 8): not checked: an evaluation needs lm_eval"
    assert any(note.startswith(line) for note in report.notes), report.notes
    again = api.plan(load_recipe(recipe_file(run, evaluate={"tasks": "raddd", "against": "me/nope"})))
    assert ["me/nope" in problem for problem in again.problems] == [True]


def test_a_scan_with_responses(hub: LocalHub, run: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    """What cannot answer is found before the weights are scanned."""
    (tmp_path / "responses.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n')
    unknown_model(tmp_path / "run" / "step_10")
    result = cli("scan", "./run", "--logprobs", "responses.jsonl", "-q")
    assert (result.code, "step_10: transformers cannot load it" in result.err) == (1, True), result
    no_chat_template(tmp_path / "run" / "step_30")
    shutil.copy(tmp_path / "run" / "step_0" / "config.json", tmp_path / "run" / "step_10")
    result = cli("scan", "./run", "--logprobs", "responses.jsonl", "--apply-chat-template", "-q")
    assert (result.code, "step_30: the tokenizer has no chat template" in result.err) == (1, True), result
    assert not list(tmp_path.glob("*scan*"))


def test_a_walk_and_a_mixture(
    hub: LocalHub, run: str, recipe_file: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    no_chat_template(tmp_path / "run" / "step_30")
    upload = {path.name: path for path in (tmp_path / "run" / "step_30").iterdir()}
    hub.create_repo(f"{run}-plain")
    for step in (0, 10, 20, 30):
        hub.commit(f"{run}-plain", upload | {"x.txt": str(step).encode()}, revision=f"step_{step}")
    said = "the tokenizer has no chat template"
    recipe = recipe_file(f"{run}-plain", **CALIBRATED)
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(
        yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"space": "logits", "out_dtype": None})
    )
    lines = (
        ("walk", recipe, "--prompts", "p.jsonl", "--out", "walked", "--apply-chat-template", "-q"),
        ("generate", mixed, "1+1=", "--apply-chat-template", "-q"),
    )
    hub.requests.clear()
    for line in lines:
        result = cli(*line)
        assert (result.code, said in result.err) == (1, True), result
    assert weights_read(hub) == []
    assert not (tmp_path / "walked").exists()
