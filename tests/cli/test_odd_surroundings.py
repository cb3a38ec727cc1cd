"""Odd values for every environment variable that we or the Hub's client read, and odd places to be run in."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_lines import ODD, Ground
from harness import ROOT

SECONDS = 120
"""Far more than any of these takes, on a machine that is busy."""
READ_BY_OTHERS = (
    *(
        "ALL_PROXY",
        "COLUMNS",
        "FORCE_COLOR",
        "GITHUB_ACTIONS",
        "GITHUB_STEP_SUMMARY",
        "HOME",
        "HTTP_PROXY",
        "LANG",
    ),
    *(
        "LC_ALL",
        "LINES",
        "NO_COLOR",
        "NO_PROXY",
        "NUMBA_CACHE_DIR",
        "NUMBA_NUM_THREADS",
        "OMP_NUM_THREADS",
        "PATH",
    ),
    *("PYTHONIOENCODING", "SSL_CERT_FILE", "TERM", "TMPDIR", "TZ", "XDG_CACHE_HOME"),
)
"""By Python and by libraries under us."""
QUICK = ("recipes", "ls")
COMMANDS = (
    QUICK,
    ("steps", "{repo}"),
    ("steps", "run"),
    ("plan", "recipe.yaml", "-q"),
    ("scan", "run", "--out", "other.safetensors", "-q"),
)


def variables() -> list[str]:
    """Read off the sources of hubextrap and of its Hub client."""
    client = Path(find_spec("huggingface_hub").origin).parent  # type: ignore[union-attr, arg-type]
    files = [*(ROOT / "hubextrap").rglob("*.py"), client / "constants.py"]
    found = {
        name
        for file in files
        for name in re.findall(r'"((?:HUBEXTRAP|HF|HUGGING_?FACE|XDG)_[A-Z_]+)"', file.read_text())
    }
    assert {"HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HUBEXTRAP_HUB_TOKEN", "HF_OIDC_RESOURCE"} <= found
    return sorted(found | set(READ_BY_OTHERS))


def run(
    arguments: tuple[str, ...], ground: Ground, folder: Path | None = None, **changed: str | None
) -> str | None:
    """What is wrong with how a command ended, in a process of its own; None if nothing is."""
    changed = {"HOME": str(ground.folder), **changed}  # some values begin with ~
    environment = {name: value for name, value in os.environ.items() if name not in changed}
    environment |= {name: value for name, value in changed.items() if value is not None}
    given = [ground.repo if word == "{repo}" else word for word in arguments]
    (ground.folder / "other.safetensors").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "hubextrap", *given],
        cwd=folder or ground.folder,
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
    if "Traceback" in done.stdout + done.stderr:
        return f"a traceback: {done.stderr[-600:]}"
    if done.returncode not in (0, 1, 2, 3):
        return f"exit code {done.returncode}: {done.stderr[-600:]}"
    return "no word of what is wrong" if done.returncode and not done.stderr else None


def try_values(lines: list[tuple[str, str | None, tuple[str, ...]]], ground: Ground) -> None:
    problems = []
    for name, value, arguments in lines:
        if problem := run(arguments, ground, **{name: value}):
            problems.append(f"{name}={value!r:.100} {' '.join(arguments)}: {problem}")
    assert not problems, "\n".join(problems)


def odd_lines() -> list[tuple[str, str | None, tuple[str, ...]]]:
    """Every variable with every value and without one; an odd way to Python itself is Python's to refuse."""
    return [
        (name, value, arguments)
        for name in variables()
        for value in (None, *(value for value in ODD if ".." not in value))  # what is there is not ours
        for arguments in COMMANDS
        if not (name == "HF_ENDPOINT" and (value is None or not value.strip()))  # that is the public Hub
    ]


def test_some_odd_values(ground: Ground) -> None:
    quick = [line for line in odd_lines() if line[2] == QUICK]
    try_values(random.Random(3).sample(quick, 3), ground)


@pytest.mark.slow
def test_more_odd_values(ground: Ground) -> None:
    try_values(random.Random(4).sample(odd_lines(), 15), ground)


def test_a_current_folder_that_is_gone(ground: Ground, tmp_path: Path) -> None:
    """Libraries under torch abort the process there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{sys.executable}" -P -m hubextrap plan recipe.yaml'
    if sys.version_info < (3, 11):
        script = script.replace(" -P", "")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the current folder: No such file or directory; cd into another one")


@pytest.mark.slow
def test_a_machine_without_a_home(ground: Ground) -> None:
    for home in (None, "", "/dev/null", str(ground.folder / "absent")):
        for arguments in (("steps", "run"), ("plan", "recipe.yaml", "-q")):
            assert run(arguments, ground, HOME=home, HF_HOME=None, XDG_CACHE_HOME=None) is None
