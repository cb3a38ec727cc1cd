"""A merge of 671B × 16 on 1 to 128 workers: simulated, from rates and requests that are measured here."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.inputs import LAYERS, Bench, recipe
from benchmarks.local import merge
from benchmarks.measure import Run, heading, hubextrap, in_turn, job, row, spread
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
from hubextrap.engine.budget import Budget
from hubextrap.engine.plan import MergePlan, ShardPlan, plan_merge
from hubextrap.methods import coefficients
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import PART
from hubextrap.tensors.weights import read_layouts

if TYPE_CHECKING:
    from hubextrap.localhub import LocalHub
    from hubextrap.localhub.faults import Request

COUNT = 16
CORES = 2
"""Of a worker."""
CARDS = (0.31, 1.25, 3.1, 12.5)
"""GB/s: a quarter of 10 Gb/s; 10, 25 and 100 Gb/s."""
CREWS = (1, 2, 4, 8, 16, 32, 64, 128)
FIRST_BYTE = 0.05
"""Seconds, assumed: the loopback Hub's are none."""
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
UPLOAD_CALLS = 4
"""Of the Hub for a shard in parts: preupload, LFS batch, completion, verification."""
HOUR = 3600.0


def scaling(bench: Bench) -> None:
    """Rates and requests of a small merge, then the tables of docs/scaling.md."""
    root = _small_run(bench)
    with _hub(bench, root) as (hub, environment):
        rates = _rates(bench, hub, environment)
        _small_merge(bench, root, hub, environment, rates)
    size = _at_size(bench)
    _binding(size.work, rates)
    _crews(size, rates)
    _quotas(size, rates)
    _losses(size, rates)


def _small_run(bench: Bench) -> Path:
    """Four shards of 25 MB, sixteen times: enough to count requests and processor seconds."""
    root, elements = bench.fresh("small-shards"), max(1, 4096 * bench.layers // LAYERS)
    tensors = [(f"model.layers.{number}.weight", (elements, 1024)) for number in range(12)]
    sparse_run(root, tensors, COUNT, 3 * 2048 * elements)
    noise = np.random.default_rng(0).standard_normal(3 * 1024 * elements, np.float32) * 0.02
    weights = (noise.view(np.uint32) >> 16).astype(np.uint16)
    for number, folder in enumerate(root.iterdir()):
        for file in folder.glob("*.safetensors"):
            with file.open("r+b") as stream:
                stream.seek(file.stat().st_size - weights.nbytes)
                stream.write((weights ^ np.uint16(number)).data)
    return root


@contextmanager
def _hub(bench: Bench, root: Path) -> Iterator[tuple[LocalHub, dict[str, str]]]:
    """A loopback Hub that redirects to a storage of its own, as the real one does."""
    from hubextrap.localhub import LocalHub

    with LocalHub(bench.fresh("hub"), tokens={"hf_bench": "me"}, cdn=True) as hub:
        hub.part_size = PART  # uploads in parts, as those of large files are
        hub.create_repo("me/run")
        hub.create_repo("me/out")
        for folder in sorted(root.iterdir()):
            hub.commit("me/run", {file.name: file for file in folder.iterdir()}, revision=folder.name)
        yield (
            hub,
            {
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": "hf_bench",
                "HF_HOME": str(bench.fresh("hf")),
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
        )
    bench.fresh("hub")
    bench.fresh("hf")


def _rates(bench: Bench, hub: LocalHub, environment: dict[str, str]) -> Rates:
    """Medians, and how they were spread."""
    from hubextrap.localhub.faults import Fault

    folder = bench.fresh("rates")
    folder.mkdir()
    measure = partial(job, "rates", folder, COUNT, environment=environment)
    found = measure(bench.times(5)).said
    # a whole merge of next to nothing: imports, machine code and all
    starts = in_turn({"tiny": partial(merge, bench, bench.tiny(), 2)}, bench.times(5))["tiny"]
    hub.faults.add(Fault("^/lfs/", method="GET", delay=FIRST_BYTE, count=10**6))
    delayed = measure(1, "fetch").said
    hub.faults.clear()
    print("\nprocessor seconds of one core per GB; medians (least–most)\n")
    heading("part of a unit", "processor s per GB")
    for name, what in (
        ("fetch", "range requests, without TLS"),
        ("tls", "TLS, AES-128-GCM"),
        ("sha256", "sha256 of inputs"),
        ("xxh3", "XXH3 of inputs"),
        ("sums", f"sums of {COUNT} (per GB read)"),
        ("write", "sha256 and writing of the output"),
        ("upload", "upload over LFS, without TLS"),
    ):
        row(what, spread(found[name]))
    print(
        f"\na file found and its header read: {spread([1e3 * one for one in found['opening']], 1)} ms of the "
        f"processor; a worker's start: {spread([one.seconds for one in starts])} s"
        f"\none process reads {spread(found['fetch_wall'])} GB/s from a Hub on the same processors, and "
        f"{spread(delayed['fetch_wall'])} where every first byte takes {FIRST_BYTE * 1e3:.0f} ms "
        f"(at most {IN_FLIGHT * PART / FIRST_BYTE / 1e9:.2f})"
    )
    middle = {name: statistics.median(values) for name, values in found.items() if name != "fetch_wall"}
    return Rates(**middle, start=statistics.median(one.seconds for one in starts))


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked of whom."""

    resolves: int = 0
    """``/resolve/`` of the Hub, which says where a file lies."""
    ranges: int = 0
    """Of the storage behind it."""
    api: int = 0
    """Of the Hub, all else."""
    uploads: int = 0
    """To the storage."""

    @classmethod
    def of(cls, asked: Sequence[Request]) -> Requests:
        storage = [one for one in asked if one.path.startswith("/lfs/")]
        ends = sum(one.method == "POST" for one in storage)  # of uploads in parts, which are the Hub's own
        resolves = sum("/resolve/" in one.path for one in asked)
        gets = sum(one.method == "GET" for one in storage)
        return cls(resolves, gets, len(asked) - len(storage) - resolves + ends, len(storage) - gets - ends)

    def __sub__(self, other: Requests) -> Requests:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Requests(*(one - two for one, two in pairs))


def _small_merge(bench: Bench, root: Path, hub: LocalHub, environment: dict[str, str], rates: Rates) -> None:
    """Merges of the small run: their requests and processor seconds beside those foreseen."""
    plan = _plan(sorted(root.iterdir(), key=lambda folder: int(folder.name[5:])))
    file = recipe(bench.work / "recipe.yaml", "me/run", COUNT)

    def asked(*arguments: object) -> tuple[Requests, Run]:
        began = len(hub.requests)
        ended = hubextrap(*arguments, environment=environment)
        return Requests.of(hub.requests[began:]), ended

    planned, _ = asked("plan", file)
    pushed, _ = asked("merge", file, "--push", "me/out")
    kept, ended = asked("merge", file, "--out", bench.fresh("out"))
    idle = merge(bench, bench.tiny(), 2)
    shards, files = len(plan.shards), len(plan.shards) * COUNT
    ranges = sum(_ranges(plan, shard) for shard in plan.shards)
    foreseen = (
        Requests(0, ranges, 0, 0),
        Requests(0, 0, UPLOAD_CALLS * shards, sum(-(-shard.size // PART) for shard in plan.shards)),
    )
    print(f"\n{shards} shards of {plan.shards[0].size / 1e6:.0f} MB from the loopback Hub; requests\n")
    heading("to", "`plan`", "merging beyond that", "foreseen", "pushing beyond that", "foreseen")
    names = ("resolve", "ranges of the storage", "the Hub's API", "uploads to the storage")
    more = kept - planned, pushed - kept
    columns = (planned, more[0], foreseen[0], more[1], foreseen[1])
    for name, *cells in zip(names, *map(astuple, columns), strict=True):
        row(name, *cells)
    read, written = plan.total_bytes_read / 1e9, plan.total_bytes_written / 1e9
    work = Work(read, written, read / ranges)
    alone = reading(work, replace(rates, tls=0), Worker(1, 1e9, 0))["processor"] + files * rates.opening
    print(
        f"\nprocessor seconds of that merge beyond one of next to nothing: "
        f"{ended.processors - idle.processors:.2f}, foreseen {alone:.2f}"
    )


@dataclass(frozen=True, slots=True)
class Size:
    """The merge of 671B × 16."""

    units: int
    work: Work
    requests: Requests
    """Of a unit."""
    opened: int
    """Files whose headers the driver reads."""


def _at_size(bench: Bench) -> Size:
    """Its plan, from headers of the real model in sparse files."""
    root = bench.fresh("sparse")
    sparse_run(root, list(deepseek_v3(-(-61 * bench.layers // LAYERS))), COUNT)
    plan = _plan(sorted(root.iterdir(), key=lambda folder: int(folder.name[5:])))
    bench.fresh("sparse")
    units = len(plan.shards)
    some = plan.shards[:: max(1, units // 5)]
    ranges = statistics.mean(_ranges(plan, shard) for shard in some)
    request = statistics.mean(shard.bytes_read for shard in some) / (ranges - COUNT) / 1e9
    work = Work(plan.total_bytes_read / units / 1e9, plan.total_bytes_written / units / 1e9, request)
    requests = Requests(COUNT, round(ranges), UPLOAD_CALLS, 1)
    opened = sum(len(layout.shards) for layout in plan.layouts)
    print(
        f"\n{units} units, each {work.read:.1f} GB read in {round(ranges):,} ranges of {request * 1e3:.1f} MB "
        f"and {work.written:.2f} GB written; in all {plan.total_bytes_read / 1e12:.1f} TB in "
        f"{units * ranges / 1e6:.1f} million ranges; resolves: {opened:,} by the driver, "
        f"{units * COUNT:,} by workers; API calls of uploads: {units * UPLOAD_CALLS:,}"
    )
    return Size(units, work, requests, opened)


def _plan(folders: Sequence[Path]) -> MergePlan:
    """As a merge of the same checkpoints on a Hub is planned."""
    steps = [int(folder.name[5:]) for folder in folders]
    weights = coefficients("least_squares", steps, 1.5 * steps[-1])[None]
    layouts = read_layouts([LocalSource(folder) for folder in folders])
    return plan_merge(steps, layouts, lambda name: weights, budget=Budget(remote=True))


def _ranges(plan: MergePlan, shard: ShardPlan) -> int:
    """Range requests of a shard; each input's header is read once more, to compare the file."""
    reads = (read for unit in plan.units(shard) for read in unit.reads)
    return sum(-(-read.size // PART) for read in reads) + COUNT


def _binding(work: Work, rates: Rates) -> None:
    """Which of a worker's means a unit takes longest for."""
    print("\nseconds of one unit on one worker: reading, by what binds, and sending\n")
    heading("cores", "first byte ms", "card GB/s", "reading", "binds", "sending")
    for cores, first_byte in ((1, FIRST_BYTE), (CORES, FIRST_BYTE), (CORES, 0.1), (8, FIRST_BYTE)):
        for card in CARDS:
            worker = Worker(cores, card, first_byte)
            parts = reading(work, rates, worker)
            binds = max(parts, key=lambda name: parts[name])
            sent = uploading(work, rates, worker)
            row(cores, f"{first_byte * 1e3:.0f}", card, f"{parts[binds]:.0f}", binds, f"{sent:.0f}")


def _run(size: Size, rates: Rates, worker: Worker, crew: int, limits: tuple[int, int] | None) -> Outcome:
    """A merge from its first request to its commit, without losses."""
    api, resolvers = (Quota(limit) for limit in limits or (10**12, 10**12))
    granted = resolvers.take(0.0, size.opened)
    headers = size.opened * max(rates.opening, 2 * worker.first_byte / IN_FLIGHT)
    found = simulate(
        size.units,
        unit_seconds(size.work, rates, worker),
        crew,
        begins=max(granted, headers),
        start=rates.start,
        asks=[(resolvers, size.requests.resolves), (api, size.requests.api)],
    )
    return replace(found, seconds=found.seconds + COMMIT)


def _crews(size: Size, rates: Rates) -> None:
    print(
        f"\nminutes of the whole merge, {CORES} cores a worker, first bytes after {FIRST_BYTE * 1e3:.0f} ms\n"
    )
    heading("workers", "rounds", *(f"{card} GB/s each" for card in CARDS), "busy")
    for crew in CREWS:
        found = [_run(size, rates, Worker(CORES, card, FIRST_BYTE), crew, None) for card in CARDS]
        rounds = -(-size.units // crew)
        busy = size.units / (rounds * crew)
        row(crew, rounds, *(f"{one.seconds / 60:.1f}" for one in found), f"{busy:.0%}")


def _quotas(size: Size, rates: Rates) -> None:
    """The Hub's limits: of how many workers they are the pace, and what they cost."""
    worker = Worker(CORES, CARDS[1], FIRST_BYTE)
    seconds = unit_seconds(size.work, rates, worker)
    free = _run(size, rates, worker, CREWS[-1], None).seconds
    print(
        f"\n{CARDS[1]} GB/s a worker, {seconds:.0f} s a unit; {CREWS[-1]} workers take {free / 60:.1f} minutes\n"
    )
    heading("plan of all workers' token", "API / resolves in 5 minutes", "binds from", "minutes", "waited")
    for name, limits in LIMITS.items():
        asked = size.requests.api, size.requests.resolves
        most = min(limit / (ask * WINDOW / seconds) for limit, ask in zip(limits, asked, strict=True))
        found = _run(size, rates, worker, CREWS[-1], limits)
        waited = found.waited / (CREWS[-1] * found.seconds)
        allowed = f"{limits[0]:,} / {limits[1]:,}"
        row(name, allowed, f"{most:.0f} workers", f"{found.seconds / 60:.1f}", f"{waited:.0%}")


def _losses(size: Size, rates: Rates) -> None:
    """What killed workers cost, and whether smaller units would cost less."""
    crew, worker = 64, Worker(CORES, CARDS[1], FIRST_BYTE)
    print(f"\n{crew} workers of {CARDS[1]} GB/s that are lost at a constant rate; means of 20 runs\n")
    heading("lost per worker and hour", "units", "minutes", "losses", "GB read again", "seconds lost each")
    for rate in (0.0, 0.1, 1.0, 10.0):
        for parts in (1, 4):
            work = replace(size.work, read=size.work.read / parts, written=size.work.written / parts)
            seconds = unit_seconds(work, rates, worker)
            runs = []
            for seed in range(20 if rate else 1):
                draw = random.Random(seed).expovariate
                lifetime = partial(draw, rate / HOUR) if rate else lambda: float("inf")
                runs.append(simulate(size.units * parts, seconds, crew, start=rates.start, lifetime=lifetime))
            losses = statistics.mean(run.losses for run in runs)
            lost = statistics.mean(run.lost for run in runs)
            row(
                f"{rate:g}",
                size.units * parts,
                f"{statistics.mean(run.seconds for run in runs) / 60:.1f}",
                f"{losses:.1f}",
                f"{lost / seconds * work.read:.0f}",
                f"{lost / losses + rates.start:.0f}" if losses else "",
            )
