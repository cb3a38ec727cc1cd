"""Finding lm-eval tasks by name without indexing all of its 14,000 task files, which takes 6-10 s."""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.own_tasks import packaged_tasks, task_specs
from hubextrap.evaluation.quiet import quiet_libraries
from hubextrap.extras import require
from hubextrap.hub_access import reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lm_eval.tasks import TaskManager

_DEFINITION = re.compile(r"^[\"']?(task|group|tag)[\"']?:[ \t]*[\"']?([^\"'\s\[{#]+)", re.MULTILINE)


def load_tasks(tasks: Sequence[str | Mapping[str, Any]], include_path: Sequence[Path] = ()) -> TaskManager:
    """A manager that knows the named tasks; all tasks and their data have been loaded once.

    Args:
        tasks: names of tasks, groups or tags, and configurations, as `task_specs` gives them.
        include_path: folders with task files of the user's own, which come before lm-eval's. The Python code
            that such a task refers to is run, as lm-eval does.

    Raises:
        MissingExtra: lm-eval, or what its own model needs, cannot be imported.
        EvaluationError: a folder is not there, a name is unknown (with what may have been meant), or a
            task or its data cannot be loaded.
    """
    require("eval", "an evaluation")
    if not tasks:
        raise EvaluationError(
            "no task is named; name lm-eval tasks, e.g. --tasks gsm8k,minerva_math500, "
            "or give a file of problems with --task-file"
        )
    for folder in include_path:
        if not folder.is_dir():
            raise EvaluationError(
                f"{folder}: no such folder; include_path (--include-path) takes that of a task's YAML file",
                file=folder,
            )
    specs = task_specs(tasks)
    with quiet_libraries():
        manager = _manager_with([task for task in specs if isinstance(task, str)], include_path)
        try:
            manager.load(specs)
        except Exception as error:  # a task file may run and load anything
            names = [task if isinstance(task, str) else task["task"] for task in specs]
            raise EvaluationError(f"{_listed(names)}: lm-eval cannot load this: {reason(error)}") from error
    return manager


def _manager_with(names: Sequence[str], include_path: Sequence[Path]) -> TaskManager:
    """The smallest index that serves: the user's folders, the built-in tasks' folders, or everything.

    A group or a tag may reach into any folder, so only plain tasks are taken from a part of the index.
    """
    from lm_eval.tasks import TaskManager

    own = [str(folder.resolve()) for folder in include_path]
    manager = TaskManager(include_path=own, include_defaults=False)
    elsewhere = [name for name in names if name not in manager.task_index]
    if elsewhere:
        folders, mentioned, builtin = _search_builtin(elsewhere)
        # names that no task file mentions need no full index to be refused
        unknown = [name for name in elsewhere if name not in mentioned]
        _refuse_unknown(unknown, [*manager.all_tasks, *builtin])
        needed = dict.fromkeys(folders.values())
        manager = TaskManager(include_path=[*needed, *own], include_defaults=False)
    if not all(name in manager.all_subtasks for name in names):
        manager = TaskManager(include_path=own)
        _refuse_unknown([name for name in names if name not in manager.task_index], manager.all_tasks)
    return manager


def _search_builtin(names: Sequence[str]) -> tuple[dict[str, str], set[str], set[str]]:
    """Look through lm-eval's task files as text, which takes 1-2 s.

    Returns:
        The folder of each plain task among ``names``, as lm-eval's index would find it first; those of
        ``names`` that occur as a word anywhere in a task file; nearly all names that there are.
    """
    spec = find_spec("lm_eval.tasks")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    words = {name: re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") for name in names}
    folders: dict[str, str] = {}
    mentioned: set[str] = set()
    everything: set[str] = set()
    # YAML files and the templates that they include, whose names have no ending
    files = (file for file in root.rglob("*") if file.suffix in (".yaml", "") and file.is_file())
    for file in sorted(files, key=Path.as_posix):
        text = file.read_text(encoding="utf-8", errors="replace")
        defined = _DEFINITION.findall(text)
        everything.update(name for _, name in defined)
        for name, word in words.items():
            if name not in text or not word.search(text):
                continue
            mentioned.add(name)
            if file.suffix == ".yaml" and ("task", name) in defined:
                folders.setdefault(name, str(file.parent))
    return folders, mentioned, everything


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str]) -> None:
    if not unknown:
        return
    problems = []
    for name in unknown:
        close = difflib.get_close_matches(name, [*known, *packaged_tasks()], n=3, cutoff=0.7)
        problems.append(f"{name!r}" + (f" (did you mean {_listed(close, 'or')}?)" if close else ""))
    raise EvaluationError(
        f"unknown task: {', '.join(problems)}; `lm-eval ls tasks` lists lm-eval's, "
        "include_path (--include-path) adds a folder of your own"
    )


def _listed(names: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
