"""TRL's GRPOTrainer with jumps: the next completions come from the weights that a jump landed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubextrap.errors import MethodError
from hubextrap.regrounding import ExtrapolationCallback

STEP_0 = Path(__file__).parents[3] / "demo" / "data" / "rlvr-C" / "step_0"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def grpo(out: Path, watches: list[Any], **options: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    class Generating(GRPOTrainer):  # type: ignore[misc]
        """Notes which weights completions are generated with."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.generated_with[self.state.global_step] = self.model.lm_head.weight.detach().clone()
            return super()._generate_and_score_completions(inputs)

    tokenizer = AutoTokenizer.from_pretrained(STEP_0)
    prompts = [f"{first}+{second}=" for first in range(100, 108) for second in range(200, 204)]
    arguments: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 4,
        "temperature": 2.0,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 4,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }
    trainer = Generating(
        model=AutoModelForCausalLM.from_pretrained(STEP_0, dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        args=GRPOConfig(output_dir=str(out), **(arguments | options)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=watches,
    )
    trainer.generated_with = {}
    return trainer


def test_completions_after_a_jump_come_from_where_it_landed(tmp_path: Path, watch: Any) -> None:
    callback = ExtrapolationCallback(2, 6, max_error=None)
    trained, left = watch(), watch()
    trainer = grpo(tmp_path, [trained, callback, left])
    trainer.train()
    assert [d.action for d in callback.decisions] == ["jumped", "jumped", "jumped", "skipped"]
    assert callback.clocks.represented_steps == 8 + 3 * 6
    for step, weights in trainer.generated_with.items():
        assert torch.equal(weights, left.states[step]["lm_head.weight"]), step
    jumped = [(step, trainer.generated_with[step]) for step in (2, 4, 6)]
    for step, _ in jumped:
        here, start = trained.states[step], left.states[step - 2]
        for name, weights in left.states[step].items():
            expected = here[name].double() + 3 * (here[name].double() - start[name].double())
            assert torch.allclose(weights.double(), expected, rtol=1e-5, atol=1e-7), name
    landed = [not torch.equal(trained.states[step]["lm_head.weight"], weights) for step, weights in jumped]
    assert all(landed)


def test_the_trainers_own_metrics_lose_nothing(tmp_path: Path, watch: Any) -> None:
    """A jump is logged at step 2; what GRPOTrainer gathers for its line at step 4 has to stay whole."""
    callback = ExtrapolationCallback(2, 1, max_error=None)
    histories = []
    for callbacks in ([], [callback]):
        trainer = grpo(tmp_path, callbacks, max_steps=4, learning_rate=0.0)
        trainer.train()
        histories.append([line for line in trainer.state.log_history if "reward" in line])
    for plain, jumping in zip(*histories, strict=True):
        assert plain["step"] == jumping["step"] == 4
        assert plain["reward"] == jumping["reward"]
    assert any("reground/n_used" in line for line in trainer.state.log_history)


def test_a_jump_between_generating_and_training_is_refused(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, [ExtrapolationCallback(2, 6)], steps_per_generation=8)
    with pytest.raises(MethodError, match=r"m = 2: .* for 4 optimizer steps"):
        trainer.train()
    trainer = grpo(tmp_path, [ExtrapolationCallback(4, 6)], steps_per_generation=8, max_steps=1)
    trainer.train()
