"""What a unit of work costs: rates of its parts, and the requests of a small run, from a loopback Hub."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.inputs import LAYERS, Bench, recipe
from benchmarks.local import merge
from benchmarks.measure import Run, heading, hubextrap, in_turn, job, row, spread
from benchmarks.simulation import IN_FLIGHT, Rates, Work, Worker, reading
from benchmarks.sparse import Tensor, sparse_run
from hubextrap.engine.budget import Budget
from hubextrap.engine.plan import MergePlan, ShardPlan, plan_merge
from hubextrap.methods import coefficients
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import PART
from hubextrap.tensors.weights import read_layouts

if TYPE_CHECKING:
    from hubextrap.localhub import LocalHub
    from hubextrap.localhub.faults import Request
    from hubextrap.tensors.layout import CheckpointLayout

COUNT = 16
FIRST_BYTE = 0.05
"""Seconds, assumed: the loopback Hub's are none."""
MEMORY = 2**30
"""Of a worker: less makes for shorter requests, and more of them."""
SHARDS = 2


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked of whom."""

    resolves: int = 0
    """``/resolve/`` of the Hub, which says where a file lies."""
    api: int = 0
    """Of the Hub, all else; the ends of uploads in parts count here, as they do there."""
    ranges: int = 0
    """Of the storage behind it."""
    uploads: int = 0
    """Parts, to the storage."""

    @classmethod
    def of(cls, asked: Sequence[Request]) -> Requests:
        storage = [one for one in asked if one.path.startswith("/lfs/") and one.method != "POST"]
        resolves = sum("/resolve/" in one.path for one in asked)
        ranges = sum(one.method == "GET" for one in storage)
        return cls(resolves, len(asked) - len(storage) - resolves, ranges, len(storage) - ranges)

    def plus(self, other: Requests, times: int = 1) -> Requests:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Requests(*(one + times * two for one, two in pairs))


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured."""

    rates: Rates
    driver: Requests
    """But for finding files and reading their headers."""
    worker: Requests
    """Of a process, before its first unit."""
    unit: Requests
    """Of a unit; its ranges follow from its size."""
    last: Requests
    """Of the last step."""


def costs(bench: Bench) -> Costs:
    """Measure, and print what came of it."""
    root = _small_run(bench)
    with _hub(bench, root) as (hub, environment):
        rates = _rates(bench, hub, environment)
        return _small_merge(bench, root, hub, environment, rates)


def layouts_of(root: Path) -> list[CheckpointLayout]:
    """Those of a run's checkpoints, in step order."""
    folders = sorted(root.iterdir(), key=lambda folder: int(folder.name[5:]))
    with ExitStack() as stack:
        return read_layouts([stack.enter_context(closing(LocalSource(folder))) for folder in folders])


def plan_of(layouts: Sequence[CheckpointLayout], memory: int = MEMORY) -> MergePlan:
    """As a merge of these checkpoints is planned if they lie on a Hub."""
    steps = range(10, 10 * len(layouts) + 1, 10)
    weights = coefficients("least_squares", steps, 15 * len(layouts))[None]
    return plan_merge(steps, layouts, lambda name: weights, budget=Budget(memory, remote=True))


def ranges_of(plan: MergePlan, shard: ShardPlan) -> int:
    """Range requests of a shard; the header of each input is read with them, to compare the whole file."""
    reads = (read for unit in plan.units(shard) for read in unit.reads)
    return sum(-(-read.size // PART) for read in reads) + COUNT


def _small_run(bench: Bench) -> Path:
    """Two shards of 100 MB, sixteen times: enough to count requests and processor seconds."""
    root, elements = bench.fresh("small-shards"), max(1, 8192 * bench.layers // LAYERS)
    tensors: list[Tensor] = [
        (f"model.layers.{number}.weight", (elements, 1024)) for number in range(6 * SHARDS)
    ]
    sparse_run(root, tensors, COUNT, 6 * 2048 * elements)
    noise = np.random.default_rng(0).standard_normal(6 * 1024 * elements, np.float32) * 0.02
    weights = (noise.view(np.uint32) >> 16).astype(np.uint16)
    for number, folder in enumerate(root.iterdir()):
        for file in folder.glob("*.safetensors"):
            with file.open("r+b") as stream:
                stream.seek(file.stat().st_size - weights.nbytes)
                stream.write((weights ^ np.uint16(number)).data)
    return root


@contextmanager
def _hub(bench: Bench, root: Path) -> Iterator[tuple[LocalHub, dict[str, str]]]:
    """A loopback Hub that redirects to a storage and takes uploads in parts, as the real one does."""
    from hubextrap.localhub import LocalHub

    with LocalHub(bench.fresh("hub"), tokens={"hf_bench": "me"}, cdn=True) as hub:
        hub.part_size = PART
        for name in ("me/run", "me/out", "me/one", "me/two"):
            hub.create_repo(name)
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
    for name in ("hub", "hf", "small-shards"):
        bench.fresh(name)


def _rates(bench: Bench, hub: LocalHub, environment: dict[str, str]) -> Rates:
    """Medians, and how they were spread."""
    from hubextrap.localhub.faults import Fault

    folder = bench.fresh("rates")
    folder.mkdir()
    measure = partial(job, "rates", folder, COUNT, environment=environment)
    found = measure(bench.times(5)).said
    # a whole merge of next to nothing: imports, machine code and all
    tiny = in_turn({"tiny": partial(merge, bench, bench.tiny(), 2)}, bench.times(5))["tiny"]
    starts = [one.processors for one in tiny]
    hub.faults.add(Fault("^/lfs/", method="GET", delay=FIRST_BYTE, count=10**6))
    delayed = measure(1, "fetch").said
    hub.faults.clear()
    bench.fresh("rates")
    print("\nprocessor seconds of one core; medians (least–most)\n")
    heading("part of a unit", "per GB")
    for name, what in (
        ("fetch", "range requests, without TLS"),
        ("tls", "TLS"),
        ("sha256", "sha256 of inputs"),
        ("xxh3", "XXH3 of inputs"),
        ("sums", f"sums of {COUNT} (per GB read)"),
        ("write", "sha256 and writing of the output"),
        ("upload", "upload over LFS, without TLS"),
    ):
        row(what, spread(found[name]))
    opening = spread([1e3 * one for one in found["opening"]], 1)
    most = IN_FLIGHT * PART / FIRST_BYTE / 1e9
    print(
        f"\na file found and its header read: {opening} ms of a core; a worker's start: {spread(starts)} s"
        f"\none process reads {spread(found['fetch_wall'])} GB/s from a Hub on the same cores, and "
        f"{spread(delayed['fetch_wall'])} if first bytes take {FIRST_BYTE * 1e3:.0f} ms (at most {most:.2f})"
    )
    middle = {name: statistics.median(values) for name, values in found.items() if name != "fetch_wall"}
    return Rates(**middle, start=statistics.median(starts))


def _small_merge(bench: Bench, root: Path, hub: LocalHub, environment: dict[str, str], rates: Rates) -> Costs:
    """The small run merged by driver, workers and last step, each a process: what each asks for."""
    plan = plan_of(layouts_of(root))
    file = recipe(bench.work / "recipe.yaml", "me/run", COUNT)

    def asked(run: Callable[..., Run], *arguments: object) -> tuple[Requests, Run]:
        began = len(hub.requests)
        ended = run(*arguments, environment=environment)
        return Requests.of(hub.requests[began:]), ended

    def worked(target: str, *units: int) -> tuple[Requests, Run, str]:
        place = asked(job, "submit", file, target, MEMORY)[1].said["place"]
        return *asked(hubextrap, "worker", place, *units), place

    (single, short, _), (double, long, place) = worked("me/one", 0), worked("me/two", 0, 1)
    driver, _ = asked(job, "submit", file, "me/out", MEMORY)
    last, _ = asked(hubextrap, "finish", place)
    unit = double.plus(single, -1)
    worker = single.plus(unit, -1)
    headers = Requests(resolves=SHARDS * COUNT, ranges=SHARDS * COUNT)
    shard = plan.shards[1]
    foreseen = Requests(COUNT, unit.api, ranges_of(plan, shard), -(-shard.size // PART))
    print(f"\nrequests, counted for {SHARDS} shards of {shard.size / 1e6:.0f} MB\n")
    heading(f"of, at K = {COUNT}", "resolve", "API", "ranges", "upload parts")
    row("the driver, headers aside", *astuple(driver.plus(headers, -1)))
    row("each worker process", *astuple(worker))
    row("each unit", *astuple(unit))
    row("each unit, foreseen", *astuple(foreseen))
    assert unit == foreseen, "units ask for something else than their plan says"
    row("the last step", *astuple(last))
    work = Work(shard.bytes_read / 1e9, shard.size / 1e9, PART / 1e9)
    alone = reading(work, replace(rates, tls=0), Worker(1, 1e9, 0))["processor"]
    alone += COUNT * rates.opening + work.written * rates.upload
    taken = long.processors - short.processors
    other = max(0.0, taken - alone) / work.read
    print(
        f"\nprocessor seconds of a unit of {work.read:.1f} GB: {taken:.2f}, of its parts by their rates "
        f"{alone:.2f}; so {other:.2f} per GB are between the parts; a worker's peak: {long.peak / 1e9:.2f} GB"
    )
    return Costs(replace(rates, other=other), driver.plus(headers, -1), worker, unit, last)
