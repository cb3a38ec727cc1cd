"""A merge on Ray beside the same merge in one process, on this machine."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from benchmarks.inputs import HIDDEN, INNER, LAYERS, Bench, recipe, write_tensors
from benchmarks.measure import Run, heading, in_turn, job, ratios, row, spread, warm

SHARDS, COUNT = 8, 2
SHARD = 9
"""Matrices of a layer in each shard: 124 M weights at the default size."""
TARGET = 1.25


def on_ray(bench: Bench) -> None:
    """Two workers with one thread each against one process with two threads; Ray's start is not counted."""
    root = _sharded(bench)
    files = sorted(root.glob("step_*/*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    print(f"\n{SHARDS} shards, K = {COUNT}, {size:.1f} GB read; page cache warm; medians (least–most)")
    print(f"target: Ray/local at most {TARGET}\n")
    heading("program", "own s", "driver's peak GB", "Ray/local, own")
    programs = {name: partial(_merge, bench, root, name) for name in ("local", "ray")}
    found = in_turn(programs, bench.times(5), partial(warm, files))
    for name, runs in found.items():
        row(
            name,
            spread([one.own for one in runs]),
            f"{max(one.peak for one in runs) / 1e9:.2f}",
            spread(ratios(runs, found["local"], lambda one: one.own)),
        )


def _merge(bench: Bench, root: Path, executor: str) -> Run:
    out = bench.fresh("out")
    result = job("executor", executor, recipe(bench.work / "recipe.yaml", root, COUNT), out)
    shutil.rmtree(out)
    return result


def _sharded(bench: Bench) -> Path:
    """A run in shards of the same size, made once and kept."""
    inner = INNER * bench.layers // LAYERS
    root = bench.work / f"sharded-{bench.layers}"
    for number in range(1, COUNT + 1):
        folder = root / f"step_{10 * number}"
        if (folder / "config.json").exists():  # written last
            continue
        folder.mkdir(parents=True, exist_ok=True)
        weight_map = {}
        for shard in range(SHARDS):
            file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
            tensors = [(f"layers.{shard}.{part}.weight", (inner, HIDDEN)) for part in range(SHARD)]
            write_tensors(folder / file, tensors, number)
            weight_map |= {name: file for name, _ in tensors}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text("{}")
    return root
