"""From which weights coefficients follow: what ``parameters.fit`` says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from hubextrap.foreign_data import shorten
from hubextrap.sample_sizes import DEFAULT_SAMPLE, sample_problem

NOTHING_IS_FITTED = (
    "has no effect: no rule here follows from the weights, and no max_expected_error asks what they say; "
    "leave it out"
)
Fit = int | Literal["exact"]


def read_fit(value: object) -> Fit:
    """``sample``, ``{sample: N}`` or ``exact``, as a recipe has it.

    Raises:
        ValueError: it is none of them.
    """
    if value == "exact":
        return "exact"
    if value == "sample":
        return DEFAULT_SAMPLE
    size = value.get("sample") if isinstance(value, dict) and value.keys() == {"sample"} else None
    if not isinstance(size, int) or isinstance(size, bool):
        said = f"{{sample: {4 * DEFAULT_SAMPLE}}} with the weights per tensor"
        raise ValueError(f"must be sample, {said}, or exact, not {shorten(repr(value))}")
    if problem := sample_problem(size):
        raise ValueError(f"sample {problem}")
    return size


def written_fit(fit: Fit) -> Any:
    """The same as a recipe has it; a number of weights always, so that it stays what it is."""
    return fit if fit == "exact" else {"sample": fit}


FitSection = Annotated[Fit, BeforeValidator(read_fit), PlainSerializer(written_fit)]
"""``parameters.fit``."""


def read_mergekit_fit(value: object) -> Fit:
    """The same in a config that mergekit reads too, which has words alone.

    Raises:
        ValueError: it is neither ``sample`` nor ``exact``.
    """
    if isinstance(value, dict):
        raise ValueError(
            "mergekit has no such section; write sample, which is "
            f"{DEFAULT_SAMPLE:,} weights per tensor, or use a trajectory section"
        )
    return read_fit(value)


MergekitFit = Annotated[Fit, BeforeValidator(read_mergekit_fit), PlainSerializer(written_fit)]
