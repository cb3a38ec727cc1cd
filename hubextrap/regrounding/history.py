"""The record of a re-grounded run: one JSON line for every decision, in a file that survives a kill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, TypeAdapter

from hubextrap.claims import unsealed
from hubextrap.containment import read_named
from hubextrap.durable.atomic import write_whole
from hubextrap.durable.log import append_line, sealed_line
from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import first_problem, parse_json

Action = Literal["jumped", "skipped", "rolled_back"]
HISTORY_NAME = "reground_history.jsonl"
REMEDY = "make room, then run the same command again"
"""About a file of the run that cannot be written."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision at the end of a window."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False, extra="forbid")

    rl_steps: int
    """Optimizer steps taken so far."""
    represented_steps: int
    """Steps that the weights stand for after the decision: those taken and those jumped over."""
    rule: str
    n_wanted: int
    n_used: int
    """0 unless ``action`` is ``jumped``."""
    action: Action
    reason: str
    snapshot_steps: tuple[int, ...]
    """Represented steps of the K snapshots that the rule was given."""
    coefficients: dict[str, tuple[float, ...]] | None
    """K for each tensor, ``*`` for all that are not named; None where the rule could not serve."""
    backtest_error: float | None = None
    expected_relative_error: float | None = None
    probe_before: float | None = None
    probe_after: float | None = None
    """None when there was no probe, or when what it returned was not finite (the reason says so)."""
    clock: Literal["steps", "learning_rate"] = "steps"
    """Along which the rule, its backtest and the jump went."""
    full_rate_steps: float | None = None
    """Of `represented_steps`, by the learning rate: Σ rate/largest since the run was first re-grounded. None
    where the rates are not known."""
    own_answers_before: float | None = None
    own_answers_after: float | None = None
    """Mean log-probability of the model's own greedy answers before the jump, in nats per answer; None as
    for a probe."""
    lost_energy: float | None = None
    """Share of the squared norm of LoRA's products that the jump lost as it was cut to the adapter's rank;
    None of a jump that was not made, and without LoRA."""

    def as_line(self) -> bytes:
        """JSON with its own digest; floats are written so that they read back exactly."""
        return sealed_line(asdict(self), ensure_ascii=False)


def append_decision(path: Path, decision: Decision) -> None:
    """Add one line and force it to disk. What a kill left of an unfinished line is cut off first.

    Raises:
        OutputError: the file cannot be written.
    """
    append_line(path, decision.as_line(), remedy=REMEDY)


def read_history(path: Path) -> list[Decision]:
    """Every decision, exactly as written; [] without a file. An unfinished last line was never made.

    Raises:
        CorruptFile: a line is not a decision.
    """
    if not path.exists():
        return []
    try:
        lines = read_named(path, pipes=False).split(b"\n")[:-1]
    except OSError as error:
        raise CorruptFile(
            f"{path}: cannot be read: {error.strerror}; check its permissions", file=path
        ) from error
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def rewrite_history(path: Path, decisions: Sequence[Decision]) -> None:
    """Replace the whole file in one rename: a run resumed from a checkpoint goes on from that checkpoint's.

    Raises:
        OutputError: the file cannot be written.
    """
    write_whole(path, *(decision.as_line() for decision in decisions), remedy=REMEDY, parents=True)


def finite_or_none(value: float | None) -> float | None:
    """JSON has no NaN: what a record holds of a value that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _checked(decision: Decision) -> Decision:
    """Refuse, with a ValueError, what no run decides."""
    steps, rows = decision.snapshot_steps, decision.coefficients or {}
    if min(decision.rl_steps, decision.represented_steps, decision.n_wanted, decision.n_used, *steps) < 0:
        raise ValueError("a number of steps is below 0")
    if decision.full_rate_steps is not None and decision.full_rate_steps < 0:
        raise ValueError("full_rate_steps is below 0")
    if any(after <= before for before, after in pairwise(steps)):
        raise ValueError("snapshot_steps do not increase")
    for name, row in rows.items():
        if len(row) != len(steps) or not math.isclose(math.fsum(row), 1.0, abs_tol=1e-6 * max(map(abs, row))):
            raise ValueError(f"the coefficients of {name!r} are not one per snapshot, or do not sum to 1")
    return decision


CheckedDecision = Annotated[Decision, AfterValidator(_checked)]
"""A decision that a run can have made."""
_READER = TypeAdapter(CheckedDecision)


def _parsed(path: Path, number: int, line: bytes) -> Decision:
    where = f"{path}, line {number}"
    remedy = "restore the file from a checkpoint's copy, or move it away to begin a new history"
    content = parse_json(line, where, remedy=remedy)
    try:
        return _READER.validate_python(unsealed(content))
    except (ValueError, OverflowError) as error:
        raise CorruptFile(
            f"{where}: not a decision of a re-grounded run ({first_problem(error)}); {remedy}",
            file=path,
        ) from error
