"""Merge methods by name: the built-in table, and third-party ones (entry points ``hubextrap.methods``).

A method is one function, and its signature says what it is. Its keyword parameters, their types and defaults
are what a recipe may set.

``(steps, target_step, *, …) -> (K,)``: coefficients, with sum 1. A keyword ``gram_matrix`` is handed in, K×K,
for each tensor. Where it defaults to None, the method needs it only when one of its parameters is ``auto``.

``(steps, target_step, gram, *, …) -> (…, K)``: a fitted method's displacements, with sum 0, for all of
(…, K, K) Gram matrices at once, `denoised_gram`; the coefficients are one_hot(last) + displacements. Its
attribute ``leave_one_out``, if it has one, is ``(steps, rehearsals, gram, *, …) -> (…, R, K)``: those in each
rehearsal, fitted without its origin. Else a rehearsal is the fit to what lies up to its origin.

A method that reads Gram matrices may have an attribute ``prepared``, which saves time and nothing else:
``(steps, gram, *, …) -> prediction``, where ``prediction(target_step)`` is what the method returns for that
target, of all of (…, K, K) at once: (…, K). Where the method has a ``leave_one_out``, ``prediction`` has one
too, of ``(rehearsals)``.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hubextrap.errors import MethodError

ENTRY_POINT_GROUP = "hubextrap.methods"

_targets: dict[str, str | Callable[..., Any]] = {
    "average": "hubextrap.methods.averages:average",
    "calibrated": "hubextrap.methods.calibrating:calibrated",
    "ema": "hubextrap.methods.averages:ema",
    "late_lines": "hubextrap.methods.lines:late_lines",
    "least_squares": "hubextrap.methods.lines:least_squares",
    "low_rank": "hubextrap.methods.subspace:low_rank",
    "persistence": "hubextrap.methods.lines:persistence",
    "two_point": "hubextrap.methods.lines:two_point",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A keyword of a method."""

    name: str
    annotation: Any
    default: Any
    """``inspect.Parameter.empty`` when the recipe has to give it."""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def problem_with(self, value: object) -> str:
        """Why it cannot be ``value``; "" where it can."""
        accepted = _accepts(self.annotation, value)
        return "" if accepted else f"must be {type_in_words(self.annotation)}, not {value!r}"


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method and what its signature says, see this module."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    takes_gram_matrix: bool
    needs_gram_matrix: bool
    """Whatever its parameters are; where it only takes one, the parameter ``auto`` needs it."""
    fitted: bool = False
    leave_one_out: Callable[..., Any] | None = None
    prepared: Callable[..., Any] | None = None
    package: tuple[str, ...] = ()
    """Name and version of the distribution whose entry point it is."""

    @property
    def one_at_a_time(self) -> bool:
        """Whether it takes the Gram matrix of a single tensor only."""
        return self.takes_gram_matrix and self.prepared is None


def register_method(name: str, target: str | Callable[..., Any]) -> None:
    """Make a method known for this process: a function, or ``"module:attribute"`` to import when it is used.

    Packages offer methods to every process by an entry point in the group ``hubextrap.methods``.

    Raises:
        MethodError: the name is taken by another target.
    """
    taken = _targets.setdefault(name, target)
    if taken != target:
        where = taken if isinstance(taken, str) else f"{taken.__module__}:{taken.__qualname__}"
        raise MethodError(f"merge method {name} is already registered as {where}; choose another name")
    find_method.cache_clear()


def method_names() -> tuple[str, ...]:
    """Every name that a recipe may use, sorted."""
    return tuple(sorted({*_targets, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))}))


def is_method(name: str) -> bool:
    """Whether a recipe may use that name; installed packages are looked through for no known one."""
    return name in _targets or bool(entry_points(group=ENTRY_POINT_GROUP, name=name))


@cache
def find_method(name: str) -> Method:
    """The method of that name; entry points are looked at only when the name is not registered here.

    Raises:
        MethodError: no such method, two packages offer it, or it cannot be imported or called as a method.
    """
    package: tuple[str, ...] = ()
    target = _targets.get(name)
    if target is None:
        target, package = _from_entry_points(name)
    function = _import(name, target) if isinstance(target, str) else target
    return replace(_described(name, function), package=package)


def parameter_problems(method: str, parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    """What is wrong with ``parameters`` of ``method``, as (parameter, problem) pairs; empty when all is well.

    Raises:
        MethodError: no such method.
    """
    known = {parameter.name: parameter for parameter in find_method(method).parameters}
    problems = []
    for name, value in parameters.items():
        if name not in known:
            problems.append((name, _unknown_parameter(name, method, list(known))))
        elif problem := known[name].problem_with(value):
            problems.append((name, problem))
    for parameter in known.values():
        if parameter.required and parameter.name not in parameters:
            problems.append(
                (parameter.name, f"missing; {method} needs it ({type_in_words(parameter.annotation)})")
            )
    return problems


def checked_method(method: str, parameters: Mapping[str, object]) -> Method:
    """The method, once nothing is wrong with ``parameters`` of it.

    Raises:
        MethodError: there is no such method, or something is; names each parameter.
    """
    if problems := parameter_problems(method, parameters):
        raise MethodError("; ".join(f"{name}: {problem}" for name, problem in problems))
    return find_method(method)


def nearest(name: str, names: list[str]) -> str:
    """``; did you mean X?`` when one of ``names`` is close to ``name``, else an empty string."""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def type_in_words(annotation: Any) -> str:
    """A type annotation as a user would say it, e.g. "a whole number or null"."""
    origin = get_origin(annotation)
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(part) for part in get_args(annotation))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(annotation, str(annotation))


def _unknown_parameter(name: str, method: str, known: list[str]) -> str:
    hint = nearest(name, known)
    if hint:
        return f"unknown key{hint}"
    owners = [
        other for other in sorted(_targets) if any(own.name == name for own in find_method(other).parameters)
    ]
    if owners:
        return f"unknown key; it belongs to {', '.join(owners)}, and the method is {method}"
    return f"unknown key; {method} takes " + (", ".join(known) if known else "no parameters of its own")


def _accepts(annotation: Any, value: object) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_accepts(part, value) for part in get_args(annotation))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return annotation in (Any, object) or isinstance(value, annotation)


def _from_entry_points(name: str) -> tuple[str, tuple[str, ...]]:
    found = {point.value: point.dist for point in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if not found:
        names = list(method_names())
        hint, known = nearest(name, names), ", ".join(names)
        raise MethodError(f"there is no merge method {name}{hint} (known: {known})")
    if len(found) > 1:
        raise MethodError(
            f"merge method {name} is offered by several packages ({', '.join(sorted(found))}); keep one"
        )
    ((target, offering),) = found.items()
    return target, (offering.name, offering.version) if offering else ()


def _import(name: str, target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # somebody else's module may raise anything
        raise MethodError(f"merge method {name} cannot be imported from {target}: {error}") from error
    if not callable(function):
        raise MethodError(f"merge method {name}: {target} is not a function")
    return function  # type: ignore[no-any-return]


def _described(name: str, function: Callable[..., Any]) -> Method:
    positional, keywords = _arguments(name, function)
    fitted = positional == ["steps", "target_step", "gram"]
    if not fitted and positional != ["steps", "target_step"]:
        raise MethodError(
            f"merge method {name} has to take (steps, target_step, *, …), or (steps, target_step, gram, "
            f"*, …) to be fitted, not ({', '.join(positional)}, …)"
        )
    gram_matrix = keywords.pop("gram_matrix", None)
    if fitted and gram_matrix is not None:
        raise MethodError(
            f"merge method {name} takes both gram and gram_matrix, which are the same; keep gram"
        )
    leave_one_out = getattr(function, "leave_one_out", None) if fitted else None
    prepared = getattr(function, "prepared", None) if fitted or gram_matrix is not None else None
    _check_attribute(name, "leave_one_out", leave_one_out, ["steps", "rehearsals", "gram"], keywords)
    _check_attribute(name, "prepared", prepared, ["steps", "gram"], keywords)
    hints = _type_hints(name, function, list(keywords))
    return Method(
        name=name,
        function=function,
        parameters=tuple(
            Parameter(key, hints.get(key, Any), keyword.default) for key, keyword in keywords.items()
        ),
        takes_gram_matrix=gram_matrix is not None,
        needs_gram_matrix=fitted
        or (gram_matrix is not None and gram_matrix.default is inspect.Parameter.empty),
        fitted=fitted,
        leave_one_out=leave_one_out,
        prepared=prepared,
    )


def _check_attribute(
    name: str,
    attribute: str,
    function: Callable[..., Any] | None,
    wanted: list[str],
    keywords: Mapping[str, object],
) -> None:
    if function is None:
        return
    asked, own = _arguments(name, function)
    if asked != wanted or own.keys() != keywords.keys():
        raise MethodError(
            f"merge method {name}: its {attribute} has to take ({', '.join(wanted)}, *, …), with the "
            "keywords of the method"
        )


def _arguments(name: str, function: Callable[..., Any]) -> tuple[list[str], dict[str, inspect.Parameter]]:
    """The names of the positional ones, and the keyword-only ones."""
    try:
        signature = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:  # no function, or one without a signature
        raise MethodError(
            f"merge method {name}: {function!r} has no signature that Python can read"
        ) from error
    keywords = {p.name: p for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return [p.name for p in signature if p.name not in keywords], keywords


def _type_hints(name: str, function: Callable[..., Any], keywords: list[str]) -> dict[str, Any]:
    # Only the keywords: steps and results are often typed with names that exist for the type checker alone.
    annotations = {key: value for key, value in inspect.get_annotations(function).items() if key in keywords}
    try:
        return get_type_hints(
            types.SimpleNamespace(__annotations__=annotations), getattr(function, "__globals__", {})
        )
    except Exception as error:  # an annotation is evaluated, and may be anything
        raise MethodError(
            f"merge method {name}: the types of its parameters must be importable at run time: {error}"
        ) from error
