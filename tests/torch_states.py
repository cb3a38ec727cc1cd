"""A small model's tensors, and whether what is read of a checkpoint is what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.pieces import StoredTensor

    State = Mapping[str, torch.Tensor]

EMBEDDING, PROJECTION = "model.embed_tokens.weight", "model.layers.0.proj.weight"
EXPERTS = "model.layers.0.experts.down"


def small_state() -> dict[str, torch.Tensor]:
    """Rows that no number of ranks divides, rows that some do, three dimensions, few rows, and none."""
    import torch

    torch.manual_seed(3)
    return {
        EMBEDDING: torch.randn(13, 6).bfloat16(),
        PROJECTION: torch.randn(8, 4).bfloat16(),
        "model.layers.0.norm.weight": torch.randn(2),
        EXPERTS: torch.randn(4, 2, 6).half(),
        "model.layers.0.counts": torch.arange(5),
        "model.scale": torch.tensor(3),
    }


def check_state(tensors: Sequence[StoredTensor], source: Source, state: State) -> None:
    """Every tensor is there once, with all its bytes; so is a part of it."""
    import torch

    assert sorted(one.name for one in tensors) == sorted(state)
    for one in tensors:
        wanted = state[one.name].contiguous().reshape(-1).view(torch.uint8).numpy()
        assert one.parts.shape == tuple(state[one.name].shape)
        for first in (0, state[one.name].numel() // 3):
            skipped = first * state[one.name].element_size()
            out = np.zeros(len(wanted) - skipped, np.uint8)
            one.parts.fill(source, first, out)
            assert (out == wanted[skipped:]).all(), one.name


def beside(state: State) -> dict[str, Any]:
    """What trainers save beside a model."""
    import torch

    moments = {f"state.{name}.exp_avg": torch.ones(one.shape) for name, one in state.items()}
    return {
        "optimizer": {"param_groups": [{"lr": 0.1}], **moments},
        "lr_scheduler": {"last_epoch": 3},
        "train_state": {"step": torch.tensor(3)},
        "dataloader": {"dp_rank_0": b"abc"},
        "rng_state": torch.zeros(9, dtype=torch.uint8),
        "step": 3,
    }
