"""Whether what a scan's file claims can be true. Nothing that a scan writes is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.methods import MAX_STEP
from hubextrap.statistics.linearity import UNMOVED
from hubextrap.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.scans.logprobs import LogProbs
    from hubextrap.statistics.table import GramTable

ROUNDING = 1e-4
"""Of the largest entry: how far below 0 an eigenvalue may be, as products are summed up in float32 first."""
ASYMMETRY = 1e-6
"""Of the largest entry: how far apart the two halves of a Gram matrix may be."""
_LARGEST_MOVE = (2.0 * float(np.finfo(np.float32).max)) ** 2
_HASH = re.compile("[0-9a-f]+")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_AT_ONCE = 2**24
"""Entries of Gram matrices that are looked at together."""


def check_texts(described: Mapping[str, Any]) -> None:
    """The part of a scan that is JSON: types, and what each field can be.

    Raises:
        ValueError: names the field.
    """
    _refuse(not _is_text(described["series"]), "series: is no line of text")
    tensors = described["tensors"]
    _refuse(
        not isinstance(tensors, list) or not tensors or not all(isinstance(name, str) for name in tensors),
        "tensors: is no list of names",
    )
    _refuse(len(set(tensors)) < len(tensors), "tensors: holds a name twice")
    _refuse(not isinstance(described["checkpoints"], list), "checkpoints: is no list")
    _refuse(len(described["checkpoints"]) < 2, "checkpoints: holds fewer than two")
    for number, entry in enumerate(described["checkpoints"]):
        _check_checkpoint(f"checkpoints.{number}", entry)
    steps = [entry["step"] for entry in described["checkpoints"]]
    _refuse(steps != sorted(set(steps)), f"checkpoints: its steps {steps[:20]} do not increase")
    walk = described["random_walk"]
    _refuse(
        not isinstance(walk, dict) or not all(_is_share(value) for value in walk.values()),
        "random_walk: holds no shares from 0 to 1",
    )
    sample = described["sample"]
    _refuse(
        sample is not None and not (_is_share(sample) and sample > 0), "sample: is no share of the weights"
    )
    source = described["logprobs"]
    if source is not None:
        _refuse(not isinstance(source, dict), "logprobs: is no JSON object")
        _check_source(source)


def _check_checkpoint(where: str, entry: Any) -> None:
    _refuse(not isinstance(entry, dict), f"{where}: is no JSON object")
    _refuse(not _is_whole(entry["step"], MAX_STEP), f"{where}.step: is no step")
    for field in ("name", "revision", "path", "dtype", "pin"):
        _refuse(not _is_text(entry[field]), f"{where}.{field}: is no line of text")
    for field in ("repo", "commit"):
        _refuse(entry[field] is not None and not _is_text(entry[field]), f"{where}.{field}: is no text")
    _refuse((entry["repo"] is None) != (entry["commit"] is None), f"{where}.commit: does not go with repo")
    _refuse(
        entry["commit"] is not None and not _HASH.fullmatch(entry["commit"]), f"{where}.commit: is no commit"
    )
    dtypes = entry["dtype"].split("/") if entry["dtype"] else []
    _refuse(any(dtype not in DTYPES for dtype in dtypes), f"{where}.dtype: is none of safetensors'")


def _check_source(source: Mapping[str, Any]) -> None:
    texts = source["texts"]
    _refuse(
        not isinstance(texts, list) or not all(isinstance(text, str) for text in texts),
        "logprobs.texts: is no list of texts",
    )
    _refuse(not _is_text(source["prompts"]), "logprobs.prompts: is no name of a file")
    sha256 = source["sha256"]
    _refuse(not isinstance(sha256, str) or not _HASH.fullmatch(sha256), "logprobs.sha256: is no sha256")
    for field in ("sampled_from", "max_new_tokens"):
        value = source[field]
        _refuse(value is not None and not _is_whole(value, 2**63), f"logprobs.{field}: is no whole number")
    _refuse(not isinstance(source["apply_chat_template"], bool), "logprobs.apply_chat_template: is no bool")


def check_tables(
    table: GramTable, counts: NDArray[np.int64], sample_counts: NDArray[np.int64] | None
) -> None:
    """The inner products of a scan and what it counted: each table in itself, and all of them together.

    Raises:
        ValueError: names the table, and the tensor where it is one's.
    """
    names = table.tensors
    _each(table.elements < 0, names, "elements: is below 0")
    _each((counts < 0).any(axis=1), names, "counts: holds one below 0")
    _each(_sums(counts) != table.elements, names, "counts: contradicts elements")
    _check_gram(table.gram, table.elements, counts[:, UNMOVED] == table.elements, names)
    if sample_counts is not None:
        _each((sample_counts < 0).any(axis=1), names, "sample_counts: holds one below 0")
        _each(_sums(sample_counts) > table.elements, names, "sample_counts: counts more than there are")


def check_examples(table: GramTable, places: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """The elements that were drawn.

    Raises:
        ValueError: names the table and the tensor.
    """
    names = table.tensors
    there = places >= 0
    _each(
        ((places < -1) | (places >= table.elements[:, None])).any(axis=1),
        names,
        "example_places: leads out of the tensor",
    )
    _each(
        ((np.diff(places, axis=1) <= 0) & there[:, 1:]).any(axis=1),
        names,
        "example_places: does not increase",
    )
    _each(
        (np.isnan(values) == there[..., None]).any(axis=(1, 2)) | np.isinf(values).any(axis=(1, 2)),
        names,
        "example_values: does not go with example_places",
    )


def _sums(counts: NDArray[np.int64]) -> NDArray[Any]:
    """Of each row, as float64 where int64 would run over."""
    sums = counts.sum(axis=1)
    return np.where(counts.max(axis=1) < 2**54, sums, np.inf)


def _check_gram(
    gram: NDArray[np.float64], elements: NDArray[np.int64], still: NDArray[np.bool_], names: Sequence[str]
) -> None:
    """Base row 0, finite, symmetric, positive semi-definite within rounding; all 0 where nothing moved."""
    count = gram.shape[1]
    chunk = max(1, _AT_ONCE // count**2)
    for start in range(0, len(gram), chunk):
        part, some = gram[start : start + chunk], names[start : start + chunk]
        _each(~np.isfinite(part).all(axis=(1, 2)), some, "gram: is not finite")
        scale = np.abs(part).max(axis=(1, 2))
        _each(still[start : start + chunk] & (scale > 0), some, "gram: is not 0, and no weight moved")
        limit = elements[start : start + chunk] * _LARGEST_MOVE * (1 + ROUNDING)
        _each(scale > limit, some, "gram: is larger than its weights can have moved")
        _each((part[:, 0] != 0).any(axis=1) | (part[:, :, 0] != 0).any(axis=1), some, "gram: base is not 0")
        scaled = part / np.where(scale > 0, scale, 1.0)[:, None, None]
        flipped = scaled.transpose(0, 2, 1)
        _each((np.abs(scaled - flipped) > ASYMMETRY).any(axis=(1, 2)), some, "gram: is not symmetric")
        # a Cholesky factor exists where no eigenvalue is below, and costs a tenth of the eigenvalues
        raised = (scaled + flipped) / 2 + ROUNDING * np.eye(count)
        try:
            np.linalg.cholesky(raised)
        except np.linalg.LinAlgError:
            wrong = np.linalg.eigvalsh(raised)[:, 0] <= 0
            _each(wrong, some, "gram: is not positive semi-definite")


def check_logprobs(logprobs: LogProbs) -> None:
    """The log-probabilities.

    Raises:
        ValueError: names the table.
    """
    responses = logprobs.responses
    _refuse(
        bool((responses < 0).any() or (np.diff(responses) < 0).any()), "logprob_responses: is not in order"
    )
    _refuse(bool((logprobs.tokens < 0).any()), "logprob_tokens: holds one below 0")
    values = logprobs.values
    _refuse(
        not ((values <= 0) & np.isfinite(values)).all(),
        "logprobs: holds what is no logarithm of a probability",
    )


def _each(wrong: Any, names: Sequence[str], problem: str) -> None:
    if wrong.any():
        raise ValueError(f"{problem}, of tensor {names[int(np.argmax(wrong))]!r}")


def _refuse(wrong: bool, problem: str) -> None:
    if wrong:
        raise ValueError(problem)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and _CONTROL.search(value) is None


def _is_whole(value: object, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]
