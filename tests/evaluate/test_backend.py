"""How vLLM would be called; it needs a GPU, so only its arguments are held here."""

from __future__ import annotations

from pathlib import Path

import evaluations
import pytest
from typer.testing import CliRunner

from hubextrap.cli.app import app
from hubextrap.errors import EvaluationError
from hubextrap.evaluation import evaluate
from hubextrap.evaluation.backend import vllm_arguments
from hubextrap.localhub import LocalHub
from hubextrap.trajectory import resolve_checkpoint

SETTINGS = evaluations.SETTINGS.model_copy(
    update={"seed": 7, "device": "cuda", "dtype": "bfloat16", "backend": "vllm"}
)
ALWAYS = {"dtype": "bfloat16", "seed": 7, "batch_size": "auto", "trust_remote_code": False}


def test_a_revision_is_pinned(hub: LocalHub, repo_id: str, trajectory: Path) -> None:
    hub.create_repo(repo_id)
    files = {file.name: file for file in (trajectory / "step_0").iterdir()}
    commit = hub.commit(repo_id, files, revision="step_0")
    arguments = vllm_arguments(resolve_checkpoint(f"{repo_id}@step_0"), SETTINGS)
    assert arguments == {
        "pretrained": repo_id,
        "revision": commit,
        "tokenizer_revision": commit,
        **ALWAYS,
    }


def test_a_folder_of_a_repo_is_downloaded_alone(hub: LocalHub, repo_id: str, trajectory: Path) -> None:
    hub.create_repo(repo_id)
    files = {f"a/step_0/{file.name}": file for file in (trajectory / "step_0").iterdir()}
    hub.commit(repo_id, {**files, "a/step_9/model.safetensors": b"not wanted"})
    arguments = vllm_arguments(resolve_checkpoint(f"{repo_id}:a/step_0"), SETTINGS)
    folder = Path(arguments.pop("pretrained"))
    assert arguments == ALWAYS
    expected = (trajectory / "step_0" / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == expected
    assert not (folder.parent / "step_9").exists()


def test_a_folder_on_disk(trajectory: Path) -> None:
    folder = str(trajectory / "step_0")
    assert vllm_arguments(resolve_checkpoint(folder), SETTINGS) == {"pretrained": folder, **ALWAYS}


def test_without_vllm(trajectory: Path, demo_tasks: Path) -> None:
    with pytest.raises(EvaluationError, match=r"vLLM is not installed; .*lm-eval\[vllm\]"):
        evaluate([("a", str(trajectory / "step_0"))], ["radd"], include_path=[demo_tasks], backend="vllm")
    arguments = ["eval", str(trajectory / "step_0"), "--tasks", "radd", "--backend", "sglang"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "has to be hf or vllm" in result.output
