"""What judging a run comes to: figures, levels and words, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hubextrap.notebooks import one_line

Level = Literal["good", "care", "bad", "unknown"]
Outcome = Literal["better", "worse", "no difference", "not judged", "failed"]

MARKS: dict[Level, str] = {"good": "✓", "care": "⚠", "bad": "✕", "unknown": "?"}


@dataclass(frozen=True, slots=True)
class Trust:
    """Up to where the past of a run trusts the rules of a recipe."""

    horizon: float
    """0 where it trusts them nowhere."""
    step: int | None
    """The step that lies there; None where the clock never gets there."""
    said: str
    """``step 425``, or as `step_in_words` has it."""


@dataclass(frozen=True, slots=True)
class Rehearsals:
    """How often a method predicted what was observed, and how that went."""

    count: int
    """Of all, at whatever horizon, that every method compared could predict."""
    near: int
    """Of those up to a horizon of 1, which alone are judged."""
    worse: int
    """Of the near ones, farther from the real weights than the last known checkpoint was."""
    mean_error: float | None
    """Of the near ones; 1 is the last known checkpoint's own."""
    worst_error: float | None
    mean_error_stderr: float | None = None
    """As far as only a sample of the weights was read; None where all were. At most so much: it is the mean
    of the rehearsals' standard errors, which come from the same weights."""
    worst_error_stderr: float | None = None


@dataclass(frozen=True, slots=True)
class JudgedTarget:
    """What the past says of one target."""

    named: str
    """``step 400``."""
    horizon: float | None
    """(target − last)/(last − first) on the clock."""
    expected_error: float | None
    """None where nothing like it could be rehearsed."""
    rehearsals: int = 0
    """How many stand behind the expected error."""
    expected_error_stderr: float | None = None
    """As far as only a sample of the weights was read."""


@dataclass(frozen=True, slots=True)
class ScoreOutcome:
    """What a prediction scored beside the last observed checkpoint, on the main figure of one task."""

    label: str
    step: int | None
    task: str
    """With its metric: ``radd exact_match``."""
    value: float | None
    last: float | None
    change: float | None
    interval: tuple[float, float] | None
    """95 %, of the change."""
    outcome: Outcome
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """Whether to extrapolate, by what and how far; or what to think of one prediction."""

    level: Level
    headline: str
    sentences: tuple[str, ...]
    method: str | None
    """The best over the near rehearsals, or the only one judged; None where none was of any use. A backtest's
    name of it, as `plain_name` takes it."""
    base_step: int | None
    """The best start for a line through two checkpoints."""
    reach: float | None
    """The horizon up to which the method stayed of use; None where it did at none, or too few say it."""
    reach_step: int | None
    """The step that lies there; None where the clock never gets there."""
    reach_in_words: str | None
    """That step, or how many full-rate steps it is away."""
    rehearsals: Rehearsals
    target: JudgedTarget | None = None
    scores: tuple[ScoreOutcome, ...] = ()
    turns: str | None = None
    """Where only a sample of the weights was read, and its standard error could make another verdict of it:
    which, and what to do; it stands in the sentences too."""

    @property
    def mark(self) -> str:
        return MARKS[self.level]

    def __repr__(self) -> str:
        return one_line(self, self.line)

    @property
    def line(self) -> str:
        """Mark and headline."""
        return f"{self.mark} {self.headline}"

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values; standard errors and ``turns`` are there where there are any."""
        found = {"level": self.level, "mark": self.mark, **asdict(self)}
        for part in (found, found["rehearsals"], found["target"] or {}):
            for key in [key for key in part if key == "turns" or key.endswith("_stderr")]:
                if part[key] is None:
                    del part[key]
        return found
