"""A recipe made from what was found out of a run, rather than written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.recipe.parsing import parse_recipe
from hubextrap.recipe.yaml_nodes import dump_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.methods import Rule
    from hubextrap.recipe.models import Recipe

DRAWN_UP = "# Written by hubextrap"
"""How such a file begins, so that a later one may take its place."""


def draw_up(
    trajectory: Mapping[str, Any],
    rule: Rule,
    target: Mapping[str, Any],
    *,
    sections: Mapping[str, Any] | None = None,
    why: Sequence[str] = (),
) -> Recipe:
    """The recipe that predicts by one rule.

    Args:
        trajectory: the section, as YAML has it.
        target: ``target_step`` or ``target``, as ``parameters`` have them.
        sections: ``output``, ``push`` and ``evaluate``, as YAML has them.
        why: said in comments at its top, a line each.

    Raises:
        RecipeError: the parts make no recipe.
    """
    parameters = {**target, **rule.parameters}
    if rule.damping != 1:
        parameters["damping"] = rule.damping
    content = {
        "trajectory": _plain(trajectory),
        "merge_method": rule.method,
        "parameters": _plain(parameters),
        **_plain(sections or {}),
    }
    said = [DRAWN_UP, *(f"# {' '.join(line.split())}" for line in why)]
    return parse_recipe("\n".join([*said, dump_yaml(content)]), "the recipe")


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not said; tuples as lists, one of one as its entry."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if value is None or value in ((), {}, []):
            continue
        if isinstance(value, dict):
            found[key] = _plain(value)
        elif isinstance(value, (tuple, list)):
            found[key] = value[0] if len(value) == 1 and not isinstance(value[0], dict) else list(value)
        else:
            found[key] = value
    return found
