"""What tables, verdicts and pages call a method, short and in plain words, and how a recipe writes it."""

from __future__ import annotations

import re

_CALL = re.compile(r"(\w+)\((.+)\)")
_FROM_STEP = re.compile(r"two_point base_step=(\d+)")
_METHODS = {
    "average": "average",
    "calibrated": "calibrated lines",
    "ema": "moving average",
    "late_lines": "late lines (fixed)",
    "least_squares": "least-squares line",
    "low_rank": "rank 1",
    "persistence": "the last checkpoint",
    "recipe": "your recipe",
    "two_point": "line from the first step",
}
_VARIANTS = {
    ("least_squares", "window=half", "through_last=true"): "last-half line",
    ("two_point", "base_step=auto"): "line from the best base",
}
_DAMPED = "damping=auto"


def plain_name(name: str) -> str:
    """A backtest's name of a method in a few plain words; no two names have the same.

    A method of another package keeps its own name.

    Args:
        name: as `BacktestCandidate.of` makes it, e.g. ``least_squares(window=half, through_last=true)``.
    """
    method, parameters = _parts(name)
    damped = bool(parameters) and parameters[-1] == _DAMPED
    kept = parameters[:-1] if damped else parameters
    plain = _VARIANTS.get((method, *kept))
    if plain is None and len(kept) == 1 and (begin := _FROM_STEP.fullmatch(f"{method} {kept[0]}")):
        plain = f"line from step {begin[1]}"
    if plain is None:
        if method not in _METHODS:
            return f"{name} (its name)" if name in _taken() else name
        of_its_own = "rank" if method == "low_rank" and kept else _METHODS[method]
        plain = of_its_own + (f" ({', '.join(kept)})" if kept else "")
    return plain + (", damped" if damped else "")


def with_article(name: str) -> str:
    """The same in a sentence: ``the last-half line``, but ``your recipe``, ``rank 1``, others' names."""
    plain = plain_name(name)
    own = _parts(name)[0] in _METHODS
    return f"the {plain}" if own and not plain.startswith(("the ", "your ", "rank ")) else plain


def as_recipe(name: str) -> tuple[str, ...]:
    """The lines of YAML that write it in a recipe; none for the recipe that is being backtested."""
    method, parameters = _parts(name)
    if method == "recipe":
        return ()
    if not parameters:
        return (f"merge_method: {method}",)
    pairs = ", ".join(part.replace("=", ": ", 1) for part in parameters)
    return f"merge_method: {method}", f"parameters: {{{pairs}}}"


def _parts(name: str) -> tuple[str, list[str]]:
    found = _CALL.fullmatch(name)
    return (name, []) if found is None else (found[1], found[2].split(", "))


def _taken() -> set[str]:
    return {*_METHODS.values(), *_VARIANTS.values()}
