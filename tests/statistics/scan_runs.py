"""Not tests: small runs made of random weights, and what a scan of them has to say, in plain float64."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from hubextrap.engine.budget import Budget
from hubextrap.engine.scan import scan_trajectory
from hubextrap.engine.scan_plan import plan_scan
from hubextrap.scans import Scan
from hubextrap.tensors import open_source, read_layouts
from hubextrap.trajectory import find_trajectory

STEPS = (0, 10, 30, 40, 70)


def make_run(
    folder: Path,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    steps: Sequence[int] = STEPS,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> Path:
    """Checkpoints that drift, wander and partly stay where they are; dtypes are taken in turn."""
    shapes = shapes or {
        "model.embed_tokens.weight": (300, 17),
        "model.layers.0.self_attn.q_proj.weight": (256, 600),
        "model.layers.0.self_attn.q_proj.bias": (3,),
        "model.norm.weight": (1,),
    }
    generator = torch.Generator().manual_seed(len(steps))

    def noise(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    start = {name: noise(shape, 0.02) for name, shape in shapes.items()}
    drift = {name: noise(shape, 3e-6) for name, shape in shapes.items()}
    still = {name: torch.rand(shape, generator=generator) < 0.2 for name, shape in shapes.items()}
    for number, step in enumerate(steps):
        state = {
            name: torch.where(still[name], start[name], start[name] + step * drift[name] + noise(shape, 4e-5))
            for name, shape in shapes.items()
        }
        write_checkpoint(
            folder / f"step_{step}",
            {name: weights.to(dtypes[number % len(dtypes)]) for name, weights in state.items()},
        )
    return folder


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def scan_folder(folder: Path, *, tied: bool = False, **options: Any) -> Scan:
    """A scan without a file."""
    limits = {
        name: options.pop(name) for name in ("memory", "workers", "remote", "read_size") if name in options
    }
    trajectory = find_trajectory(str(folder))
    with ExitStack() as stack:
        sources = [
            stack.enter_context(closing(open_source(checkpoint))) for checkpoint in trajectory.checkpoints
        ]
        plan = plan_scan(trajectory.steps, read_layouts(sources), tied=tied, budget=Budget(**limits))
        return scan_trajectory(trajectory, sources, plan, **options)


def weights(folder: Path, tensor: str) -> NDArray[np.float64]:
    """(K, elements)."""
    folders = sorted(folder.glob("step_*"), key=lambda path: int(path.name[5:]))
    return np.stack(
        [load_file(path / "model.safetensors")[tensor].double().flatten().numpy() for path in folders]
    )
