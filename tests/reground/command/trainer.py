"""A trainer command: deterministic noisy descent on a quadratic loss over all weights of a float32 model.

It reads a folder in safetensors, takes ``--steps`` steps from the problem's step ``--start-step`` on, and
leaves ``checkpoint-<steps>`` as transformers would: weights, configuration, tokenizer. The file ``--fault``,
where it is there, says what goes wrong, so that a test can mend it without changing the command. It imports
the standard library alone, as tests start it many times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from array import array
from pathlib import Path

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
    parser.add_argument("--rates", type=json.loads, help="relative learning rates of the run's steps")
    parser.add_argument("--own-steps", action="store_true", help="count the round's steps, not the run's")
    options = parser.parse_args()
    fault = options.fault.read_text().strip() if options.fault and options.fault.exists() else ""
    header, weights = load(options.model)
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
        print("\n".join(f"line {number}" for number in range(40)), flush=True)
        print("ValueError: the reward model is gone", file=sys.stderr)
        sys.exit(int(fault.split()[1]))
    if fault.startswith("signal"):
        os.kill(os.getpid(), getattr(signal, fault.split()[1]))
    goal = random.Random(0)
    goals = [goal.gauss(0.0, 1.0) for _ in weights]
    for step in range(options.start_step, options.start_step + options.steps):
        time.sleep(options.pause)
        noise = random.Random(step)
        rate = RATE * (options.rates[step] if options.rates else 1.0)
        for place, (weight, wanted) in enumerate(zip(weights, goals, strict=True)):
            weights[place] = weight + rate * (wanted - weight) + NOISE * noise.gauss(0.0, 1.0)
    if fault == "nothing":
        return
    if fault == "still":
        header, weights = load(options.model)
    if fault == "nan":
        weights[3] = float("nan")
    if fault == "shape":
        one = next(entry for name, entry in header.items() if name != "__metadata__")
        one["shape"] = [1, *one["shape"]]
    save(header, weights, options, fault)


def load(folder: Path) -> tuple[dict[str, dict[str, list[int]]], array[float]]:
    """The header of model.safetensors, and all its weights one after the other, in float32."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), array("f", data[8 + length :])


def save(
    header: dict[str, dict[str, list[int]]], weights: array[float], options: argparse.Namespace, fault: str
) -> None:
    folder = options.output / f"checkpoint-{options.steps}"
    folder.mkdir(parents=True)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        weights.tofile(file)
    if fault == "truncated":
        os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    for file in SIDE_FILES:
        if (options.model / file).exists() and not (fault == "no config" and file == "config.json"):
            shutil.copy(options.model / file, folder)
    state: dict[str, object] = {"global_step": options.steps}
    if options.rates:
        first = 0 if options.own_steps else options.start_step
        used = options.rates[options.start_step : options.start_step + options.steps]
        logged = [{"step": first + i, "learning_rate": 1e-5 * rate} for i, rate in enumerate(used, 1)]
        most = options.steps if options.own_steps else len(options.rates)
        state |= {"global_step": first + options.steps, "max_steps": most, "log_history": logged}
    (folder / "trainer_state.json").write_text(json.dumps(state))


if __name__ == "__main__":
    main()
