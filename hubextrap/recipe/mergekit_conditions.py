"""mergekit's conditional parameters, ``{filter: mlp, value: 0.5}``, as rules for tensors.

mergekit takes the first entry whose filter is part of the tensor's name; no filter and ``*`` stand for every
tensor (mergekit/config.py, evaluate_setting). A list of numbers is a gradient over the layers there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hubextrap.errors import MethodError
from hubextrap.methods import parameter_problems
from hubextrap.recipe.mergekit_programs import AS_IT_IS
from hubextrap.recipe.models import TensorRule
from hubextrap.recipe.problems import UNKNOWN
from hubextrap.recipe.yaml_nodes import Place

_SHARED = {
    "target_step": "all tensors of a prediction are of one step",
    "target": "all tensors of a prediction are of one step",
    "max_expected_error": "the error is that of the whole model",
    "fit": "one sample is drawn for the whole model",
}
"""Parameters that no rule has, with the reason."""
_STANDS_IN: dict[str, Any] = {"fit": "exact"}
"""What takes the place of such a value, so that nothing more is said of it; of the others 1."""
_RULES = "parameters.tensors of a recipe with a trajectory section"


@dataclass(frozen=True, slots=True)
class Conditions:
    """``parameters`` with no condition in them, and what the conditions said."""

    plain: dict[str, Any]
    rules: tuple[TensorRule, ...] = ()
    names: tuple[str, ...] = ()
    """The parameters that had conditions; entry i of each is rule i."""
    problems: tuple[tuple[Place, str], ...] = ()


def is_conditional(value: object) -> bool:
    """Whether a parameter's value is one of mergekit's conditions, or a list that holds one."""
    entries = value if isinstance(value, list) else [value]
    return any(isinstance(entry, dict) and entry.keys() & {"filter", "value"} for entry in entries)


def conditions_of(method: object, parameters: dict[str, Any]) -> Conditions:
    """The rules that ``parameters`` of a mergekit config say, for a method of ours."""
    plain: dict[str, Any] = {}
    problems: list[tuple[Place, str]] = []
    listed: dict[str, list[tuple[str, Any]]] = {}
    for name, value in parameters.items():
        place: Place = ("parameters", name)
        if is_conditional(value) and name in _SHARED:
            problems.append((place, f"takes no filters: {_SHARED[name]}; {AS_IT_IS}, tensor by tensor"))
            plain[name] = _STANDS_IN.get(name, 1)
        elif is_conditional(value):
            found, wrong = _entries(method, place, value)
            problems += wrong
            listed[name] = [(part, each) for part, each in found if part is not None]
            plain.update((name, each) for part, each in found if part is None)
        elif isinstance(value, list) and len(value) > 1 and name != "tensors":
            problems.append((place, _gradient(method, name)))
            plain |= {name: _STANDS_IN.get(name, 1)} if name in _SHARED else {}
        else:
            plain[name] = value[0] if isinstance(value, list) and value and name != "tensors" else value
    names = tuple(name for name, entries in listed.items() if entries)
    for name in names[1:]:
        if [part for part, _ in listed[name]] != [part for part, _ in listed[names[0]]]:
            said = (
                f"has other filters than {names[0]}; give both the same ones in the same order: they become "
                f"rules, of which the first match counts; or {AS_IT_IS}"
            )
            problems.append((("parameters", name), said))
    if problems or not names or not isinstance(method, str):
        return Conditions(plain, problems=tuple(problems))
    shared = {name: value for name, value in plain.items() if name not in (*_SHARED, "damping", "tensors")}
    rules: list[TensorRule] = []
    for index, (part, _) in enumerate(listed[names[0]]):
        glob = "*" + re.sub(r"([*?[])", r"[\1]", part) + "*"
        own = {name: listed[name][index][1] for name in names}
        rule, said_of = _rule({"match": glob, "method": method, **shared, **own})
        if rule is not None:
            rule._called = f"parameters.{names[0]}: filter: {part}"
            rules.append(rule)
        for key, said in said_of.items():
            if said.startswith(UNKNOWN):  # said of the parameter
                plain.setdefault(key, own.get(key))
            elif key in own:
                problems.append((("parameters", key, index, "value"), said))
    return Conditions(plain, () if problems else tuple(rules), names, tuple(problems))


def without_conditions(method: object, parameters: dict[str, Any]) -> Conditions:
    """``parameters`` of a recipe in our own form, which has rules in place of conditions."""
    plain, problems = dict(parameters), []
    for name, value in parameters.items():
        if not is_conditional(value) or name == "tensors":
            continue
        entries = value if isinstance(value, list) else [value]
        parts = [each["filter"] for each in entries if isinstance(each, dict) and "filter" in each]
        part = parts[0] if parts else "mlp"
        rule = f"[{{match: '*{part}*', method: {method}, {name}: …}}]"
        said = f"filters are mergekit's; here write parameters.tensors: {rule}"
        if name in _SHARED:
            said = f"takes no filters: {_SHARED[name]}"
            plain[name] = _STANDS_IN.get(name, 1)
        else:
            del plain[name]
        problems.append((("parameters", name), said))
    return Conditions(plain, problems=tuple(problems))


def _rule(content: dict[str, Any]) -> tuple[TensorRule | None, dict[str, str]]:
    """The rule, and what is wrong with its parameters."""
    try:
        rule = TensorRule.model_validate(content)
        return rule, dict(parameter_problems(rule.method, rule.method_parameters))
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, {
            str(each["loc"][0]): str(each.get("ctx", {}).get("error", each["msg"])) for each in details
        }
    except MethodError:  # said of merge_method
        return None, {}


def _entries(
    method: object, place: Place, value: object
) -> tuple[list[tuple[str | None, Any]], list[tuple[Place, str]]]:
    """(filter, value) of each, None for every tensor; and what is wrong with them."""
    found: list[tuple[str | None, Any]] = []
    for index, entry in enumerate(value if isinstance(value, list) else [value]):
        here: Place = (*place, index) if isinstance(value, list) else place
        if not isinstance(entry, dict) or "value" not in entry:
            return [], [(here, "must be {filter: mlp, value: 0.5}, or {value: 1} for all other tensors")]
        if strange := sorted(entry.keys() - {"filter", "value"}):
            return [], [((*here, strange[0]), "unknown key; known here: filter, value")]
        part, said = entry.get("filter"), entry["value"]
        if part is not None and not isinstance(part, str):
            return [], [((*here, "filter"), "must be text: a part of the tensors' names")]
        if isinstance(said, list):
            return [], [((*here, "value"), _gradient(method, str(place[1])))]
        if found and found[-1][0] is None:
            return [], [
                (here, "never counts: the entry before is for all tensors; put it first, or remove it")
            ]
        found.append((None if part in (None, "", "*") else part, said))
    return found, []


def _gradient(method: object, name: str) -> str:
    said = f"a list of numbers is a gradient over the layers to mergekit: {AS_IT_IS}; here, "
    if name == "target_step":
        return f"{said}give one step, or use a trajectory section for several"
    if name in _SHARED:
        return f"{said}give one value: {_SHARED[name]}"
    return f"{said}write rules, {{match: '*.layers.0.*', method: {method}, {name}: …}}, under {_RULES}"
