"""Where the processor seconds of a merge go."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial

from benchmarks.inputs import Bench, billions, hub_with, recipe, weight_files
from benchmarks.measure import Run, heading, in_turn, job, row, warm


def profile(bench: Bench) -> None:
    """Each thread's own processor time by stage; what no stage has is "other"."""
    large, small = bench.large(), bench.small(4)
    columns = {f"{billions(large):.2f}B, K = {count}": _middle(bench, large, count) for count in (2, 4)}
    with hub_with(bench, small) as environment:
        columns[f"{billions(small):.2f}B from the Hub, K = 2"] = _middle(bench, "me/run", 2, environment)
    print("\nprocessor seconds, imports left out, of the run with the median of them\n")
    heading("stage", *columns)
    for stage in dict.fromkeys(stage for one in columns.values() for stage in one.said["stages"]):
        row(stage, *(f"{one.said['stages'].get(stage, 0):.2f}" for one in columns.values()))
    row("all of it", *(f"{one.said['whole']:.2f}" for one in columns.values()))
    row("own seconds on the clock", *(f"{one.own:.2f}" for one in columns.values()))


def _middle(bench: Bench, repo: object, count: int, environment: Mapping[str, str] | None = None) -> Run:
    file = recipe(bench.work / "recipe.yaml", repo, count)
    files = [] if environment else weight_files(repo, count)  # type: ignore[arg-type]

    def merge() -> Run:
        out = bench.fresh("out")
        result = job("profile", file, out, environment=environment)
        shutil.rmtree(out)
        return result

    runs = in_turn({"merge": merge}, bench.times(3), partial(warm, files))["merge"]
    return sorted(runs, key=lambda one: one.said["whole"])[len(runs) // 2]
