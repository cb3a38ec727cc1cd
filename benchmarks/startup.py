"""Processor time of what a user waits for before anything is read or written."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from functools import partial

import yaml

from benchmarks.inputs import Bench, recipe
from benchmarks.measure import Run, heading, hubextrap, in_turn, job, row, spread

HELP, ERROR, FIRST_BYTE, COMPILING = 0.3, 0.7, 0.9, 3.0
"""Targets: processor seconds; of the last, seconds that the very first run may take longer."""


def startup(bench: Bench) -> None:
    """`--help`, errors, the first byte of a merge, and what the very first merge takes longer."""
    good = recipe(bench.work / "recipe.yaml", bench.tiny(), 2)
    wrong = bench.work / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(yaml.safe_load(good.read_text()) | {"merge_methd": "linear"}))

    def merge(**how: object) -> Run:
        out = bench.fresh("out")
        result = job("first_byte", good, out, **how)  # type: ignore[arg-type]
        shutil.rmtree(out)
        return result

    cases: dict[str, tuple[float, Callable[[], Run]]] = {
        "`--help`": (HELP, partial(hubextrap, "--help")),
        "`plan nope.yaml`": (ERROR, partial(hubextrap, "plan", bench.work / "nope.yaml", code=1)),
        "`plan` of a recipe with an unknown key": (ERROR, partial(hubextrap, "plan", wrong, code=1)),
        "`merge` with an unknown option": (ERROR, partial(hubextrap, "merge", good, "--nope", code=2)),
        "`verify` of a missing folder": (ERROR, partial(hubextrap, "verify", bench.work / "nope", code=1)),
        "`merge`, up to the first byte of a tensor": (FIRST_BYTE, merge),
    }
    programs = {name: program for name, (_, program) in cases.items()}
    in_turn(programs, 1)  # Python compiles modules, numba loops
    found = in_turn(programs, bench.times(5))
    print("\nmedians (least–most)\n")
    heading("what", "processor s", "target", "wall s", "peak MB")
    for name, runs in found.items():
        taken = [run.said.get("first_byte", run.processors) for run in runs]
        peak = f"{max(run.peak for run in runs) / 1e6:.0f}"
        limit = cases[name][0]
        row(name, spread(taken), target(taken, limit), spread([run.seconds for run in runs]), peak)
    pair: dict[str, Callable[[], Run]] = {
        "first": lambda: merge(environment={"NUMBA_CACHE_DIR": str(bench.fresh("numba"))}),
        "later": lambda: merge(environment={"NUMBA_CACHE_DIR": str(bench.work / "numba")}),
    }
    ever = in_turn(pair, bench.times(3))
    longer = [one.seconds - two.seconds for one, two in zip(ever["first"], ever["later"], strict=True)]
    busy = [one.processors - two.processors for one, two in zip(ever["first"], ever["later"], strict=True)]
    print(
        f"\nthe very first merge takes {spread(longer)} s longer (target {target(longer, COMPILING)}), "
        f"{spread(busy)} s of processor time"
    )


def target(values: list[float], limit: float) -> str:
    """The limit, and whether the median keeps it."""
    return f"≤ {limit:g}" + (" missed" if statistics.median(values) > limit else "")
