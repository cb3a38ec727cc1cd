"""A merge of 671B × 16 on 1 to 128 workers: simulated, from rates and requests that are measured here."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.inputs import LAYERS, Bench
from benchmarks.measure import heading, row
from benchmarks.simulation import (
    IN_FLIGHT,
    WINDOW,
    Outcome,
    Quota,
    Rates,
    Work,
    Worker,
    reading,
    simulate,
    unit_seconds,
    uploading,
)
from benchmarks.sparse import deepseek_v3, sparse_run
from benchmarks.unit_costs import COUNT, FIRST_BYTE, MEMORY, Costs, costs, layouts_of, plan_of, ranges_of
from hubextrap.work.layouts import layouts_as_json, merge_as_json

CORES = 2
"""Of a worker."""
CARDS = (0.31, 1.25, 3.1, 12.5)
"""GB/s: a quarter of 10 Gb/s; 10, 25 and 100 Gb/s."""
USUAL = Worker(CORES, 1.25, FIRST_BYTE)
CREWS = (1, 2, 4, 8, 16, 32, 64, 128)
COMMIT = 60.0
"""Seconds of the last step, assumed: the Hub cuts a longer request off."""
LIMITS = {
    "Free": (1_000, 5_000),
    "PRO": (2_500, 12_000),
    "Team": (3_000, 20_000),
    "Enterprise": (6_000, 50_000),
    "Enterprise Plus": (10_000, 100_000),
}
"""API calls and resolves in five minutes, from https://huggingface.co/docs/hub/rate-limits."""
HOUR = 3600.0
RUNS = 20


@dataclass(frozen=True, slots=True)
class Size:
    """A merge, and what it costs."""

    units: int
    opened: int
    """Files whose headers the driver reads."""
    work: Work
    costs: Costs

    @property
    def rates(self) -> Rates:
        return self.costs.rates


def scaling(bench: Bench) -> None:
    """Rates and requests of a small merge, then the tables of docs/scaling.md."""
    measured = costs(bench)
    size = _at_size(bench, measured)
    _crews(size)
    _quotas(size)
    _losses(size)


def _at_size(bench: Bench, measured: Costs) -> Size:
    """The plan of 671B × 16, from headers of the real model in sparse files; and what binds a worker."""
    root = bench.fresh("sparse")
    sparse_run(root, list(deepseek_v3(-(-61 * bench.layers // LAYERS))), COUNT)
    layouts = layouts_of(root)
    bench.fresh("sparse")
    plan = plan_of(layouts)
    units = len(plan.shards)
    work = Work(plan.total_bytes_read / units / 1e9, plan.total_bytes_written / units / 1e9, 0.0)
    some = plan.shards[:: max(1, units // 5)]
    travels = json.dumps([layouts_as_json(layouts), merge_as_json(plan)])
    print(
        f"\n{units} units, each {work.read:.1f} GB read and {work.written:.2f} GB written; in all "
        f"{units * work.read / 1e3:.1f} TB and {units * work.written / 1e3:.2f} TB; a plan of "
        f"{len(travels) / 1e6:.1f} MB\n"
    )
    heading("--memory", "cores", "first byte ms", "ranges, millions", *(f"{card} GB/s" for card in CARDS))
    for memory, cores, first_byte in (
        (2**29, CORES, FIRST_BYTE),
        (MEMORY, 1, FIRST_BYTE),
        (MEMORY, CORES, FIRST_BYTE),
        (MEMORY, CORES, 0.1),
        (MEMORY, 8, FIRST_BYTE),
    ):
        cut = plan_of(layouts, memory)
        ranges = statistics.mean(ranges_of(cut, shard) for shard in cut.shards[:: max(1, units // 5)])
        read = statistics.mean(shard.bytes_read for shard in some)
        one = replace(work, request=read / (ranges - COUNT) / 1e9)
        if (memory, cores, first_byte) == (MEMORY, CORES, FIRST_BYTE):
            work = one
        cells = (_bound(one, measured.rates, Worker(cores, card, first_byte)) for card in CARDS)
        millions = f"{units * ranges / 1e6:.1f} of {one.request * 1e3:.1f} MB"
        row(f"{memory / 2**20:.0f}MiB", cores, f"{first_byte * 1e3:.0f}", millions, *cells)
    opened = sum(len(layout.shards) for layout in layouts)
    return Size(units, opened, work, measured)


def _bound(work: Work, rates: Rates, worker: Worker) -> str:
    """Seconds of a unit: making, sending, and what binds the making."""
    parts = reading(work, rates, worker)
    binds = max(parts, key=lambda name: parts[name])
    return f"{parts[binds]:.0f} + {uploading(work, rates, worker):.0f} s ({binds})"


def _run(
    size: Size, worker: Worker, crew: int, limits: tuple[int, int] = (10**12, 10**12), *, fresh: bool = False
) -> Outcome:
    """A merge from its first request to its commit, without losses.

    Args:
        limits: API calls and resolves in five minutes.
        fresh: each unit has a process of its own.
    """
    api, resolvers = map(Quota, limits)
    every = ((api, "api"), (resolvers, "resolves"))
    once, joining, asks = (
        [(quota, getattr(one, name)) for quota, name in every]
        for one in (size.costs.driver, size.costs.worker, size.costs.unit)
    )
    for quota, count in (*once, (resolvers, size.opened)):
        begins = quota.take(0.0, count)
    begins = max(begins, size.opened * max(size.rates.opening, 2 * worker.first_byte / IN_FLIGHT))
    seconds = unit_seconds(size.work, size.rates, worker)
    start = size.rates.start
    if fresh:
        seconds, start, joining, asks = seconds + start, 0.0, [], [*joining, *asks]
    found = simulate(size.units, seconds, crew, begins=begins, start=start, joining=joining, asks=asks)
    return replace(found, seconds=found.seconds + COMMIT)


def _crews(size: Size) -> None:
    """How long it takes, by workers and by what each has of a network card."""
    headers = size.opened * max(size.rates.opening, 2 * FIRST_BYTE / IN_FLIGHT)
    print(
        f"\nminutes of the whole merge, {CORES} cores a worker, first bytes after {FIRST_BYTE * 1e3:.0f} ms; "
        f"of it, one process alone: {headers:.0f} s for headers, {COMMIT:.0f} s for the commit\n"
    )
    heading("workers", "rounds", *(f"{card} GB/s each" for card in CARDS), "at work")
    for crew in CREWS:
        found = [_run(size, Worker(CORES, card, FIRST_BYTE), crew) for card in CARDS]
        rounds = -(-size.units // crew)
        busy = f"{size.units / (rounds * crew):.0%}"
        row(crew, rounds, *(f"{one.seconds / 60:.1f}" for one in found), busy)


def _quotas(size: Size) -> None:
    """The Hub's limits: from how many workers on they bind, and what they cost."""
    seconds = unit_seconds(size.work, size.rates, USUAL)
    crew, unit, worker = CREWS[-1], size.costs.unit, size.costs.worker
    print(f"\n{crew} workers of {USUAL.card} GB/s, {seconds:.0f} s a unit, by the plan of their token\n")
    heading(
        "plan", "API / resolves in 5 minutes",
        "a process a worker: binds from", "minutes", "a process a unit: binds from", "minutes",
    )  # fmt: skip
    for name, limits in {"no limit": None, **LIMITS}.items():
        cells = []
        for fresh in (False, True):
            asked = unit.api + fresh * worker.api, unit.resolves + fresh * worker.resolves
            pace = WINDOW / (seconds + fresh * size.rates.start)
            pairs = zip(limits or (), asked, strict=False)
            most = min((limit / (ask * pace) for limit, ask in pairs), default=math.inf)
            given = {} if limits is None else {"limits": limits}
            found = _run(size, USUAL, crew, fresh=fresh, **given)
            cells += [f"{most:.0f} workers" if limits else "", f"{found.seconds / 60:.1f}"]
        row(name, f"{limits[0]:,} / {limits[1]:,}" if limits else "", *cells)


def _losses(size: Size) -> None:
    """What killed workers cost, and whether smaller units would cost less."""
    crew = 64
    print(f"\n{crew} workers of {USUAL.card} GB/s that are lost at a constant rate; means of {RUNS} runs\n")
    heading(f"losses an hour of each of {crew}", "units", "minutes", "losses", "GB read again", "s a loss")
    for rate in (0.0, 0.1, 1.0, 10.0):
        for parts in (1, 4):
            work = replace(size.work, read=size.work.read / parts, written=size.work.written / parts)
            seconds = unit_seconds(work, size.rates, USUAL)
            runs = [
                simulate(
                    size.units * parts, seconds, crew, start=size.rates.start, lifetime=_lifetime(rate, seed)
                )
                for seed in range(RUNS if rate else 1)
            ]
            losses = statistics.mean(run.losses for run in runs)
            lost = statistics.mean(run.lost for run in runs)
            row(
                f"{rate:g}",
                size.units * parts,
                f"{statistics.mean(run.seconds for run in runs) / 60:.1f}",
                f"{losses:.1f}",
                f"{lost / seconds * work.read:.0f}",
                f"{lost / losses + size.rates.start:.0f}" if losses else "0",
            )


def _lifetime(rate: float, seed: int) -> Callable[[], float]:
    """Seconds that a worker lives, at so many losses an hour."""
    return partial(random.Random(seed).expovariate, rate / HOUR) if rate else lambda: math.inf
