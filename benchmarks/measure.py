"""Whole processes in turn, timed from outside: seconds, processor time, memory as the kernel counts them."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHON = sys.executable
ROOT = Path(__file__).parent.parent
JOBS = Path(__file__).parent / "jobs"


@dataclass(frozen=True, slots=True)
class Run:
    """One process that ended as it should."""

    seconds: float
    processors: float
    """Seconds of processor time, user and system, of all its threads."""
    peak: int
    """Bytes resident at most."""
    said: Mapping[str, Any]
    """Its last line where that is a JSON object: what a job measured itself."""

    @property
    def own(self) -> float | None:
        """Seconds without Python's start-up and imports, where the job says it."""
        return self.said.get("own")

    @property
    def own_processors(self) -> float | None:
        """Processor seconds of the same."""
        return self.said.get("processors")


def run(
    command: Sequence[object],
    environment: Mapping[str, str] | None = None,
    *,
    tree: Path = ROOT,
    code: int = 0,
) -> Run:
    """Run a command to its end; another exit code than ``code`` stops the benchmark with what it printed.

    Args:
        tree: the checkout whose hubextrap it imports.
    """
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_DISABLE_TELEMETRY": "1"}
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as watcher:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own, **(environment or {})},
            cwd=JOBS,  # no checkout: `python -m hubextrap` would take the one in the current folder
            text=True,
        )
        peak = watcher.submit(_watch_peak, process.pid)
        assert process.stdout is not None
        output = process.stdout.read()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen would wait for it once more
    if process.returncode != code:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output[-3000:]}")
    last = output.strip().rpartition("\n")[2]
    said = json.loads(last) if last.startswith("{") else {}
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak.result(), said)


def job(
    name: str, *arguments: object, environment: Mapping[str, str] | None = None, tree: Path = ROOT
) -> Run:
    """Run a file of `jobs`. It imports hubextrap from ``tree`` and nothing from here."""
    return run([PYTHON, JOBS / f"{name}_job.py", *arguments], environment, tree=tree)


def hubextrap(
    *arguments: object, environment: Mapping[str, str] | None = None, tree: Path = ROOT, code: int = 0
) -> Run:
    """Run the `hubextrap` command."""
    return run([PYTHON, "-m", "hubextrap", *arguments], environment, tree=tree, code=code)


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
        time.sleep(0.01)


def in_turn(
    programs: Mapping[str, Callable[[], Run]],
    rounds: int,
    before: Callable[[], None] = lambda: None,
    fewer: Mapping[str, int] | None = None,
) -> dict[str, list[Run]]:
    """Run all programs once each, A B A B …: a slow spell of the machine meets both sides of a pair.

    Args:
        before: makes all runs start alike; one that takes much memory empties the page cache.
        fewer: programs that run in so many rounds only, the first ones.
    """
    found: dict[str, list[Run]] = {name: [] for name in programs}
    for number in range(rounds):
        for name, program in programs.items():
            if number < (fewer or {}).get(name, rounds):
                before()
                found[name].append(program())
    return found


def ratios(ones: Sequence[Run], others: Sequence[Run], figure: Callable[[Run], float | None]) -> list[float]:
    """One for each round that both ran in; empty where one of them does not say the figure."""
    pairs = [(figure(one), figure(other)) for one, other in zip(ones, others, strict=False)]
    return [one / other for one, other in pairs if one is not None and other]


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """The median, with the least and the most behind it."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    middle = f"{statistics.median(known):.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.{digits}f}–{max(known):.{digits}f})"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def heading(*cells: str) -> None:
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


@contextmanager
def timed_case(name: str) -> Iterator[None]:
    """Say before a case how busy the machine is, and after it how long it took and what others took."""
    cores, load = os.cpu_count() or 1, os.getloadavg()
    print(f"\n## {name}\n\nload average before: {load[0]:.2f} {load[1]:.2f} {load[2]:.2f}", flush=True)
    if load[0] > cores:
        print(f"WARNING: that is above {cores} cores; unless it was the case before, figures are off")
    started, busy = time.perf_counter(), _others()
    yield
    seconds = time.perf_counter() - started
    share = max(0.0, (_others() - busy) / (seconds * cores))
    print(f"\n{name}: {seconds:.0f} s; other programs and the kernel took {share:.0%} of the processors")


def _others() -> float:
    """Processor seconds since the machine started that were not this process's or its children's."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in ours)


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
