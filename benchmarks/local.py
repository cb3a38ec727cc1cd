"""Merges of local folders: hubextrap, mergekit and the raw I/O of the same bytes, in turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from benchmarks.inputs import Bench, billions, recipe, repeated, weight_files
from benchmarks.measure import PYTHON, Run, heading, in_turn, job, ratios, row, run, spread, warm
from hubextrap.methods import coefficients

MERGEKIT_ROUNDS = 3
"""Of 1.78B weights; the other programs take a fraction of its time and differ more from run to run."""
TARGETS = "mergekit/this at least 6; own/raw I/O at most 1.2 at K = 4; peak at most 0.3 GB, 0.4 at K = 16"


def local(bench: Bench) -> None:
    """Whole process, own seconds and memory; K = 16 by links to the same four files."""
    large, small = bench.large(), bench.small(4)
    print("\nbf16 to bf16, page cache warm; medians (least–most); ratios within a round")
    print(f"targets: {TARGETS}\n")
    names = ("weights", "K", "program", "wall s", "own s", "processor s", "peak GB")
    other = ["other/this, own"] if bench.other else []
    heading(*names, "mergekit/this, wall", "own/raw I/O", *other)
    for root, count, mergekits in ((large, 2, MERGEKIT_ROUNDS), (large, 4, MERGEKIT_ROUNDS), (small, 4, 5)):
        files = weight_files(root, count)
        programs: dict[str, Callable[[], Run]] = {
            "hubextrap": partial(merge, bench, root, count),
            "mergekit": partial(mergekit, bench, root, count),
            "raw I/O": partial(job, "raw_io", bench.work / "raw", *files),
        }
        if bench.other:
            programs["other"] = partial(merge, bench, root, count, tree=bench.other)
        found = in_turn(programs, bench.times(5), partial(warm, files), {"mergekit": bench.times(mergekits)})
        for name, runs in found.items():
            row(
                f"{billions(root):.2f}B",
                count,
                name,
                *figures(runs),
                spread(ratios(found["mergekit"], runs, lambda one: one.seconds), 1),
                spread(ratios(runs, found["raw I/O"], lambda one: one.own)),
                *[spread(ratios(found["other"], runs, lambda one: one.own)) for _ in other],
            )
    many = repeated(large, bench.work / f"many-{bench.layers}", 16)
    row(
        f"{billions(large):.2f}B",
        16,
        "hubextrap",
        *figures([merge(bench, many, 16)]),
        "",
        "",
        *("" for _ in other),
    )


def figures(runs: list[Run]) -> tuple[str, str, str, str]:
    """Wall s, own s, processor s, peak GB."""
    return (
        spread([one.seconds for one in runs]),
        spread([one.own for one in runs]),
        spread([one.processors for one in runs]),
        f"{max(one.peak for one in runs) / 1e9:.2f}",
    )


def merge(bench: Bench, repo: object, count: int, **how: object) -> Run:
    """`hubextrap merge` of the first ``count`` checkpoints of a run; ``how`` goes to `job`."""
    out = bench.fresh("out")
    result = job("merge", recipe(bench.work / "recipe.yaml", repo, count), out, **how)  # type: ignore[arg-type]
    shutil.rmtree(out)
    return result


def mergekit(bench: Bench, root: Path, count: int) -> Run:
    """The same arithmetic by mergekit: task_arithmetic at K = 2, linear beyond."""
    steps = [10 * number for number in range(1, count + 1)]
    weights = coefficients("two_point" if count == 2 else "least_squares", steps, 15 * count).tolist()
    models = [
        {"model": str(root / f"step_{step}"), "parameters": {"weight": weight}}
        for step, weight in zip(steps, weights, strict=True)
    ]
    content: dict[str, object] = {"dtype": "float32", "out_dtype": "bfloat16"}
    if count == 2:
        content |= {"merge_method": "task_arithmetic", "base_model": models[0]["model"], "models": models[1:]}
    else:
        content |= {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    config, out = bench.work / "mergekit.yaml", bench.fresh("out")
    config.write_text(yaml.safe_dump(content))
    result = run([Path(PYTHON).parent / "mergekit-yaml", config, out], {"HF_HUB_OFFLINE": "1"})
    shutil.rmtree(out)
    return result
