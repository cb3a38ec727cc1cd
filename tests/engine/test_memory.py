"""What the process takes in all, against --memory: many checkpoints of many small tensors, K × N of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import hubextrap

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")

MiB = 2**20
ELEMENTS = 8
FAIR = 512
"""Bytes of an input of a tensor by which a plan may say too much; beside them, 64 MiB."""
COMMAND = """
import sys
from pathlib import Path
from hubextrap.cli.main import main
try:
    code = main()
except SystemExit as end:
    code = end.code
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent before exec
print("peak", status.split("VmHWM:")[1].split()[0], "kB", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """run_of(K, N) writes K checkpoints of N tensors; ``alike`` False gives each a header of its own."""
    made: dict[tuple[int, int, bool], Path] = {}

    def build(checkpoints: int, tensors: int, alike: bool = True) -> Path:
        key = (checkpoints, tensors, alike)
        if key in made:
            return made[key]
        root = made[key] = tmp_path_factory.mktemp("run")
        rng = np.random.default_rng(0)
        base, slope = rng.normal(size=(2, ELEMENTS * tensors)).astype(np.float32)
        size = 2 * ELEMENTS
        places = {
            f"model.layers.{i // 9}.self_attn.q_proj.{i % 9}.weight": {
                "dtype": "BF16",
                "shape": [2, ELEMENTS // 2],
                "data_offsets": [i * size, (i + 1) * size],
            }
            for i in range(tensors)
        }
        for k in range(checkpoints):
            metadata = {"format": "pt"} if alike else {"format": "pt", "step": str(k)}
            text = json.dumps({"__metadata__": metadata, **places}).encode()
            values = base + np.float32(0.01 * k) * slope
            values += 0.003 * rng.normal(size=values.size).astype(np.float32)
            folder = root / f"step_{10 * k}"
            folder.mkdir()
            data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
            (folder / "config.json").write_text('{"model_type": "llama"}')
        return root

    return build


def ended(*arguments: str) -> tuple[int, int, str]:
    """A command's exit code, peak in bytes and what it said; the first run of its machine, which compiles."""
    with TemporaryDirectory() as compiled:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": compiled},
            capture_output=True,
            text=True,
        )
    said = done.stdout + done.stderr
    return done.returncode, 1024 * int(re.findall(r"^peak (\d+) kB$", said, re.MULTILINE)[-1]), said


def least(*arguments: str) -> int:
    """The memory, MiB, that a refusal says is enough; that it takes no more itself is checked too."""
    code, peak, said = ended(*arguments, "--memory", "1MiB")
    assert code, said
    (enough,) = re.findall(r"give at least (\d+) MiB", said)
    assert peak <= int(enough) * MiB, (peak / MiB, said)
    return int(enough)


def recipe(root: Path, method: str, checkpoints: int) -> Path:
    path = root / f"{method}.yaml"
    target = 15 * (checkpoints - 1)
    path.write_text(
        f"trajectory:\n  repo: {root}\nmerge_method: {method}\nparameters: {{target_step: {target}}}\n"
    )
    return path


CASES = [(2, 50, True), (30, 50, True), (300, 50, True), (2, 6000, True), (30, 6000, True)]
CASES += [(30, 6000, False), (300, 6000, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoints", "tensors", "alike"), CASES)
def test_a_merge_takes_what_it_may(
    run_of: Callable[..., Path], tmp_path: Path, checkpoints: int, tensors: int, alike: bool
) -> None:
    root = run_of(checkpoints, tensors, alike)
    path = str(recipe(root, "least_squares", checkpoints))
    enough = least("plan", path)
    code, peak, said = ended("merge", path, "--out", str(tmp_path / "out"), "--memory", f"{enough}MiB", "-q")
    assert code == 0, said
    assert peak <= enough * MiB, peak / MiB
    planned = hubextrap.plan(
        hubextrap.load_recipe(path),
        out=tmp_path / "other",
        settings=hubextrap.MergeOptions(memory=enough * MiB),
    )
    assert peak <= planned.peak_memory
    assert planned.peak_memory < peak + FAIR * checkpoints * tensors + 64 * MiB


@pytest.mark.slow
def test_files_beside_the_weights_are_counted(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = shutil.copytree(run_of(2, 50), tmp_path / "run")
    for number in range(3):
        (run / "step_10" / f"{number}.tiktoken").write_bytes(bytes(60 * MiB))
    (run / "step_10" / "config.json").write_text('{"model_type": "llama", "a": [' + "{}, " * 500_000 + "0]}")
    path = str(recipe(run, "least_squares", 2))
    enough = least("plan", path)
    code, peak, said = ended("merge", path, "--out", str(tmp_path / "out"), "--memory", f"{enough}MiB", "-q")
    assert code == 0, said
    assert 350 * MiB < peak <= enough * MiB, peak / MiB


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoints", "tensors", "alike"), [c for c in CASES if c[0] * c[1] <= 180_000])
def test_a_scan_takes_what_it_may(
    run_of: Callable[..., Path], tmp_path: Path, checkpoints: int, tensors: int, alike: bool
) -> None:
    root = run_of(checkpoints, tensors, alike)
    out = str(tmp_path / "scan")
    enough = least("scan", str(root), "--out", out)
    code, peak, said = ended("scan", str(root), "--out", out, "--memory", f"{enough}MiB", "-q")
    assert code == 0, said
    assert peak <= enough * MiB, peak / MiB


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoints", "tensors"), [(30, 50), (10, 6000)])
def test_a_backtest_takes_what_it_may(run_of: Callable[..., Path], checkpoints: int, tensors: int) -> None:
    root = str(run_of(checkpoints, tensors))
    enough = least("backtest", root)
    code, peak, said = ended("backtest", root, "--memory", f"{enough}MiB", "-q")
    assert code == 0, said
    assert peak <= enough * MiB, peak / MiB


@pytest.mark.slow
@pytest.mark.parametrize("method", ["low_rank", "calibrated"])
def test_a_fitted_merge_takes_what_it_may(run_of: Callable[..., Path], tmp_path: Path, method: str) -> None:
    root = run_of(30, 6000)
    path = str(recipe(root, method, 30))
    enough = least("plan", path)
    assert enough == least("merge", path, "--out", str(tmp_path / "out")), "plan says what merge does"
    code, peak, said = ended("merge", path, "--out", str(tmp_path / "out"), "--memory", f"{enough}MiB", "-q")
    assert code == 0, said
    assert peak <= enough * MiB, peak / MiB


@pytest.mark.slow
def test_tables_that_do_not_fit_are_refused_before_a_weight_is_read(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    """300² inner products for each of 6,000 tensors are 4 GiB."""
    root = run_of(300, 6000)
    code, peak, said = ended("scan", str(root), "--out", str(tmp_path / "scan"))
    assert code, said
    assert int(re.findall(r"give at least (\d+) MiB", said)[0]) > 4096
    assert peak < 512 * MiB
