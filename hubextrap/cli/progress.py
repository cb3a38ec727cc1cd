"""Progress on the terminal: a live bar where there is one, plain lines elsewhere; warnings alone with -q.

Everything goes to stderr, so that stdout stays clean for tables and JSON.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from hubextrap.foreign_text import as_shown
from hubextrap.narrow import fitted
from hubextrap.progress import Progress, SilentProgress, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 5.0


def open_progress(quiet: bool) -> Progress:
    """The right kind of progress for this run."""
    if quiet:
        return QuietProgress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress(sys.stderr)


def format_bytes(count: float) -> str:
    """Bytes in decimal units, as disks and the Hub count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_memory(count: int) -> str:
    """Bytes in the unit of ``--memory``, rounded up."""
    return f"{-(-count // 2**20):,} MiB"


def format_seconds(seconds: float) -> str:
    """Seconds as a person writes them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class QuietProgress(SilentProgress):
    """Nothing but warnings."""

    def warn(self, line: str) -> None:
        print(fitted(as_shown(f"warning: {line}"), sys.stderr), file=sys.stderr, flush=True)


class LineProgress:
    """One line at the start, every few seconds and at the end: for logs and CI."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Stage]:
        stage = _LineStage(self, label, total, unit)
        yield stage
        stage.finish()

    def say(self, line: str) -> None:
        print(fitted(as_shown(line), self._stream), file=self._stream, flush=True)

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")


class _LineStage:
    def __init__(self, progress: LineProgress, label: str, total: int | None, unit: str) -> None:
        self._progress = progress
        self._label = label
        self._total = total
        self._unit = unit
        self._done = 0
        self._lock = threading.Lock()
        self._started = self._printed = time.monotonic()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._printed < SECONDS_BETWEEN_LINES:
                return
            self._printed = now
            line = self._line(now - self._started)
        self._progress.say(line)

    def finish(self) -> None:
        seconds = time.monotonic() - self._started
        self._progress.say(
            f"{self._label}: {self._amount(self._done)} in {seconds:.1f} s{self._rate(seconds)}"
        )

    def _line(self, seconds: float) -> str:
        line = f"{self._label}: {self._amount(self._done)}"
        if self._total:
            remaining = seconds * (self._total - self._done) / max(self._done, 1)
            line += f" of {self._amount(self._total)} ({100 * self._done / self._total:.0f} %)"
            return f"{line}{self._rate(seconds)}, ETA {format_seconds(remaining)}"
        return line + self._rate(seconds)

    def _amount(self, count: int) -> str:
        if self._unit == "B":
            return format_bytes(count)
        return f"{count} {self._unit.removesuffix('s') if count == 1 else self._unit}"

    def _rate(self, seconds: float) -> str:
        if self._unit != "B" or seconds <= 0:
            return ""
        return f", {format_bytes(self._done / seconds)}/s"


class TerminalProgress:
    """A live bar with bytes, rate and time left, drawn by Rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Stage]:
        from rich import progress as rich

        count = (rich.MofNCompleteColumn(), rich.TextColumn(unit))
        size = (rich.DownloadColumn(), rich.TransferSpeedColumn())
        with rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(),
            *(size if unit == "B" else count),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            console=self._console,
        ) as bar:
            yield _BarStage(bar, bar.add_task(as_shown(label), total=total))

    def say(self, line: str) -> None:
        shown = fitted(as_shown(line), sys.stderr)
        self._console.print(shown, highlight=False, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")


class _BarStage:
    def __init__(self, bar: RichProgress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def advance(self, amount: int) -> None:
        self._bar.advance(self._task, amount)
