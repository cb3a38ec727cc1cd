"""What re-grounding buys on the demo's task, measured: `make reground`.

Trains the bundled task from step 0 with TRL's GRPOTrainer (`demo/grpo.py`): plain RL at several learning
rates, and RL that jumps n steps ahead after every m, at equal RL steps and with two seeds. Measures every run
on the 500 held-out problems and writes tables and a plot into `docs/`. Each run is kept in `.demo/reground/`
under its settings, so that the script goes on where it was stopped; `make clean` forgets them.

    python demo/reground.py --quick    # a small form of the same, about a minute, which leaves docs/ alone
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from addition import DATA, accuracy, held_out_problems, load
from reground_report import Arm, Comparison, Curve, insert_tables, write_report
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
START = DATA / "step_0"
LOW_LR = 2e-6  # the bundled run's
LARGE_LR, UNSTABLE_LR = 5e-4, 1e-3  # plain RL learns at the one, and its accuracy falls to 0 at the other


@dataclass(frozen=True)
class Grid:
    """What is trained, how it is measured, and what is compared."""

    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...] = (0, 1)
    prompts: int = 48
    every: int = 20
    """RL steps between measurements."""
    problems: int = 500
    samples: int = 16


def full_grid() -> Grid:
    plain = {lr: Arm(lr) for lr in (LOW_LR, 8e-6, 1.4e-5, 5e-5, 2e-4, LARGE_LR, UNSTABLE_LR)}
    jumping = {n: Arm(LOW_LR, m=20, n=n) for n in (20, 60, 120)}
    at_large = {n: Arm(LARGE_LR, m=20, n=n) for n in (20, 60)}
    reset = Arm(LOW_LR, m=20, n=60, moments="reset")
    harmful, probed = Arm(LOW_LR, m=20, n=1000), Arm(LOW_LR, m=20, n=1000, guard="probe")
    compared = (
        Comparison(jumping[60], 80, plain[LOW_LR], 160),
        Comparison(jumping[60], 160, plain[LOW_LR], 160),
        # the same number of represented steps, by a larger learning rate: (m + n) / m times as large
        Comparison(jumping[60], 40, plain[8e-6], 40),
        Comparison(jumping[60], 160, plain[8e-6], 160),
        Comparison(jumping[120], 40, plain[1.4e-5], 40),
        Comparison(jumping[120], 160, plain[1.4e-5], 160),
        Comparison(jumping[120], 160, plain[LARGE_LR], 160),
        Comparison(at_large[20], 40, plain[LARGE_LR], 40),
        Comparison(at_large[20], 160, plain[LARGE_LR], 160),
        Comparison(at_large[60], 40, plain[LARGE_LR], 40),
        Comparison(at_large[60], 160, plain[LARGE_LR], 160),
        Comparison(reset, 160, jumping[60], 160),
        Comparison(harmful, 160, plain[LOW_LR], 160),
        Comparison(probed, 160, plain[LOW_LR], 160),
    )
    return Grid((*plain.values(), *jumping.values(), reset, harmful, probed, *at_large.values()), compared)


def quick_grid() -> Grid:
    plain, jumping = Arm(5e-5, steps=8), Arm(5e-5, steps=8, m=2, n=4)
    probed = Arm(5e-5, steps=8, m=2, n=1000, guard="probe")
    return Grid(
        (plain, jumping, probed),
        (Comparison(jumping, 4, plain, 8), Comparison(probed, 8, plain, 8)),
        seeds=(0,),
        prompts=8,
        every=4,
        problems=100,
        samples=4,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small grid, which leaves docs/ alone")
    parser.add_argument("--work", type=Path, help="folder that keeps the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs at once, each on one core")
    options = parser.parse_args()
    grid = quick_grid() if options.quick else full_grid()
    work = options.work or ROOT / ".demo" / ("reground-quick" if options.quick else "reground")
    curves = measured(grid, work, options.processes)
    output = work if options.quick else ROOT / "docs" / "reground-demo"
    tables = write_report(output, curves, grid.comparisons, grid.every)
    if not options.quick:
        insert_tables(ROOT / "docs" / "reground.md", tables)
    print(f"{tables}\nThe tables and the plot are in {output}.")


def measured(grid: Grid, work: Path, processes: int) -> list[Curve]:
    """Train and measure all runs that are not there yet, several at once."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "start.json").is_file():
        keep(work / "start.json", {0: figures_of(START, grid, 0)})
    runs = list(product(grid.arms, grid.seeds))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(run_one, *zip(*((grid, arm, seed, work) for arm, seed in runs), strict=True)))


def run_one(grid: Grid, arm: Arm, seed: int, work: Path) -> Curve:
    """One run: trained and measured, or what was kept of it."""
    folder = work / f"{arm.name}-seed{seed}"
    if not folder.is_dir():
        train(grid, arm, seed, folder)
    kept = folder / "accuracy.json"
    if not kept.is_file():
        steps = range(grid.every, arm.steps + 1, grid.every)
        keep(kept, {step: figures_of(folder / f"checkpoint-{step}", grid, step) for step in steps})
    files = (work / "start.json", kept)
    figures = {int(step): rows for file in files for step, rows in json.loads(file.read_text()).items()}
    history = folder / "reground_history.jsonl"
    return Curve(
        arm,
        seed,
        tuple(figures),
        np.array([rows["greedy"] for rows in figures.values()]),
        np.array([rows["sampled"] for rows in figures.values()]),
        [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else [],
    )


def train(grid: Grid, arm: Arm, seed: int, folder: Path) -> None:
    """Leave a whole run in `folder`, which appears by rename when the trainer has ended well."""
    unfinished, log = (folder.with_name(folder.name + end) for end in (".unfinished", ".log"))
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [
        sys.executable,
        str(ROOT / "demo" / "grpo.py"),
        "--model",
        str(START),
        "--output",
        str(unfinished),
    ]
    command += ["--steps", str(arm.steps), "--lr", str(arm.lr), "--seed", str(seed)]
    command += ["--prompts", str(grid.prompts), "--save-every", str(grid.every)]
    if arm.m:
        command += ["--m", str(arm.m), "--n", str(arm.n), "--moments", arm.moments, "--guard", arm.guard]
    # in one write: the other training's line may come between text and line end
    sys.stdout.write(f"training {folder.name}\n")
    sys.stdout.flush()
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        sys.exit(f"The trainer ended with exit code {code}; what it said is in {log}.")
    unfinished.rename(folder)


def figures_of(checkpoint: Path, grid: Grid, step: int) -> dict[str, list[float]]:
    """Greedy and sampled accuracy of a checkpoint, a figure a problem."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    model, tokenizer = load(checkpoint)
    problems = held_out_problems()[: grid.problems]
    figures = accuracy(model.eval(), tokenizer, problems, grid.samples, seed=step)._asdict()
    print(f"{checkpoint}: sampled {np.mean(figures['sampled']):.3f}", flush=True)
    return figures


def keep(path: Path, figures: dict[int, dict[str, list[float]]]) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(figures))
    unfinished.replace(path)


if __name__ == "__main__":
    main()
