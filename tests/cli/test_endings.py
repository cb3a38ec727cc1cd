"""How a command ends: interrupted at any moment, with no one to read on, on a full disk, by our own fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_lines import Ground, run_main

COMMAND = [sys.executable, "-m", "hubextrap"]
IMPORTING = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{sign})
            time.sleep(30)
sys.meta_path.insert(0, Slow())
sys.argv = ["hubextrap", *{arguments!r}]
from hubextrap.cli.main import main
main()
"""
"""A signal comes while a module is imported."""


def ended(program: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["typer", "numpy", "pydantic"])
@pytest.mark.parametrize(
    ("sign", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_a_signal_while_modules_are_imported(
    module: str, sign: str, code: int, word: str, ground: Ground
) -> None:
    program = IMPORTING.format(module=module, sign=sign, arguments=["plan", "recipe.yaml"])
    assert ended(program) == (code, f"{word}\n")


@pytest.mark.parametrize(
    "place", ["threading.Thread.start", "os.pipe", "signal.set_wakeup_fd", "os.set_blocking"]
)
@pytest.mark.parametrize(
    ("sign", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_a_signal_while_signals_begin_to_be_watched(place: str, sign: str, code: int, word: str) -> None:
    program = (
        "import os, signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hubextrap.cli.main import main\n"
        f"def signalled(*given, **options):\n    os.kill(os.getpid(), signal.{sign})\n    time.sleep(30)\n"
        f"{place} = signalled\nsys.argv = ['hubextrap', 'recipes', 'ls']\nmain()"
    )
    assert ended(program) == (code, f"{word}\n")


def test_a_signal_that_an_import_turns_into_another_error() -> None:
    """As libraries do that catch whatever an import of theirs raises."""
    program = IMPORTING.format(
        module="hubextrap.trajectory", sign="SIGINT", arguments=["steps", "run"]
    ).replace(
        "            os.kill(os.getpid(), signal.SIGINT)\n",
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                time.sleep(30)\n"
        "            except BaseException as error:\n"
        "                raise ImportError('no such thing') from error\n",
    )
    assert ended(program) == (130, "interrupted\n")


LISTENING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from hubextrap.cli.main import SIGNALS, main
listen = SIGNALS.listen
def told():
    listen()
    SIGNALS.listen = listen
    os.write({telling}, b"x")
SIGNALS.listen = told
sys.argv = ["hubextrap", "plan", "recipe.yaml"]
main()
"""
"""Tells when signals are listened to."""


@pytest.mark.slow
def test_an_interrupt_at_any_moment(ground: Ground) -> None:
    """From when signals are listened to: before that, Python itself ends the process, in its own words."""
    for milliseconds in range(0, 840, 40):
        listening, telling = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", LISTENING.format(telling=telling)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[telling],
        )
        os.close(telling)
        assert os.read(listening, 1)
        os.close(listening)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert "hubextrap" not in output or "Traceback" not in output, (milliseconds, output)
        assert process.returncode in (130, -signal.SIGINT, 0), (milliseconds, output)


def test_an_ignored_interrupt_stays_ignored(ground: Ground) -> None:
    """As a shell starts jobs in the background."""
    program = IMPORTING.format(module="typer", sign="SIGINT", arguments=["--version"]).replace(
        "time.sleep(30)", "pass"
    )
    code, output = ended(program.replace("signal.default_int_handler", "signal.SIG_IGN"))
    assert code == 0
    assert output.startswith("hubextrap ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["steps", "run"], ["plan", "recipe.yaml"], ["steps", "run", "--json"], ["--help"]]
)
def test_nobody_reads_on(arguments: list[str], ground: Ground) -> None:
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # before anything is written
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_a_full_disk_behind_stdout(ground: Ground) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "steps", "run", "-q"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: output: cannot be written: No space left on device; make room\n"


@pytest.mark.slow
def test_what_a_terminal_cannot_show(ground: Ground) -> None:
    done = subprocess.run(
        [*COMMAND, "scan", "run", "--out", "other", "-q"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"median R\\xb2" in done.stdout


def test_what_nobody_foresaw(ground: Ground, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise LookupError("never thought of\nthis with hf_" + 8 * "abcd")

    monkeypatch.setattr("hubextrap.trajectory.find_trajectory", wrong)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    done = run_main("steps", "run")
    (log,) = tmp_path.glob("hubextrap-*.log")
    assert done.code == 70
    assert done.err == (
        "error: LookupError: never thought of this with hf_***; this is a fault in hubextrap: please report "
        f"it with what is in {log}\n"
    )
    assert "in wrong" in log.read_text()
    assert "abcdabcd" not in log.read_text()


def test_a_place_that_is_none(ground: Ground) -> None:
    done = run_main("recipes", "validate", "x" * 5000)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert "File name too long" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, ground: Ground) -> None:
    command = f"exec {' '.join(COMMAND)} plan recipe.yaml {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    assert "fault" not in done.stdout + done.stderr


def test_certificates_that_are_not_there(ground: Ground) -> None:
    ended = subprocess.run(
        [*COMMAND, "steps", "me/absent"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SSL_CERT_FILE": "/absent.pem"},
    )
    assert ended.returncode == 1
    assert "check SSL_CERT_FILE" in ended.stderr


@pytest.mark.parametrize(
    "line",
    [["push", "merged", "me/x", "TOKEN"], ["plan", "recipe.yaml", "--memory", "TOKEN"], ["TOKEN"]],
)
def test_a_wrong_command_line_repeats_no_token(line: list[str], ground: Ground) -> None:
    token = "hf_" + "aB3dE6gH9k" * 3 + "wxyz"
    ended = run_main(*(token if word == "TOKEN" else word for word in line))
    assert ended.code == 2
    assert "aB3dE6" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        ("MemoryError()", 1, "error: there is not enough memory; free some, or give a smaller --memory"),
        ('RuntimeError("can\'t start new thread")', 1, "lets this process start no more threads; raise the"),
        (
            "ImportError('libx.so: broken', name='numba')",
            1,
            "error: numba cannot be imported (libx.so: broken): pip",
        ),
        ("OSError('Could not find/load shared object file')", 1, "pip install --force-reinstall hubextrap"),
        ("RecursionError('deep')", 70, "error: RecursionError: deep; this is a fault in hubextrap"),
        ("type('Odd', (Exception,), {'__str__': lambda self: 1})()", 70, "error: Odd; this is a fault"),
        ("SystemExit('hf_' + 30 * 'x')", 1, "hf_***"),
    ],
)
def test_whatever_is_raised(raised: str, code: int, says: str, ground: Ground) -> None:
    """In the command, and in a thread beside it."""
    program = (
        "import sys, threading, hubextrap.trajectory\n"
        "def wrong(*_, **__):\n"
        "    thread = threading.Thread(target=lambda: 1 // 0); thread.start(); thread.join()\n"
        f"    raise {raised}\n"
        "hubextrap.trajectory.find_trajectory = wrong\n"
        "sys.argv = ['hubextrap', 'steps', 'run']\n"
        "from hubextrap.cli.main import main\nmain()"
    )
    ended_with, said = ended(program)
    assert ended_with == code
    assert "Traceback" not in said
    assert "error: ZeroDivisionError: " in said
    assert says in said
