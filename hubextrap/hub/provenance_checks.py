"""Whether what a hubextrap.json claims can be true. Nothing that a merge writes is refused."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from hubextrap.methods import MAX_STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.hub.provenance import CoefficientRule, InputCheckpoint, Provenance

SUM_ROUNDING = 1e-6
"""Of the largest coefficient, or of 1: how far from 1 a sum of coefficients may be."""
OWN_FILES = ("hubextrap.json", "README.md")
"""Beside the weights too, and not among the files that are covered."""
_COMMIT = re.compile("[0-9a-f]{40}")
_LISTED = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_DRIVE = re.compile("[A-Za-z]:")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def horizon_of(steps: Sequence[int], target_step: int | None) -> float | None:
    """(target − last) / (last − base), where there is a way and a target."""
    first, last = steps[0], steps[-1]
    return None if target_step is None or last == first else (target_step - last) / (last - first)


def is_plain_name(file: str) -> bool:
    """Whether ``file`` is the one way to write a path inside a folder, on any system, and no control text."""
    path = PurePosixPath(file)
    return (
        path.as_posix() == file != "."
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in file
        and _DRIVE.match(file) is None
        and _CONTROL.search(file) is None
    )


def one_line(text: str) -> str:
    """``text`` without the control characters that a folder's name may hold."""
    return _CONTROL.sub(" ", text)


def check_provenance(claimed: Provenance) -> None:
    """The fields together, which the types of each say nothing about.

    Raises:
        ValueError: names the field.
    """
    steps = claimed.steps
    for number, checkpoint in enumerate(claimed.inputs):
        _check_input(f"inputs.{number}", checkpoint)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"inputs: the steps {list(steps[:20])} do not increase")
    if claimed.target_step is not None and not 0 <= claimed.target_step <= MAX_STEP:
        raise ValueError(f"target_step: {claimed.target_step} is no step")
    for number, rule in enumerate(claimed.coefficients):
        _check_rule(f"coefficients.{number}", rule, steps)
    horizon = horizon_of(steps, claimed.target_step)
    if (horizon is None) != (claimed.horizon is None) or not math.isclose(
        horizon or 0.0, claimed.horizon or 0.0, rel_tol=1e-9
    ):
        raise ValueError(f"horizon: is {claimed.horizon}, and the steps give {horizon}")
    if (claimed.expected_relative_error or 0.0) < 0:
        raise ValueError("expected_relative_error: is below 0")
    for field, text in (
        ("merge_method", claimed.merge_method),
        ("dtype", claimed.dtype),
        ("out_dtype", claimed.out_dtype or ""),
        *((f"versions.{name}", f"{name} {number}") for name, number in claimed.versions.items()),
    ):
        _check_line(field, text)
    _check_files(claimed)


def _check_input(where: str, checkpoint: InputCheckpoint) -> None:
    if not 0 <= checkpoint.step <= MAX_STEP:
        raise ValueError(f"{where}.step: {checkpoint.step} is no step")
    for field in ("repo", "revision", "path"):
        _check_line(f"{where}.{field}", getattr(checkpoint, field) or "")
    if (checkpoint.repo is None) != (checkpoint.commit is None):
        raise ValueError(f"{where}.commit: goes with repo, and one of them is missing")
    if checkpoint.commit is not None and not _COMMIT.fullmatch(checkpoint.commit):
        raise ValueError(f"{where}.commit: is no commit")
    if len({one.file for one in checkpoint.files}) < len(checkpoint.files):
        raise ValueError(f"{where}.files: a file is named twice")
    for number, one in enumerate(checkpoint.files):
        if not is_plain_name(one.file):
            raise ValueError(f"{where}.files.{number}.file: {one.file!r} is no name of a file")
        if one.listed is not None and (checkpoint.repo is None or not _LISTED.fullmatch(one.listed)):
            raise ValueError(f"{where}.files.{number}.listed: is no hash that a Hub lists")
        if one.compared != (one.read == "whole" and one.listed is not None):
            raise ValueError(
                f"{where}.files.{number}.compared: goes with a file that was read whole and of which "
                "the Hub lists a hash"
            )


def _check_rule(where: str, rule: CoefficientRule, steps: Sequence[int]) -> None:
    _check_line(f"{where}.method", rule.method)
    if strange := rule.coefficients.keys() - set(steps):
        raise ValueError(f"{where}: step {min(strange)} is not among the inputs")
    values = list(rule.coefficients.values())
    total = math.fsum(values)
    if not abs(total - 1) <= SUM_ROUNDING * max([1.0, *map(abs, values)]):
        raise ValueError(f"{where}: the coefficients sum to {total!r}, not 1")


def _check_files(claimed: Provenance) -> None:
    names = [file.file for file in (*claimed.shards, *(claimed.files or ()))]
    if own := sorted(set(OWN_FILES) & set(names)):
        raise ValueError(f"shards, files: {own[0]} cannot be among them")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"shards, files: {twice[0]!r} is named twice")


def _check_line(field: str, text: str) -> None:
    if _CONTROL.search(text):
        raise ValueError(f"{field}: {text!r} holds a control character")
