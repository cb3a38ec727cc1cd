"""The configs in docs/mergekit.md run, and its program does what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mergekit.md").read_text()
CONFIGS = [
    yaml.safe_load(text)
    for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if "lora:" not in text  # there is no bundled run of adapters; test_adapters.py makes one
]
SHIPPED = sorted((ROOT / "merge_configs").glob("mergekit_*.yaml"))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["merge_method"])
def test_configs_run(
    config: dict[str, Any], through_mergekit: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    predicted = through_mergekit(config)
    assert all(tensor.dtype == torch.bfloat16 for tensor in predicted.values())
    program = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
    exec(program.replace('"out"', "out"), {"config": config, "out": str(tmp_path / "by_program")})
    assert (tmp_path / "by_program" / "model.safetensors").read_bytes() == (
        tmp_path / "by_mergekit" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_give_the_same_bytes(
    path: Path,
    through_mergekit: Callable[..., dict[str, torch.Tensor]],
    natively: Callable[..., dict[str, torch.Tensor]],
    assert_same_bits: Callable[..., None],
) -> None:
    config = yaml.safe_load(path.read_text())
    assert_same_bits(through_mergekit(config), natively(config))
