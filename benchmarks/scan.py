"""One scan of eight checkpoints, against reading the same bytes and doing nothing with them, in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.inputs import Bench, billions, weight_files
from benchmarks.local import figures
from benchmarks.measure import Run, cool, heading, in_turn, job, ratios, row, spread, warm


def scan(bench: Bench) -> None:
    """Own seconds at most 2 × the raw read from a disk, and no more than another checkout's."""
    tiny, root = bench.tiny(), bench.small(8)
    files = weight_files(root, 8)
    print(f"\nK = 8, {billions(root):.2f}B weights, bf16; medians (least–most); ratios within a round\n")
    names = ["files in", "program", "wall s", "own s", "own processor s", "peak GB", "own/raw read"]
    heading(*names, *(["own/other's", "own processor s/other's"] if bench.other else []))
    for place, before in (("the disk", cool), ("the page cache", warm)):
        programs: dict[str, Callable[[], Run]] = {
            "scan": partial(job, "scan", tiny, root),
            "raw read": partial(job, "raw_io", "-", *files),
        }
        if bench.other:
            programs["other scan"] = partial(job, "scan", tiny, root, tree=bench.other)
        found = in_turn(programs, bench.times(5), partial(before, files))
        for name, runs in found.items():
            wall, own, _, peak = figures(runs)
            busy = spread([one.own_processors for one in runs])
            raw = ratios(runs, found["raw read"], lambda one: one.own)
            beside = []
            if bench.other:
                beside = [
                    ratios(runs, found["other scan"], lambda one: one.own),
                    ratios(runs, found["other scan"], lambda one: one.own_processors),
                ]
            row(place, name, wall, own, busy, peak, spread(raw), *map(spread, beside))
