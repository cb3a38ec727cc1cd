"""Where a re-grounded run stands, in one JSON file that is replaced whole after every phase."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hubextrap.durable.atomic import read_sealed, write_sealed
from hubextrap.errors import CorruptFile, StepError
from hubextrap.foreign_data import first_problem
from hubextrap.regrounding.history import REMEDY, CheckedDecision
from hubextrap.regrounding.jumps import Clocks, Natural, Window, snapshot_steps
from hubextrap.regrounding.rates import Rate, Rates

STATE_NAME = "state.json"
Phase = Literal["begun", "trained", "checked", "decided", "extrapolated", "probed", "pushed"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""In order. A state names the last one that is done; ``begun`` is the start of a round."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StartModel(_Part):
    """The model of step 0, pinned."""

    reference: str
    folder: str
    repo: str | None = None
    revision: str = ""
    commit: str | None = None
    path: str = ""


class RunState(_Part):
    """Everything that the next phase needs to know. Folders inside the run's own are relative to it."""

    format: Literal[1] = 1
    recipe: dict[str, Any]
    """Every key of the recipe by its dotted path."""
    start: StartModel
    size: Natural
    """Bytes of the start's weights."""
    round: int = Field(default=1, ge=1)
    phase: Phase = "begun"
    clocks: Clocks = Clocks()
    """At the start of this round."""
    n: Natural
    """Steps to jump over next."""
    model: str
    """The folder that this round starts from."""
    windows: tuple[Window, ...] = ()
    """Those behind this round that the rule still needs."""
    snapshots: dict[int, str]
    """Represented step → folder, of every end of a window at hand."""
    checkpoint: str | None = None
    """What this round's trainer left behind."""
    weights: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}
    """sha256 of its weight files."""
    rates: Rates | None = None
    """Of this round's updates; None where they are not known."""
    rate: Rate | None = None
    """What a jump from this round is to stand for."""
    passed: Rates | None = None
    """Of all updates behind this round, the steps that jumps stood for among them; None where some are not
    known."""
    decision: CheckedDecision | None = None
    """Of this round; its action is open until ``probed``."""
    decisions: tuple[CheckedDecision, ...] = ()
    """Of the rounds behind this one: the history."""
    finished: str | None = None
    """Why the run is at its end."""

    @model_validator(mode="after")
    def _can_be(self) -> RunState:
        if self.windows:
            snapshot_steps(self.windows)
        return self

    def is_done(self, phase: Phase) -> bool:
        """Whether ``phase`` of this round is done."""
        return PHASES.index(self.phase) >= PHASES.index(phase)

    def after(self, phase: Phase, **changes: Any) -> RunState:
        """The state with ``phase`` done."""
        return self.model_copy(update={"phase": phase, **changes})


def load_state(folder: Path) -> RunState | None:
    """The state of the run in ``folder``; None where none has begun.

    Raises:
        CorruptFile: the file is not such a state.
    """
    path = folder / STATE_NAME
    try:
        return RunState.model_validate(read_sealed(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, OverflowError, StepError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_problem(error)
        raise CorruptFile(
            f"{path}: cannot be read as the state of a run ({reason}); give another --out, or "
            "remove the folder to start again",
            file=path,
        ) from error


def save_state(folder: Path, state: RunState) -> None:
    """Replace the state in one rename, forced to disk.

    Raises:
        OutputError: the disk did not take it; the old state is still there.
    """
    write_sealed(folder / STATE_NAME, state.model_dump(mode="json"), indent=1, remedy=REMEDY)
