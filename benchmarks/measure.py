"""Whole processes, timed from outside: wall time and peak resident memory as the kernel counts it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One process that ended well."""

    seconds: float
    peak: int
    """Bytes resident at most."""
    inner: float | None
    """Seconds that it measured itself, start-up left out: its last line, where that is a number."""
    processors: float | None = None
    """Seconds of processors that it took for that: the line before, where it says so."""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end; a failure stops the benchmark with what it printed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), **(environment or {})},
        text=True,
    )
    watcher = ThreadPoolExecutor(1)
    peak = watcher.submit(_watch_peak, process.pid)
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait()
    seconds = time.perf_counter() - started
    watcher.shutdown()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{output[-3000:]}")
    last = output.strip().rpartition("\n")[2]
    try:
        inner = float(last)
    except ValueError:
        inner = None
    before = output.strip().rpartition("\n")[0].rpartition("\n")[2].split()
    busy = float(before[1]) if len(before) == 2 and before[0] == "processors" else None
    return Run(seconds, peak.result(), inner, busy)


def _watch_peak(pid: int) -> int:
    """The process's own high-water mark. ru_maxrss would not do: it starts at what this process takes."""
    peak = 0
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return peak
        marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        if not marks:  # it has ended and nobody has waited for it yet
            return peak
        peak = int(marks[0]) * 1024
        time.sleep(0.02)


def in_turn(
    cases: Mapping[str, Callable[[], Run]], rounds: int, before: Callable[[], None] = lambda: None
) -> dict[str, Run]:
    """Run all cases once each, ``rounds`` times, so that a slow spell of the machine meets all; medians.

    ``before`` each run makes all of them start alike: one that takes much memory empties the page cache.
    """
    found: dict[str, list[Run]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            before()
            found[name].append(case())
    return {name: _median(runs) for name, runs in found.items()}


def _median(runs: list[Run]) -> Run:
    inner = [run.inner for run in runs if run.inner is not None]
    busy = [run.processors for run in runs if run.processors is not None]
    return Run(
        statistics.median(run.seconds for run in runs),
        max(run.peak for run in runs),
        statistics.median(inner) if inner else None,
        statistics.median(busy) if busy else None,
    )


def cool(files: Iterable[Path]) -> None:
    """Take files out of the page cache, so that they are read from the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(files: Iterable[Path]) -> None:
    """Bring files into the page cache."""
    buffer = bytearray(2**20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
