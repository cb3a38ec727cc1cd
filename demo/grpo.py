"""A plain TRL GRPO run on one of the demo's tasks, on the CPU; re-grounded in process when asked.

    python demo/grpo.py --model demo/data/rlvr-C/step_0 --steps 160 --output out/plain
    python demo/grpo.py --model demo/data/rlvr-C/step_0 --steps 160 --output out/jumping --m 20 --n 60

It leaves `checkpoint-<steps>` folders that transformers loads, and it is a trainer command as
`hubextrap reground` wants one: --model, --start-step, --steps, --output.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Two busy cores fight over threads; more than one thread a process gains nothing on so small a model.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import addition
import torch
import worked_sums
from addition import load
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from hubextrap import ExtrapolationCallback
from hubextrap.regrounding import MAX_ERROR

TASKS = {"addition": addition, "worked_sums": worked_sums}
GROUP = 16
PROMPTS = 48
PROBE_PROBLEMS = 500
PROBE_FIRST_STEP = 10**6  # a step that no run reaches: the probe's problems are its own
PROBE_MARGIN = 0.01
OWN_ANSWERS = 64  # of the probe's problems


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    model, tokenizer = load(options.model)
    task = TASKS[options.task]
    problems = task.training_problems(options.start_step, options.steps, options.prompts, options.seed)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=task.rewarder(tokenizer),
        args=arguments(options),
        train_dataset=Dataset.from_dict(
            {"prompt": [problem.question for problem in problems], **task.columns(tokenizer, problems)}
        ),
        callbacks=[jumps(options, tokenizer)] if options.m else [],
    )
    trainer.train()


def jumps(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> ExtrapolationCallback:
    """Re-grounding: a jump of n steps after every m, judged by what --guard names."""
    by_probe = options.guard == "probe"
    task = TASKS[options.task]
    held_out = task.training_problems(PROBE_FIRST_STEP, 1, PROBE_PROBLEMS, seed=0)
    return ExtrapolationCallback(
        options.m,
        options.n,
        rule=options.rule,
        moments=options.moments,
        max_error=MAX_ERROR if options.guard == "backtest" else None,
        probe=(lambda model: task.expected_accuracy(model, tokenizer, held_out)) if by_probe else None,
        probe_margin=PROBE_MARGIN if by_probe else None,
        own_answers=[one.question for one in held_out[:OWN_ANSWERS]] if options.guard == "own" else None,
    )


def arguments(options: argparse.Namespace) -> GRPOConfig:
    """One on-policy update a step, groups of 16, no KL term, constant learning rate: as the bundled run."""
    completions = options.prompts * GROUP
    return GRPOConfig(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=completions // options.micro_batches,
        gradient_accumulation_steps=options.micro_batches,
        num_generations=GROUP,
        max_completion_length=TASKS[options.task].MAX_NEW_TOKENS,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        shuffle_dataset=False,  # the problems come in the order of their steps
        seed=options.seed * 1_000_003 + options.start_step,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=min(options.save_every, options.steps),
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=min(options.save_every, options.steps),
        save_only_model=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train one of the demo's tasks with TRL's GRPOTrainer.")
    parser.add_argument("--task", choices=tuple(TASKS), default="addition")
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint to start from")
    parser.add_argument(
        "--start-step", type=int, default=0, help="RL steps taken before, which picks the problems"
    )
    parser.add_argument("--steps", type=int, required=True, help="RL steps to take")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--lr", type=float, default=2e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"problems a step, {GROUP} samples each")
    parser.add_argument("--micro-batches", type=int, default=4, help="parts that a step's batch is cut into")
    parser.add_argument("--save-every", type=int, default=20, help="RL steps between checkpoints")
    parser.add_argument("--m", type=int, default=0, help="RL steps between jumps; 0: plain RL")
    parser.add_argument("--n", type=int, default=0, help="steps that a jump stands for")
    parser.add_argument("--rule", default="two_point", help="two_point, anchored or calibrated")
    parser.add_argument("--moments", default="keep", help="the optimizer's at a jump: keep or reset")
    parser.add_argument("--guard", choices=("none", "backtest", "probe", "own"), default="none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
