"""Backtests of a sample from a Hub as far away as a real one, beside those of all weights, in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.inputs import LAYERS, Bench, billions, trajectory
from benchmarks.linked_hub import REPO, Traffic, linked_hub, made_up, sha256_of
from benchmarks.local import figures
from benchmarks.measure import Run, heading, hubextrap, in_turn, ratios, row, spread
from benchmarks.sparse import llama_7b, sparse_run
from benchmarks.startup import target
from hubextrap.sample_sizes import DEFAULT_SAMPLE
from hubextrap.scans.places import places_of
from hubextrap.tensors import LocalSource, read_layout

BYTES, SECONDS = 1 / 20, 1 / 8
"""Targets of a sampled backtest: shares of the exact one's."""
LARGE_SECONDS, LARGE_PEAK = 60.0, 0.5
"""Targets of one of 30 checkpoints of a 7B model: seconds, GB."""
COUNT = 8
SAMPLE = ("--sample", DEFAULT_SAMPLE)


def sampled(bench: Bench) -> None:
    """At most 1/20 of the exact backtest's bytes and 1/8 of its time; a ninth checkpoint costs itself."""
    layers, vocabulary = max(1, 8 * bench.layers // LAYERS), 90_000 * bench.layers // LAYERS
    root = trajectory(bench.work / f"sampled-{bench.layers}", layers, COUNT + 1, vocabulary)
    folders = sorted(root.iterdir(), key=lambda path: int(path.name.partition("_")[2]))
    print(
        f"\nloopback Hub, every answer 20 ms late, K = {COUNT}, {billions(root):.2f}B weights; medians "
        "(least–most); ratios within a round\n"
    )
    _heading("time/exact", "target", "bytes/exact", "target")
    with linked_hub(bench, folders, sha256_of) as (hub, environment, commits):
        traffic: dict[str, Traffic] = {}

        def run(name: str, *arguments: object) -> Run:
            hub.requests.clear()
            found = hubextrap(*arguments, environment=environment)
            traffic[name] = Traffic.of(hub)
            return found

        first = ("--max-step", 10 * COUNT)
        choices = {"a sample": SAMPLE, "all weights": ("--exact",)}
        found = in_turn(
            {name: partial(run, name, "backtest", REPO, *first, *how) for name, how in choices.items()},
            bench.times(3),
        )
        exact = traffic["all weights"].bytes
        for name, runs in found.items():
            shares = ratios(runs, found["all weights"], lambda one: one.seconds)
            brought = traffic[name].bytes / exact
            beside = (spread(shares, 3), target(shares, SECONDS), f"{brought:.4f}", target([brought], BYTES))
            _row(f"backtest, {name}", runs, traffic[name], *(beside if name == "a sample" else [""] * 4))
        out = bench.fresh("scan")
        for name, steps in (("scan of a sample", first), ("a ninth added to it", ())):
            _row(name, [run(name, "scan", REPO, *steps, *SAMPLE, "--out", out)], traffic[name], *[""] * 4)
        read_again = traffic["a ninth added to it"].resolved & set(commits[:COUNT])
        print(f"\nof the first {COUNT} checkpoints, it read {len(read_again)} again (target 0)")
        out.unlink()
    _large(bench)


def _large(bench: Bench) -> None:
    """30 checkpoints of a 7B model, sparse but where a sample reads, in under 60 s and 0.5 GB."""
    root, count = bench.fresh("sparse"), 30
    tensors = list(llama_7b(-(-32 * bench.layers // LAYERS)))
    shards = sparse_run(root, tensors, count)
    folders = sorted(root.iterdir(), key=lambda path: int(path.name.partition("_")[2]))
    size = _fill(folders)
    print(
        f"\n{count} checkpoints of {size / 1e9:.2f}B weights in {shards} shards, sparse files, as far away\n"
    )
    _heading("target s", "target peak GB")
    with linked_hub(bench, folders, made_up) as (hub, environment, _):
        runs, traffic = [], None
        for _ in range(bench.times(1)):
            hub.requests.clear()
            runs.append(hubextrap("backtest", REPO, environment=environment))
            traffic = Traffic.of(hub)
        assert traffic is not None
        limits = (
            target([one.seconds for one in runs], LARGE_SECONDS),
            target([one.peak / 1e9 for one in runs], LARGE_PEAK),
        )
        _row(f"backtest, K = {count}", runs, traffic, *limits)
    bench.fresh("sparse")


def _fill(folders: list[Path]) -> int:
    """Write what a sample reads: weights that drift and wander. Returns how many each checkpoint has."""
    with_layout = [(folder, read_layout(LocalSource(folder))) for folder in folders]
    generator, total = np.random.default_rng(0), 0
    wander: Callable[[int], np.ndarray] = partial(generator.standard_normal, dtype=np.float32)
    for name, info in with_layout[0][1].tensors.items():
        elements = info.nbytes // 2
        total += elements
        for first, length in places_of(name, elements, DEFAULT_SAMPLE).ranges:
            start, drift, noise = wander(length) * 0.02, wander(length) * 1e-3, wander(length) * 1e-3
            for k, (folder, _) in enumerate(with_layout):
                values = start + k / len(folders) * drift + np.roll(noise, 97 * k)
                with (folder / info.file).open("r+b", buffering=0) as file:
                    file.seek(info.offset + 2 * first)
                    file.write((values.view(np.uint32) >> 16).astype(np.uint16))
    return total


def _heading(*more: str) -> None:
    names = ["command", "wall s", "own s", "processor s", "peak GB"]
    heading(*names, "MB from the storage", "requests", "of /resolve/", "of the API", *more)


def _row(name: str, runs: list[Run], traffic: Traffic, *more: str) -> None:
    counted = traffic.ranges, traffic.resolves, traffic.calls
    row(name, *figures(runs), f"{traffic.bytes / 1e6:,.0f}", *(f"{one:,}" for one in counted), *more)
