"""Run by test_ranks.py on two processes: every kind and rule in turn, and what each rank saw of it."""

from __future__ import annotations

import copy
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hubextrap.errors import MethodError
from hubextrap.regrounding import ExtrapolationCallback
from hubextrap.regrounding.peft_layers import factor_pairs

ROWS = [[(5 * i + 3 * j * j) % 32 for j in range(8)] for i in range(48)]
TOKENIZER = Path(__file__).parents[3] / "demo" / "data" / "rlvr-C" / "step_0"
M, N, STEPS, SAVED = 3, 5, 13, 7


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, gathered from the ranks."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
            return {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states[state.global_step] = whole(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states[state.global_step] = whole(kwargs["model"])


def by_trainer(
    out: Path,
    callbacks: list[TrainerCallback],
    resume: bool,
    falling: bool,
    lora: LoraConfig | None = None,
) -> None:
    data = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in ROWS]
    arguments = TrainingArguments(
        str(out),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=3e-3,
        lr_scheduler_type="linear" if falling else "constant",
        use_cpu=True,
        report_to=[],
        save_steps=SAVED,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    made: Any = {"processing_class": tokenizer, "callbacks": callbacks}
    model = tiny_model() if lora is None else get_peft_model(tiny_model(), lora)
    trainer = Trainer(model, arguments, train_dataset=data, **made)
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{SAVED}") if resume else None)


def sharded(kind: str) -> Any:
    model: Any = tiny_model()
    if kind == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        return model
    return FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=kind == "fsdp1_orig"
    )


class ByHand:
    """A loop of one's own around the callback's hooks: FSDP, which accelerate does not offer on a CPU."""

    def __init__(self, kind: str, out: Path, falling: bool) -> None:
        self.falling = falling
        self.model = sharded(kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.out, self.saved = out, ([], {})

    def train(self, callbacks: list[TrainerCallback], resume: bool) -> None:
        args = TrainingArguments(str(self.out), use_cpu=True, report_to=[], disable_tqdm=True)
        state = TrainerState(is_world_process_zero=dist.get_rank() == 0)
        control = TrainerControl()
        if resume:
            state.global_step = SAVED
            weights, moments = self.saved
            with torch.no_grad():
                for parameter, weight in zip(self.model.parameters(), weights, strict=True):
                    parameter.copy_(weight)
            self.optimizer.load_state_dict(moments)
        self.model.train()
        for callback in callbacks:
            tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
            callback.on_train_begin(args, state, control, model=self.model, processing_class=tokenizer)
        for step in range(state.global_step, STEPS):
            self.step(step)
            state.global_step += 1
            control.should_training_stop = state.global_step == STEPS
            for callback in callbacks:
                callback.on_step_end(args, state, control, model=self.model, optimizer=self.optimizer)
            if state.global_step == SAVED and not resume:
                weights = [parameter.detach().clone() for parameter in self.model.parameters()]
                self.saved = weights, copy.deepcopy(self.optimizer.state_dict())
                for callback in callbacks:
                    callback.on_save(args, state, control)
        for callback in callbacks:
            callback.on_train_end(args, state, control)

    def step(self, step: int) -> None:
        mine = 4 * step % 40 + 2 * dist.get_rank()
        rows = torch.tensor(ROWS[mine : mine + 2])
        self.model(input_ids=rows, labels=rows).loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS if self.falling else 1)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Probe:
    """A score that differs between the ranks: only rank 0's may count. It undoes the jump after step 6."""

    def __call__(self, model: Any) -> float:
        model(input_ids=torch.tensor(ROWS[:2]))  # every rank takes part, and FSDP gathers the weights
        self.calls += 1
        bad = self.calls == 4
        return (-1.0 if bad else float(self.calls)) if dist.get_rank() == 0 else (99.0 if bad else 0.0)

    def __init__(self, calls: int = 0) -> None:
        self.calls = calls


def run(kind: str, rule: str, out: Path) -> dict[str, Any]:
    if rule == "answers":
        return guarded(kind, out)
    if rule == "lora":
        return adapted(kind, out)
    loop = None if kind == "ddp" else ByHand(kind, out, falling=False)
    seen: dict[str, Any] = {}
    for resume in (False, True):
        # on resuming at step 7, two jumps have been probed, two calls each; calibrated had no past for one
        probe = (
            {}
            if kind.startswith("fsdp1")
            else {
                "probe": Probe((4 if rule == "two_point" else 2) * resume),
                "probe_margin": 0.5,
                "max_n": 2 * N,
            }
        )
        callback = ExtrapolationCallback(M, N, rule=rule, max_error=None, **probe)
        trained, left = Watch(), Watch()
        callbacks = [trained, callback, left]
        if loop is None:
            by_trainer(out, callbacks, resume, falling=False)
        else:
            loop.train(callbacks, resume)
        name = "resumed" if resume else "first"
        elements = sum(layout.elements for layout in callback._ring.layouts.values())
        seen[name] = {
            "trained": trained.states,
            "left": left.states,
            "decisions": [asdict(decision) for decision in callback.decisions],
            "elements": elements,
        }
    return seen


def guarded(kind: str, out: Path) -> dict[str, Any]:
    """Falling rates, and jumps that the model's own answers judge."""
    callback = ExtrapolationCallback(
        M, 4000, max_error=None, own_answers=("1+2=", "3+4=", "5+6+7="), max_tokens=4
    )
    trained, left = Watch(), Watch()
    callbacks: list[TrainerCallback] = [trained, callback, left]
    if kind == "ddp":
        by_trainer(out, callbacks, False, falling=True)
    else:
        ByHand(kind, out, falling=True).train(callbacks, False)
    decisions = [asdict(decision) for decision in callback.decisions]
    return {"first": {"trained": trained.states, "left": left.states, "decisions": decisions}}


def adapted(kind: str, out: Path) -> dict[str, Any]:
    """An adapter: under DDP its jumps, of sharded factors what is said of them."""
    lora = LoraConfig(r=3, target_modules=["q_proj", "down_proj"])
    callback = ExtrapolationCallback(M, N, max_error=None)
    if kind != "ddp":
        model = get_peft_model(tiny_model(), lora)
        fully_shard(model)
        try:
            factor_pairs(model)
        except MethodError as error:
            return {"refused": str(error)}
        return {}
    trained, left = Watch(), Watch()
    by_trainer(out, [trained, callback, left], False, falling=False, lora=lora)
    decisions = [asdict(decision) for decision in callback.decisions]
    return {"first": {"trained": trained.states, "left": left.states, "decisions": decisions}}


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # FSDP1's own state_dict_type
    dist.init_process_group("gloo")
    pairs = [pair.split(",") for pair in sys.argv[2:]]
    results = {(kind, rule): run(kind, rule, out / f"{kind}-{rule}") for kind, rule in pairs}
    torch.save(results, out / f"rank-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
