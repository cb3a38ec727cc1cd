"""What mixing logits costs: time of K models beside that of one. `python -m benchmarks.logits`, some minutes.

On a CPU the time is the process's own, so that other programs disturb it little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from hubextrap.logits import ExtrapolatedForCausalLM

COUNTS = (1, 2, 4)
BATCH, PROMPT, NEW = 8, 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(
        f"Qwen2 shapes, batch {BATCH}, {PROMPT} + {NEW} tokens, {arguments.device}, "
        f"medians of {arguments.rounds}\n"
    )
    print(
        "| K | generate, ms a token | / one model | score, ms a batch | / one model |\n|--:|--:|--:|--:|--:|"
    )
    for count, (generating, scoring) in measure(arguments.rounds, arguments.device).items():
        print(
            f"| {count or 'bare model'} | {generating[0] * 1e3:.1f} | {generating[1]:.2f} "
            f"| {scoring[0] * 1e3:.0f} | {scoring[1]:.2f} |"
        )


def measure(rounds: int, device: str) -> dict[int, tuple[tuple[float, float], tuple[float, float]]]:
    """(seconds, ratio to one model) of a generated token and a scored batch, by K; 0 is the bare model."""
    torch.manual_seed(0)
    models = [small_model(device) for _ in range(max(COUNTS))]
    candidates: dict[int, Any] = {0: models[0]}
    for count in COUNTS:
        weights = [-1.0] * (count - 1) + [float(count)]
        candidates[count] = ExtrapolatedForCausalLM(models[:count], weights)
    tokens = torch.randint(10, 1000, (BATCH, PROMPT), device=device)
    mask = torch.ones_like(tokens)
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds + 1):  # the first round warms up
        for count, model in candidates.items():
            made = seconds(partial(generate, model, tokens, mask), device) / NEW
            scored = seconds(partial(score, model, tokens), device)
            times.setdefault(("generate", count), []).append(made)
            times.setdefault(("score", count), []).append(scored)
    median = {key: statistics.median(found[1:]) for key, found in times.items()}

    def beside_one(what: str, count: int) -> tuple[float, float]:
        return median[what, count], median[what, count] / median[what, 0]

    return {count: (beside_one("generate", count), beside_one("score", count)) for count in candidates}


def small_model(device: str) -> Any:
    """Qwen2 with 8 layers of 512 and a vocabulary of 32,000: 40M parameters."""
    config = Qwen2Config(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1_408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model: Any = Qwen2ForCausalLM(config)
    return model.to(device).eval()


def generate(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> None:
    model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )


def score(model: Any, tokens: torch.Tensor) -> None:
    with torch.inference_mode():
        model(tokens, use_cache=False)


def seconds(work: Callable[[], None], device: str) -> float:
    """How long ``work`` takes: of the processor on a CPU, on the clock elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
