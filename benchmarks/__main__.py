"""`make bench`: each program in turn with its peer, ratio by ratio, in under 30 minutes and 30 GB of disk."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.adapters import adapters
from benchmarks.formats import formats
from benchmarks.inputs import LAYERS, Bench
from benchmarks.kernels import kernels
from benchmarks.local import local, merge
from benchmarks.measure import ROOT, timed_case
from benchmarks.merged_adapters import merged
from benchmarks.on_ray import on_ray
from benchmarks.planning import planning
from benchmarks.profile import profile
from benchmarks.remote import remote
from benchmarks.sampled import sampled
from benchmarks.scaling import scaling
from benchmarks.scan import scan
from benchmarks.startup import startup

CASES: dict[str, Callable[[Bench], None]] = {
    "startup": startup,
    "planning": planning,
    "kernels": kernels,
    "local": local,
    "profile": profile,
    "remote": remote,
    "scan": scan,
    "sampled": sampled,
    "formats": formats,
    "adapters": adapters,
    "merged-adapters": merged,
    "ray": on_ray,
    "scaling": scaling,
}
PAIRED = ("local", "scan")
"""Cases that another checkout can take part in."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="28 makes 1.78B weights, fewer less in proportion"
    )
    parser.add_argument("--rounds", type=int, help="the same for all cases, instead of their own")
    parser.add_argument("--only", choices=CASES, action="append", help="run these cases only")
    parser.add_argument(
        "--other", type=Path, metavar="TREE", help="checkout of another hubextrap, run in turn"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(__file__).parent / "work", help="for inputs and outputs"
    )
    given = parser.parse_args()
    names = given.only or list(CASES)
    other = None
    if given.other is not None:
        other = given.other.resolve()
        if not (other / "hubextrap").is_dir():
            parser.error(f"--other {other}: holds no hubextrap")
        if not set(names) & set(PAIRED):
            parser.error(f"--other goes with {' and '.join(PAIRED)}")
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, given.layers, given.rounds, other)
    print(f"machine: {machine()}")
    started = time.perf_counter()
    for tree in filter(None, (ROOT, other)):
        merge(bench, bench.tiny(), 2, tree=tree)  # the first one compiles the loops
    for name in names:
        with timed_case(name):
            CASES[name](bench)
    print(f"\nall: {(time.perf_counter() - started) / 60:.1f} minutes")


def machine() -> str:
    """What the figures were measured on, as far as they depend on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    python = platform.python_version()
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB memory, Python {python}"


if __name__ == "__main__":
    main()
