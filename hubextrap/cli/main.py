"""The `hubextrap` command: prints errors as one line and sets the exit code, whatever happens and whenever.

Next to nothing is imported before the signals are listened to: an interrupted start shows no traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from hubextrap.cli.signals import ENDED_BY, SIGNALS

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FAULT = 70
"""Exit code of what should not happen (EX_SOFTWARE of sysexits.h)."""
_SHOWN = 300
_NO_LIBRARY = "Could not find/load shared object file"
"""What llvmlite says where its library is not there, or for another machine: an OSError."""
_NO_THREAD = "can't start new thread"
"""What Python says where the system starts none: a RuntimeError like any other."""


def main() -> None:
    """Entry point of the console script; see ``run`` for the exit codes."""
    try:
        SIGNALS.listen()
        SIGNALS.bound()
        _tell_of_threads()
        run()
    except SystemExit as error:
        if SIGNALS.received is None or not error.code:
            raise
        # at its own exit Python would wait for threads, and they for the network
        SIGNALS.end(error.code if isinstance(error.code, int) else 1)
    except BaseException:  # a signal before the command began, or another one while its end was told of
        SIGNALS.end(128 + (SIGNALS.received or signal.SIGINT))


def run() -> None:
    """One command, from the command line to the exit.

    Exit codes: 0 done, 1 an error that is printed, 2 wrong usage, 3 a prediction that scores less than
    ``--max-loss``, ``--min-score`` or ``--push-if-better`` asks for, 70 a fault of hubextrap's own,
    130 interrupted, 143 terminated.
    """
    SIGNALS.received, SIGNALS.told, SIGNALS.waits_for_others = None, False, False
    SIGNALS.listen()
    _fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name or a terminal may hold what the other cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_current_folder()
        from hubextrap.cli.app import app

        app()
    except BaseException as error:
        code = _code(error) if SIGNALS.received is None else 128 + SIGNALS.received
    else:
        code = 0
    code = _flushed(code)
    if SIGNALS.received is not None and code:
        _say(ENDED_BY[SIGNALS.received])
        SIGNALS.told = True
        _tell_job(ENDED_BY[SIGNALS.received])
        # threads that are waited for may take a while: the next signal ends at once
        signal.signal(SIGNALS.received, lambda number, _: os._exit(128 + number))
    sys.exit(code)


def _check_current_folder() -> None:
    """See that it is there: torch's libraries abort the process where it has been deleted."""
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

    def telling_but_of(*harmless: type[BaseException]) -> Callable[[Any], None]:
        def tell(given: Any) -> None:
            if given.exc_value is not None and not isinstance(given.exc_value, harmless):
                _say(f"error: {_fault(given.exc_value)}")

        return tell

    threading.excepthook = telling_but_of(SystemExit)
    sys.unraisablehook = telling_but_of(BrokenPipeError, KeyboardInterrupt)


def _code(error: BaseException) -> int | str | None:
    """The exit code for what ended the command, after telling of it."""
    from hubextrap.errors import HubExtrapError, MayPass, PredictionWorse

    if isinstance(error, SystemExit):
        if not isinstance(error.code, str):
            return error.code
        _say(error.code)
        _tell_job(error.code)
        return 1
    if isinstance(error, HubExtrapError):
        from hubextrap.foreign_text import OwnLines

        _fail(OwnLines(error), error)  # its lines are clean
        return 3 if isinstance(error, PredictionWorse) else 75 if isinstance(error, MayPass) else 1
    if isinstance(error, KeyboardInterrupt):
        _say(ENDED_BY[signal.SIGINT])
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return 1  # whoever read the output has seen enough
    if isinstance(error, MemoryError):
        _fail(
            "there is not enough memory; free some, or give a smaller --memory or fewer "
            "--workers where the command takes them"
        )
        return 1
    if isinstance(error, ImportError) or error.args == (_NO_LIBRARY,):  # an extra's is a MissingExtra
        what = " ".join(str(error).split())
        _fail(
            f"{getattr(error, 'name', None) or 'a package'} cannot be imported ({_shortened(what)}): "
            "pip install --force-reinstall hubextrap"
        )
        return 1
    if error.args == (_NO_THREAD,):
        _fail("the system lets this process start no more threads; raise the limit (`ulimit -u`)")
        return 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _fail(f"{error.filename or 'output'}: cannot be written: {error.strerror}; make room")
        return 1
    if isinstance(error, OSError) and error.filename is not None:  # a place that was named, and is none
        _fail(f"{_shortened(str(error.filename))}: {error.strerror}; check the name and its permissions")
        return 1
    _fail(_fault(error))
    return FAULT


def _fail(message: str, error: BaseException | None = None) -> None:
    """Print an error's message, and tell the job of it."""
    from hubextrap.foreign_text import OwnLines

    _say(OwnLines(f"error: {message}") if isinstance(message, OwnLines) else f"error: {message}")
    _tell_job(message, error)


def _tell_job(message: str, error: BaseException | None = None) -> None:
    try:
        from hubextrap.cli.jobs import tell_job

        tell_job(message, error)
    except Exception:  # no memory, no package: it has been printed, which is what counts
        pass


def _fault(error: BaseException) -> str:
    """What is said of an error that nobody foresaw; its traceback goes into a file of its own."""
    import tempfile
    import traceback

    line = type(error).__name__
    try:
        from hubextrap.foreign_text import terminal_output
        from hubextrap.redaction import redact

        if words := " ".join(str(error).split()):
            line += f": {_shortened(words)}"
        descriptor, name = tempfile.mkstemp(prefix="hubextrap-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(terminal_output(redact("".join(traceback.format_exception(error)))))
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
            from hubextrap.foreign_text import as_shown
            from hubextrap.narrow import fitted

            print(fitted(as_shown(line), sys.stderr), file=sys.stderr, flush=True)
        except ValueError:  # it was closed
            pass
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
