"""A trainer command for adapters: it goes on with the one that it is given, or begins with an untrained one.

Descent of both factors of every module on a quadratic loss of them, from files and into files as peft writes
them. It imports neither torch nor peft, as tests start it many times.
"""

from __future__ import annotations

import argparse
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

parser = argparse.ArgumentParser()
parser.add_argument("--untrained", type=Path, required=True)
parser.add_argument("--model", type=Path, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--output", type=Path, required=True)
options = parser.parse_args()

start = options.model if (options.model / CONFIG).exists() else options.untrained
weights = load_file(start / WEIGHTS)
for name, weight in weights.items():
    if ".base_layer." in name:  # a table that peft saves beside its factors is not trained
        continue
    wanted = np.random.default_rng(zlib.crc32(name.encode())).normal(size=weight.shape).astype(np.float32)
    for _ in range(options.steps):
        # the factor that begins at 0 moves more, as it does under Adam
        rate = 0.02 if ".lora_B." in name or ".lora_embedding_A" in name else 0.002
        weight += np.float32(rate) * (wanted - weight)
folder = options.output / f"checkpoint-{options.steps}"
folder.mkdir()
save_file(weights, folder / WEIGHTS, {"format": "pt"})
shutil.copy(start / CONFIG, folder)
