"""Not tests: runs as tables, straight from safetensors files in float64, and what to compare with."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from hubextrap.statistics import BacktestRow, GramTable

DEMO = Path(__file__).parent.parent.parent / "demo" / "data" / "rlvr-C"


def full_run(name: str) -> Path:
    """The folder of a whole run; skips the test where there is none."""
    root = os.environ.get("HUBEXTRAP_DATA")
    if not root:
        pytest.skip("set HUBEXTRAP_DATA to the folder of the full runs")
    return Path(root) / name


@cache
def weights_of(
    folder: Path, dtype: str = "float32"
) -> tuple[tuple[int, ...], dict[str, NDArray[np.float64]]]:
    """Steps, and (K, elements) float64 of each tensor after a cast to ``dtype``."""
    folders = sorted(folder.glob("step_*"), key=lambda path: int(path.name[5:]))
    states = [load_file(path / "model.safetensors") for path in folders]
    stacked = {
        name: torch.stack([state[name].flatten() for state in states])
        .to(getattr(torch, dtype))
        .double()
        .numpy()
        for name in states[-1]
    }
    return tuple(int(path.name[5:]) for path in folders), stacked


def table_of(folder: Path, dtype: str = "float32", until: int | None = None) -> GramTable:
    steps, weights = weights_of(folder, dtype)
    count = len(steps) if until is None else sum(step <= until for step in steps)
    deltas = [values[:count] - values[0] for values in weights.values()]
    return GramTable(
        steps[:count],
        tuple(weights),
        np.array([values.shape[1] for values in deltas]),
        np.array([values @ values.T for values in deltas]),
    )


def protocol(rows: list[BacktestRow], steps: tuple[int, ...]) -> list[BacktestRow]:
    """Origins from the sixth checkpoint on; targets nearest to 1.25, 1.5, 2 times it, if observed so far."""
    found = {(row.last_step, row.target_step): row for row in rows}
    chosen = []
    for index in range(5, len(steps)):
        for ratio in (1.25, 1.5, 2.0):
            wanted = steps[index] * ratio
            if wanted <= steps[-1]:
                target = min(steps[index + 1 :], key=lambda step: abs(step - wanted))
                chosen.append(found[steps[index], target])
    return chosen


def sampled_accuracy(model_folder: Path, problems: Path, samples: int = 16) -> float:
    """Mean over all problems of the share of samples, at temperature 1, that are the answer."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from hubextrap.logits.cache import CACHE

    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    tokens = torch.tensor([tokenizer(row["question"])["input_ids"] for row in rows])
    tokens = tokens.repeat_interleave(samples, 0)
    torch.manual_seed(0)
    written, cache_ = [], None
    with torch.no_grad():
        for _ in range(6):
            output = model(tokens, use_cache=True, **{CACHE: cache_})
            cache_ = output[CACHE]
            tokens = torch.multinomial(output.logits[:, -1].softmax(-1), 1)
            written.append(tokens)
    answers = [[*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    lines = torch.cat(written, 1).tolist()
    right: int = sum(
        line[: len(answer)] == answer for line, answer in zip(lines, _each(answers, samples), strict=True)
    )
    return right / len(lines)


def exact_accuracy(model_folder: Path, problems: Path) -> float:
    """Mean over all problems of the probability that one sample at temperature 1 is the answer."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    found = []
    for line in problems.read_text().splitlines():
        row = json.loads(line)
        asked = tokenizer(row["question"])["input_ids"]
        answer = [*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
        picked = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        found.append(float(picked.sum().exp()))
    return sum(found) / len(found)


def _each(values: list[list[int]], times: int) -> list[list[int]]:
    return [value for value in values for _ in range(times)]
