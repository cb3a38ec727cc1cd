"""A trainer that takes a second: a real Trainer, a tiny Llama with tied embeddings, a few sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hubextrap.regrounding import ExtrapolationCallback

State = dict[str, torch.Tensor]
DATA = [
    {"input_ids": torch.tensor(row), "labels": torch.tensor(row)}
    for row in [[(5 * i + 3 * j * j) % 32 for j in range(8)] for i in range(48)]
]


def tiny_model() -> LlamaForCausalLM:
    return tiny_llama(vocab_size=32, tie_word_embeddings=True)


def trainable(model: torch.nn.Module) -> State:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class Watch(TrainerCallback):  # type: ignore[misc]
    """The weights after every optimizer step, as whatever callback comes next finds them."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states[state.global_step] = trainable(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states[state.global_step] = trainable(kwargs["model"])


class StopAt(TrainerCallback):  # type: ignore[misc]
    """An interruption after a checkpoint was written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@dataclass
class Run:
    """One training with the weights before and after whatever the callback did."""

    trainer: Trainer
    trained: Watch = field(default_factory=Watch)
    left: Watch = field(default_factory=Watch)

    def train(self, **options: Any) -> Run:
        self.trainer.train(**options)
        return self

    @property
    def final(self) -> State:
        return trainable(self.trainer.model)


Build = Callable[..., Run]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make a Run; keywords that are not named go to TrainingArguments."""

    def build_run(
        callback: ExtrapolationCallback | None,
        *,
        model: torch.nn.Module | None = None,
        tokenizer: Any = None,
        out: str = "run",
        extra: tuple[TrainerCallback, ...] = (),
        last: tuple[TrainerCallback, ...] = (),
        **options: Any,
    ) -> Run:
        defaults: Mapping[str, Any] = {
            "max_steps": 16,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "dataloader_pin_memory": False,
        }
        arguments = TrainingArguments(str(tmp_path / out), **{**defaults, **options})
        trained, left = Watch(), Watch()
        trainer = Trainer(
            tiny_model() if model is None else model,
            arguments,
            train_dataset=DATA,
            processing_class=tokenizer,
            callbacks=[*extra, trained, *([] if callback is None else [callback]), left, *last],
        )
        return Run(trainer, trained, left)

    return build_run


@pytest.fixture
def tiny() -> Callable[[], LlamaForCausalLM]:
    return tiny_model


@pytest.fixture
def watch() -> Callable[[], Watch]:
    return Watch


@pytest.fixture
def stop_at() -> Callable[[int], TrainerCallback]:
    return StopAt


@pytest.fixture
def assert_same() -> Callable[[State, State], None]:
    """Bit for bit."""

    def check(one: State, other: State) -> None:
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name

    return check
