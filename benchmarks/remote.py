"""Merges straight from a Hub: ranges against a download of the same bytes, in turn."""

from __future__ import annotations

from functools import partial

from benchmarks.inputs import Bench, billions, hub_with
from benchmarks.local import figures, merge
from benchmarks.measure import heading, in_turn, job, ratios, row, spread

TARGET = 0.6


def remote(bench: Bench) -> None:
    """Own seconds at most .6 × those of snapshot_download."""
    root = bench.small(4)
    print(f"\nloopback Hub, {billions(root):.2f}B weights; medians (least–most); ratios within a round\n")
    heading("K", "program", "wall s", "own s", "processor s", "peak GB", f"own/download (target {TARGET:g})")
    with hub_with(bench, root) as environment:
        for count in (2, 4):
            revisions = [f"step_{10 * number}" for number in range(1, count + 1)]
            download = partial(job, "download", bench.work / "cache", "me/run", *revisions)
            found = in_turn(
                {
                    "hubextrap": partial(merge, bench, "me/run", count, environment=environment),
                    "snapshot_download": partial(download, environment=environment),
                },
                bench.times(5),
            )
            for name, runs in found.items():
                shares = ratios(runs, found["snapshot_download"], lambda one: one.own)
                row(count, name, *figures(runs), spread(shares))
