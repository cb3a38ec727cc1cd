"""The `hubextrap` command: prints errors as one line and sets the exit code, whatever happens and whenever.

Next to nothing is imported before the signals are listened to: an interrupted start shows no traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

FAULT = 70
"""Exit code of what should not happen (EX_SOFTWARE of sysexits.h)."""
_SHOWN = 300
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ENDED_BY = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class _Signals:
    """Which signal has come; what it raises may have become another error on the way, or been swallowed."""

    received: int | None = None

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background jobs have it
            signal.signal(signal.SIGINT, self._end)

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        """End by an exception: what is under way is dropped, what is finished is kept."""
        self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


def main() -> None:
    """Entry point of the console script.

    Exit codes: 0 done, 1 an error that is printed, 2 wrong usage, 3 a prediction that is worse than
    ``--max-loss`` allows, 70 a fault of hubextrap's own, 130 interrupted, 143 terminated.
    """
    signals = _Signals()
    signals.listen()
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name or a terminal may hold what the other cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_current_folder()
        from hubextrap.cli.app import app

        app()
    except BaseException as error:
        code = _code(error) if signals.received is None else 128 + signals.received
    else:
        code = 0
    code = _flushed(code)
    if signals.received is not None and code:
        _say(_ENDED_BY[signal.Signals(signals.received)])
        # threads that are waited for may take a while: the next signal ends at once
        signal.signal(signals.received, lambda number, _: os._exit(128 + number))
    sys.exit(code)


def _check_current_folder() -> None:
    """See that it is there: torch's libraries abort the process where it has been deleted.

    Raises:
        HubExtrapError: it is not.
    """
    try:
        os.getcwd()  # noqa: PTH109 - pathlib takes milliseconds to import
    except OSError as error:
        from hubextrap.errors import HubExtrapError

        raise HubExtrapError(f"the current folder: {error.strerror}; cd into another one") from error


def _fill_closed_streams() -> None:
    """Give streams that the shell closed (``>&-``) something to be, before a file takes their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _code(error: BaseException) -> int | str | None:
    """The exit code for what ended the command, after telling of it."""
    from hubextrap.errors import HubExtrapError, PredictionWorse

    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, HubExtrapError):
        _say(f"error: {error}")
        return 3 if isinstance(error, PredictionWorse) else 1
    if isinstance(error, KeyboardInterrupt):
        _say(_ENDED_BY[signal.SIGINT])
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return 1  # whoever read the output has seen enough
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        _say(f"error: {error.filename or 'output'}: cannot be written: {error.strerror}; make room")
        return 1
    if isinstance(error, OSError) and error.filename is not None:  # a place that was named, and is none
        _say(
            f"error: {_shortened(str(error.filename))}: {error.strerror}; check the name and its permissions"
        )
        return 1
    _say(_fault(error))
    return FAULT


def _fault(error: BaseException) -> str:
    """What is said of an error that nobody foresaw; its traceback goes into a file of its own."""
    import tempfile
    import traceback

    words = " ".join(str(error).split())
    line = f"error: {type(error).__name__}{': ' * bool(words)}{_shortened(words)}"
    try:
        descriptor, name = tempfile.mkstemp(prefix="hubextrap-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_redacted("".join(traceback.format_exception(error))))
    except OSError:
        return f"{line}; this is a fault in hubextrap: please report it"
    return f"{line}; this is a fault in hubextrap: please report it with what is in {name}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _flushed(code: int | str | None) -> int | str | None:
    """``code``, or another one where the last of the output cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that it is not tried again at exit
        return code or _code(error)
    return code


def _say(line: str) -> None:
    """A line on stderr, if anybody still listens there."""
    if sys.stderr is not None:
        try:
            print(_redacted(line), file=sys.stderr, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _redacted(text: str) -> str:
    from hubextrap.redaction import redact

    return redact(text)


def __getattr__(name: str) -> Any:
    if name == "app":
        from hubextrap.cli.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
