"""A Hub that fails with secrets in its answers: no command shows them, writes them or logs them."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hubextrap.errors import HubExtrapError
from hubextrap.evaluation import TaskFile, evaluate
from hubextrap.localhub import Fault, LocalHub
from hubextrap.logits import ExtrapolatedForCausalLM, LogProbRequest, measure_logprobs
from hubextrap.trajectory import find_trajectory

Run = Callable[..., object]
TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
SECRET = "S3cretS1gnatur3"
SIGNED = f"/lfs/gone?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}"
SAID = f"Server: https://me:{SECRET}@cdn.example/x{SIGNED} with Bearer {TOKEN} or token {TOKEN}"
COUNT = 10_000

REFUSED = {"status": 403, "headers": {"X-Error-Message": SAID}}
GONE = {"status": 410, "headers": {"X-Error-Message": SAID}}
BROKEN = {"status": 501, "headers": {"X-Error-Message": SAID}}
MOVED = {"status": 302, "headers": {"Location": SIGNED, "X-Error-Message": SAID}}
STORED = {"status": 302, "headers": {"X-Linked-Etag": f'"{"0" * 64}"', "X-Linked-Size": "99"}}
"""As the Hub answers for a large file; the address lies on the hub's own host and is gone."""


def leaks(text: str) -> bool:
    return TOKEN[3:] in text or SECRET in text


@pytest.fixture
def clean(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Check what a command said, wrote and logged; its error output."""
    monkeypatch.chdir(tmp_path)
    line = {"question": "1+1=", "answer": "2"}
    for name in ("prompts.jsonl", "problems.jsonl"):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    caplog.set_level("DEBUG", "huggingface_hub")

    def check(result: object) -> str:
        assert result.code == 1, result.out + result.err
        assert "error: " in result.err or json.loads(result.out)["problems"]
        assert not leaks(result.out + result.err), result.out + result.err
        assert not leaks(caplog.text)
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.name != "train.log":  # a trainer's own output
                assert not leaks(path.read_bytes().decode(errors="replace")), path
        return str(result.err + result.out)

    return check


COMMANDS = {
    "steps": ("steps", "REPO"),
    "plan": ("plan", "RECIPE", "--json", "--summary", "summary.md"),
    "merge": ("merge", "RECIPE", "--out", "out"),
    "run": ("run", "RECIPE", "--out", "out"),
    "scan": ("scan", "REPO", "--out", "scan.safetensors"),
    "scan --logprobs": ("scan", "REPO", "--out", "scan.safetensors", "--logprobs", "prompts.jsonl"),
    "eval": ("eval", "REPO@step_10", "--task-file", "problems.jsonl", "--output", "results.json"),
    "sweep": ("sweep", "RECIPE", "--out", "sweep"),
    "generate": ("generate", "LOGITS", "1+1="),
    "verify": ("verify", "REPO@step_10"),
}
WITH_MODELS = ("scan --logprobs", "eval", "generate", "sweep")


@pytest.fixture
def command(
    cli: Run, checkpoints: Path, on_hub: Callable[..., str], recipe_file: Callable[..., Path]
) -> Callable[[str], object]:
    """Run one of the commands on checkpoints that lie on the Hub."""
    repo = on_hub(checkpoints)
    section = {"task_files": "problems.jsonl"}

    def run(name: str) -> object:
        recipe = recipe_file(repo, evaluate=section)
        logits = recipe.with_name("logits.yaml")
        content = yaml.safe_load(recipe.read_text()) | {"space": "logits"}
        logits.write_text(yaml.safe_dump({key: content[key] for key in content if key != "out_dtype"}))
        names = {"RECIPE": str(recipe), "LOGITS": str(logits)}
        return cli(*(names.get(part, part.replace("REPO", repo)) for part in COMMANDS[name]))

    return run


@pytest.mark.parametrize("fault", [REFUSED, BROKEN], ids=["refused", "broken"])
@pytest.mark.parametrize("name", COMMANDS)
def test_looking_at_the_repo_fails(
    name: str, fault: dict, command: Callable[[str], object], hub: LocalHub, clean: Callable[..., str]
) -> None:
    hub.faults.add(Fault("/api/", count=COUNT, **fault))
    said = clean(command(name))
    assert "refused access (403)" in said or "the Hub answered 501: " in said
    assert hub.faults.pending() < COUNT


@pytest.mark.parametrize("fault", [GONE, MOVED], ids=["gone", "moved"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("steps", "verify")])
def test_reading_the_files_fails(
    name: str, fault: dict, command: Callable[[str], object], hub: LocalHub, clean: Callable[..., str]
) -> None:
    hub.faults.add(Fault("/resolve/", count=COUNT, **fault))
    clean(command(name))
    assert hub.faults.pending() < COUNT


@pytest.mark.slow
@pytest.mark.parametrize("fault", [REFUSED, GONE, MOVED], ids=["refused", "gone", "moved"])
@pytest.mark.parametrize("name", WITH_MODELS)
def test_loading_what_only_transformers_reads_fails(
    name: str, fault: dict, command: Callable[[str], object], hub: LocalHub, clean: Callable[..., str]
) -> None:
    hub.faults.add(Fault("/resolve/.*tokenizer", count=COUNT, **fault))
    said = clean(command(name))
    assert "tokenizer" in said or "cannot be downloaded" in said
    assert hub.faults.pending() < COUNT


@pytest.mark.parametrize(
    "where", ["/api/repos/create", "/preupload/", r"\.git/info/lfs", "^/lfs/", "/commit/"]
)
@pytest.mark.usefixtures("logged_in")
def test_pushing_fails(
    where: str,
    cli: Run,
    hub: LocalHub,
    repo_id: str,
    checkpoints: Path,
    tmp_path: Path,
    clean: Callable[..., str],
) -> None:
    shutil.copytree(checkpoints / "step_10", tmp_path / "model")
    hub.faults.add(Fault(where, count=COUNT, **GONE))
    said = clean(cli("push", tmp_path / "model", repo_id))
    assert "the Hub answered 410" in said
    assert hub.faults.pending() < COUNT


LOADERS = {
    "logprobs": lambda run, prompts: measure_logprobs(run, LogProbRequest(prompts)),
    "logits": lambda run, prompts: ExtrapolatedForCausalLM.from_checkpoints(run.checkpoints, [0, 0, -1, 2]),
    "eval": lambda run, prompts: evaluate([("last", run.last)], task_files=[TaskFile(prompts, "exact")]),
}


@pytest.mark.parametrize("fault", [REFUSED, MOVED, STORED], ids=["refused", "moved", "stored"])
@pytest.mark.parametrize("name", LOADERS)
def test_a_signed_address_refuses_the_weights(
    name: str,
    fault: dict,
    hub: LocalHub,
    checkpoints: Path,
    on_hub: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What transformers is to load is downloaded first; errors of the client quote the whole address."""
    trajectory = find_trajectory(on_hub(checkpoints))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"question": "1+1=", "answer": "2"}))
    caplog.set_level("DEBUG", "huggingface_hub")
    headers = fault["headers"]
    if fault is STORED:
        headers = headers | {"Location": hub.url + SIGNED, "X-Repo-Commit": "0" * 40}
    hub.faults.add(Fault(r"/resolve/.*\.safetensors$", count=COUNT, status=fault["status"], headers=headers))
    hub.faults.add(Fault("^/lfs/gone", count=COUNT, **REFUSED))
    with pytest.raises(HubExtrapError) as caught:
        LOADERS[name](trajectory, prompts)
    assert hub.faults.pending() < 2 * COUNT - (fault is not REFUSED)
    shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
    assert "cannot be downloaded" in shown
    for text in (str(caught.value), repr(caught.value), shown, caplog.text):
        assert not leaks(text), text


def test_a_trainer_s_last_lines(
    cli: Run, checkpoints: Path, tmp_path: Path, clean: Callable[..., str]
) -> None:
    trainer = tmp_path / "trainer.py"
    trainer.write_text(f"print({SAID!r}); raise SystemExit(3)")
    content = {
        "model": str(checkpoints / "step_0"),
        "train": [sys.executable, str(trainer), "{model}", "{steps}", "{output}"],
        "checkpoint": "checkpoint-{step}",
        "window": 4,
        "jump": 4,
        "iterations": 1,
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"reground": content}))
    result = cli("reground", recipe, "--out", tmp_path / "run")
    trainer.unlink()
    assert "Server: https://***@cdn.example" in clean(result)
