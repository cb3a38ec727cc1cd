"""Problems and scoring of the radd tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

PROBLEMS = Path(__file__).parents[2] / "data" / "rlvr-C" / "problems.jsonl"


def load_problems(**_: Any) -> datasets.DatasetDict:
    """The 500 held-out problems as a test split; lm-eval passes the task's metadata, which is not needed."""
    rows = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def average_of_samples(problem: dict[str, str], results: list[list[str]]) -> dict[str, float]:
    """The share of one problem's samples that are its answer."""
    samples = results[0]
    return {"avg@16": sum(sample == problem["answer"] for sample in samples) / len(samples)}
