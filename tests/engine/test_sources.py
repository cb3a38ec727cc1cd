"""The same bytes from folders, from the Hub cache, and from the Hub by ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.localhub import LocalHub
from hubextrap.tensors import LocalSink, open_source, read_layouts
from hubextrap.trajectory import Checkpoint


def test_folder_cache_and_ranges_give_the_same_bytes(
    hub: LocalHub, repo_id: str, save: Callable[..., Path], tmp_path: Path
) -> None:
    hub.create_repo(repo_id)
    local, remote = [], []
    for step in (0, 10, 30):
        generator = torch.Generator().manual_seed(step)
        shards = [
            {f"layer.{k}.{j}": torch.randn(150, 70, generator=generator).bfloat16() for j in range(6)}
            for k in range(2)
        ]
        folder = save(f"step_{step}", *shards)
        files = {path.name: path for path in folder.iterdir()}
        commit = hub.commit(repo_id, files, revision=f"step_{step}")
        local.append(Checkpoint(step, None, "", None, str(folder)))
        remote.append(Checkpoint(step, repo_id, f"step_{step}", commit, ""))

    outputs = []
    for name, checkpoints, cache, concurrent in (
        ("local", local, False, False),
        ("cache", remote, True, False),
        ("ranges", remote, False, False),
        ("ranges-concurrent", remote, False, True),
    ):
        sources = [open_source(checkpoint, cache=cache) for checkpoint in checkpoints]
        plan = plan_merge(
            (0, 10, 30),
            read_layouts(sources),
            lambda _: np.array([[-0.2, -0.3, 1.5], [-0.5, 0.0, 1.5]]),
            budget=Budget(remote=concurrent, read_size=50_000),
        )
        sinks = [LocalSink(tmp_path / name / f"{target}") for target in range(2)]
        result = run_plan(plan, sources, sinks)
        outputs.append([output.shards for output in result])
        for source in sources:
            source.close()
    assert all(output == outputs[0] for output in outputs)
    assert len(outputs[0][0]) == 2
