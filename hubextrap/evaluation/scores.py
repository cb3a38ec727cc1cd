"""Reading what lm-eval found: figures, what each problem contributed to them, and which task it was."""

from __future__ import annotations

import hashlib
import json
import math
from numbers import Real
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hubextrap.digests import sha256_hex, sha256_of_json
from hubextrap.evaluation.table import Score, TaskRecord
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def scores_of(found: Mapping[str, Any]) -> tuple[Score, ...]:
    """All figures of one evaluation; lm-eval keys them ``metric,filter`` beside ``metric_stderr,filter``."""
    scores = []
    for task, figures in found["results"].items():
        directions = found["higher_is_better"].get(task) or {}
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = figures.get(f"{metric}_stderr,{filter_name}")
            score = Score(
                task=task,
                metric=metric,
                filter=filter_name,
                value=float(value),
                stderr=None if stderr in (None, "N/A") else float(stderr),
                higher_is_better=directions.get(metric),
                problems=_problems(found, task, metric, filter_name, float(value)),
            )
            scores.append(score)
    return tuple(scores)


def records_of(found: Mapping[str, Any]) -> dict[str, TaskRecord]:
    """Which tasks ran, and on what."""
    return {task: _record(found, task, samples["effective"]) for task, samples in found["n-samples"].items()}


def config_sha256(config: Mapping[str, Any]) -> str:
    """sha256 of a task's configuration as lm-eval dumps it, wherever its file lies."""
    metadata = {key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"}
    return sha256_of_json({**config, "metadata": metadata}, default=str)


def docs_sha256(docs: Iterable[Any]) -> str:
    """sha256 of a task's problems, or of the examples in its prompts, in their order."""
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(json.dumps(doc, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _problems(
    found: Mapping[str, Any], task: str, metric: str, filter_name: str, value: float
) -> tuple[float, ...] | None:
    """What each problem contributed, where the figure is their mean; else (perplexity, F1, …) None."""
    numbers: list[float] = []
    for leaf in _leaves(found, task):
        for sample in found["samples"].get(leaf, ()):
            if sample["filter"] != filter_name:
                continue
            number = sample.get(metric)
            if not isinstance(number, Real) or not math.isfinite(number):
                return None
            numbers.append(float(number))
    if not numbers or not math.isclose(fmean(numbers), value, rel_tol=1e-9, abs_tol=1e-9):
        return None
    return tuple(numbers)


def _leaves(found: Mapping[str, Any], task: str) -> Iterator[str]:
    """The tasks that a group consists of; a plain task itself."""
    members: Iterable[str] = found.get("group_subtasks", {}).get(task) or ()
    if not members:
        yield task
    for member in members:
        yield from _leaves(found, member)


def _record(found: Mapping[str, Any], task: str, documents: int) -> TaskRecord:
    config = found["configs"][task]
    samples = found["samples"].get(task, ())
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    problems = "\n".join(f"{sample['doc_hash']} {sample['target_hash']}" for sample in first)
    generation = json.dumps(config.get("generation_kwargs") or {}, default=str)
    is_local = "custom_dataset" in config or (config.get("dataset_kwargs") or {}).get("data_files")
    return TaskRecord(
        version=str(found["versions"].get(task)),
        sha256=config_sha256(config),
        num_fewshot=found["n-shot"].get(task) or 0,
        documents=documents,
        problems_sha256=sha256_hex(problems),
        dataset=None if is_local else config.get("dataset_path"),
        dataset_config=config.get("dataset_name"),
        split=config.get("test_split") or config.get("validation_split"),
        repeats=config.get("repeats") or 1,
        generation=parse_json(generation, "generation_kwargs", nan=True),
    )
