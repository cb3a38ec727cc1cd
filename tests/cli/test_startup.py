"""What a command imports before it can say what is wrong: seconds of a processor, held without a clock."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_lines import commands
from safetensors.numpy import save_file

NEVER = (
    *("torch", "transformers", "numba", "llvmlite", "scipy", "matplotlib", "lm_eval", "mergekit", "pygit2"),
    *("huggingface_hub.hf_api", "ray", "submitit"),
    *(f"hubextrap.executors.{name}" for name in ("on_ray", "ray_cluster", "slurm", "jobs")),
)
"""What costs a tenth of a second or more, and what hands work to others, which must be asked for."""
NO_HELP_NEEDS = (*NEVER, "huggingface_hub", "pydantic", "numpy", "yaml", "ssl")
NO_RECIPE_NEEDS = (
    *NEVER,
    *("huggingface_hub", "ssl", "hubextrap.opening", "hubextrap.engine.plan", "hubextrap.hub.provenance"),
    *("hubextrap.scans", "hubextrap.evaluation.run", "hubextrap.regrounding"),
)
"""Beside what costs most, the rooms that work on weights: what is wrong in a recipe is said before."""
PROGRAM = """
import json, sys
from hubextrap.cli.main import run
banned, expected, lines = json.loads(sys.argv[1])
loaded = []
for line in lines:
    sys.argv = ["hubextrap", *line]
    try:
        run()
    except SystemExit as end:
        if end.code not in expected:
            loaded.append([line, "ended with", end.code])
    if found := [name for name in banned if name in sys.modules and sys.modules[name] is not None]:
        loaded.append([line, "imports", found])
        break
sys.stderr.write("\\n" + json.dumps(loaded))
"""
"""Runs lines, one after the other in one process, and says of the first one that imports something banned."""
OF_A_RECIPE = ("plan", "merge", "run", "sweep", "generate", "scan", "backtest", "recipes validate")
REST = {"merge": ["--out", "out"], "run": ["--out", "out"], "sweep": ["--out", "out"], "generate": ["1+1="]}
"""What such a line needs beside the recipe."""


def imported(
    banned: tuple[str, ...], expected: tuple[int, ...], lines: list[list[str]], folder: Path
) -> object:
    """What is wrong with these lines, told by the process that ran them."""
    given = json.dumps([banned, expected, lines])
    done = subprocess.run([sys.executable, "-c", PROGRAM, given], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.rpartition("\n")[2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one whose second checkpoint has a damaged header, an empty folder; recipes, good and bad."""
    root = tmp_path_factory.mktemp("startup")
    for step in (10, 20, 30):
        (place := root / "run" / f"step_{step}").mkdir(parents=True)
        weights = {"model.norm.weight": np.linspace(0, step, 4096, dtype=np.float32)}
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    damaged = Path(shutil.copytree(root / "run", root / "damaged")) / "step_20" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[8:9] = b"x"
    damaged.write_bytes(content)
    (root / "empty").mkdir()
    good = {"trajectory": {"repo": "run"}, "merge_method": "two_point", "parameters": {"target_step": 45}}
    evaluated = good | {"evaluate": {"tasks": ["gsm8k"]}}
    recipes = {
        "good": good,
        "fitted": good | {"merge_method": "low_rank"},
        "evaluated": evaluated,
        "logits": good | {"space": "logits"},
        "absent_logits": good | {"space": "logits", "trajectory": {"repo": "./absent"}},
        "key": good | {"unknown": 1},
        "value": good | {"parameters": {"target_step": "far"}},
        "parameter": good | {"parameters": {"target_step": 60, "windw": 3}},
        **{place: good | {"trajectory": {"repo": f"./{place}"}} for place in ("absent", "empty", "damaged")},
        "fitted_damaged": good | {"trajectory": {"repo": "./damaged"}, "merge_method": "low_rank"},
    }
    for name, recipe in recipes.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (root / "broken.yaml").write_text("trajectory: [\n")
    return root


def test_help(folder: Path) -> None:
    passed_on = ("lm-eval", "mergekit-yaml")
    lines = [[*words.split(), "--help"] for words in commands() if words not in passed_on]
    lines += [["--help"], ["--version"], ["hub"], ["recipes"]]
    lines += [["absent"], ["plan", "--absent"], ["hub", "absent"]]
    assert imported(NO_HELP_NEEDS, (0, 2), lines, folder) == []


def test_errors_in_a_recipe(folder: Path) -> None:
    bad = ("missing", "broken", "key", "value", "parameter")
    lines = [[*words.split(), f"{name}.yaml", *REST.get(words, [])] for words in OF_A_RECIPE for name in bad]
    lines += [["reground", f"{name}.yaml", "--out", "out"] for name in (*bad, "good")]
    lines += [["recipes", "cp", "missing"]]
    lines += [
        ["merge", "good.yaml", "--out", "out", *odd] for odd in (["--memory", "much"], ["--device", "tpu"])
    ]
    lines += [["sweep", "evaluated.yaml", "--out", "out", "--horizons", "far"]]
    lines += [["eval", "run", *odd] for odd in (["--tasks", ","], ["--against", "last", "--no-against"])]
    lines += [["scan", "run", "--batch-size", "3"], ["generate", "logits.yaml"]]
    assert imported(NO_RECIPE_NEEDS, (1, 2), lines, folder) == []


def test_errors_before_weights_are_read(folder: Path) -> None:
    bad = ("absent", "empty", "damaged")
    lines = [[words, f"./{name}"] for words in ("steps", "scan", "backtest", "verify") for name in bad]
    lines += [
        [words, f"{name}.yaml", *REST.get(words, [])] for words in ("plan", "merge", "run") for name in bad
    ]
    lines += [
        [words, "fitted_damaged.yaml", *REST.get(words, [])]
        for words in ("plan", "merge", "scan", "backtest")
    ]
    lines += [[words, "absent.safetensors"] for words in ("report", "backtest")]
    lines += [["push", f"./{name}", "me/model"] for name in ("absent", "empty")]
    lines += [["generate", f"{name}.yaml", "1+1="] for name in ("good", "absent_logits")]
    lines += [["generate", "logits.yaml", "1+1=", "--target-step", "7"]]
    lines += [["push", "./run", "not a repo"], ["steps", "a--b/c"], ["verify", "-/c"]]
    lines += [["eval", "./absent", "--tasks", "gsm8k"], ["eval", "a b", "--tasks", "gsm8k"]]
    lines += [
        ["merge", "good.yaml", "--out", "run"],
        ["merge", "good.yaml", "--out", "out", "--memory", "1KiB"],
    ]
    assert imported(NEVER, (1, 2), lines, folder) == []


def test_what_reads_headers_only(folder: Path) -> None:
    lines = [
        ["steps", "run"],
        ["plan", "good.yaml"],
        ["plan", "fitted.yaml", "--out", "out"],
        ["recipes", "ls"],
    ]
    assert imported(NEVER, (0,), lines, folder) == []


def test_a_local_merge(folder: Path) -> None:
    """It adds up weights in compiled loops, and needs neither torch nor the Hub's client."""
    lines = [["merge", "good.yaml", "--out", "made"], ["verify", "made"], ["push", "made", "a--b/c"]]
    banned = tuple(name for name in NEVER if name not in ("numba", "llvmlite", "scipy"))
    assert imported(banned, (0, 1), lines, folder) == []
