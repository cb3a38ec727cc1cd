"""A tiny random Llama with a tokenizer, as `save_pretrained` writes it, and a prediction made of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_llama import save_tiny, tiny_llama

from hubextrap.hub.card import model_card
from hubextrap.hub.provenance import CoefficientRule, OutputShard, Provenance, build_provenance
from hubextrap.trajectory.checkpoint import Checkpoint

_RECIPE = """\
trajectory:
  repo: me/run
  steps: {pattern: "step_{step}", max: 200}
merge_method: two_point
parameters:
  target_step: 400
  base_step: 100
out_dtype: bfloat16
"""


def _checkpoint(step: int, repo: str | None = "me/run", path: str = "") -> Checkpoint:
    if repo is None:
        return Checkpoint(step, None, path, None, path)
    return Checkpoint(step, repo, f"step_{step}", f"{step:040x}", path)


def _provenance(shards: list[OutputShard] | None = None, **changes: object) -> Provenance:
    arguments: dict[str, object] = {
        "checkpoints": [_checkpoint(0), _checkpoint(100), _checkpoint(200)],
        "merge_method": "two_point",
        "parameters": {"target_step": 400, "base_step": 100},
        "target_step": 400,
        "coefficients": [
            CoefficientRule(match="*norm*", method="persistence", coefficients={0: 0.0, 100: 0.0, 200: 1.0}),
            CoefficientRule(match="*", method="two_point", coefficients={200: 3.0, 100: -2.0, 0: 0.0}),
        ],
        "shards": shards or [OutputShard(file="model.safetensors", size=3, sha256="a" * 64)],
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "recipe": _RECIPE,
    }
    return build_provenance(**(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture
def make_checkpoint() -> Callable[..., Checkpoint]:
    return _checkpoint


@pytest.fixture
def make_provenance() -> Callable[..., Provenance]:
    """Provenance of step 400 predicted by two_point from steps 0, 100, 200; any argument can be changed."""
    return _provenance


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders with a random Llama of a seed, whole or in three shards; made once each."""
    root = tmp_path_factory.mktemp("models")

    def make(seed: int, sharded: bool = False) -> Path:
        folder = root / f"seed{seed}{'-sharded' if sharded else ''}"
        if folder.exists():
            return folder
        model = tiny_llama(seed, intermediate_size=32, num_hidden_layers=2, tie_word_embeddings=False)
        save_tiny(model, folder, max_shard_size="10KB" if sharded else "1GB")
        return folder

    return make


@pytest.fixture
def prediction(models: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder as `hubextrap merge --out` leaves it: sharded, with card and provenance."""
    folder = tmp_path / "prediction"
    shutil.copytree(models(7, sharded=True), folder)
    shards = [
        OutputShard(
            file=path.name,
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.glob("*.safetensors"))
    ]
    provenance = _provenance(shards)
    (folder / "hubextrap.json").write_bytes(provenance.to_bytes())
    (folder / "README.md").write_text(model_card(provenance), encoding="utf-8")
    return folder
