"""Whether what a scan's file claims can be true. Nothing that a scan writes is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.statistics.linearity import UNMOVED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.scans.logprobs import LogProbs
    from hubextrap.statistics.table import GramTable

ROUNDING = 1e-4
"""Of the largest entry: how far below 0 an eigenvalue may be, as products are summed up in float32 first."""
ASYMMETRY = 1e-6
"""Of the largest entry: how far apart the two halves of a Gram matrix may be."""
_LARGEST_MOVE = (2.0 * float(np.finfo(np.float32).max)) ** 2
_AT_ONCE = 2**24
"""Entries of Gram matrices that are looked at together."""


def check_tables(
    table: GramTable,
    counts: NDArray[np.int64],
    sample_counts: NDArray[np.int64] | None,
    *,
    sampled: bool = False,
) -> None:
    """The inner products of a scan and what it counted: each table in itself, and all of them together.

    Args:
        sampled: whether ``counts`` are what a sample of the weights suggests, of which none need have moved.

    Raises:
        ValueError: names the table, and the tensor where it is one's.
    """
    names = table.tensors
    _each(table.elements < 0, names, "elements: is below 0")
    _each((counts < 0).any(axis=1), names, "counts: holds a number below 0")
    _each(_sums(counts) != table.elements, names, "counts: does not add up to elements")
    still = (counts[:, UNMOVED] == table.elements) & (not sampled)
    _check_gram(table.gram, table.elements, still, names)
    if sample_counts is not None:
        _each((sample_counts < 0).any(axis=1), names, "sample_counts: holds a number below 0")
        _each(
            _sums(sample_counts) > table.elements, names, "sample_counts: counts more weights than there are"
        )


def check_sample(table: GramTable, block_counts: NDArray[np.int64]) -> None:
    """What the groups of a sample come to: the Gram matrices, and the counts of the weights drawn.

    Raises:
        ValueError: names the table and the tensor.
    """
    sample, names = table.sample, table.tensors
    assert sample is not None
    _each(~np.isfinite(sample.blocks).all(axis=(1, 2, 3)), names, "blocks: is not finite")
    apart = np.abs(sample.blocks.sum(axis=1) - table.gram).max(axis=(1, 2))
    scale = np.abs(sample.blocks).max(axis=(1, 2, 3))
    _each(apart > ASYMMETRY * scale, names, "blocks: does not add up to gram")
    _each((block_counts < 0).any(axis=(1, 2)), names, "block_counts: holds a number below 0")
    counted = _sums(block_counts.reshape(len(names), -1))
    _each(counted != sample.drawn, names, "block_counts: does not add up to the weights drawn")


def check_examples(table: GramTable, places: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """The elements that were drawn.

    Raises:
        ValueError: names the table and the tensor.
    """
    names = table.tensors
    there = places >= 0
    outside = (places < -1) | (places >= table.elements[:, None])
    _each(outside.any(axis=1), names, "example_places: lies outside the tensor")
    falling = (np.diff(places, axis=1) <= 0) & there[:, 1:]
    _each(falling.any(axis=1), names, "example_places: does not increase")
    astray = (np.isnan(values) == there[..., None]) | np.isinf(values)
    _each(astray.any(axis=(1, 2)), names, "example_values: does not match example_places")


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
        _each(still[start : start + chunk] & (scale > 0), some, "gram: is not 0 although no weight moved")
        limit = elements[start : start + chunk] * _LARGEST_MOVE * (1 + ROUNDING)
        _each(scale > limit, some, "gram: is larger than its weights can have moved")
        _each(
            (part[:, 0] != 0).any(axis=1) | (part[:, :, 0] != 0).any(axis=1),
            some,
            "gram: is not 0 at the base",
        )
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
        ValueError: names the table, or what is said of them.
    """
    source, responses = logprobs.source, logprobs.responses
    _refuse(not is_line(source.prompts), "logprobs.prompts: is not a file name")
    _refuse(not is_hash(source.sha256), "logprobs.sha256: is not a sha256")
    _refuse(min(source.sampled_from or 0, source.max_new_tokens or 0) < 0, "logprobs: a number is below 0")
    disorder = (responses < 0).any() or (np.diff(responses) < 0).any()
    _refuse(bool(disorder), "logprob_responses: is not in order")
    _refuse(bool((logprobs.tokens < 0).any()), "logprob_tokens: holds a number below 0")
    values = logprobs.values
    possible = (values <= 0) & np.isfinite(values)
    _refuse(not possible.all(), "logprobs: holds a value that is not the logarithm of a probability")


def _each(wrong: Any, names: Sequence[str], problem: str) -> None:
    if wrong.any():
        raise ValueError(f"{problem}, of tensor {names[int(np.argmax(wrong))]!r}")


def _refuse(wrong: bool, problem: str) -> None:
    if wrong:
        raise ValueError(problem)


def is_line(text: str) -> bool:
    """Whether a text holds no control character."""
    return re.search("[\x00-\x1f\x7f]", text) is None


def is_hash(text: str) -> bool:
    """Whether a text is hexadecimal."""
    return re.fullmatch("[0-9a-f]+", text) is not None
