"""One mistake in a recipe is one problem, whatever and wherever it is."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from hubextrap.errors import RecipeError
from hubextrap.recipe.parsing import _parse_any

Change = tuple[str, Any]
RECIPES: dict[str, dict[str, Any]] = {
    "all sections": {
        "trajectory": {
            "repo": "me/run",
            "steps": {"pattern": "step_{step}", "max": 200, "only": [0, 100, 200]},
            "base": "Qwen/Base",
            "clock": "steps",
        },
        "merge_method": "two_point",
        "parameters": {
            "target_step": 400,
            "base_step": 100,
            "damping": 0.9,
            "tensors": [
                {"match": "*norm*", "method": "persistence"},
                {"match": ["*mlp*"], "method": "least_squares", "window": 3, "damping": 0.5},
            ],
        },
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "push": {"repo": "me/x", "revision": "step_{target_step}", "private": True},
        "evaluate": {"tasks": ["radd"], "against": ["last", "base"], "limit": 5, "seed": 1},
    },
    "a list of checkpoints": {
        "trajectory": {
            "checkpoints": [{"model": f"me/run@{name}", "step": n} for n, name in enumerate("abc")]
        },
        "merge_method": "least_squares",
        "parameters": {"target_step": 400, "window": 3, "tensors": [{"match": "a", "method": "ema"}]},
    },
    "a schedule": {
        "trajectory": {"repo": "me/run", "clock": {"schedule": "cosine", "total_steps": 400}},
        "merge_method": "low_rank",
        "parameters": {"target": {"full_rate_steps": [100, 200]}, "rank": 1},
        "space": "logits",
    },
    "a walk": {
        "trajectory": {"repo": "me/run"},
        "merge_method": "two_point",
        "parameters": {
            "target_step": {
                "up_to": {"full_rate_steps": 400},
                "by": "score",
                "prompts": "f",
                "samples": 2,
                "format": "math",
            }
        },
    },
    "mergekit's form": {
        "merge_method": "two_point",
        "base_model": "me/base",
        "models": [
            {"model": f"me/run@step_{step}", "parameters": {"step": step}} for step in (100, 200, 300)
        ],
        "parameters": {
            "target_step": 400,
            "base_step": 100,
            "damping": [{"filter": "mlp", "value": 0.5}, {"value": 1}],
        },
        "dtype": "float32",
        "out_dtype": "bfloat16",
    },
    "reground": {
        "reground": {
            "model": "run/step_0",
            "train": "/bin/false --model {model} --steps {steps} --output {output}",
            "checkpoint": "checkpoint-{step}",
            "window": 4,
            "jump": 4,
            "iterations": 1,
            "guard": {"max_error": 0.5, "probe": "probe {model}", "margin": 0.1, "longest_jump": 8},
        },
        "push": {"repo": "me/x", "private": True},
    },
}
WRONG = (None, [], {}, "word", -1, 0, 1.5, True, [1, 2], ["a", "b"], {"a": 1}, "", 10**9)


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = (
        content.keys()
        if isinstance(content, dict)
        else range(len(content))
        if isinstance(content, list)
        else ()
    )
    for key in keys:
        yield (*place, key)
        yield from places(content[key], (*place, key))


def mistakes(recipe: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each thing left out, called otherwise, or something else; with what was done."""
    for *outer, key in places(recipe):
        changes: list[Change] = [("leave out", None), *(("set to", value) for value in WRONG)]
        if isinstance(key, str):
            changes += [("call", name) for name in (f"{key}x", key[1:], key.upper(), "zzz")]
        for change, value in changes:
            changed = copy.deepcopy(recipe)
            parent: Any = changed
            for part in outer:
                parent = parent[part]
            if change == "call":
                renamed = [(value if name == key else name, inner) for name, inner in parent.items()]
                parent.clear()
                parent.update(renamed)
            elif change == "leave out":
                del parent[key]
            else:
                parent[key] = value
            yield f"{change} {value!r} at {[*outer, key]}", changed


def problems_of(content: Any) -> list[str]:
    try:
        _parse_any(yaml.safe_dump(content, sort_keys=False), "r")
    except RecipeError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("share", [0.03, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECIPES)
def test_one_mistake_is_one_problem(name: str, share: float) -> None:
    assert problems_of(RECIPES[name]) == []
    every = list(mistakes(RECIPES[name]))
    refused = 0
    for what, changed in random.Random(0).sample(every, int(share * len(every))):
        found = problems_of(changed)
        assert len(found) < 2, (what, found)
        refused += len(found)
    assert refused > 0.3 * share * len(every)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "trajectory: {repo: a/b}\nmerge_method: average\nparameters: {target_step: 9, window: 3, through_last: true}\n",
            "r:3: parameters.through_last: unknown key; it belongs to least_squares, and the method is average (also window)",
        ),
        (
            "trajectory: {repo: a/b}\nmerge_method: zzz\nparameters: {target_step: 9, window: 3, base_step: 1}\n",
            "r:2: merge_method: there is no merge method zzz",
        ),
        (
            "trajectory: {repo: a/b}\nmerge_method: ema\nparameters: {target_stop: 9}\n",
            "r:3: parameters.target_stop: unknown key; did you mean target_step?",
        ),
        (
            "trajectory: {repo: a/b}\nmerge_method: ema\nparameters: {step: 9}\n",
            "r:3: parameters.step: unknown key",
        ),
        ("{version: 1}", "r:1: merge_method: missing, and so are parameters, trajectory"),
        (
            "merge_method: two_point\nmodels:\n"
            + "".join(f"  - model: me/r@step_{n}\n    parameters: {{weight: 1}}\n" for n in range(9))
            + "parameters: {target_step: 99, normalize: true, int8_mask: true}\n",
            None,
        ),
    ],
)  # fmt: skip
def test_how_it_is_said(text: str, problem: str | None) -> None:
    with pytest.raises(RecipeError) as error:
        _parse_any(text, "r")
    lines = str(error.value).splitlines()
    if problem is None:  # two mistakes, each at several places
        assert lines == [
            "r has 2 problems:",
            "r:4: models[0].parameters.weight: unknown key; known here: step (also in lines 6, 8, 10, 12, 14 and 3 more)",
            "r:21: parameters.int8_mask: unknown key; two_point takes base_step (also normalize)",
        ]
        return
    (line,) = lines
    assert line.startswith(problem)


def test_two_mistakes_are_two_problems() -> None:
    text = "trajectory: {repo: a/b, bas: c}\nmerge_method: zzz\nparameters: {target_step: x, damping: 3}\n"
    with pytest.raises(RecipeError) as error:
        _parse_any(text, "r")
    assert str(error.value).splitlines()[0] == "r has 4 problems:"


def test_two_tokens_are_a_problem_with_both_lines() -> None:
    token = "hf_" + "a" * 34
    with pytest.raises(RecipeError) as caught:
        _parse_any(f"# {token}\nmerge_method: two_point\n# {token}b\n", "r.yaml")
    first = str(caught.value).split("\n")
    assert any("looks like a Hub token" in line and "also in line 3" in line for line in first)
