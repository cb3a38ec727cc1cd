"""Without a part of an extra, or with a broken one, a command says which pip command brings it.

What is said where nothing of an extra is there, tests/distribution/test_base_install.py shows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT
from installations import without

import hubextrap

pytestmark = pytest.mark.slow
DATA = ROOT / "demo" / "data" / "rlvr-C"
EVAL = ("eval", DATA / "step_200", "--against", f"last={DATA / 'step_100'}")
RECIPE = f"""
trajectory: {{repo: {DATA}, steps: {{max: 200}}}}
merge_method: two_point
parameters: {{target_step: 400, base_step: 100}}
"""
MEASURED = "evaluate: {tasks: [gsm8k]}\n"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("scan") / "scan.safetensors"
    hubextrap.scan(hubextrap.find_trajectory(str(DATA))).save(file)
    return file


@pytest.fixture
def folder(tmp_path: Path, scan: Path) -> Path:
    (tmp_path / "scan.safetensors").symlink_to(scan)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "measured.yaml").write_text(RECIPE + MEASURED)
    (tmp_path / "mixture.yaml").write_text(RECIPE + MEASURED + "space: logits\n")
    (tmp_path / "problems.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    return tmp_path


def run(module: str, folder: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return ended(without({module}, folder), folder, program, *arguments)


def ended(path: str, folder: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, program, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("lm_eval", "eval", (*EVAL, "--tasks", "gsm8k")),
        ("accelerate", "eval", (*EVAL, "--task-file", "problems.jsonl", "--format", "exact")),
        ("torch", "eval", (*EVAL, "--tasks", "gsm8k")),
        ("transformers", "eval", (*EVAL, "--tasks", "gsm8k")),
        ("lm_eval", "eval", ("run", "mixture.yaml")),
        ("lm_eval", "eval", ("sweep", "measured.yaml", "--out", "out", "--horizons", "1.5")),
        ("lm_eval", "eval", ("lm-eval", "--help")),
        ("torch", "eval", ("lm-eval", "--help")),
        ("transformers", "logits", ("generate", "mixture.yaml", "1+1=")),
        ("math_verify", "math", (*EVAL, "--task-file", "problems.jsonl", "--format", "math")),
        ("math_verify", "math", (*EVAL, "--tasks", "hubextrap_gsm8k")),
        ("torch", "mergekit", ("mergekit-yaml", "recipe.yaml", "out")),
    ],
)
def test_a_missing_extra_is_named(
    module: str, extra: str, arguments: tuple[str | Path, ...], folder: Path
) -> None:
    done = run(module, folder, "-mhubextrap", *arguments)
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"error: .*pip install 'hubextrap\[{extra}\]'", last), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert not (folder / "out").exists()


BROKEN = "raise OSError('libcudart.so.13: cannot open shared object file')"


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("torch", "logits", ("generate", "mixture.yaml", "1+1=")),
        ("accelerate", "eval", ("run", "measured.yaml", "--out", "out")),
        ("lm_eval", "eval", ("sweep", "measured.yaml", "--out", "out", "--horizons", "1.5")),
        ("torch", "cuda", ("merge", "recipe.yaml", "--out", "out", "--device", "cuda")),
        ("matplotlib", "report", ("report", "scan.safetensors")),
        ("pygit2", "localhub", ("hub", "serve", "hub")),
    ],
)
def test_one_that_is_installed_and_broken_is_told_of(
    module: str, extra: str, arguments: tuple[str | Path, ...], folder: Path
) -> None:
    """Its error, and how to have pip install anew what it finds installed."""
    (folder / "broken" / module).mkdir(parents=True)
    (folder / "broken" / module / "__init__.py").write_text(BROKEN)
    path = os.pathsep.join([str(folder / "broken"), str(ROOT)])
    done = ended(path, folder, "-mhubextrap", *arguments)
    last = done.stderr.splitlines()[-1]
    assert f"needs {module}, which is installed and cannot be imported (OSError: libcudart.so.13: " in last
    assert last.endswith(f"pip install --force-reinstall 'hubextrap[{extra}]'")
    assert done.returncode == 1
    assert not (folder / "out").exists()


def test_the_loopback_hub_in_python_names_its_extra_too(folder: Path) -> None:
    done = run("pygit2", folder, "-cfrom hubextrap.localhub import LocalHub")
    assert done.stderr.endswith(
        "hubextrap.errors.MissingExtra: the local hub needs pygit2: pip install 'hubextrap[localhub]'\n"
    )
