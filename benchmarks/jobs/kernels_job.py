"""The arithmetic alone, in one thread on data in the caches, beside torch's and a memcpy, in turn.

`kernels_job ROUNDS`; the last line has ns per weight: {K: {program: [one per round]}}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from hubextrap.engine.kernels import Combiner
from hubextrap.engine.torch_kernels import TorchCombiner
from hubextrap.engine.units import Combination
from hubextrap.methods import coefficients

WEIGHTS = 2**18
"""Half of what a merge's unit holds: a call's own time counts as it does there."""
REPEATS = 30


def nanoseconds(work: Callable[[], object]) -> float:
    """Of this thread, per weight."""
    started = time.thread_time_ns()
    for _ in range(REPEATS):
        work()
    return (time.thread_time_ns() - started) / (REPEATS * WEIGHTS)


def measured(count: int, rounds: int) -> dict[str, list[float]]:
    """ns per weight by program."""
    values = np.random.default_rng(count).standard_normal((count, WEIGHTS), np.float32) * 0.02
    inputs = [row.view(np.uint8) for row in (values.view(np.uint32) >> 16).astype(np.uint16)]
    steps = range(10, 10 * count + 1, 10)
    weights = coefficients("two_point" if count == 2 else "least_squares", steps, 15 * count).tolist()
    how = Combination("line" if count == 2 else "sum", tuple(range(count)), tuple(weights))
    outputs = {name: np.zeros(2 * WEIGHTS, np.uint8) for name in ("hubextrap", "torch")}
    copies = np.zeros((count, 2 * WEIGHTS), np.uint8)

    def combine(combiner: Combiner | TorchCombiner, output: NDArray[np.uint8]) -> None:
        combiner.combine(inputs, ["BF16"] * count, [how], [output], "BF16", last=count - 1)

    def copy() -> None:
        for row, target in zip(inputs, copies, strict=True):
            np.copyto(target, row)

    programs: dict[str, Callable[[], object]] = {
        "hubextrap": partial(combine, Combiner(1), outputs["hubextrap"]),
        "torch": partial(combine, TorchCombiner(1), outputs["torch"]),
        "memcpy": copy,
    }
    for program in programs.values():  # compiled, and in the cache
        program()
    assert (outputs["hubextrap"] == outputs["torch"]).all(), "the two give different bits"
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(nanoseconds(program))
    return found


torch.set_num_threads(1)
print(json.dumps({count: measured(count, int(sys.argv[1])) for count in (2, 4, 8)}))
