"""A training that was stopped and resumed is, to the bit, the one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hubextrap.errors import CheckpointMismatch, CorruptFile, OutputError
from hubextrap.regrounding import HISTORY_NAME, ExtrapolationCallback, read_history
from hubextrap.regrounding.ring import Layout, SnapshotRing

OPTIONS: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 18}


def callback(m: int = 4, n: int = 6, **options: Any) -> ExtrapolationCallback:
    return ExtrapolationCallback(m, n, **{"max_error": 5.0, **options})


def drifting() -> Any:
    """A probe with a memory only in the weights: it undoes some jumps and lengthens others."""
    return lambda model: float(1000 * model.lm_head.weight.double().sum() % 1.0)


VARIANTS: dict[str, dict[str, Any]] = {
    "two_point": {},
    "calibrated, disk": {"rule": "calibrated", "snapshots": "disk"},
    "probe, reset": {"probe": drifting(), "probe_margin": 0.1, "max_n": 24, "moments": "reset"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "step"),
    [
        ("two_point", 8),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("calibrated, disk", 10), ("probe, reset", 8), ("probe, reset", 10))
        ),
    ],
)
def test_resumed_equals_uninterrupted(
    build: Any, stop_at: Any, assert_same: Any, tmp_path: Path, variant: str, step: int
) -> None:
    """Step 8 ends a window, step 10 is in the middle of one."""
    whole = callback(**VARIANTS[variant])
    expected = build(whole, out="whole", **OPTIONS).train()
    assert "jumped" in [decision.action for decision in whole.decisions]
    with pytest.raises(KeyboardInterrupt):
        build(callback(**VARIANTS[variant]), last=(stop_at(step),), out="cut", **OPTIONS).train()
    resumed = callback(**VARIANTS[variant])
    run = build(resumed, out="cut", **OPTIONS).train(resume_from_checkpoint=True)
    assert_same(run.final, expected.final)
    assert resumed.decisions == whole.decisions
    assert resumed.clocks == whole.clocks
    histories = [(tmp_path / out / HISTORY_NAME).read_bytes() for out in ("whole", "cut")]
    assert histories[0] == histories[1]
    kept = [[e for e in r.trainer.state.log_history if "loss" not in e][:-1] for r in (run, expected)]
    assert kept[0] == kept[1]


@pytest.fixture
def checkpoint(build: Any, tmp_path: Path) -> Path:
    build(callback(), max_steps=10, save_strategy="steps", save_steps=10).train()
    return tmp_path / "run" / "checkpoint-10"


def resume(build: Any, checkpoint: Path, used: ExtrapolationCallback) -> Any:
    return build(used, max_steps=18).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.slow
def test_a_checkpoint_elsewhere_brings_its_history(build: Any, checkpoint: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(checkpoint, moved)
    before = read_history(checkpoint / "reground" / HISTORY_NAME)
    shutil.rmtree(tmp_path / "run")
    used = callback()
    resume(build, moved, used)
    assert used.decisions[: len(before)] == before
    assert len(used.decisions) == 4


def test_a_checkpoint_holds_safetensors_and_json_only(checkpoint: Path) -> None:
    files = [path for path in (checkpoint / "reground").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}
    state = json.loads((checkpoint / "reground" / "state.json").read_text())
    assert state["clocks"] == {"rl_steps": 10, "extrapolated_steps": 6}
    assert sorted(path.name for path in files if path.suffix == ".safetensors") == [
        "step-14.safetensors",
        "step-4.safetensors",
        "step-8.safetensors",
    ]


@pytest.mark.slow
def test_a_checkpoint_without_its_snapshots_is_refused(build: Any, checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "reground")
    with pytest.raises(CorruptFile, match=r"snapshots .* are missing") as missing:
        resume(build, checkpoint, callback())
    assert missing.value.file == str(checkpoint / "reground")


@pytest.mark.slow
def test_a_run_that_was_never_regrounded_may_begin(build: Any, tmp_path: Path) -> None:
    build(None, max_steps=10, save_strategy="steps", save_steps=10).train()
    used = callback()
    resume(build, tmp_path / "run" / "checkpoint-10", used)
    assert [(d.rl_steps, d.snapshot_steps[0]) for d in used.decisions] == [(14, 10), (18, 10)]


@pytest.mark.slow
def test_other_settings_are_refused(build: Any, checkpoint: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"rule": "anchored", "windows": 2}, "rule = 'two_point', but the callback has 'anchored'"),
        (
            {"max_n": 99, "probe": drifting(), "probe_margin": 0.1},
            "max_n = 6, but the callback has 99",
        ),
        ({"m": 5}, "m = 4, but the callback has 5"),
        ({"n": 5}, "n = 6, but the callback has 5"),
        ({"windows": 3}, "windows = 2, but the callback has 3"),
    ]
    for options, said in refused:
        with pytest.raises(CheckpointMismatch, match=f"saved with {said}"):
            resume(build, checkpoint, callback(**options))


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    """As when a resumed run trains other parameters, or holds other shards of them."""
    saved = SnapshotRing({"up": Layout("F32", 6), "down": Layout("F32", 4)})
    saved.put(0, {"up": torch.ones(2, 3), "down": torch.ones(4)})
    saved.save(tmp_path)
    for layouts, said in (
        ({"up": Layout("F32", 6)}, "tensor down is 4 × F32 in the checkpoint but missing in training"),
        ({"up": Layout("F32", 6), "down": Layout("F32", 3)}, "down is 4 × F32 in the checkpoint but 3 × F32"),
        ({"up": Layout("BF16", 6), "down": Layout("F32", 4)}, "up is 6 × F32 in the checkpoint but 6 × BF16"),
    ):
        with pytest.raises(CheckpointMismatch, match=said):
            SnapshotRing(layouts).load(tmp_path, [0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state.json", "rank-0/step-8.safetensors", HISTORY_NAME])
def test_a_damaged_file_is_named(build: Any, checkpoint: Path, name: str) -> None:
    (checkpoint / "reground" / name).write_bytes(b"\x00 not what it was\n")
    with pytest.raises(CorruptFile, match=Path(name).name):
        resume(build, checkpoint, callback())


def test_a_full_disk_is_an_error_that_names_the_file(build: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reground_ring").write_text("in the way, as a full disk would be")
    with pytest.raises(OutputError, match="the snapshot cannot be written") as full:
        build(callback(snapshots="disk")).train()
    assert str(full.value.file).endswith("step-0.safetensors")
