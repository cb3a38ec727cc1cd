"""SIGKILL in training, between phases, while extrapolating: the run ends as one that nobody stopped."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Warm

KILLED = -9
PHASES = ("trained", "checked", "decided", "extrapolated", "probed", "pushed")
PROBE = "import sys, pathlib; print(0.75 if pathlib.Path(sys.argv[1]).name == 'extrapolated' else 0.5)"


def phase_of(out: Path) -> tuple[int, str]:
    """Round and last phase in the state; it is replaced whole, so it can be read at any moment."""
    try:
        state = json.loads((out / "state.json").read_bytes())
    except FileNotFoundError:
        return 0, "begun"
    return state["round"], state["phase"]


def wait_for(moment: Callable[[], bool], pid: int) -> None:
    """Return at the moment, or when the process has ended."""
    while not moment():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.0005)


def moments(out: Path, chance: random.Random, seconds: float) -> Callable[[int], None]:
    """A function that waits for one of the moments to kill at."""
    kind = chance.choice(("any", "phase", "training", "extrapolating", "begun"))
    number = chance.randint(1, 3)

    def wait(pid: int) -> None:
        if kind == "any":
            time.sleep(chance.uniform(0.0, seconds))
        elif kind == "phase":
            phase = chance.choice(PHASES)
            wait_for(lambda: phase_of(out) >= (number, phase) and phase_of(out)[1] == phase, pid)
        elif kind == "training":
            wait_for(lambda: (out / f"round-{number:03}" / "output").exists(), pid)
            time.sleep(chance.uniform(0.0, 0.3))
        elif kind == "extrapolating":
            wait_for(lambda: (out / f"round-{number:03}" / ".extrapolated.partial").exists(), pid)
            time.sleep(chance.uniform(0.0, 0.02))
        else:
            time.sleep(chance.uniform(0.0, 0.05))

    return wait


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "probed"), [(5, False), (40, True)], ids=["few", "forty"])
def test_every_run_ends_alike(
    kills: int,
    probed: bool,
    warm: Warm,
    setting: Callable[..., Any],
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    import sys

    guard: dict[str, Any] = {"max_error": "off"}
    if probed:
        guard |= {"probe": [sys.executable, "-c", PROBE, "{model}"], "margin": 0.1, "longest_jump": 12}
    setting = setting(guard=guard, pause=0.02, keep="last" if probed else "all")
    calm = tmp_path / "undisturbed" / "out"  # the cards name the run after the folder
    undisturbed = warm.run("reground", setting.recipe, "--out", calm)
    assert undisturbed.code == 0, undisturbed.output
    expected = contents(calm)
    assert b'"action": "jumped"' in expected["reground_history.jsonl"]
    chance = random.Random(kills)
    died = at = 0
    seen = set()
    while died < kills:
        out = tmp_path / f"run-{at}" / "out"
        at += 1
        for _ in range(8):
            pid = warm.start("reground", setting.recipe, "--out", out)
            if died < kills:
                moments(out, chance, undisturbed.seconds)(pid)
                ended = warm.end(pid, after=0.0)
            else:
                ended = warm.end(pid)
            died += ended.code == KILLED
            seen.add(phase_of(out))
            if ended.code == 0:
                break
            assert ended.code == KILLED, ended.output
        else:
            ended = warm.run("reground", setting.recipe, "--out", out)
        assert ended.code == 0, ended.output
        assert contents(out) == expected
    assert len({phase for _, phase in seen}) >= min(3, kills // 5)
