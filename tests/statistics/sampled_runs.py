"""Not tests: made runs of which a sample was drawn, and a jackknife in plain loops to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hubextrap.clocks import STEPS, Clock
from hubextrap.scans.places import places_of
from hubextrap.statistics.table import GROUPS, GramSample, GramTable

Run = dict[str, NDArray[np.float64]]
TIMES = (0, 10, 20, 40, 50, 70, 80)


def made_run(
    sizes: Sequence[int], steps: Sequence[int] = TIMES, noise: float = 0.05, rounding: float = 0.0
) -> Run:
    """(K, elements) of each tensor: it drifts, bends and wanders; ``rounding`` is new at every checkpoint."""
    generator = np.random.default_rng(3)
    times = np.asarray(steps, dtype=np.float64)[:, None] / steps[-1]
    run = {}
    for number, size in enumerate(sizes):
        # few of the weights make most of the motion, as they do
        scale = generator.lognormal(sigma=0.5, size=size)
        drift, bend = generator.normal(size=(2, size))
        values = times * drift + times**2 * bend
        values += noise * np.cumsum(generator.normal(size=(len(steps), size)), axis=0)
        run[f"t{number}.weight"] = scale * values + rounding * generator.normal(size=(len(steps), size))
    return run


def exact_table(run: Run, steps: Sequence[int] = TIMES, clock: Clock = STEPS) -> GramTable:
    moved = [values - values[0] for values in run.values()]
    grams = np.array([one @ one.T for one in moved])
    return GramTable(tuple(steps), tuple(run), np.array([one.shape[1] for one in moved]), grams, clock)


def sampled_table(
    run: Run, size: int, seed: int = 0, steps: Sequence[int] = TIMES, clock: Clock = STEPS
) -> GramTable:
    """What a scan of ``size`` weights a tensor says."""
    blocks, drawn = [], []
    for name, values in run.items():
        places = places_of(name, values.shape[1], size, seed)
        kept = (values - values[0])[:, places.in_tensor()]
        groups = np.split(kept, np.cumsum(places.groups)[:-1], axis=1)
        blocks.append([group @ group.T * (values.shape[1] / kept.shape[1]) for group in groups])
        drawn.append(kept.shape[1])
    sample = GramSample(np.array(blocks), np.array(drawn), size)
    return replace(exact_table(run, steps, clock), gram=sample.blocks.sum(axis=1), sample=sample)


def plain_stderr(
    table: GramTable, figures: Callable[[GramTable], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Of ``figures`` of a table, bias included: made anew without each group of each tensor in turn."""
    assert table.sample is not None
    whole = figures(replace(table, sample=None))
    variance, bias, by_chance = np.zeros((3, 1))
    for tensor, factor in enumerate(table.sampling_factors):
        without = []
        for group in range(GROUPS):
            gram = table.gram.copy()
            gram[tensor] = table.left_out(group).gram[tensor]
            without.append(figures(replace(table, gram=gram, sample=None)))
        deviations = np.array(without) - np.mean(without, axis=0)
        variance = variance + factor * (deviations**2).sum(axis=0)
        of_tensor = factor * GROUPS * (np.mean(without, axis=0) - whole)
        bias, by_chance = bias + of_tensor, by_chance + of_tensor**2
    return np.sqrt(variance + np.maximum(bias**2 - by_chance, 0.0)).reshape(whole.shape)
