"""Every command of `hubextrap` in this process, by its `main`; what it may be given; things to work on."""

# ruff: noqa: E501 - a table

from __future__ import annotations

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import typer
import yaml

from hubextrap.cli.main import run

ODD = (
    "nan", "inf", "-inf", "-1", "0", "1", "1.5", "1e400", "1e-400", "-0.0", "9" * 25, "9" * 400, "0x10", "1_000",
    "", " ", "\t", "\n", "-", "--", "---x", "=", ",", ",,1", ":", "@", "@@", "/proc", "//proc", ".", "..", "../..",
    "~", "/dev/null", "run", "run/step_10", "absent", "absent/deeper", "problems.jsonl", "scan.safetensors",
    "recipe.yaml", "not_a_recipe.yaml", "a/b", "a/b@c", "a/b@c:d", "me/x@refs/pr/1", "hf://", "hf://a/b",
    "hf://a/b@{step}/c", "http://[::1", "https://user:pass@host:99999/x", "{}", "{step}", "step_{step}",
    "{step}{step}", "[", "[a-", "(?P<", "*", "%s", "%(x)s", "$HOME", "`x`", "[bold]x[/bold]", "[/]", "None", "null",
    "true", "auto", "cpu", "cuda:99", "meta", "float8", "int32", "ü→😀", "\u202e\u2028x", "\x1b[31mred",
    "\udcff\udcfe", "x" * 5000, "1KiB", "1e300GB", "nanMB", "infMiB", "-5MB",
    "\u0663", "\xb2", "1\u0660", "\x07", "\x1b]0;x\x07", "a\rb", "x@", "@x", ":x", "x:", "a:b:c", "a@b@c", "9" * 5000,
    "-" * 300, "x/" * 200, "\ud800", "\ufeff", "1e999999999", "0" * 5000, "1" + "0" * 300 + "GB",
)  # fmt: skip
"""What nobody should write on a command line, and somebody does; names of files are those of `Ground`."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_main(*arguments: str, seconds: float | None = None, until: str = "") -> Ended:
    """`hubextrap` in this process, as its own `main` does; interrupted after so many seconds, if any.

    With ``until`` it is not interrupted before its messages hold that.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = [signal.getsignal(number) for number in numbers]
    own_arguments = sys.argv
    sys.argv = ["hubextrap", *arguments]
    over = False

    def interrupt(_: int, frame: FrameType | None) -> None:
        # The command's handler itself is called: a signal could arrive when its own handlers are back.
        nonlocal over
        handler = signal.getsignal(signal.SIGINT)
        if not over and callable(handler) and until.encode() in err.buffer.getvalue():
            over = True
            handler(signal.SIGINT, frame)

    signal.signal(signal.SIGALRM, interrupt)
    try:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                run()
            code: Any = 0
        finally:
            over = True
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # while it ended
        code = 128 + signal.SIGINT
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.argv = own_arguments
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Ended(code or 0, *texts)


def commands() -> dict[str, click.Command]:
    """Every command of `hubextrap` by its words, groups left out."""
    from hubextrap.cli.app import app

    found: dict[str, click.Command] = {}

    def collect(command: Any, words: str) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                collect(inner, f"{words} {name}".strip())
        else:
            found[words] = command

    collect(typer.main.get_command(app), "")
    return found


@dataclass(frozen=True)
class Ground:
    """Files for commands to work on, all in one folder, which is the current one."""

    folder: Path
    repo: str

    def recipe(self, name: str = "recipe.yaml", **sections: Any) -> str:
        """Write a recipe, sections replaced, added or (None) taken away; its name."""
        content: dict[str, Any] = {
            "trajectory": {"repo": "run"},
            "merge_method": "two_point",
            "parameters": {"target_step": 60},
        } | sections
        kept = {key: value for key, value in content.items() if value is not None}
        (self.folder / name).write_text(yaml.safe_dump(kept, sort_keys=False))
        return name


REGROUND: dict[str, Any] = {
    "model": "run/step_0",
    "train": "/bin/false --model {model} --steps {steps} --output {output}",
    "checkpoint": "checkpoint-{step}",
    "window": 4,
    "jump": 4,
    "iterations": 1,
}
