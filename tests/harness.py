"""What tests in several folders use: a Progress that remembers, commands to be killed, the sources' files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubextrap.progress import SilentProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.localhub import LocalHub
    from hubextrap.scans.tensor_scan import TensorScan

ROOT = Path(__file__).parents[1]
SHARDS = 12
"""Files of each checkpoint of the run in tests/resume."""


class Lines(SilentProgress):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.said.append(f"warning: {line}")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal; all it printed; and after how long."""

    code: int
    output: str
    seconds: float


class Warm:
    """Runs `hubextrap` commands in forks of one process that has everything imported, see warm.py.

    Args:
        folder: for output and temporary files.
        scanned: a checkpoint that is scanned once, so that the loops are compiled.
    """

    def __init__(self, folder: Path, scanned: Path | None = None) -> None:
        self.environment: dict[str, str] = {}
        """Variables that commands get beside those of this process."""
        self.temporary = folder / "tmp"
        """The processes' folder for temporary files, and nobody else's."""
        self.temporary.mkdir()
        self._output = folder / "output"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "warm.py"), *([str(scanned)] if scanned else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(self.temporary)},
        )
        assert self._answer() == "ready"

    def run(
        self, *arguments: str | Path, after: float | None = None, sign: signal.Signals = signal.SIGKILL
    ) -> Ended:
        """Run a command to its end, or send it ``sign`` after so many seconds."""
        return self.end(self.start(*arguments), after, sign)

    def start(self, *arguments: str | Path) -> int:
        """Start a command; its pid."""
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "output": str(self._output),
            "environment": self.environment,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self._started = time.monotonic()
        return int(self._answer())

    def end(self, pid: int, after: float | None = None, sign: signal.Signals = signal.SIGKILL) -> Ended:
        """Wait for the command that was started, or send it ``sign`` after so many seconds."""
        if after is not None:
            time.sleep(max(0.0, after - (time.monotonic() - self._started)))
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(pid, sign)
        code = int(self._answer())
        return Ended(code, self._output.read_text(), time.monotonic() - self._started)

    def printed(self) -> str:
        """What the command under way has printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


_HELD = """
import time
from hubextrap.cli.main import main
from {module} import {owner}

real, calls = {owner}.{method}, 0

def held(*given, **named):
    global calls
    calls += 1
    if calls == {call}:
        time.sleep(600)
    return real(*given, **named)

{owner}.{method} = held
main()
"""


def held(method: str, call: int) -> list[str]:
    """The beginning of a `hubextrap` command line, of a process that stays at one call of a method.

    Whoever sends it a signal once something is there comes before its end, however long that takes.

    Args:
        method: with its module and class, as in ``package.module:Class.method``.
        call: from 1 on.
    """
    module, _, name = method.partition(":")
    owner, _, function = name.partition(".")
    text = _HELD.format(module=module, owner=owner, method=function, call=call)
    return [sys.executable, "-c", text]


def source_files(scratch: Path) -> list[str]:
    """The files of these sources: what git tracks; in an unpacked sdist, what .gitignore does not name.

    Args:
        scratch: a folder that is not there yet.
    """
    git = ["git", "-C", str(ROOT)]
    if (ROOT / ".git").exists():
        chosen = ["ls-files", "-z"]
    else:
        subprocess.run(["git", "init", "--quiet", "--bare", scratch], check=True)
        git += [f"--git-dir={scratch}", f"--work-tree={ROOT}"]
        chosen = ["ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"]
    listed = subprocess.run([*git, *chosen], check=True, capture_output=True, text=True).stdout
    return sorted(set(listed.rstrip("\0").split("\0")) - {"PKG-INFO"})  # the sdist's own


def weights_read(hub: LocalHub) -> list[str]:
    """The requests so far for bytes of weights: headers are read from a file's start, tensors from behind."""
    return [
        f"{request.path} {request.headers['Range']}"
        for request in hub.requests
        if request.method == "GET"
        and request.path.partition("?")[0].endswith(".safetensors")
        and not (request.headers["Range"] or "").startswith("bytes=0-")
    ]


@contextlib.contextmanager
def scan_stopped_after(tensors: int) -> Iterator[None]:
    """Interrupt the scan in this block once so many tensors are recorded; the block has to make one."""
    from hubextrap.scans.tensor_scan import ScanJournal

    record, count = ScanJournal.record, 0

    def stop(journal: ScanJournal, found: TensorScan) -> None:
        nonlocal count
        record(journal, found)
        count += 1
        if count == tensors:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ScanJournal, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            yield
