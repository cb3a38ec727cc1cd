"""Without an extra, each command that needs it says which pip command brings it; all others do without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, Warm

pytestmark = pytest.mark.slow
ABSENT = ("lm_eval", "accelerate", "peft", "math_verify", "mergekit", "pygit2", "matplotlib", "trl")
"""What the extras bring. `train` is for the user's own trainer: the callback imports nothing of it."""
DATA = ROOT / "demo" / "data" / "rlvr-C"
EVAL = ("eval", DATA / "step_200", "--against", f"last={DATA / 'step_100'}")
RECIPE = f"""
trajectory: {{repo: {DATA}, steps: {{max: 200}}}}
merge_method: two_point
parameters: {{target_step: 400, base_step: 100}}
"""
MEASURED = "evaluate: {tasks: [gsm8k]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "measured.yaml").write_text(RECIPE + MEASURED)
    (tmp_path / "mixture.yaml").write_text(RECIPE + MEASURED + "space: logits\n")
    (tmp_path / "problems.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    return tmp_path


def without(modules: tuple[str, ...], folder: Path) -> str:
    """PYTHONPATH of a machine that lacks these modules: Python looks for them and finds none."""
    (folder / "absent").mkdir(exist_ok=True)
    (folder / "absent" / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Finder(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        here = name.partition('.')[0] not in {modules!r}\n"
        "        return super().find_spec(name, path, target) if here else None\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Finder\n"
    )
    return os.pathsep.join([str(folder / "absent"), str(ROOT)])


def run(module: str, folder: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, program, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": without((module,), folder)},
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
        ("peft", "eval", (*EVAL, "--task-file", "problems.jsonl", "--format", "exact")),
        ("lm_eval", "eval", ("run", "mixture.yaml")),
        (
            "lm_eval",
            "eval",
            ("sweep", "measured.yaml", "--out", "swept", "--horizons", "1.5"),
        ),
        ("lm_eval", "eval", ("lm-eval", "--help")),
        ("math_verify", "math", (*EVAL, "--task-file", "problems.jsonl", "--format", "math")),
        ("math_verify", "math", (*EVAL, "--tasks", "hubextrap_gsm8k")),
        ("mergekit", "mergekit", ("mergekit-yaml", "recipe.yaml", "out")),
        ("pygit2", "localhub", ("hub", "serve", "hub")),
        ("matplotlib", "report", ("report", "scan.safetensors")),
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


def test_the_loopback_hub_in_python_names_its_extra_too(folder: Path) -> None:
    done = run("pygit2", folder, "-cfrom hubextrap.localhub import LocalHub")
    assert done.stderr.endswith(
        "hubextrap.errors.HubExtrapError: the local hub needs pygit2: pip install 'hubextrap[localhub]'\n"
    )


def test_the_rest_works_without_any_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", without(ABSENT, folder))
    monkeypatch.chdir(folder)
    bare = Warm(folder)
    for arguments in (
        ("steps", DATA),
        ("plan", "recipe.yaml"),
        ("merge", "recipe.yaml", "--out", "out"),
        ("verify", "out"),
        ("scan", DATA, "--out", "scan.safetensors", "--logprobs", "problems.jsonl"),
        ("backtest", "scan.safetensors"),
        ("generate", "mixture.yaml", "1+1="),
    ):
        done = bare.run(*arguments)
        assert done.code == 0, done.output
    assert bare.run("report", "scan.safetensors").code == 1  # nothing of them was there
    bare.close()
