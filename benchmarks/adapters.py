"""A scan and a backtest of 30 adapters of rank 16 for a base like Llama 3 8B, which is not there."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.inputs import LAYERS, Bench
from benchmarks.measure import Run, heading, hubextrap, in_turn, row, spread, warm
from benchmarks.startup import target
from hubextrap.tensors import build_header

COUNT, RANK, BLOCKS = 30, 16, 32
WIDTHS = {
    "mlp.down_proj": (4096, 14336),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "self_attn.q_proj": (4096, 4096),
    "self_attn.v_proj": (1024, 4096),
}
"""(out, in) of what is adapted in each layer."""
SECONDS, PEAK = 10.0, 0.5
"""Targets for both in one process, start included, and for its peak in GB."""


def adapters(bench: Bench) -> None:
    """bf16 and fp32 adapters in the page cache: `scan`, and `backtest`, which scans first."""
    layers = max(1, BLOCKS * bench.layers // LAYERS)
    print(f"\nK = {COUNT}, rank {RANK}, {layers} layers; medians (least–most)\n")
    heading("adapters", "command", "wall s", "processor s", "peak GB", "targets")
    for dtype in ("BF16", "F32"):
        root = write_adapters(bench.fresh(f"adapters-{dtype}"), layers, dtype)
        out = bench.work / "adapters.scan"
        programs = {
            "scan": partial(_scanned, root, out),
            "scan and backtest": partial(hubextrap, "backtest", root, "--quiet"),
        }
        files = sorted(root.glob("*/*.safetensors"))
        for name, runs in in_turn(programs, bench.times(3), partial(warm, files)).items():
            seconds, peak = [one.seconds for one in runs], max(one.peak for one in runs) / 1e9
            cells = spread(seconds), spread([one.processors for one in runs]), f"{peak:.2f}"
            row(dtype, name, *cells, f"{target(seconds, SECONDS)} s, {target([peak], PEAK)} GB")
        shutil.rmtree(root)
        out.unlink()


def _scanned(root: Path, out: Path) -> Run:
    out.unlink(missing_ok=True)
    return hubextrap("scan", root, "--out", out, "--quiet")


def write_adapters(root: Path, layers: int, dtype: str) -> Path:
    """``step_10`` … of noise that wanders and trends, one block of it over and over."""
    shapes = [
        (f"base_model.model.model.layers.{layer}.{module}.lora_{factor}.weight", shape)
        for layer in range(layers)
        for module, (rows, columns) in WIDTHS.items()
        for factor, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    ]
    block = 2**22 + 12_345  # no tensor begins where another does
    start, trend = np.random.default_rng(0).standard_normal((2, block), np.float32) * 0.02
    for number in range(1, COUNT + 1):
        own = np.random.default_rng(number).standard_normal(block, np.float32)
        values = start + np.float32(0.05 * number) * trend + np.float32(0.0005) * own
        stored = values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)
        folder = root / f"step_{10 * number}"
        folder.mkdir(parents=True)
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(build_header([(name, dtype, shape) for name, shape in shapes], {"format": "pt"}))
            left = sum(height * width for _, (height, width) in shapes)
            while left:
                part = stored[: min(left, block)]
                file.write(part.data)
                left -= len(part)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "task_type": "CAUSAL_LM"}
        config["base_model_name_or_path"] = "nobody/is-not-there"
        config["target_modules"] = sorted({module.rpartition(".")[2] for module in WIDTHS})
        (folder / "adapter_config.json").write_text(json.dumps(config))
    os.sync()
    return root
