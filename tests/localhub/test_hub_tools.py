"""Tools on top of the client, unmodified: transformers, mergekit, hf; and `hubextrap hub serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubextrap.localhub import LocalHub

ROOT = Path(__file__).parents[2]
HF = [sys.executable, "-m", "huggingface_hub.cli.hf"]


@pytest.fixture
def tiny_model(hub: LocalHub, repo_id: str, tmp_path: Path) -> str:
    """A repo with a Llama of a few hundred weights: main all ones, step_10 all twos."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    hub.create_repo(repo_id)
    for revision, value in (("main", 1.0), ("step_10", 2.0)):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        model.save_pretrained(tmp_path / revision)
        files = {path.name: path for path in (tmp_path / revision).iterdir()}
        hub.commit(repo_id, files, revision=revision)
    return repo_id


def test_transformers_loads_a_revision(tiny_model: str) -> None:
    from transformers import AutoModelForCausalLM

    for revision, value in (("main", 1.0), ("step_10", 2.0)):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, revision=revision)
        assert all(bool((weight == value).all()) for weight in model.parameters())


def test_transformers_pushes(tiny_model: str, api: HfApi, token: str, repo_id: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.push_to_hub(f"{repo_id}-pushed", revision="step_0", token=token, private=True)
    info = api.model_info(f"{repo_id}-pushed", revision="step_0")
    assert info.private
    assert "model.safetensors" in {file.rfilename for file in info.siblings or []}


@pytest.mark.slow
def test_mergekit_reads_revisions(tiny_model: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    config = tmp_path / "merge.yml"
    config.write_text(
        "merge_method: linear\ndtype: float32\nmodels:\n"
        f"- {{model: {tiny_model}@main, parameters: {{weight: -1.0}}}}\n"
        f"- {{model: {tiny_model}@step_10, parameters: {{weight: 2.0}}}}\n"
    )
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", config, tmp_path / "out"]
    subprocess.run([*command, "--no-copy-tokenizer"], check=True, capture_output=True)
    merged = load_file(next((tmp_path / "out").glob("*.safetensors")))
    assert merged
    assert all((weight == 3.0).all() for weight in merged.values())


def test_the_hf_command_uploads_and_downloads(
    hub: LocalHub, token: str, repo_id: str, tmp_path: Path
) -> None:
    weights = os.urandom(100_000)
    (tmp_path / "model.safetensors").write_bytes(weights)
    environment = {**os.environ, "HF_TOKEN": token}
    for command in (
        ["upload", repo_id, str(tmp_path / "model.safetensors"), "model.safetensors"],
        ["download", repo_id, "model.safetensors", "--local-dir", str(tmp_path / "down")],
    ):
        ran = subprocess.run([*HF, *command], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert token not in ran.stdout + ran.stderr
    assert (tmp_path / "down" / "model.safetensors").read_bytes() == weights


def serve(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hubextrap", "hub", "serve", str(folder), *options]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def exports(process: subprocess.Popen[str], lines: int) -> dict[str, str]:
    assert process.stdout is not None
    printed = "".join(process.stdout.readline() for _ in range(lines))
    return dict(re.findall(r"(\w+)=(\S+)", printed))


def test_serve_prints_how_to_reach_it_and_keeps_what_it_gets(tmp_path: Path) -> None:
    with serve(tmp_path / "hub", "--port", "0") as process:
        environment = exports(process, 2)
        api = HfApi(endpoint=environment["HF_ENDPOINT"], token=environment["HF_TOKEN"])
        api.create_repo("me/kept")
        api.upload_file(repo_id="me/kept", path_or_fileobj=b"\0" * 100, path_in_repo="a.bin")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    with serve(tmp_path / "hub", "--port", "0", HUBEXTRAP_HUB_TOKEN="hf_chosen") as process:
        endpoint = exports(process, 1)["HF_ENDPOINT"]
        api = HfApi(endpoint=endpoint, token="hf_chosen")
        path = api.hf_hub_download("me/kept", "a.bin", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == b"\0" * 100
        process.terminate()
        out, error = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "hf_chosen" not in out + error


def test_serve_with_xet(tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    with serve(tmp_path / "hub", "--port", "0", "--xet") as process:
        assert process.stdout is not None
        lines = "".join(process.stdout.readline() for _ in range(2))
        assert "HF_HUB_DISABLE_XET" not in lines
        environment = dict(re.findall(r"(\w+)=(\S+)", lines))
        api = HfApi(endpoint=environment["HF_ENDPOINT"], token=environment["HF_TOKEN"])
        api.create_repo("me/x")
        api.upload_file(repo_id="me/x", path_or_fileobj=b"\0" * 100, path_in_repo="a.bin")
        (found,) = api.get_paths_info("me/x", ["a.bin"])
        assert found.xet_hash  # type: ignore[union-attr]
        process.terminate()
        assert process.wait(10) == 0


def test_serve_with_xet_needs_its_library(tmp_path: Path) -> None:
    (tmp_path / "hf_xet.py").write_text("raise ModuleNotFoundError('No module named hf_xet', name='hf_xet')")
    with serve(tmp_path / "hub", "--port", "0", "--xet", PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out) == (1, "")
    assert error == "error: --xet needs hf-xet: pip install hf-xet, or serve without --xet\n"


def test_a_port_in_use_is_one_clear_error(hub: LocalHub, tmp_path: Path) -> None:
    port = hub.url.rpartition(":")[2]
    with serve(tmp_path / "hub", "--port", port) as process:
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out) == (1, "")
    assert error == (
        f"error: cannot serve {tmp_path / 'hub'} on 127.0.0.1:{port}: Address already in use; "
        "choose another --port, --host or DIR\n"
    )
