"""Configs that are for mergekit itself: what each is, which command runs it, what is like it here.

Such a config is one error: what else is strange in it follows from its being no recipe.
"""

from __future__ import annotations

from typing import Any

from hubextrap.methods import method_names, nearest
from hubextrap.methods.registry import is_method
from hubextrap.recipe.yaml_nodes import Place
from hubextrap.step_names import step_in_reference

AS_IT_IS = "`hubextrap mergekit-yaml CONFIG OUT` runs this config as it is"
_WRITE = "write merge_method: two_point, each model's step, and parameters: {target_step: 400}"
_NOTHING_ALIKE = f"No method here does the same. To predict a later checkpoint of a run, {_WRITE}"
_MEANS = f"Here `average` and `ema` are means of a run's checkpoints. To predict a later one, {_WRITE}"

METHODS = {
    # mergekit's own: what is like it here
    "arcee_fusion": _NOTHING_ALIKE,
    "breadcrumbs": _NOTHING_ALIKE,
    "breadcrumbs_ties": _NOTHING_ALIKE,
    "dare_linear": _NOTHING_ALIKE,
    "dare_ties": _NOTHING_ALIKE,
    "della": _NOTHING_ALIKE,
    "della_linear": _NOTHING_ALIKE,
    "karcher": _MEANS,
    "linear": _MEANS,
    "model_stock": _MEANS,
    "multislerp": _MEANS,
    "nearswap": _NOTHING_ALIKE,
    "nuslerp": _MEANS,
    "passthrough": _NOTHING_ALIKE,
    "ram": _NOTHING_ALIKE,
    "ramplus_tl": _NOTHING_ALIKE,
    "sce": _NOTHING_ALIKE,
    "slerp": _MEANS,
    "task_arithmetic": "",
    "ties": _NOTHING_ALIKE,
}
"""Of mergekit 0.1.5; "" for the one whose weights are looked at."""
_OTHER_CONFIGS = {
    # a key that only this program's config has: program
    "experts": "mergekit-moe CONFIG OUT",
    "gate_mode": "mergekit-moe CONFIG OUT",
    "genome": "mergekit-evolve CONFIG",
}
_SHAPES = {
    "slices": "slices stack layers of several models, and a prediction has the layers of its run",
    "modules": "a recipe predicts one language model",
}


def for_mergekit(data: dict[str, Any]) -> tuple[Place, str] | None:
    """Where and why a config is one for mergekit and no recipe; None where it may be a recipe."""
    if "trajectory" not in data and (other := _of_another_program(data)):
        return (other[0],), f"{other[1]}, and no method here does the same"
    method = data.get("merge_method")
    if not isinstance(method, str) or not method:
        return None
    ours = is_method(method)
    if method in METHODS and not ours:
        as_it_is = f": {AS_IT_IS}" if "trajectory" not in data else ""
        alike = METHODS[method] or _as_a_line(data)
        return ("merge_method",), f"{method} is mergekit's own method{as_it_is}. {alike}"
    if "trajectory" in data:
        return None
    if not ours and not nearest(method, list(names := method_names())):
        hint = nearest(method, list(METHODS)) or f"; hubextrap has {', '.join(names)}"
        return ("merge_method",), f"there is no merge method {method}{hint}"
    for key, why in _SHAPES.items():
        if key in data and ours:
            return (key,), f"not supported here: {why}; {AS_IT_IS}"
    return None


def not_for_mergekit_yaml(data: dict[str, Any]) -> str | None:
    """What runs a file that mergekit-yaml does not; None where it may."""
    if other := _of_another_program(data):
        return f"{other[0]}: {other[1]}"
    for key, command in (("trajectory", "merge CONFIG --out OUT"), ("reground", "reground CONFIG --out OUT")):
        if key in data:
            return (
                f"{key}: a recipe of hubextrap's, which mergekit cannot read: `hubextrap {command}` runs it"
            )
    return None


def _of_another_program(data: dict[str, Any]) -> tuple[str, str] | None:
    for key, command in _OTHER_CONFIGS.items():
        if key in data:
            return key, f"a config of {command.partition(' ')[0]}: `{command}` runs it"
    return None


def _as_a_line(data: dict[str, Any]) -> str:
    """What `task_arithmetic` is as `two_point`: base + α·(model − base), a line through two checkpoints."""
    line = "base + α·(model − base) is a line through two checkpoints"
    found = _one_on_a_base(data)
    if found is None:
        return f"{line}: here merge_method: two_point, the model's step, and target_step: α × that step"
    model, alpha = found
    if alpha <= 1:
        return f"{line}, and α = {alpha:g} lies not beyond the second, as every prediction here does"
    said = step_in_reference(model)
    step = 100 if said is None or not said.step else said.step
    target = alpha * step
    near = "" if abs(target - round(target)) < 1e-9 else "about "
    return (
        f"{line}: here merge_method: two_point, {model} with parameters: {{step: {step}}}, and for "
        f"α = {alpha:g} parameters: {{target_step: {near}{round(target)}}}"
    )


def _one_on_a_base(data: dict[str, Any]) -> tuple[str, float] | None:
    """The one model on a base and its α; None where there are several, or α is not one plain number."""
    base, models = data.get("base_model"), data.get("models")
    others = [
        each
        for each in (models if isinstance(models, list) else [])
        if isinstance(each, dict) and isinstance(each.get("model"), str) and each["model"] != base
    ]
    if not isinstance(base, str) or len(others) != 1:
        return None
    shared, own = (
        {} if not isinstance(p := each.get("parameters"), dict) else p for each in (data, others[0])
    )
    weight, scale = own.get("weight", shared.get("weight")), shared.get("lambda", 1.0)
    if shared.get("normalize") is True:
        weight = 1.0
    if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in (weight, scale)):
        return None
    alpha = float(weight) * float(scale)  # type: ignore[arg-type]  # they are numbers
    return (others[0]["model"], alpha) if abs(alpha) < 1000 else None
