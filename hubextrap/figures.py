"""How figures are written that may come from a sample of the weights: each with its standard error."""

from __future__ import annotations

import math

ONE = "± is one standard error"
BESIDE = f"{ONE}; that of a mean is an upper bound, as all rehearsals share the weights"
"""What stands once beside figures of a sample, tables of means among them."""
AS_SAMPLED = "as far as the sampled weights show, "
"""What stands before what weights that were not drawn may show otherwise."""


def with_stderr(value: float | None, stderr: float | None, digits: int = 2, between: str = " ") -> str:
    """``0.55 ± 0.01``: both rounded to so many digits; the figure alone where nothing was sampled.

    Args:
        value: ``–`` is written for None and for what is no number.
        stderr: None where all weights were read.
        between: what stands before the ±.
    """
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" + margin(stderr, digits, between)


def margin(stderr: float | None, digits: int = 2, between: str = " ") -> str:
    """What stands behind a figure: `` ± 0.01``; "" where all weights were read.

    A standard error that would be rounded to 0 gets one digit more, or is stated as below that.
    """
    if stderr is None or not math.isfinite(stderr):
        return ""
    shown = f"{stderr:.{digits}f}"
    if stderr and not float(shown):
        shown = f"{stderr:.{digits + 1}f}"
    if stderr and not float(shown):
        shown = f"<{10.0 ** -(digits + 1):.{digits + 1}f}"
    return f"{between}± {shown}"


def percent(share: float | None, stderr: float | None, digits: int = 0) -> str:
    """``55% ± 1%``, as `with_stderr`."""
    if share is None or math.isnan(share):
        return "–"
    beside = margin(None if stderr is None else 100 * stderr, digits)
    return f"{share:.{digits}%}" + (f"{beside}%" if beside else "")


def sample_in_words(size: int) -> str:
    """What figures are of: ``from a sample of 4,096 weights per tensor``."""
    return f"from a sample of {size:,} weights per tensor"


def said_of_sample(size: int | None, beside: str = BESIDE) -> list[str]:
    """The sentence that stands once beside figures of a sample, if they are of one."""
    return [] if size is None else [f"All figures are {sample_in_words(size)}; {beside}."]
