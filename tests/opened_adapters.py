"""Runs of adapters in local folders, opened as a command opens them, with their base beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubextrap.adapters.run import AdapterRun, BaseModel
from hubextrap.tensors import LocalSource, read_layout
from hubextrap.trajectory import Trajectory
from hubextrap.trajectory.checkpoint import ADAPTER, BASE, Checkpoint


def open_adapters(root: Path, steps: Sequence[int], *, with_base: bool = True) -> AdapterRun:
    """The run of ``root``/step_N; step 0 is ``root``/base itself, and may be read if ``with_base``."""
    checkpoints = [
        Checkpoint(
            step, None, "", None, str(root / f"step_{step}") if step else "", kind=ADAPTER if step else BASE
        )
        for step in steps
    ]
    sources = [LocalSource(root / f"step_{step}") if step else None for step in steps]

    def open_base() -> BaseModel:
        assert with_base, "the base was opened"
        source = LocalSource(root / "base")
        checkpoint = Checkpoint(0, None, "", None, str(root / "base"), kind=BASE)
        return BaseModel(checkpoint, source, read_layout(source), False, "")

    return AdapterRun(Trajectory(tuple(checkpoints), "step_{step}"), sources, open_base)
