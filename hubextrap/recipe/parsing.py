"""From text to a checked recipe: every problem at once, each with its line, in plain words."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hubextrap.containment import read_named
from hubextrap.errors import HubExtrapError, MethodError, RecipeError, wrong_argument
from hubextrap.foreign_text import own_lines
from hubextrap.methods import find_method, longest_horizon, nearest, parameter_problems
from hubextrap.methods.checking import check_steps
from hubextrap.recipe import mergekit_form
from hubextrap.recipe.fits import NOTHING_IS_FITTED
from hubextrap.recipe.mergekit_conditions import Conditions, conditions_of, without_conditions
from hubextrap.recipe.mergekit_programs import for_mergekit
from hubextrap.recipe.models import Parameters, Recipe, TensorRule
from hubextrap.recipe.parts import OF_KEYS, RecipeSection
from hubextrap.recipe.problems import MISSING, Problem, told_once
from hubextrap.recipe.regrounding import RegroundRecipe
from hubextrap.recipe.targets import TARGET_KINDS
from hubextrap.recipe.tensor_names import Naming
from hubextrap.recipe.watching import WatchRecipe
from hubextrap.recipe.yaml_nodes import Document, Place, read_yaml
from hubextrap.redaction import hub_token_lines

_SIZE_LIMIT = 1_000_000
_Any = Recipe | RegroundRecipe | WatchRecipe
_OF_COMMANDS: dict[str, type[RegroundRecipe | WatchRecipe]] = {
    "reground": RegroundRecipe,
    "watch": WatchRecipe,
}
"""Recipes of one command by the section that makes them so."""


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in a file. Relative folders in it are relative to the current directory, as in mergekit.

    Raises:
        RecipeError: it cannot be read, or something in it is wrong; the message lists every problem.
    """
    return parse_recipe(_read(path), str(path))


def load_reground_recipe(path: Path | str) -> RegroundRecipe:
    """The recipe of `hubextrap reground` in a file. Relative folders in it are as in `load_recipe`.

    Raises:
        RecipeError: as in `load_recipe`.
    """
    return parse_reground_recipe(_read(path), str(path))


def load_watch_recipe(path: Path | str) -> WatchRecipe:
    """The recipe of `hubextrap watch` in a file. Relative folders in it are as in `load_recipe`.

    Raises:
        RecipeError: as in `load_recipe`.
    """
    return parse_watch_recipe(_read(path), str(path))


def _read(path: Path | str) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise wrong_argument("path", "the path of a recipe file", path)
    path = Path(path)
    try:
        return read_named(path, _SIZE_LIMIT).decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8", file=path) from error
    except OSError as error:
        said = {
            errno.ENOENT: "no such file; `hubextrap recipes ls` lists the recipes that come with hubextrap",
            errno.EISDIR: "cannot be read: it is a folder; name the recipe file in it, e.g. recipe.yaml",
            errno.EFBIG: f"larger than {_SIZE_LIMIT // 1000} kB, too large for a recipe",
        }.get(error.errno or 0, f"cannot be read: {error.strerror}")
        raise RecipeError(f"{path}: {said}", file=path) from error


def parse_recipe(text: str, name: str = "recipe") -> Recipe:
    """The recipe in ``text``; ``name`` is what messages call it.

    Raises:
        RecipeError: something in it is wrong; the message lists every problem with its line.
        WrongArgument: it is no text.
    """
    recipe = _parse_any(text, name)
    if not isinstance(recipe, Recipe):
        command = next(section for section, form in _OF_COMMANDS.items() if isinstance(recipe, form))
        raise RecipeError(
            f"{name}: this recipe is for `hubextrap {command}`; it has nothing to merge", file=name
        )
    return recipe


def parse_reground_recipe(text: str, name: str = "recipe") -> RegroundRecipe:
    """The recipe of `hubextrap reground` in ``text``; ``name`` is what messages call it.

    Raises:
        RecipeError: something in it is wrong; the message lists every problem with its line.
    """
    recipe = _parse_any(text, name)
    if not isinstance(recipe, RegroundRecipe):
        raise RecipeError(
            f"{name}: has no reground section; `hubextrap merge` and `hubextrap run` take such a recipe",
            file=name,
        )
    return recipe


def parse_watch_recipe(text: str, name: str = "recipe") -> WatchRecipe:
    """The recipe of `hubextrap watch` in ``text``; ``name`` is what messages call it.

    Raises:
        RecipeError: something in it is wrong; the message lists every problem with its line.
    """
    recipe = _parse_any(text, name)
    if not isinstance(recipe, WatchRecipe):
        raise RecipeError(
            f"{name}: has no watch section, which says what to do for each new checkpoint; `watch: {{}}` "
            "keeps the page, and does nothing else",
            file=name,
        )
    return recipe


def _parse_any(text: str, name: str) -> _Any:
    """The recipe; its problems are told in the order of the lines."""
    if not isinstance(text, str):
        raise wrong_argument("text", "the text of a recipe", text)
    document = read_yaml(text)
    found: list[Problem] = [(place, line, problem) for place, line, problem in document.problems]
    of_token = "contains what looks like a Hub token; remove it, and set HF_TOKEN"
    found += [((), line, of_token) for line in hub_token_lines(text)]
    recipe = None
    if isinstance(document.data, dict):
        recipe, of_content = _validated(document.data)
        found += [(place, _line(document, place), problem) for place, problem in of_content]
    elif document.data is not None or not found:
        found.append(((), 1, f"a recipe must be keys with their values, not {_shown(document.data)}"))
    if found or recipe is None:
        parts = [
            RecipeError(f"{name}:{line}: {_worded(place, problem)}", file=name, line=line)
            for place, line, problem in told_once(found)
        ]
        lines = [f"{name} has {len(parts)} problems:"] * (len(parts) > 1) + [str(part) for part in parts]
        raise RecipeError(own_lines(*lines), file=name, line=parts[0].line, parts=parts)
    recipe._text, recipe._file = text, name
    return recipe


def line_of(recipe: Recipe, *place: str | int) -> int | None:
    """The line of a key in the text that the recipe was read from, where it stands there."""
    return read_yaml(recipe._text).lines.get(place) if recipe._text else None


def naming_of(recipe: object) -> Naming:
    """What a recipe says of the names of tensors, with its lines; nothing, of what is no recipe."""
    if not isinstance(recipe, Recipe) or recipe.trajectory.tensors is None:
        return Naming()
    lines = read_yaml(recipe._text).lines if recipe._text else {}
    return Naming.of(recipe.trajectory.tensors, recipe.file, lines)


def check_output_section(recipe: Recipe, of_adapters: bool) -> None:
    """Refuse an ``output`` section where nothing is to be chosen: of full models comes a full model.

    Args:
        of_adapters: whether the run's checkpoints are adapters, which is known once they are found.

    Raises:
        RecipeError: says so, with the section's line where the recipe was read from text.
    """
    if recipe.output is None or of_adapters:
        return
    line = line_of(recipe, "output")
    place = "--as, --rank" if line is None else f"line {line}"
    raise RecipeError(
        f"output ({place}): has no effect: the checkpoints are full models, and so is what is predicted from "
        "them; leave it out",
        file=recipe.file,
        line=line,
    )


def validate_recipes(paths: Sequence[Path]) -> Sequence[Path]:
    """Check all the files, whichever command they are for, and give them back.

    Raises:
        RecipeError: the problems of every file that has any.
    """
    problems = []
    for path in paths:
        try:
            _parse_any(_read(path), str(path))
        except RecipeError as error:
            problems.append(error)
    if problems:
        raise RecipeError(own_lines(*map(str, problems)), parts=problems)
    return paths


def _validated(data: dict[str, Any]) -> tuple[_Any | None, list[tuple[Place, str]]]:
    own = next((form for section, form in _OF_COMMANDS.items() if section in data), None)
    form: type[_Any | mergekit_form.MergekitConfig] = own or Recipe
    conditions = Conditions({})
    if own is not None:
        pass
    elif (reason := for_mergekit(data)) is not None:
        return None, [reason]
    elif "trajectory" not in data and any(mark in data for mark in mergekit_form.MARKS):
        form = mergekit_form.MergekitConfig
    if own is None and isinstance(parameters := data.get("parameters"), dict):
        read = without_conditions if form is Recipe else conditions_of
        conditions = read(data.get("merge_method"), parameters)
        data = {**data, "parameters": conditions.plain}
    problems = [] if own is not None else [*conditions.problems, *_method_problems(data)]
    recipe = None
    try:
        checked = form.model_validate(data)
        recipe = (
            checked.recipe(conditions.rules) if isinstance(checked, mergekit_form.MergekitConfig) else checked
        )
    except ValidationError as error:
        problems += [each for detail in error.errors(include_url=False) for each in _translated(detail, form)]
    if isinstance(recipe, Recipe) and not problems:
        if "fit" in data["parameters"] and not recipe.needs_scan:
            problems.append((("parameters", "fit"), NOTHING_IS_FITTED))
        problems += _explicit_step_problems(recipe, data, conditions)
    return recipe, problems


def _method_problems(data: dict[str, Any]) -> list[tuple[Place, str]]:
    """What the methods say about their parameters, for the whole recipe and for each rule."""
    parameters = data.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    problems = _problems_of(
        data.get("merge_method"), ("merge_method",), parameters, ("parameters",), Parameters
    )
    rules = parameters.get("tensors")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        if isinstance(rule, dict):
            place: Place = ("parameters", "tensors", index)
            problems += _problems_of(rule.get("method"), (*place, "method"), rule, place, TensorRule)
    return problems


def _problems_of(
    method: object, method_place: Place, section: dict[str, Any], place: Place, model: type[BaseModel]
) -> list[tuple[Place, str]]:
    if not isinstance(method, str) or not method:
        return []  # said elsewhere: missing, or not text
    own = {key: value for key, value in section.items() if key not in model.model_fields}
    try:
        found = parameter_problems(method, own)
    except MethodError as error:
        return [(method_place, str(error))]
    problems: list[tuple[Place, str]] = []
    for key, problem in found:
        if problem.startswith("unknown key"):
            names = [*model.model_fields, *(parameter.name for parameter in find_method(method).parameters)]
            hint = nearest(key, names)
            problem = f"unknown key{hint}" if hint else problem
        problems.append(((*place, key), problem))
    return problems


def _explicit_step_problems(
    recipe: Recipe, data: dict[str, Any], conditions: Conditions
) -> list[tuple[Place, str]]:
    """Where the steps are in the recipe, try the coefficients: no need to wait for the first download."""
    entries = recipe.trajectory.checkpoints
    if entries is None:
        return []
    where: Place = ("models",) if "models" in data else ("trajectory", "checkpoints")
    by_step: dict[int, str] = {}
    for entry in entries:
        if entry.step in by_step:
            return [(where, f"step {entry.step} is there twice: {by_step[entry.step]} and {entry.model}")]
        by_step[entry.step] = entry.model
    if recipe.trajectory.base is not None:
        by_step.setdefault(0, recipe.trajectory.base)
    problems: list[tuple[Place, str]] = []
    steps = sorted(by_step)
    if recipe.walk is not None:  # which steps it comes by follows from the checkpoints
        return []
    # how far a target is may be said beside the last checkpoint: then only what no horizon changes counts
    rehearsed = steps[-1] + longest_horizon(steps) * (steps[-1] - steps[0])
    try:
        for target in recipe.target_steps:
            check_steps(steps, target)
    except HubExtrapError as error:
        return [(("parameters",), str(error))]
    targets = recipe.target_steps if recipe.trajectory.clock == "steps" else [rehearsed]
    for index, rule in reversed(list(enumerate(recipe.rules))):
        is_last = index == len(recipe.parameters.tensors)
        try:
            rule.check(steps, targets)
        except HubExtrapError as error:
            place: Place = ("parameters",) if is_last else ("parameters", "tensors", index)
            if conditions.rules and not is_last:
                place = ("parameters", conditions.names[0], index)
            if not any(str(error).endswith(said) for _, said in problems):  # not of the rest as well
                problems.append((place, str(error)))
    return problems


def _translated(detail: Any, form: type[RecipeSection]) -> list[tuple[Place, str]]:
    place: Place = tuple(part for part in detail["loc"] if part not in TARGET_KINDS)
    if detail["type"] == OF_KEYS:
        return [
            ((*place, *(key if isinstance(key, tuple) else (key,))), problem)
            for key, problem in detail["ctx"]["problems"]
        ]
    return [(place, _in_words(detail, place, form))]


def _in_words(detail: Any, place: Place, form: type[RecipeSection]) -> str:
    kind = detail["type"]
    value = detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(place, form)
    if kind == "missing":
        return MISSING
    if kind in ("value_error", "assertion_error"):
        return str(detail["ctx"]["error"])
    limits = detail.get("ctx", {})
    words = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "model_type": "a section with keys of its own",
        "greater_than": f"above {limits.get('gt', 0):g}",
        "greater_than_equal": f"at least {limits.get('ge', 0):g}",
        "less_than_equal": f"at most {limits.get('le', 0):g}",
        "literal_error": f"{limits.get('expected')}".replace("'", ""),
    }.get(kind)
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if words is None:
        return str(detail["msg"])
    hint = "; put it in quotes" if kind == "string_type" and isinstance(value, (bool, int, float)) else ""
    return f"must be {words}, not {_shown(value)}{hint}"


def _unknown_key(place: Place, form: type[RecipeSection]) -> str:
    key = str(place[-1])
    if form is mergekit_form.MergekitConfig and len(place) == 1 and key in mergekit_form.REFUSED:
        return f"not supported here: {mergekit_form.REFUSED[key]}"
    sections = _sections(form)
    section = dict(sections)[".".join(part for part in place[:-1] if isinstance(part, str))]
    hint = nearest(key, _keys(section))
    if hint:
        return f"unknown key{hint}"
    homes = [path for path, model in sections if path and key in _keys(model) and model is not section]
    if homes:
        return f"unknown key; it belongs under {homes[0]}"
    return "unknown key; known here: " + ", ".join(_keys(section))


def _keys(section: type[BaseModel]) -> list[str]:
    """The keys of a section as YAML has them."""
    return [info.alias or name for name, info in section.model_fields.items()]


def _sections(form: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every section under ``form`` by its dotted path."""
    found = [(path, form)]
    for name, info in form.model_fields.items():
        for model in _models_in(info.annotation):
            found += _sections(model, f"{path}.{name}" if path else name)
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _line(document: Document, place: Place) -> int:
    """The line of the place itself or, for what is missing, of the section it should be in."""
    while place not in document.lines:
        place = place[:-1]
    return document.lines[place]


def _worded(place: Place, problem: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return f"{path}: {problem}" if path else problem


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "a section with keys of its own"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…'"
