"""What torch writes in these tests: a small model's tensors, and two checkpoints of it by two ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torch_runs import write_dcp, write_fsdp
from torch_states import beside, small_state

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    return small_state()


@pytest.fixture(scope="session")
def fsdp_files(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fsdp")
    write_fsdp(folder, state, 2)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="session")
def dcp_files(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("dcp")
    write_dcp(folder, state, 2, beside=beside(state))
    return {file.name: file.read_bytes() for file in folder.iterdir()}
