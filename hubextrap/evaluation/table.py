"""What an evaluation found: one row per checkpoint, and what every row is beside the last observed one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import isclose, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, field_validator

from hubextrap.containment import read_named
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import EvaluationError, OutputError
from hubextrap.evaluation.options import Backend
from hubextrap.notebooks import counted, one_line, shown_by
from hubextrap.output_files import file_problem
from hubextrap.trajectory import UNKNOWN_STEP, Checkpoint, path_in_run

PREDICTION = "prediction"
"""Labels of predictions are this, or start with it."""
LAST = "last"
"""Label of the last observed checkpoint, which every other row is compared with."""
BASE = "base"
TARGET = "target"
"""Label of the real checkpoint at the step that was predicted."""

Key = tuple[str, str, str]
"""Of a figure: task, metric, filter."""
DifferenceVerdict = Literal["better", "worse", "different", "no difference seen"]
"""``different`` is one that is more than chance, in a figure of unknown direction."""


def first_by_task(keys: Iterable[Key]) -> dict[str, Key]:
    """The first figure of each task, in the order of the tasks."""
    first: dict[str, Key] = {}
    for key in keys:
        first.setdefault(key[0], key)
    return first


class Part(BaseModel):
    """What results consist of."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Score(Part):
    """One figure of one checkpoint."""

    task: str
    metric: str
    filter: str
    """lm-eval's name for how answers were taken from completions; ``none`` where there is one way only."""
    value: float
    stderr: float | None
    """None where lm-eval gives none."""
    higher_is_better: bool | None
    """None where the task does not say; such a figure is never called better or worse."""
    problems: tuple[float, ...] | None = None
    """What each problem contributed, in the task's order; None where the figure is not their mean."""

    @field_serializer("problems", when_used="json")
    def _as_text(self, problems: tuple[float, ...] | None) -> str | None:
        if problems is None:
            return None
        return " ".join(repr(int(value) if value.is_integer() else value) for value in problems)

    @field_validator("problems", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return tuple(map(float, value.split())) if isinstance(value, str) else value

    @property
    def key(self) -> Key:
        return (self.task, self.metric, self.filter)

    @property
    def title(self) -> str:
        """What tables and messages call it, e.g. ``radd exact_match``."""
        return f"{self.task} {self.metric}" + ("" if self.filter == "none" else f" ({self.filter})")


class Row(Part):
    """One checkpoint and its figures."""

    label: str
    step: int | None
    reference: str
    """``repo@revision``, ``repo@revision:folder``, or a local folder."""
    commit: str | None
    """None for a local folder."""
    scores: tuple[Score, ...]

    @property
    def place(self) -> str:
        """The reference as tables show it: with the commit, and a local folder by its place in its run."""
        if self.commit is None:
            return path_in_run(Checkpoint(UNKNOWN_STEP, None, "", None, self.reference))
        return f"{self.reference} ({self.commit[:8]})"

    @property
    def step_shown(self) -> str:
        return "" if self.step is None else str(self.step)

    def score(self, key: Key) -> Score | None:
        return next((score for score in self.scores if score.key == key), None)


class TaskRecord(Part):
    """Which task it was: figures are comparable where these agree."""

    version: str
    sha256: str
    """Of the task's whole configuration: prompt, filters, metrics, generation settings, scoring code."""
    num_fewshot: int
    documents: int
    problems_sha256: str | None = None
    """Of all problems and answers in their order; where it agrees, problems can be compared one by one."""
    dataset: str | None = None
    """On the Hub; None where it is a file of the user's."""
    dataset_config: str | None = None
    split: str | None = None
    repeats: int = 1
    """Answers per problem."""
    generation: dict[str, Any] = {}
    """How answers are generated, as lm-eval has it."""


class MeasurementSettings(Part):
    """All that the figures depend on beside the weights; samples depend on task order and batch size."""

    seed: int
    batch_size: int
    limit: int | None
    num_fewshot: int | None
    apply_chat_template: bool
    device: str
    dtype: str
    backend: Backend = "hf"
    requested: tuple[str, ...] = ()
    """Tasks, groups and tags as they were asked for."""
    task_files: dict[str, str] = {}
    """Format of each file of problems, by the name of its task."""
    answering: tuple[str, ...] = ()
    """The options that say how our own tasks are answered."""
    versions: dict[str, str]
    tasks: dict[str, TaskRecord]
    """In the order in which they ran."""


class Difference(Part):
    """A figure minus that of the last observed checkpoint."""

    value: float
    interval: tuple[float, float] | None
    """95 %, by a paired bootstrap over the problems; None where the figure is no mean over problems."""
    verdict: DifferenceVerdict | None
    """None without an interval."""


class EvaluationTable(Part):
    """All checkpoints of one evaluation, measured with the same tasks, seeds and settings."""

    format: int = 1
    settings: MeasurementSettings
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What a reader has to know beside the figures, as sentences."""

    def __repr__(self) -> str:
        figures = list(dict.fromkeys(score.title for row in self.rows for score in row.scores))
        return one_line(self, counted(len(self.rows), "checkpoint"), *figures[:3], "…" * (len(figures) > 3))

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return shown_by("hubextrap.evaluation.render:to_html", self)

    @property
    def keys(self) -> tuple[Key, ...]:
        """(task, metric, filter) of every figure, in the order in which they ran."""
        return tuple(dict.fromkeys(score.key for row in self.rows for score in row.scores))

    def main_keys(self, rows: Iterable[Row] | None = None) -> dict[str, Key]:
        """By task, the first figure that says which direction is better; of these rows, or of all."""
        seen = self.rows if rows is None else rows
        directed = {score.key for row in seen for score in row.scores if score.higher_is_better is not None}
        return first_by_task(key for key in self.keys if key in directed)

    @property
    def last(self) -> Row | None:
        """The row of the last observed checkpoint, where it was evaluated."""
        return next((row for row in self.rows if row.label == LAST), None)

    def difference(self, row: Row, key: Key) -> Difference | None:
        """``row`` minus the last observed checkpoint; None for that one, and where either has no figure."""
        if self.last is None or row.label == LAST:
            return None
        ours, theirs = row.score(key), self.last.score(key)
        if ours is None or theirs is None:
            return None
        interval = None
        if ours.problems and theirs.problems and len(ours.problems) == len(theirs.problems):
            from hubextrap.evaluation.paired import paired_interval

            interval = paired_interval(ours.problems, theirs.problems)
        return Difference(
            value=ours.value - theirs.value,
            interval=interval,
            verdict=None if interval is None else _verdict(interval, ours.higher_is_better),
        )

    def save(self, path: Path | str) -> None:
        """Write the table as JSON; an earlier file of that name is replaced.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        check_writable(path)
        write_whole(path, f"{self.model_dump_json(indent=2)}\n".encode(), remedy="name another file")

    @classmethod
    def load(cls, path: Path | str) -> EvaluationTable:
        """Read a table that ``save`` wrote.

        Raises:
            EvaluationError: the file is not there or is not such a table.
        """
        path = Path(path)
        try:
            table = cls.model_validate_json(read_named(path))
            table.check()
            return table
        except OSError as error:
            raise EvaluationError(
                f"{path}: the results cannot be read ({error.strerror})", file=path
            ) from error
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in problem["loc"]) or "the file"
            said = f"not a results file of `hubextrap eval`: {field}: {problem['msg']}"
            raise EvaluationError(f"{path}: {said}; run the evaluation again", file=path) from error
        except ValueError as error:
            raise EvaluationError(f"{path}: {error}; run the evaluation again", file=path) from error

    def check(self) -> None:
        """Refuse figures that contradict each other.

        Raises:
            ValueError: names the row and the figure.
        """
        labels = [row.label for row in self.rows]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"rows: {label!r} is there twice")
        for row in self.rows:
            for score in row.scores:
                where = f"rows: {score.title} of {row.label!r}"
                if score.stderr is not None and score.stderr < 0:
                    raise ValueError(f"{where} has a standard error below 0")
                mean = fmean(score.problems) if score.problems else score.value
                if not isclose(mean, score.value, rel_tol=1e-6, abs_tol=1e-6) and isfinite(score.value):
                    raise ValueError(f"{where} is {score.value!r}, and the mean of its problems {mean!r}")


def _verdict(interval: tuple[float, float], higher_is_better: bool | None) -> DifferenceVerdict:
    low, high = interval
    if low <= 0 <= high:
        return "no difference seen"
    if higher_is_better is None:
        return "different"
    return "better" if (low > 0) == higher_is_better else "worse"


_PARTIAL = len("..partial")
"""Bytes by which a file's name is longer while it is written."""


def check_writable(path: Path) -> None:
    """Find out before hours of work whether ``save`` can put the results there.

    Raises:
        OutputError: it is a folder, its folder is not there, or nothing may be written in it.
    """
    if problem := _writing_problem(path):
        raise OutputError(f"{str(path)[:200]}: {problem}", file=path)


def _writing_problem(path: Path) -> str | None:
    folder = path.absolute().parent
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a null byte, or no name on this disk
        said = error.strerror if isinstance(error, OSError) and folder.is_dir() else None
        return f"cannot be a file ({said or 'no such name'}); name another"
    if path.is_dir():
        return f"a folder; name the file that the results go to, e.g. {path / 'results.json'}"
    if problem := file_problem(path):
        return f"{problem}; name another file"
    if not folder.is_dir():
        return f"there is no folder {folder}; make it, or name another file"
    if not os.access(folder, os.W_OK):
        return f"the folder {folder} is not writable; name another file"
    if len(os.fsencode(path.name)) + _PARTIAL <= (most := os.pathconf(folder, "PC_NAME_MAX")):
        return None
    return f"a name may have {most} bytes there, and {_PARTIAL} more while it is written; name another file"


def check_replaceable(path: Path, tasks: Iterable[str], rows: Iterable[tuple[str, str | None]]) -> None:
    """Find out before hours of work whether results at ``path`` would be lost: as `check_writable`, and more.

    Args:
        tasks: what will be measured, by name.
        rows: (label, reference) of what will be measured; None is any reference.

    Raises:
        OutputError: it cannot be written, is no results file, or holds tasks or rows that are not measured.
    """
    check_writable(path)
    if not path.exists():
        return
    try:
        found = EvaluationTable.load(path)
    except EvaluationError as error:
        raise OutputError(
            f"{path}: is there already and holds no results; remove it, or name another file", file=path
        ) from error
    rows = set(rows)
    lost = sorted({*found.settings.requested, *found.settings.task_files} - set(tasks))
    lost += [row.label for row in found.rows if not {(row.label, row.reference), (row.label, None)} & rows]
    if lost:
        raise OutputError(
            f"{path}: holds results that would be lost, of {', '.join(lost[:5])}; remove it, or name another "
            "file",
            file=path,
        )
