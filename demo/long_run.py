"""Make the run of long answers that `demo/data/rlvr-L` holds: a warm-up on demonstrations, then GRPO.

    python demo/long_run.py --output out/rlvr-L

The model is a LlamaForCausalLM of 41,952 parameters with the addition runs' tokenizer; the warm-up stops
where it is right in about a third of its samples, and `demo/grpo.py` trains it from there at a constant rate.
The output has the form of the bundled runs: `step_<n>` folders, problems.jsonl, results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Two busy cores fight over threads; more than one thread a process gains nothing on so small a model.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import addition
import numpy as np
import torch
import worked_sums
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

WARM_UP_BATCH, WARM_UP_LR, WARM_UP_RAMP = 128, 3e-3, 100
WARM_UP_LIMIT = 5000
ASKED_EVERY = 20  # warm-up steps
WEIGHTS = "model.safetensors"


def main() -> None:
    options = parse()
    started = time.monotonic()
    torch.set_num_threads(1)
    work: Path = options.output.with_name(options.output.name + ".work")
    start = work / "start"
    if not start.exists():
        tokenizer = AutoTokenizer.from_pretrained(addition.DATA / "step_0")
        model = warmed_up(tokenizer, options.warm_up_to, options.seed)
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)
    train(start, work / "grpo", options)
    for step in range(0, options.steps + 1, options.save_every):
        folder = options.output / f"step_{step}"
        shutil.copytree(start, folder, dirs_exist_ok=True)
        if step > 0:  # the trainer changes nothing else of the model, and leaves files of its own
            shutil.copyfile(work / "grpo" / f"checkpoint-{step}" / WEIGHTS, folder / WEIGHTS)
    worked_sums.write_problems(options.output / "problems.jsonl")
    write_results(options)
    print(f"The run took {time.monotonic() - started:.0f} s; it lies in {options.output}/.")


def warmed_up(tokenizer: PreTrainedTokenizerBase, accuracy: float, seed: int) -> PreTrainedModel:
    """A new model, trained on demonstrations in random orders until it reaches an accuracy.

    It learns late and then fast, so it is asked often.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(configuration(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=WARM_UP_LR, weight_decay=0.01)
    held_out = worked_sums.held_out_problems()
    for step in range(WARM_UP_LIMIT):
        optimizer.param_groups[0]["lr"] = WARM_UP_LR * min(1.0, (step + 1) / WARM_UP_RAMP)
        problems = worked_sums.training_problems(step, 1, WARM_UP_BATCH, seed=seed + 1_000)
        texts = [problem.question + problem.answer + tokenizer.eos_token for problem in problems]
        ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")["input_ids"]
        attended = ids != tokenizer.pad_token_id
        labels = ids.masked_fill(~attended, -100)
        labels[:, : len(problems[0].question)] = -100  # a token a character, and questions are of one length
        loss = model(ids, attention_mask=attended.long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % ASKED_EVERY == 0:
            found = float(np.mean(worked_sums.accuracy(model.eval(), tokenizer, held_out, samples=2)))
            model.train()
            print(f"warm-up step {step + 1}: loss {loss.item():.4f}, accuracy {found:.3f}", flush=True)
            if found >= accuracy:
                return model.eval()
    sys.exit(f"The warm-up did not reach {accuracy} in {WARM_UP_LIMIT} steps.")


def configuration(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def train(start: Path, output: Path, options: argparse.Namespace) -> None:
    """The GRPO part, by the demo's own trainer."""
    settings = {
        "--task": "worked_sums",
        "--model": start,
        "--output": output,
        "--steps": options.steps,
        "--lr": options.lr,
        "--prompts": options.prompts,
        "--micro-batches": 1,
        "--save-every": options.save_every,
        "--seed": options.seed,
    }
    command = [sys.executable, str(Path(__file__).with_name("grpo.py"))]
    command += [str(part) for setting in settings.items() for part in setting]
    if subprocess.run(command, check=False).returncode:
        sys.exit("The training failed.")


def write_results(options: argparse.Namespace) -> None:
    """How the run was made, and the sampled accuracy of each checkpoint with its standard error."""
    problems = worked_sums.held_out_problems()
    accuracies = {}
    for step in range(0, options.steps + 1, options.save_every):
        model, tokenizer = addition.load(options.output / f"step_{step}")
        of_problem = worked_sums.accuracy(model.eval(), tokenizer, problems)
        error = float(np.std(of_problem, ddof=1) / len(of_problem) ** 0.5)
        accuracies[step] = {"sampled16": float(np.mean(of_problem)), "standard_error": error}
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    results = {"name": "L", "task": "worked_sums", "train": settings, "accuracy": accuracies}
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the run of long answers: warm-up, then GRPO.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the run")
    parser.add_argument("--warm-up-to", type=float, default=0.35, help="accuracy at which the warm-up stops")
    parser.add_argument("--steps", type=int, default=360, help="RL steps")
    parser.add_argument("--save-every", type=int, default=20, help="RL steps between checkpoints")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--prompts", type=int, default=32, help="problems a step, 16 samples each")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
