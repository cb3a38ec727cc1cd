"""Checkpoints written by the safetensors library, and merges of them through the engine's real parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hubextrap.engine import Budget, MergeOutput, MergePlan, plan_merge, run_plan
from hubextrap.tensors import LocalSink, LocalSource, read_layouts

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(name, shard, …) writes a checkpoint of one or more shards and returns its folder."""

    def write(name: str, *shards: Tensors) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if len(shards) == 1:
            save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return write


class Merged:
    """Folders that a merge wrote, one a target."""

    def __init__(self, plan: MergePlan, folders: list[Path], outputs: list[MergeOutput], read: int) -> None:
        self.plan = plan
        self.folders = folders
        self.outputs = outputs
        self.bytes_read = read

    def tensors(self, target: int = 0) -> Tensors:
        return {
            name: tensor
            for shard in self.outputs[target].shards
            for name, tensor in load_file(self.folders[target] / shard.file).items()
        }

    def files(self, target: int = 0) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folders[target].iterdir())}


class CountingSource(LocalSource):
    """A local source that remembers what was read of it after its headers."""

    count = 0

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        super().read(file, offset, buffer)
        self.count += buffer.nbytes


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., Merged]:
    """merge(folders, coefficients, …) plans and runs; coefficients: a row, rows, or name → rows."""
    count = 0

    def run(folders: Sequence[Path], coefficients: Any, **options: Any) -> Merged:
        nonlocal count
        count += 1
        of_name = coefficients if callable(coefficients) else lambda name: coefficients
        of_run = {
            name: options.pop(name) for name in ("device", "allow_non_finite", "progress") if name in options
        }
        limits = ("memory", "workers", "remote", "read_size")
        options["budget"] = Budget(**{name: options.pop(name) for name in limits if name in options})
        steps = options.pop("steps", range(0, 100 * len(folders), 100))
        sources = [CountingSource(folder) for folder in folders]
        layouts = read_layouts(sources)
        plan = plan_merge(
            steps, layouts, lambda name: np.atleast_2d(np.asarray(of_name(name), dtype=float)), **options
        )
        for source in sources:
            source.count = 0
        outputs = [tmp_path / f"out-{count}-{target}" for target in range(plan.targets)]
        try:
            result = run_plan(plan, sources, [LocalSink(folder) for folder in outputs], **of_run)
        finally:
            for source in sources:
                source.close()
        read = sum(source.count for source in sources)
        assert read == plan.total_bytes_read
        return Merged(plan, outputs, result, read)

    return run
