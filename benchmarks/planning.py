"""`hubextrap plan` of models of tens of thousands of tensors."""

from __future__ import annotations

from functools import partial

from benchmarks.inputs import LAYERS, Bench, recipe
from benchmarks.measure import heading, hubextrap, in_turn, row, spread
from benchmarks.sparse import deepseek_v3, qwen3_30b_a3b, sparse_run
from benchmarks.startup import target

SECONDS, PEAK = 20.0, 600.0
"""Targets at K = 4: processor seconds, MB."""


def planning(bench: Bench) -> None:
    """At most 20 s of processor time and 600 MB at K = 4, and linear in tensors and in K."""
    models = {
        "DeepSeek-V3 (671B)": (deepseek_v3(-(-61 * bench.layers // LAYERS)), (4, 16)),
        "Qwen3-30B-A3B": (qwen3_30b_a3b(-(-48 * bench.layers // LAYERS)), (4,)),
    }
    print("\nheaders as of the real models, sparse files; medians (least–most)\n")
    heading("model", "tensors", "shards", "K", "processor s", "target", "wall s", "peak MB", "target")
    for name, (made, counts) in models.items():
        tensors, root = list(made), bench.fresh("sparse")
        shards = sparse_run(root, tensors, max(counts))
        for count in counts:
            file = recipe(bench.work / "recipe.yaml", root, count)
            runs = in_turn({"plan": partial(hubextrap, "plan", file)}, bench.times(3))["plan"]
            seconds, peak = [run.processors for run in runs], max(run.peak for run in runs) / 1e6
            limits = (target(seconds, SECONDS), target([peak], PEAK)) if count == 4 else ("", "")
            walls = spread([run.seconds for run in runs], 1)
            row(
                name,
                len(tensors),
                shards,
                count,
                spread(seconds, 1),
                limits[0],
                walls,
                f"{peak:.0f}",
                limits[1],
            )
    bench.fresh("sparse")
