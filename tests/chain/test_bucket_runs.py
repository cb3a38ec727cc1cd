"""A run in a bucket gives what the same run in a folder gives, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi

from hubextrap import api, load_recipe
from hubextrap.hub import read_provenance
from hubextrap.localhub import LocalHub

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(hub: LocalHub, repo_id: str, checkpoints: Path, logged_in: str) -> str:
    HfApi().create_bucket(repo_id, private=True)
    files = [(file, file.relative_to(checkpoints).as_posix()) for file in checkpoints.glob("step_*/*")]
    HfApi().batch_bucket_files(repo_id, add=[(file, f"run/{path}") for file, path in files])
    return f"hf://buckets/{repo_id}/run"


def recipe_of(tmp_path: Path, place: object, name: str) -> Path:
    file = tmp_path / f"{name}.yaml"
    file.write_text(
        f"trajectory: {{repo: '{place}'}}\nmerge_method: calibrated\nparameters: {{target_step: 40}}\n"
        "dtype: float32\nout_dtype: bfloat16\n"
    )
    return file


def test_the_same_bytes(bucket: str, checkpoints: Path, tmp_path: Path, cli: Callable[..., object]) -> None:
    steps = cli("steps", bucket)
    assert "step_30" in steps.out  # type: ignore[attr-defined]
    made = {}
    for name, place in (("bucket", bucket), ("folder", checkpoints)):
        recipe = recipe_of(tmp_path, place, name)
        found = api.scan(place, out=tmp_path / f"{name}.scan.safetensors")
        table = api.backtest(load_recipe(recipe), settings=None)
        api.merge(recipe, out=tmp_path / name)
        weights = {
            file.name: file.read_bytes()
            for file in sorted((tmp_path / name).iterdir())
            if file.name not in ("README.md", "hubextrap.json")
        }
        made[name] = (found, table, weights)
    (one, tried, out), (other, tried_too, out_too) = made["bucket"], made["folder"]
    assert np.array_equal(one.gram_table.gram, other.gram_table.gram)
    assert tried.rows == tried_too.rows
    assert out == out_too
    said = read_provenance(tmp_path / "bucket" / "hubextrap.json")
    assert said.inputs[-1].path == "run/step_30"
    assert f"{bucket}/step_30" in (tmp_path / "bucket" / "README.md").read_text()
    assert "base_model" not in (tmp_path / "bucket" / "README.md").read_text()
    again = api.scan(bucket, out=tmp_path / "bucket.scan.safetensors")
    assert np.array_equal(again.gram_table.gram, one.gram_table.gram)
