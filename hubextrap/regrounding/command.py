"""Run a command to its end: its output in a log, signals passed on, nothing left behind when we die."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from hubextrap.durable.atomic import writing
from hubextrap.errors import CommandFailed
from hubextrap.foreign_text import own_lines, terminal_output
from hubextrap.output_files import refuse_file
from hubextrap.redaction import redact
from hubextrap.regrounding import guardian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LAST_LINES = 12
"""Lines of a failed command that its error shows."""
_TAIL = 64 * 1024
_INTERVAL = 0.05
_ENDING = 10.0
"""Seconds that a command has between SIGTERM and SIGKILL once its time is up."""
_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class CommandRunner:
    """What all commands of a run have in common."""

    lock: int
    """Descriptor of the run's lock; a command's guardian keeps it until the command has ended."""
    say: Callable[[str], None]
    echo: BinaryIO | None = None
    """Where the commands' output goes besides their logs, without what looks like a secret."""

    def run(self, arguments: Sequence[str], log: Path, what: str) -> None:
        """Run ``arguments`` in a session of its own, in the current folder, with the same environment.

        An interrupt (SIGINT, SIGTERM) is passed on to its process group and waited for; a second kills it.

        Args:
            log: takes stdout and stderr, behind what an earlier attempt left there.
            what: what messages call it.

        Raises:
            CommandFailed: it cannot be started, or did not end with 0; with its own last lines.
            OutputError: the log cannot be written.
        """
        if shutil.which(arguments[0]) is None:
            raise CommandFailed(
                f"{what}: the program {arguments[0]!r} was not found; check the command and PATH"
            )
        with _appended(log) as file:
            begin = file.tell()
            code = self._run(arguments, file, log, begin)
        if code:
            raise _failed(f"{what} ended with {how_ended(code)}", log, begin, "fix the cause")

    def run_within(self, seconds: float, arguments: Sequence[str], log: Path, given: bytes) -> int | None:
        """Run ``arguments`` as `run` does, for so long at most: the exit code; None where time ran out.

        Args:
            given: what it reads from its standard input.

        Raises:
            OutputError: the log cannot be written.
        """
        if shutil.which(arguments[0]) is None:
            return _NOT_FOUND
        with _appended(log) as file, tempfile.TemporaryFile() as content:
            content.write(given)
            content.seek(0)
            return self._run(arguments, file, log, file.tell(), content, time.monotonic() + seconds)

    def _run(
        self,
        arguments: Sequence[str],
        file: BinaryIO,
        log: Path,
        begin: int,
        given: IO[bytes] | None = None,
        deadline: float | None = None,
    ) -> int | None:
        alive, ours = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, str(alive), *arguments],
                stdin=subprocess.DEVNULL if given is None else given,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(alive, self.lock),
                start_new_session=True,
            )
            with log.open("rb") as reader:
                reader.seek(begin)
                try:
                    code = self._wait(process, reader, deadline)
                    if code is None:
                        self._end(process, reader)
                    return code
                except (KeyboardInterrupt, SystemExit) as stop:
                    self._pass_on(process, reader, stop)
                    raise
        finally:
            os.close(ours)
            os.close(alive)

    def _wait(
        self, process: subprocess.Popen[bytes], reader: BinaryIO, deadline: float | None = None
    ) -> int | None:
        """Its exit code; None where that has not come by ``deadline``."""
        held = b""
        while True:
            try:
                code = process.wait(_INTERVAL)
            except subprocess.TimeoutExpired:
                code = None
            if self.echo is not None:
                held = _passed_on(held, reader.read(), self.echo, ended=code is not None)
            if code is not None:
                return code
            if deadline is not None and time.monotonic() > deadline:
                return None

    def _end(self, process: subprocess.Popen[bytes], reader: BinaryIO) -> None:
        """End what has taken too long."""
        _signal_group(process, signal.SIGTERM)
        if self._wait(process, reader, time.monotonic() + _ENDING) is None:
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def _pass_on(
        self, process: subprocess.Popen[bytes], reader: BinaryIO, stop: KeyboardInterrupt | SystemExit
    ) -> None:
        sign = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        self.say(f"{sign.name} passed on to process group {process.pid}; waiting for it to end")
        _signal_group(process, sign)
        try:
            self._wait(process, reader)
        except (KeyboardInterrupt, SystemExit):
            _signal_group(process, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _appended(log: Path) -> Iterator[BinaryIO]:
    """The log, to be written to; OutputError if it cannot be."""
    with writing(log, "make room or check the folder's permissions, then run the same command again"):
        log.parent.mkdir(parents=True, exist_ok=True)
        refuse_file(log)
        file = log.open("ab")
    with file:
        yield file


def _passed_on(held: bytes, output: bytes, echo: BinaryIO, *, ended: bool) -> bytes:
    """Show whole lines without secrets, and half a line once nothing follows; what is held back."""
    held += output
    end = len(held) if ended or not output else max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
    if end:
        text = held[:end].decode(errors="surrogateescape")
        echo.write(terminal_output(redact(text)).encode())
        echo.flush()
    return held[end:]


def last_lines(log: Path, begin: int = 0) -> list[str]:
    """The last lines of a log, from the byte ``begin`` on, what a carriage return overwrote left out."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin, size - _TAIL))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-LAST_LINES:]


def printed_number(log: Path, what: str) -> float:
    """The last line of a log that is a number and nothing else.

    Raises:
        CommandFailed: there is none.
    """
    for line in reversed(last_lines(log)):
        try:
            return float(line)
        except ValueError:
            continue
    said = f"{what} printed no line that is a number"
    raise _failed(said, log, 0, "make it print the score on a line of its own")


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, sign)


def how_ended(code: int) -> str:
    """An exit code in words."""
    if code == _NOT_FOUND:
        return "exit code 127 (a program was not found)"
    try:
        name = signal.Signals(-code if code < 0 else code - 128).name
    except ValueError:
        return f"exit code {code}"
    hint = " (often because memory ran out)" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def _failed(what: str, log: Path, begin: int, remedy: str) -> CommandFailed:
    lines = [f"  {line}" for line in last_lines(log, begin)]
    said = f"{what}; its last lines:" if lines else f"{what}; it printed nothing"
    rest = f"its whole output is in {log}; {remedy}, then run the same command again to go on"
    return CommandFailed(own_lines(said, *lines, rest))
