"""What would keep a recipe's predictions from being measured, found before the first of them is made."""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.api.against import Against
from hubextrap.errors import EvaluationError, HubExtrapError, MissingExtra, TrajectoryError
from hubextrap.evaluation import EvaluationOptions, Harness
from hubextrap.evaluation.table import TARGET
from hubextrap.extras import require
from hubextrap.foreign_text import OwnLines
from hubextrap.progress import SilentProgress
from hubextrap.recipe.parsing import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe

_OF_TASKS = ("task_files", "include_path", "num_fewshot", "batch_size", "tasks")
_OF_MODELS = ("apply_chat_template", "against")
_MERGE = (
    "`hubextrap merge` evaluates nothing; `hubextrap run` and `hubextrap sweep` stop at problems of evaluate"
)


def check_measurable(harness: Harness, against: Against, run: Run) -> None:
    """Refuse what will be measured and cannot be loaded; a prediction loads as the last checkpoint does.

    Raises:
        EvaluationError: all of it.
    """
    silent = SilentProgress()
    steps = against.recipe.target_steps if any(label == TARGET for label, _ in against.entries) else ()
    rows = [checkpoint for _, checkpoint in against.entries if checkpoint is not None]
    real = [found for step in steps if (found := against.real(step, silent)) is not None]
    harness.check([against.trajectory.last, *rows, *real], run.bases)


def evaluation_problems(recipe: Recipe, run: Run) -> tuple[list[str], list[str]]:
    """What of a recipe's evaluate section `run` would stop at, each with its line; and what is to be known.

    Without lm-eval, which neither a plan nor a merge needs, tasks and models are not looked at.
    """
    section = recipe.evaluate
    if section is None:
        return [], []
    problems: list[str] = []
    notes: list[str] = []
    harness = against = None
    try:
        if find_spec("lm_eval") is None:
            require("eval", "an evaluation", load=False)
        harness = Harness(EvaluationOptions.of(section), SilentProgress())
    except MissingExtra as error:
        told = notes if find_spec("lm_eval") is None else problems
        told.append(f"{_place(recipe, _OF_TASKS, '')}: not checked: {error}")
    except HubExtrapError as error:
        problems += _placed(recipe, _OF_TASKS, error)
    try:
        against = Against.pinned(run.settled(recipe), section, run)
        if harness is not None:
            check_measurable(harness, against, run)
    except HubExtrapError as error:
        problems += _placed(recipe, _OF_MODELS, error)
    return problems, [*notes, *([_MERGE] if problems else [])]


def _placed(recipe: Recipe, keys: Sequence[str], error: HubExtrapError) -> list[str]:
    """An error's lines, each a problem with its own place."""
    said = str(error)
    lines = said.split("\n") if isinstance(said, OwnLines) else [said]
    return [f"{_place(recipe, keys, line)}: {line}" for line in lines]


def _place(recipe: Recipe, keys: Sequence[str], said: str) -> str:
    """The key of the evaluate section that a message is about, with its line: one that it names, or whose
    value, or else the last one that is there."""
    there = {key: line for key in keys if (line := line_of(recipe, "evaluate", key)) is not None}
    named = [key for key in there if any(_is_about(one, said) for one in _written(recipe, key))]
    named += [key for key in there if any(one in said for one in (key, *_written(recipe, key)))]
    named += list(there)[-1:]
    return f"evaluate.{named[0]} (line {there[named[0]]})" if named else "evaluate"


def _is_about(value: str, said: str) -> bool:
    """Whether a message begins with a value, or quotes it: advice at its end may hold any word."""
    return repr(value) in said or said.startswith((f"{value}:", f"{value}/"))


def line_said(problem: str) -> int | None:
    """The line of the recipe that a problem of its evaluate or output section names."""
    found = re.match(r"(?:evaluate\.\w+|output) \(line (\d+)\): ", problem)
    return None if found is None else int(found[1])


@contextmanager
def told_with_its_line(recipe: Recipe) -> Iterator[None]:
    """Have what is wrong with the evaluate section name its key and line, as a plan does."""
    try:
        yield
    except (EvaluationError, TrajectoryError) as error:
        if error.line is None and not (error.file and Path(error.file).is_file()):
            error.args = (OwnLines(f"{_place(recipe, (*_OF_TASKS, *_OF_MODELS), str(error))}: {error}"),)
            error.file, error.line = recipe.file, line_said(str(error))
        raise


def _written(recipe: Recipe, key: str) -> list[str]:
    value = getattr(recipe.evaluate, key)
    return [one.partition("=")[2] or one for one in value] if isinstance(value, tuple) else []
