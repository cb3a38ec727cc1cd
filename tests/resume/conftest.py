"""A run of many small shards, and `hubextrap` in processes that can be killed at any moment."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import yaml
from harness import SHARDS, Warm

from hubextrap.localhub import LocalHub
from hubextrap.tensors import build_header

STEPS = (0, 10)


@pytest.fixture(scope="session")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture
def warm(_warm: Warm, token: str) -> Warm:
    """Runs commands as user "me", in processes that can be killed."""
    _warm.environment["HF_TOKEN"] = token
    return _warm


@pytest.fixture
def logged_in(logged_in: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As everywhere; the client does not wait before it asks again."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return logged_in


def write_checkpoint(folder: Path, seed: int) -> None:
    """Random bf16 weights in SHARDS files: the first half of 131 kB, the others of 164 kB."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for number in range(SHARDS):
        rows = 128 if number < SHARDS // 2 else 160
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        names = [f"layers.{number}.{part}.weight" for part in ("mlp", "attention")]
        data = torch.randn(2 * rows * 256, generator=generator).bfloat16().view(torch.uint8).numpy().tobytes()
        header = build_header([(name, "BF16", (rows, 256)) for name in names])
        (folder / file).write_bytes(header + data)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints step_0 and step_10, each of SHARDS small shards."""
    root = tmp_path_factory.mktemp("run")
    for step in STEPS:
        write_checkpoint(root / f"step_{step}", step)
    return root


@pytest.fixture
def run_on_hub(hub: LocalHub, run_folder: Path, repo_id: str) -> str:
    """The same as branches of a repo."""
    hub.create_repo(repo_id)
    for step in STEPS:
        files = {path.name: path for path in sorted((run_folder / f"step_{step}").iterdir())}
        hub.commit(repo_id, files, revision=f"step_{step}")
    return repo_id


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """``recipe_file(repo, target_step=20, method="two_point")``: a recipe in a file."""

    def write(repo: str | Path, target_step: int | list[int] = 20, method: str = "two_point") -> Path:
        content = {
            "trajectory": {"repo": str(repo)},
            "merge_method": method,
            "parameters": {"target_step": target_step},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file under a folder, hidden ones too, by its path in it."""

    def read(folder: Path) -> dict[str, bytes]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """``with full_disk():`` no file grows beyond 150 kB, which the first half of the shards do not."""

    @contextlib.contextmanager
    def limited() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
