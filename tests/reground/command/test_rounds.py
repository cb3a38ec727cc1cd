"""What every round leaves behind: the weights that the formula gives, and the history that says why."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import Lines
from safetensors.numpy import load_file

from hubextrap import MergeOptions, api
from hubextrap.errors import MethodError
from hubextrap.recipe import load_reground_recipe
from hubextrap.regrounding import Decision, Window, jump_coefficients, read_history
from hubextrap.regrounding.jumps import joined_steps
from hubextrap.regrounding.parameters import move_to
from hubextrap.regrounding.ring import Layout, SnapshotRing

Weights = Callable[[Path], dict[str, np.ndarray]]
Setting = Any
STEPS, JUMP = 4, 4


def run(setting: Setting, **arguments: Any) -> api.RegroundResult:
    return api.reground(load_reground_recipe(setting.recipe), setting.out, **arguments)


def real(setting: Setting, number: int) -> Path:
    return setting.out / f"round-{number:03}" / "output" / f"checkpoint-{STEPS}"


def jumped_to(setting: Setting, number: int) -> Path:
    return setting.out / f"round-{number:03}" / "extrapolated"


def test_each_jump_is_the_windows_own_line(
    setting: Callable[..., Setting], start: Path, weights: Weights
) -> None:
    """W_end + n/m·(W_end − W_start) in float64 from the folders alone; training goes on from there."""
    setting = setting(jump=6)
    result = run(setting)
    begins = start
    for number in (1, 2):
        before, after, found = (
            weights(folder) for folder in (begins, real(setting, number), jumped_to(setting, number))
        )
        assert found.keys() == after.keys()
        for name in found:
            end, begin = after[name].astype(np.float64), before[name].astype(np.float64)
            exact = end + 6 / STEPS * (end - begin)
            # a difference, a product and a sum, each rounded to float32 once
            rounding = 2**-24 * (2 * (1 + 6 / STEPS) * np.abs(end - begin) + np.abs(exact)) + 2**-149
            assert np.all(np.abs(found[name] - exact) <= rounding * (1 + 2**-20))
            assert not np.array_equal(found[name], after[name])
        begins = jumped_to(setting, number)
        log = (setting.out / f"round-{number + 1:03}" / "train.log").read_text()
        assert log.startswith(f"training from {begins}\n")
    assert result.model == real(setting, 3)
    assert not jumped_to(setting, 3).exists()
    assert [d.action for d in result.decisions] == ["jumped", "jumped", "skipped"]
    assert [d.rl_steps for d in result.decisions] == [4, 8, 12]
    assert [d.represented_steps for d in result.decisions] == [10, 20, 24]
    assert result.decisions[-1].reason.startswith("training ends here, and what it ends with was trained")
    assert read_history(setting.out / "reground_history.jsonl") == list(result.decisions)


@pytest.mark.parametrize("rule", ["anchored", "calibrated"])
def test_other_rules_take_earlier_windows_in(
    rule: str, setting: Callable[..., Setting], start: Path, weights: Weights
) -> None:
    """The same snapshots put into the callback's own functions, and combined here in float64."""
    setting = setting(rule=rule, iterations=4, jump=2)
    decisions = run(setting).decisions
    assert decisions[0].action == ("jumped" if rule == "anchored" else "skipped")  # one window is no past
    places = {0: start}
    windows: list[Window] = []
    for number, decision in enumerate(decisions[:-1], 1):
        begins = 0 if number == 1 else decisions[number - 2].represented_steps
        windows.append(Window(begins, begins + STEPS))
        places[begins + STEPS] = real(setting, number)
        if decision.action != "jumped":
            continue
        steps = decision.snapshot_steps
        assert steps == tuple(sorted(places))
        snapshots = [weights(places[step]) for step in steps]
        names = list(snapshots[0])
        gram = np.array([gram_of([one[name] for one in snapshots]) for name in names])
        rows = jump_coefficients(windows, 2, rule, gram)
        assert len(rows) == (len(names) if rule == "calibrated" else 1)
        # beside the edge of a cell of the grid, two ways to sum a Gram matrix may fall into either
        decided = decision.coefficients
        assert decided is not None
        taken = np.array(
            [decided[name] for name in names] if rule == "calibrated" else list(decided.values())
        )
        assert np.all(np.abs(taken - np.array(rows)) <= 2 * 2.0**-20)
        rows = taken
        found = weights(jumped_to(setting, number))
        for index, name in enumerate(names):
            row = rows[index % len(rows)]
            terms = [c * one[name].astype(np.float64) for c, one in zip(row, snapshots, strict=True)]
            sizes = np.sum(np.abs(terms), axis=0)
            rounding = (len(terms) + 2) * 2**-24 * sizes
            assert np.all(np.abs(found[name] - np.sum(terms, axis=0)) <= rounding)
            in_process = callbacks_jump(dict(zip(steps, snapshots, strict=True)), decision)[name]
            assert np.all(np.abs(found[name] - in_process) <= 2 * rounding)
        places[decision.represented_steps] = jumped_to(setting, number)
    assert len(decisions[-1].snapshot_steps) > 4
    assert joined_steps(windows) == (0, 4, 8, 12)


def callbacks_jump(snapshots: dict[int, dict[str, np.ndarray]], decision: Decision) -> dict[str, np.ndarray]:
    """Where `ExtrapolationCallback` moves its parameters by the same decision."""
    ring: SnapshotRing | None = None
    tensors: dict[str, torch.Tensor] = {}
    for step, weights in snapshots.items():
        tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
        ring = ring or SnapshotRing({name: Layout.of(tensor) for name, tensor in tensors.items()})
        ring.put(step, tensors)
    assert ring is not None
    assert decision.coefficients is not None
    move_to(ring, decision.snapshot_steps, decision.coefficients, tensors)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def gram_of(snapshots: list[np.ndarray]) -> np.ndarray:
    deltas = [(one.astype(np.float64) - snapshots[0]).ravel() for one in snapshots]
    return np.array([[a @ b for b in deltas] for a in deltas])


def test_configuration_and_tokenizer_go_along(setting: Callable[..., Setting], start: Path) -> None:
    """A trainer that saves no tokenizer gets the start's; tied embeddings stay tied; all of it loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bare = setting()
    trainer = bare.recipe.parent / "trainer.py"
    trainer.write_text(
        (Path(__file__).parent / "trainer.py")
        .read_text()
        .replace(', "tokenizer.json", "tokenizer_config.json"', "")
    )
    bare.recipe.write_text(
        bare.recipe.read_text().replace(str(Path(__file__).parent / "trainer.py"), str(trainer))
    )
    run(bare)
    for folder in (real(bare, 1), jumped_to(bare, 1), real(bare, 3)):
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (folder / file).read_bytes() == (start / file).read_bytes()
        AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert api.verify(jumped_to(bare, 1)).problems == ()
    provenance = json.loads((jumped_to(bare, 1) / "hubextrap.json").read_text())
    assert provenance["merge_method"] == "reground two_point"
    assert provenance["target_step"] == 8
    assert provenance["coefficients"][0]["coefficients"] == {"0": -1.0, "4": 2.0}


@pytest.mark.slow
def test_the_shipped_recipe_for_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real trainer, for two short rounds: what `save_pretrained` leaves is found, checked and moved."""
    root = Path(__file__).parents[3]
    content = yaml.safe_load((root / "merge_configs" / "reground_trl.yaml").read_text())
    content["reground"] |= {"window": 2, "jump": 2, "iterations": 2, "guard": {"max_error": "off"}}
    content["reground"]["train"] += " --prompts 4"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    result = api.reground(load_reground_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert [d.action for d in result.decisions] == ["jumped", "skipped"]
    weights = load_file(result.model / "model.safetensors")
    before = load_file(tmp_path / "run" / "round-001" / "extrapolated" / "model.safetensors")
    assert weights.keys() == before.keys()
    assert any(not np.array_equal(weights[name], before[name]) for name in weights)


def test_a_device_that_is_not_there_costs_no_training(setting: Callable[..., Setting]) -> None:
    made = setting()
    with pytest.raises(MethodError, match="device meta: holds no numbers"):
        run(made, settings=MergeOptions(device="meta"))
    assert not made.out.exists()


def test_the_guard_skips_and_training_goes_on(setting: Callable[..., Setting], lines: Lines) -> None:
    setting = setting(guard=None, jump=400, max_skipped=2, iterations=9)
    setting.change(guard={"max_error": 1.0})
    result = run(setting, progress=lines)
    assert [d.action for d in result.decisions] == ["skipped", "skipped"]
    assert result.decisions[0].reason == "the first window: there is no earlier one to backtest on"
    assert "rehearsed no horizon that long" in result.decisions[1].reason
    assert result.reason == "the last 2 jumps were skipped or undone; max_skipped is 2"
    assert result.model == real(setting, 2)
    log = (setting.out / "round-002" / "train.log").read_text()
    assert log.startswith(f"training from {real(setting, 1)}\n")


def test_a_window_that_moved_nothing_is_no_line(setting: Callable[..., Setting]) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text("still")
    assert run(setting).decisions[0].reason == (
        "the last window moved no weight, so there is no line to jump along"
    )


PROBE = """\
import sys
from pathlib import Path
from safetensors.numpy import load_file
model = Path(sys.argv[1])
if not (model / "model.safetensors").exists(): sys.exit("no model")
print("loading …", file=sys.stderr)
print(sys.argv[2] if model.name == "extrapolated" else 0.5)
"""


@pytest.mark.parametrize(
    ("score", "actions", "used", "wanted"),
    [
        ("nan", ["rolled_back", "skipped"], [0, 0], [4, 2]),
        ("0.9", ["jumped", "skipped"], [4, 0], [4, 6]),
    ],
)
def test_a_probe_takes_back_and_adapts(
    score: str,
    actions: list[str],
    used: list[int],
    wanted: list[int],
    setting: Callable[..., Setting],
    tmp_path: Path,
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    probe = f"{sys.executable} {tmp_path / 'probe.py'} {{model}} {score}"
    setting = setting(
        guard={"max_error": "off", "probe": probe, "margin": 0.05, "longest_jump": 6}, iterations=2
    )
    decisions = run(setting).decisions
    assert [d.action for d in decisions] == actions
    assert [d.n_used for d in decisions] == used
    assert [d.n_wanted for d in decisions] == wanted
    assert decisions[0].probe_before == 0.5
    assert decisions[0].probe_after == (None if score == "nan" else float(score))
    assert f"probe 0.5 before, {float(score):.4g} after" in decisions[0].reason
    begins = real(setting, 1) if actions[0] == "rolled_back" else jumped_to(setting, 1)
    assert (setting.out / "round-002" / "train.log").read_text().startswith(f"training from {begins}\n")


@pytest.mark.parametrize(
    ("section", "rounds", "reason"),
    [
        ({"iterations": 2}, 2, "2 iterations are done"),
        (
            {"iterations": None, "max_rl_steps": 11},
            2,
            "8 RL steps; another round would exceed max_rl_steps 11",
        ),
        (  # just two rounds of four
            {"iterations": None, "max_rl_steps": 8},
            2,
            "8 RL steps; another round would exceed max_rl_steps 8",
        ),
        (
            {"iterations": None, "max_represented_steps": 13},
            3,
            "20 steps are represented; max_represented_steps is 13",
        ),
        (
            {"iterations": None, "max_represented_steps": 12},
            2,
            "12 steps are represented; max_represented_steps is 12",
        ),
        (  # a jump beyond it is followed by training
            {"iterations": None, "max_represented_steps": 7},
            2,
            "12 steps are represented; max_represented_steps is 7",
        ),
    ],
)
def test_what_ends_a_run(
    section: dict[str, Any], rounds: int, reason: str, setting: Callable[..., Setting]
) -> None:
    setting = setting(**section)
    result = run(setting)
    assert (len(result.decisions), result.reason) == (rounds, reason)
    assert result.model == real(setting, rounds)
    assert result.decisions[-1].action == "skipped"


def test_a_finished_run_can_be_given_more(setting: Callable[..., Setting], lines: Lines) -> None:
    setting = setting(iterations=1)
    run(setting)
    assert run(setting, progress=lines).reason == "1 iterations are done"
    assert not any("RL steps" in line for line in lines.said)
    setting.change(iterations=2)
    assert [d.rl_steps for d in run(setting).decisions] == [4, 8]


@pytest.mark.slow
def test_old_rounds_can_be_dropped(setting: Callable[..., Setting]) -> None:
    kept = setting(iterations=5)
    everything = run(kept)
    models = {path.parent.name for path in kept.out.rglob("*.safetensors")}
    assert models == {"extrapolated", "checkpoint-4"}
    assert len(list(kept.out.rglob("*.safetensors"))) == 9
    folder = kept.recipe.parent / "second"
    folder.mkdir()
    second = Path(shutil.copy(kept.recipe, folder))
    lean = type(kept)(second, folder / "run", kept.fault)
    lean.change(keep="last")
    result = run(lean)
    assert [d.as_line() for d in result.decisions] == [d.as_line() for d in everything.decisions]
    left = sorted(path.relative_to(lean.out).parts[0] for path in lean.out.rglob("*.safetensors"))
    assert left == ["round-004", "round-005"]  # what the next jump would be backtested on
    assert (real(lean, 5) / "model.safetensors").read_bytes() == (
        real(kept, 5) / "model.safetensors"
    ).read_bytes()
    assert len(list(lean.out.glob("round-*/train.log"))) == 5
