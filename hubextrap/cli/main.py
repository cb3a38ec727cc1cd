"""The `hubextrap` command: prints errors as one line and sets the exit code, whatever happens and whenever.

Next to nothing is imported before the signals are listened to: an interrupted start shows no traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

FAULT = 70
"""Exit code of what should not happen (EX_SOFTWARE of sysexits.h)."""
GRACE = 1.2
"""Seconds from a signal to the end of the process, at most."""
_SHOWN = 300
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ENDED_BY = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class _Signals:
    """Which signal has come; what it raises may have become another error on the way, or been swallowed."""

    received: int | None = None
    waits_for_others = False
    """Whether the command passes signals on and waits for what it runs."""
    told = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background jobs have it
            signal.signal(signal.SIGINT, self._end)

    def bound(self) -> None:
        """From now on the process is gone ``GRACE`` seconds after a signal, wherever its threads are held up.

        A main thread that resolves a name or waits for compiled code runs no handler, so a thread is told of
        signals by a pipe. Whatever is finished is on the disk by then: a kill loses no more.
        """
        import threading

        told, telling = os.pipe()
        os.set_blocking(telling, False)
        signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget_wakeup)  # a child's signals are not ours
        threading.Thread(target=self._watch, args=(told,), name="hubextrap-signals", daemon=True).start()

    def _watch(self, told: int) -> None:
        import time

        while came := os.read(told, 1):
            number = came[0]
            if number not in _ENDED_BY or signal.getsignal(number) != self._end:
                continue
            time.sleep(GRACE)
            if not self.waits_for_others:
                self.received = number
                self.end(128 + number)

    def end(self, code: int) -> NoReturn:
        """End the process at once, the signal told of."""
        if not self.told:
            with suppress(OSError):  # nobody listens
                os.write(2, f"{_ENDED_BY[signal.Signals(self.received or signal.SIGINT)]}\n".encode())
        os._exit(code)

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        """End by an exception: what is under way is dropped, what is finished is kept."""
        self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


def _forget_wakeup() -> None:
    with suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)


_SIGNALS = _Signals()


def wait_for_others() -> None:
    """Say that this command passes signals on to a program that it runs, and waits for it to end."""
    _SIGNALS.waits_for_others = True


def main() -> None:
    """Entry point of the console script; see ``run`` for the exit codes."""
    try:
        _SIGNALS.listen()
        _SIGNALS.bound()
        _tell_of_threads()
        run()
    except SystemExit as error:
        if _SIGNALS.received is None or not error.code:
            raise
        # at its own exit Python would wait for threads, and they for the network
        _SIGNALS.end(error.code if isinstance(error.code, int) else 1)
    except BaseException:  # a signal before the command began, or another one while its end was told of
        _SIGNALS.end(128 + (_SIGNALS.received or signal.SIGINT))


def run() -> None:
    """One command, from the command line to the exit.

    Exit codes: 0 done, 1 an error that is printed, 2 wrong usage, 3 a prediction that is worse than
    ``--max-loss`` allows, 70 a fault of hubextrap's own, 130 interrupted, 143 terminated.
    """
    signals = _SIGNALS
    signals.received, signals.told, signals.waits_for_others = None, False, False
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
        signals.told = True
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


def _tell_of_threads() -> None:
    """One line and a log file, not a traceback, also for what goes wrong where nobody can catch it."""
    import threading

    def in_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
            _say(_fault(given.exc_value))

    def unraisable(given: Any) -> None:
        if given.exc_value is not None and not isinstance(
            given.exc_value, (BrokenPipeError, KeyboardInterrupt)
        ):
            _say(_fault(given.exc_value))

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _code(error: BaseException) -> int | str | None:
    """The exit code for what ended the command, after telling of it."""
    from hubextrap.errors import HubExtrapError, PredictionWorse

    if isinstance(error, SystemExit):
        if not isinstance(error.code, str):
            return error.code
        _say(error.code)
        return 1
    if isinstance(error, HubExtrapError):
        from hubextrap.foreign_text import OwnLines

        _say(OwnLines(f"error: {error}"))  # its lines are clean
        return 3 if isinstance(error, PredictionWorse) else 1
    if isinstance(error, KeyboardInterrupt):
        _say(_ENDED_BY[signal.SIGINT])
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return 1  # whoever read the output has seen enough
    if isinstance(error, MemoryError):
        _say("error: there is not enough memory; give a smaller --memory or fewer --workers")
        return 1
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

    line = f"error: {type(error).__name__}"
    try:
        if words := " ".join(str(error).split()):
            line += f": {_shortened(words)}"
        descriptor, name = tempfile.mkstemp(prefix="hubextrap-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_logged("".join(traceback.format_exception(error))))
    except Exception:  # no room, no folder, an error that cannot even be shown
        return f"{line}; this is a fault in hubextrap: please report it"
    return f"{line}; this is a fault in hubextrap: please report it with what is in {name}"


def _shortened(text: str) -> str:
    from hubextrap.foreign_data import shorten

    return shorten(text, _SHOWN)


def _flushed(code: int | str | None) -> int | str | None:
    """``code``, or another one where the last of the output cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except ValueError:  # it was closed
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that it is not tried again at exit
        return code or _code(error)
    return code


def _say(line: str) -> None:
    """A line on stderr, if anybody still listens there."""
    if sys.stderr is not None:
        try:
            print(_shown(line), file=sys.stderr, flush=True)
        except ValueError:  # it was closed
            pass
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _shown(line: str) -> str:
    from hubextrap.foreign_text import as_shown

    return as_shown(line)


def _logged(text: str) -> str:
    from hubextrap.foreign_text import terminal_output
    from hubextrap.redaction import redact

    return terminal_output(redact(text))


def __getattr__(name: str) -> Any:
    if name == "app":
        from hubextrap.cli.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
