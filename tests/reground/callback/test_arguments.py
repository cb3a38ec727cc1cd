"""What makes no sense is said before training."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

import hubextrap
from hubextrap.errors import MethodError, NonFinite, OutputError
from hubextrap.regrounding import ExtrapolationCallback
from hubextrap.regrounding.parameters import move_to
from hubextrap.regrounding.ring import Layout, SnapshotRing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"m": 0}, "m 0: "),
        ({"n": 0}, "n 0: "),
        ({"max_n": 5}, "max_n 5 is below n 60"),
        ({"rule": "linear"}, "rule 'linear': choose one of"),
        ({"windows": 0}, "windows 0: "),
        ({"windows": 1}, "windows 1: .* give 2 or more"),
        ({"max_error": 0.0}, r"max_error 0\.0: "),
        ({"max_error": float("nan")}, "max_error nan: "),
        ({"probe": lambda model: 1.0}, "probe_margin None: "),
        ({"probe_margin": 0.1}, "give a probe and its margin together"),
        ({"probe": lambda model: 1.0, "probe_margin": -0.1}, r"probe_margin -0\.1: "),
        ({"clock": "rates"}, "clock 'rates': choose auto, steps or learning_rate"),
        ({"own_answers": "1+2="}, "own_answers: give a list of prompts, each of them non-empty text"),
        ({"own_answers": []}, "own_answers: give a list of prompts"),
        ({"own_answers": [[1, 2]]}, "own_answers: give a list of prompts"),
        ({"own_answers": ["1+2="], "max_tokens": 0}, "max_tokens 0: an answer has at least one"),
        ({"max_tokens": 4}, "no effect without own_answers"),
        ({"apply_chat_template": True}, "no effect without own_answers"),
        ({"moments": "halve"}, "moments 'halve': choose keep or reset"),
        ({"snapshots": "gpu"}, "snapshots 'gpu': choose cpu or disk"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        hubextrap.ExtrapolationCallback(**{"m": 20, "n": 60, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize("snapshots", ["cpu", "disk"])
def test_snapshots_that_do_not_fit_are_refused_before_training(build: Any, snapshots: Any) -> None:
    size = 4 * sum(p.numel() for p in build(None).trainer.model.parameters())
    fits = ExtrapolationCallback(4, 6, memory=4 * size, snapshots=snapshots)
    build(fits, max_steps=8).train()
    assert fits.clocks.rl_steps == 8
    with pytest.raises(OutputError, match=f"take {4 * size:,}, above memory="):
        build(ExtrapolationCallback(4, 6, memory=4 * size - 1, snapshots=snapshots)).train()


def test_a_disk_without_room_is_refused_before_training(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"4 snapshots take .* 1,000 free") as refused:
        build(ExtrapolationCallback(4, 6, snapshots="disk")).train()
    assert str(refused.value.file).endswith("run")


def test_a_model_without_trainable_parameters_is_refused(build: Any) -> None:
    run = build(ExtrapolationCallback(4, 6))
    run.trainer.create_optimizer()
    for parameter in run.trainer.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(MethodError, match="no parameter of the model is trainable"):
        run.train()


def test_moments_that_zero_does_not_begin_are_refused() -> None:
    from types import SimpleNamespace

    from hubextrap.regrounding.parameters import reset_moments

    eight_bit = SimpleNamespace(state={0: {"state1": torch.zeros(4, dtype=torch.uint8)}})
    with pytest.raises(MethodError, match=r"state1 as torch\.uint8"):
        reset_moments(eight_bit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_jump_out_of_range_leaves_everything_where_it_was(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(3, 2).requires_grad_(dtype.itemsize > 1).to(dtype)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    ring = SnapshotRing({name: Layout.of(tensor) for name, tensor in tensors.items()})
    ring.put(0, tensors)
    tensors["bias"].copy_(tensors["bias"].float() + 100.0)
    ring.put(1, tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(NonFinite, match="leaves the range of its dtype") as overflowed:
        move_to(ring, (0, 1), {"*": (-999.0, 1000.0)}, tensors)
    assert overflowed.value.tensor == "bias"
    assert all(
        torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        for name, tensor in tensors.items()
    )


def test_training_that_has_diverged_is_an_error(build: Any) -> None:
    run = build(ExtrapolationCallback(4, 6), learning_rate=1e38)
    with pytest.raises(NonFinite, match="at one of steps 0, 4") as diverged:
        run.train()
    assert str(diverged.value.tensor).startswith("model.")
