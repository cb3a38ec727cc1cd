"""A trainer command: deterministic noisy descent on a quadratic loss over a model's weights, in numpy alone.

It reads a folder in safetensors, takes ``--steps`` steps from the problem's step ``--start-step`` on, and
leaves ``checkpoint-<steps>`` as transformers would: weights, configuration, tokenizer. The file ``--fault``,
where it is there, says what goes wrong, so that a test can mend it without changing the command.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

RATE, NOISE = 0.02, 0.002
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--start-step", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fault", type=Path)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a step")
    options = parser.parse_args()
    fault = options.fault.read_text().strip() if options.fault and options.fault.exists() else ""
    weights = load_file(options.model / "model.safetensors")
    print(f"training from {options.model}", flush=True)
    if fault == "own disk":  # what is full is not where the trainer writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fault in ("wait", "stubborn"):
        (options.output / "unfinished").write_text(str(os.getpid()))
        (options.output / "unfinished").rename(options.output / "pid")
        time.sleep(60)
    if fault.startswith("exit"):
        print("\n".join(f"line {number}" for number in range(40)))
        print("ValueError: the reward model is gone", file=sys.stderr)
        sys.exit(int(fault.split()[1]))
    if fault.startswith("signal"):
        os.kill(os.getpid(), getattr(signal, fault.split()[1]))
    for step in range(options.start_step, options.start_step + options.steps):
        time.sleep(options.pause)
        for name in sorted(weights):
            noise = np.random.default_rng([step, *name.encode()]).standard_normal(weights[name].shape)
            pull = goal(name, weights[name].shape) - weights[name]
            weights[name] = (weights[name] + RATE * pull + NOISE * noise).astype(np.float32)
    if fault == "nothing":
        return
    save(weights, options, fault)


def goal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Where the loss of a tensor is 0."""
    return np.random.default_rng(list(name.encode())).standard_normal(shape)


def save(weights: dict[str, np.ndarray], options: argparse.Namespace, fault: str) -> None:
    name = sorted(weights)[0]
    if fault == "nan":
        weights[name].flat[3] = np.nan
    if fault == "shape":
        weights[name] = np.concatenate([weights[name], weights[name]])
    if fault == "still":
        weights = load_file(options.model / "model.safetensors")
    folder = options.output / f"checkpoint-{options.steps}"
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if fault == "truncated":
        os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    for file in SIDE_FILES:
        if (options.model / file).exists() and not (fault == "no config" and file == "config.json"):
            shutil.copy(options.model / file, folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": options.steps}))


if __name__ == "__main__":
    main()
