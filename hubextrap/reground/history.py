"""The record of a re-grounded run: one JSON line for every decision, in a file that survives a kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hubextrap.containment import read_named
from hubextrap.errors import CorruptFile, OutputError
from hubextrap.output_files import refuse_file, write_whole

Action = Literal["jumped", "skipped", "rolled_back"]
HISTORY_NAME = "reground_history.jsonl"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision at the end of a window."""

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

    def as_line(self) -> str:
        """JSON; floats are written so that they read back exactly."""
        return json.dumps(asdict(self), allow_nan=False, ensure_ascii=False) + "\n"


def append_decision(path: Path, decision: Decision) -> None:
    """Add one line and force it to disk. What a kill left of an unfinished line is cut off first.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_file(path)
        with path.open("ab+") as file:
            file.seek(0)
            whole = file.read().rpartition(b"\n")
            file.truncate(len(whole[0]) + len(whole[1]))
            file.write(decision.as_line().encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: the history of jumps cannot be written: {error}") from error


def read_history(path: Path) -> list[Decision]:
    """Every decision, exactly as written; [] without a file. An unfinished last line was never made.

    Raises:
        CorruptFile: a line is not a decision.
    """
    if not path.exists():
        return []
    lines = read_named(path, pipes=False).decode().split("\n")[:-1]
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def rewrite_history(path: Path, decisions: Sequence[Decision]) -> None:
    """Replace the whole file in one rename: a run resumed from a checkpoint goes on from that checkpoint's.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, *(decision.as_line().encode() for decision in decisions))
    except OSError as error:
        raise OutputError(f"{path}: the history of jumps cannot be written: {error}") from error


def finite_or_none(value: float | None) -> float | None:
    """JSON has no NaN: what a record holds of a value that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _parsed(line: str, where: str) -> Decision:
    try:
        values: dict[str, Any] = json.loads(line)
        known = {field.name for field in fields(Decision)}
        if not isinstance(values, dict) or not set(values) <= known:
            raise ValueError(f"its keys have to be among {', '.join(sorted(known))}")
        values["snapshot_steps"] = tuple(values["snapshot_steps"])
        if values["coefficients"] is not None:
            values["coefficients"] = {name: tuple(row) for name, row in values["coefficients"].items()}
        return Decision(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(
            f"{where}: not a decision of a re-grounded run ({error}); restore the file from a checkpoint's "
            "copy, or move it away to begin a new history"
        ) from error
