"""The benchmarks, so that they do not rot: each case on tiny inputs, and how they measure."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from runpy import run_path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {
    "startup": 6,
    "planning": 3,
    "kernels": 3,
    "local": 10,
    "profile": 9,
    "remote": 4,
    "scan": 4,
    "sampled": 4,
}
ROWS |= {"sampled": 5, "scaling": 39, "ray": 2, "adapters": 4, "merged-adapters": 3, "formats": 8}
"""Cases, and lines of their tables at least."""


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each case prints, of one run of them all, in which another checkout takes part."""
    work = tmp_path_factory.mktemp("work")
    ended = bench("--layers", "1", "--rounds", "1", "--work", work, "--other", ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(section.split("\n", 1) for section in ended.stdout.split("\n## ")[1:])


@pytest.fixture(scope="module")
def measure() -> dict[str, Any]:
    return run_path(str(ROOT / "benchmarks" / "measure.py"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ROWS)
def test_each_case_runs(case: str, printed: dict[str, str]) -> None:
    rows = re.findall(r"^\| .* \|$(?!\n\|-)", printed[case], re.MULTILINE)
    assert len(rows) >= ROWS[case]
    assert all(any(character.isdigit() for character in row) for row in rows)
    assert "load average before:" in printed[case]
    assert re.search(rf"^{case}: \d+ s; ", printed[case], re.MULTILINE)


@pytest.mark.slow
def test_another_checkout_takes_part(printed: dict[str, str]) -> None:
    for case, row, count in (
        ("scan", r"the (?:disk|page cache) \| other scan", 2),
        ("local", r".* \| other", 3),
    ):
        assert len(re.findall(rf"^\| {row} \|", printed[case], re.MULTILINE)) == count


def test_another_checkout_has_to_be_one_and_of_use(tmp_path: Path) -> None:
    no_checkout = bench("--other", tmp_path, "--work", tmp_path)
    assert no_checkout.returncode == 2
    assert f"{tmp_path}: holds no hubextrap" in no_checkout.stderr
    idle = bench("--only", "kernels", "--other", ROOT, "--work", tmp_path)
    assert idle.returncode == 2
    assert "--other goes with local and scan" in idle.stderr


def test_programs_take_turns_and_pairs_are_of_one_round(measure: dict[str, Any]) -> None:
    seconds = {"a": iter([1.0, 4.0, 9.0]), "b": iter([2.0, 2.0])}
    order = []

    def program(name: str) -> Any:
        order.append(name)
        return measure["Run"](next(seconds[name]), 0.0, 0, {})

    programs = {name: lambda name=name: program(name) for name in "ab"}
    found = measure["in_turn"](programs, 3, lambda: order.append("-"), {"b": 2})
    assert "".join(order) == "-a-b-a-b-a"
    assert measure["ratios"](found["a"], found["b"], lambda one: one.seconds) == [0.5, 2.0]
    assert measure["ratios"](found["a"], found["b"], lambda one: one.own) == []


def test_medians_have_their_spread(measure: dict[str, Any]) -> None:
    assert measure["spread"]([3.0, 1.0, 10.0]) == "3.00 (1.00–10.00)"
    assert measure["spread"]([1.25], 1) == "1.2"
    assert measure["spread"]([None]) == ""


def test_a_process_is_measured(
    measure: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends once what it takes has been looked at, however late that is."""
    full, seen = tmp_path / "full", tmp_path / "seen"
    was_full = False

    def look_again(seconds: float) -> None:
        nonlocal was_full
        if was_full:
            seen.touch()
        was_full = full.exists()
        time.sleep(seconds)

    monkeypatch.setitem(
        measure["run"].__globals__, "time", SimpleNamespace(**vars(time) | {"sleep": look_again})
    )
    busy = (
        "import pathlib, sys, time; b = bytearray(200_000_000); pathlib.Path(sys.argv[1]).touch()\n"
        "while time.process_time() < .3: pass\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(.01)\n"
    )
    found = measure["run"]([sys.executable, "-c", busy + "print('{\"own\": 5}')", full, seen])
    assert 0.3 <= found.processors < 2
    assert found.seconds >= found.processors
    assert 200e6 < found.peak < 400e6
    assert found.own == 5


def test_a_command_that_fails_ends_the_benchmark(measure: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nwhy"):
        measure["run"]([sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    assert measure["run"]([sys.executable, "-c", "raise SystemExit(3)"], code=3).said == {}
