"""Adapters merged into a base of 1.78B weights, beside a copy of it and the products' own arithmetic."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from benchmarks.inputs import Bench, billions, shapes
from benchmarks.measure import Run, heading, hubextrap, in_turn, job, row, spread, warm
from benchmarks.startup import target
from hubextrap.tensors import build_header

COUNT, RANK = 8, 16
RATIO, PEAK = 1.3, 0.6
"""Targets: seconds beside those of the copy and of the arithmetic together, and the peak in GB."""


def merged(bench: Bench) -> None:
    """bf16 to bf16, page cache warm; the arithmetic is that of all adapters side by side, in float64."""
    base = bench.large() / "step_10"
    changed = [(name, shape) for name, shape in base_shapes(bench) if "_proj.weight" in name]
    root = write_run(bench.fresh("lora"), base, changed)
    print(f"\nK = {COUNT}, rank {RANK}, {billions(base.parent):.2f}B weights; medians (least–most)\n")
    heading("program", "own s", "processor s", "peak GB", "merged/(copy + arithmetic)", "targets")
    extents = json.dumps([shape for _, shape in changed])
    programs = {
        "merged": partial(_merged, bench, root),
        "copy": partial(job, "raw_io", bench.work / "raw", base / "model.safetensors"),
        "arithmetic": partial(job, "product", COUNT * RANK, extents),
    }
    files = [base / "model.safetensors", *sorted(root.glob("step_*/*.safetensors"))]
    found = in_turn(programs, bench.times(3), partial(warm, files))
    sums = [
        one.seconds / ((copy.own or 0) + (product.own or 0))
        for one, copy, product in zip(found["merged"], found["copy"], found["arithmetic"], strict=True)
    ]
    for name, runs in found.items():
        seconds = [one.seconds if name == "merged" else one.own for one in runs]
        cells = spread(seconds), spread([one.processors for one in runs])
        peak = max(one.peak for one in runs) / 1e9
        said = (
            (spread(sums), f"{target(sums, RATIO)}, {target([peak], PEAK)} GB")
            if name == "merged"
            else ("", "")
        )
        row(name, *cells, f"{peak:.2f}", *said)
    shutil.rmtree(root)


def base_shapes(bench: Bench) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the base's tensors."""
    from benchmarks.inputs import LAYERS, VOCABULARY

    return shapes(bench.layers, VOCABULARY * bench.layers // LAYERS)


def _merged(bench: Bench, root: Path) -> Run:
    recipe = bench.work / "lora.yaml"
    steps = {"max": 10 * COUNT}
    content = {
        "trajectory": {"repo": str(root), "steps": steps, "base": str(root / "base")},
        "merge_method": "least_squares",
        "parameters": {"target_step": 15 * COUNT},
        "output": {"as": "merged"},
    }
    recipe.write_text(yaml.safe_dump(content))
    return hubextrap("merge", recipe, "--out", bench.fresh("merged-lora"), "--quiet")


def write_run(root: Path, base: Path, changed: list[tuple[str, tuple[int, ...]]]) -> Path:
    """``base``, a link, and ``step_10`` … of bf16 factors that move in a line, with noise."""
    (root / "base").mkdir(parents=True)
    for file in base.iterdir():
        (root / "base" / file.name).hardlink_to(file)
    modules = [(f"base_model.model.{name.removesuffix('.weight')}", shape) for name, shape in changed]
    tensors = [
        (f"{module}.lora_{factor}.weight", "BF16", extents)
        for module, (rows, columns) in modules
        for factor, extents in (("A", (RANK, columns)), ("B", (rows, RANK)))
    ]
    header = build_header(tensors, {"format": "pt"})
    count = sum(rows * columns for _, _, (rows, columns) in tensors)
    start, trend = np.random.default_rng(0).standard_normal((2, count), np.float32) * np.float32(0.02)
    for number in range(1, COUNT + 1):
        values = start + np.float32(number / COUNT) * trend
        folder = root / f"step_{10 * number}"
        folder.mkdir()
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        (folder / "adapter_model.safetensors").write_bytes(header + stored.tobytes())
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "base_model_name_or_path": "base"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return root
