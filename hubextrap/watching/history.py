"""What happened in a watched run: a JSON line for each event, in a file that only grows and survives a kill.

Nothing in it says when something happened, or how long it took: the same events give the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from hubextrap.claims import unsealed
from hubextrap.containment import read_named
from hubextrap.durable.log import append_line, sealed_line
from hubextrap.errors import CorruptFile, RecipeError
from hubextrap.foreign_data import first_problem, parse_json
from hubextrap.methods import MAX_STEP
from hubextrap.statistics.hindsight import Foresight
from hubextrap.trajectory.changes import SeenCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hubextrap.trajectory import Checkpoint

HISTORY_NAME = "history.jsonl"
REMEDY = "make room, then run the same command again"
"""About a file of the watched run that cannot be written."""
_FIX = "restore it from a backup, or give another --out to begin anew"
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Began(_Event):
    """The first line: which run it is, and from which checkpoint on something is done."""

    event: Literal["began"] = "began"
    format: Literal[1] = 1
    run: dict[str, Any]
    since: Step


class Seen(_Event):
    """A checkpoint was found there for the first time, or with other weights than before."""

    event: Literal["seen"] = "seen"
    checkpoint: SeenCheckpoint
    """At its commit it is read from then on."""


class Gone(_Event):
    """A checkpoint is there no more."""

    event: Literal["gone"] = "gone"
    step: Step


class Score(_Event):
    """What a prediction scored on a task, beside the last checkpoint."""

    task: str
    value: float | None
    last: float | None
    outcome: str


class Made(_Event):
    """A prediction that was made."""

    step: Step
    folder: str | None
    """Inside the watched run's own."""
    repo: str | None = None
    revision: str | None = None
    commit: Commit | None = None
    scores: tuple[Score, ...] = ()


class Taken(_Event):
    """A new checkpoint was taken as if the run ended there; what was said, and what was made."""

    event: Literal["taken"] = "taken"
    step: Step
    number: Annotated[int, Field(ge=0)]
    """How many were taken before it."""
    said: Foresight | None
    """None where nothing was to be done for it."""
    reason: str = ""
    """Why no prediction was made, where one was asked for."""
    made: Made | None = None


class Ran(_Event):
    """The recipe's command was run for a checkpoint."""

    event: Literal["ran"] = "ran"
    step: Step
    ended: str
    """How: ``exit code 0``."""


Event = Annotated[Began | Seen | Gone | Taken | Ran, Field(discriminator="event")]
_READER: TypeAdapter[Began | Seen | Gone | Taken | Ran] = TypeAdapter(Event)


class History:
    """The events of one watched run, and what follows from them."""

    def __init__(self, path: Path, events: list[Began | Seen | Gone | Taken | Ran]) -> None:
        self._path = path
        self.began: Began | None = None
        self.seen: dict[int, SeenCheckpoint] = {}
        """The newest of each step."""
        self.gone: set[int] = set()
        self.taken: dict[int, Taken] = {}
        self.ran: dict[int, Ran] = {}
        self.replaced: dict[int, set[int]] = {}
        """By the step of a checkpoint that was taken: those up to it that have become others since."""
        for event in events:
            self._follow(event)

    def add(self, event: Began | Seen | Gone | Taken | Ran) -> None:
        """Force an event to disk.

        Raises:
            OutputError: it cannot be written.
        """
        append_line(self._path, sealed_line(event.model_dump(mode="json"), ensure_ascii=False), remedy=REMEDY)
        self._follow(event)

    def _follow(self, event: Began | Seen | Gone | Taken | Ran) -> None:
        if isinstance(event, Began):
            self.began = event
        elif isinstance(event, Seen):
            now = event.checkpoint
            before = self.seen.get(now.step)
            if before is not None and before.weights != now.weights:
                for step in self.taken:
                    if step >= now.step:
                        self.replaced.setdefault(step, set()).add(now.step)
            self.seen[now.step] = now
            self.gone.discard(now.step)
        elif isinstance(event, Gone):
            self.gone.add(event.step)
        elif isinstance(event, Taken):
            self.taken[event.step] = event
        else:
            self.ran[event.step] = event

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def said(self) -> list[Foresight]:
        """All that was said, in step order."""
        return [one.said for _, one in sorted(self.taken.items()) if one.said is not None]

    @property
    def there(self) -> dict[int, SeenCheckpoint]:
        """The checkpoints as they were seen last, without those that are gone."""
        return {step: one for step, one in self.seen.items() if step not in self.gone}

    def pinned(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint at the commit at which these weights of it were first seen."""
        known = self.seen.get(checkpoint.step)
        if known is None or known.name != checkpoint.name:
            return checkpoint
        return replace(checkpoint, commit=known.commit)

    def check_same_run(self, run: Mapping[str, Any], folder: Path) -> None:
        """Refuse the folder of another run.

        Raises:
            RecipeError: says what differs.
        """
        if self.began is None or self.began.run == run:
            return
        before = self.began.run
        changed = sorted(key for key in {*before, *run} if before.get(key) != run.get(key))
        said = "; ".join(f"{key} was {before.get(key)!r} and is {run.get(key)!r}" for key in changed)
        raise RecipeError(
            f"{folder}: another run is watched in it: {said}. Put that back, or give another --out",
            file=folder,
        )


def read_history(folder: Path) -> History:
    """The history in a watched run's folder, empty where there is none; an unfinished last line never was.

    Raises:
        CorruptFile: a line is not an event.
    """
    path = folder / HISTORY_NAME
    if not path.exists():
        return History(path, [])
    try:
        lines = read_named(path, pipes=False).split(b"\n")[:-1]
    except OSError as error:
        raise CorruptFile(
            f"{path}: cannot be read: {error.strerror}; check its permissions", file=path
        ) from error
    return History(path, [_parsed(path, number, line) for number, line in enumerate(lines, 1)])


def _parsed(path: Path, number: int, line: bytes) -> Began | Seen | Gone | Taken | Ran:
    where = f"{path}, line {number}"
    content = parse_json(line, where, remedy=_FIX)
    try:
        return _READER.validate_python(unsealed(content))
    except (ValueError, OverflowError) as error:
        said = f"{where}: not an event of a watched run ({first_problem(error)}); {_FIX}"
        raise CorruptFile(said, file=path) from error


def as_json(taken: Taken) -> dict[str, Any]:
    """What was done for a checkpoint, for programs."""
    content = taken.model_dump(mode="json", exclude={"event", "number"})
    return {**content, "said": None if taken.said is None else asdict(taken.said)}
