"""Reading ``hubextrap.json``: whether what it claims can be true. Nothing that a merge writes is refused."""

from __future__ import annotations

import errno
import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from hubextrap.claims import DIGEST, unsealed
from hubextrap.clocks import horizon_of
from hubextrap.containment import entry_at, read_named
from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_json, shorten
from hubextrap.hub.provenance import PROVENANCE_FILE, READ, Provenance
from hubextrap.tensors.interfaces import SMALL_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.hub.provenance import AdapterRecord, CoefficientRule, InputCheckpoint

SUM_ROUNDING = 1e-6
"""Of the largest coefficient, or of 1: how far from 1 a sum of coefficients may be."""
OWN_FILES = ("hubextrap.json", "README.md")
"""Beside the weights too, and not among the files that are covered."""


def read_provenance(source: bytes | Path, name: str | None = None) -> Provenance:
    """Read ``hubextrap.json`` from its bytes, its path, or the folder that holds it.

    Args:
        name: what messages call it; the path when None.

    Raises:
        CorruptFile: it is not there, is not JSON, or does not say what it must; names the field.
    """
    if isinstance(source, Path):
        path = source / PROVENANCE_FILE if source.is_dir() else source
        name = name or str(path)
        try:
            source = _bytes_of(path)
        except OSError as error:
            raise CorruptFile(
                f"{name}: cannot be read ({error.strerror}); only models that hubextrap wrote have this file",
                file=name,
            ) from error
    name = name or PROVENANCE_FILE
    remedy = "download or merge the model again"
    content = parse_json(source, name, remedy=remedy, limit=SMALL_FILE)
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > 1:
        raise CorruptFile(
            f"{name}: has format {content['format']}, this hubextrap reads format 1; upgrade hubextrap",
            file=name,
        )
    try:
        stated = content.pop(DIGEST, None) if isinstance(content, dict) else None
        provenance = Provenance.model_validate(content, context=READ)
        _check_provenance(provenance)
        if stated is not None:
            unsealed({**content, DIGEST: stated})
    except (ValueError, OverflowError) as error:
        said = str(error)
        if isinstance(error, ValidationError):
            problem = error.errors(include_url=False)[0]
            said = f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
        raise CorruptFile(f"{name}: {shorten(said, 500)}; {remedy}", file=name) from error
    return provenance


def _bytes_of(path: Path) -> bytes:
    """The file's bytes; OSError where they cannot be read, or lie outside of its folder."""
    entry = entry_at(os.path.realpath(path.parent), str(path))
    if entry.problem is not None and os.path.lexists(path):
        raise OSError(errno.EINVAL, entry.problem, str(path))
    return read_named(path)


def _check_provenance(claimed: Provenance) -> None:
    """The fields together, which the types of each say nothing about; a ValueError names the field."""
    steps = claimed.steps
    for number, checkpoint in enumerate(claimed.inputs):
        _check_input(f"inputs.{number}", checkpoint)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"inputs: the steps {list(steps[:20])} do not increase")
    for number, rule in enumerate(claimed.coefficients):
        _check_rule(f"coefficients.{number}", rule, steps)
    times: Sequence[float] = steps
    target: float | None = claimed.target_step
    if (clock := claimed.clock) is not None:
        times, target = clock.times, clock.target_time
        if len(times) != len(steps) or any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("clock.times: has to hold one time per input, each later than the one before")
    horizon = horizon_of(times, target)
    if (horizon is None) != (claimed.horizon is None) or not math.isclose(
        horizon or 0.0, claimed.horizon or 0.0, rel_tol=1e-9
    ):
        raise ValueError(f"horizon: is {claimed.horizon}, but the steps give {horizon}")
    _check_trust(claimed, times)
    if claimed.adapter is not None:
        _check_adapter(claimed.adapter)
    _check_files(claimed)


def _check_trust(claimed: Provenance, times: Sequence[float]) -> None:
    """By the clock of steps, the step lies where the horizon says; by others, not before the last one."""
    if (trusted := claimed.trusted) is None:
        return
    last, way = claimed.steps[-1], times[-1] - times[0]
    if trusted.step is None and claimed.clock is None:
        raise ValueError("trusted.step: is missing, although the clock is the step")
    wrong = trusted.step is not None and trusted.step < last
    if claimed.clock is None and trusted.step is not None:
        wrong = abs(trusted.step - last - trusted.horizon * way) > 1
    if wrong:
        raise ValueError(f"trusted: step {trusted.step} does not lie at horizon {trusted.horizon}")


def _check_input(where: str, checkpoint: InputCheckpoint) -> None:
    if (checkpoint.repo is None) != (checkpoint.commit is None):
        raise ValueError(f"{where}: has to give repo and commit, or neither")
    if len({one.file for one in checkpoint.files}) < len(checkpoint.files):
        raise ValueError(f"{where}.files: a file is named twice")
    for number, one in enumerate(checkpoint.files):
        if one.listed is not None and checkpoint.repo is None:
            raise ValueError(
                f"{where}.files.{number}.listed: a local checkpoint has no hash that a Hub lists"
            )
        if one.compared != (one.read == "whole" and one.listed is not None):
            raise ValueError(
                f"{where}.files.{number}.compared: has to be true for a file that was read whole and "
                "whose hash the Hub lists, and for no other"
            )


def _check_adapter(adapter: AdapterRecord) -> None:
    """A predicted adapter has a rank, and may have been cut; a merged model was merged into some base."""
    merged = adapter.output == "merged"
    if merged != (adapter.rank is None) or (merged and (adapter.lost is not None or adapter.base is None)):
        raise ValueError("adapter: an adapter has a rank, a merged model a base, and nothing else was cut")
    for tensor, share in (adapter.lost or {}).items():
        if not 0 <= share <= 1:
            raise ValueError(f"adapter.lost: {share} of {shorten(repr(tensor))} is no share, from 0 to 1")
    if adapter.base is not None:
        _check_input("adapter.base", adapter.base)


def _check_rule(where: str, rule: CoefficientRule, steps: Sequence[int]) -> None:
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
