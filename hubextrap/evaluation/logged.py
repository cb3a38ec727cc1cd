"""What a trainer logged of rewards and evaluations, from transformers' trainer_state.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hubextrap.clocks.history import FILE_LIMIT, check_state_step
from hubextrap.clocks.schedules import LARGEST_STEP
from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_json, shorten

MOST_COLUMNS = 200
"""Others' files may name any number."""
_NAME_LIMIT = 80
_REMEDY = "download it again, or leave the file out"
_LARGEST = 1e100
"""No score is larger, and sums of squares stay finite."""
_TIMES = ("_runtime", "_per_second", "_time", "_num_tokens")
"""Ends of names of what a Trainer logs of an evaluation beside its scores."""


@dataclass(frozen=True, slots=True)
class LoggedColumn:
    """One figure over the steps, in order."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def is_main(self) -> bool:
        """Whether it is a score of the model as a whole: its slope says whether training still helps."""
        whole = self.name == "reward" or self.name.startswith("eval_")
        return whole and "/" not in self.name and not self.name.endswith("_std")

    @property
    def higher_is_better(self) -> bool | None:
        """None where the name does not say."""
        if self.name.endswith("loss"):
            return False
        return True if self.name in ("reward", "eval_reward", "eval_accuracy") else None

    def between(self, after: int, step: int) -> float | None:
        """The last value that was logged up to a step, and after an earlier one."""
        found = [value for at, value in zip(self.steps, self.values, strict=True) if after < at <= step]
        return found[-1] if found else None

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "steps": list(self.steps), "values": list(self.values)}


def read_logged_columns(content: bytes, name: str, step: int) -> tuple[LoggedColumn, ...]:
    """The columns ``reward``, ``rewards/*`` and ``eval_*`` of a trainer_state.json, the main ones first.

    Where the counter of steps goes back, a resumed run has undone what was logged from there on.

    Args:
        name: of the file, for messages.
        step: of the checkpoint beside which it lies; later records do not count.

    Raises:
        CorruptFile: it is no such file, or of another step; the message names the record.
    """
    state = parse_json(content, name, nan=True, limit=FILE_LIMIT, remedy=_REMEDY)
    records = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(records, list):
        raise CorruptFile(f"{name}: it has no log_history, a list; {_REMEDY}", file=name)
    check_state_step(state, name, step)
    found: dict[str, list[tuple[int, float]]] = {}
    for number, record in enumerate(records, 1):
        at = record.get("step") if isinstance(record, dict) else None
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at <= LARGEST_STEP:
            said = f"log_history, record {number}: the step {shorten(repr(at), 40)} is no step"
            raise CorruptFile(f"{name}: {said}; {_REMEDY}", file=name)
        for key, value in record.items():
            if at > step or not _is_score(key, value) or (key not in found and len(found) == MOST_COLUMNS):
                continue
            column = found.setdefault(key, [])
            while column and column[-1][0] >= at:
                column.pop()
            column.append((at, float(value)))
    columns = [LoggedColumn(key, *map(tuple, zip(*pairs, strict=True))) for key, pairs in found.items()]
    return tuple(sorted(columns, key=lambda column: (not column.is_main, column.name != "reward")))


def _is_score(key: str, value: Any) -> bool:
    named = key == "reward" or key.startswith(("rewards/", "eval_"))
    if not named or key.endswith(_TIMES) or len(key) > _NAME_LIMIT:
        return False
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
