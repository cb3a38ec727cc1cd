"""mergekit's filters as rules; what no rule says is one error, with its line."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import pytest

from hubextrap.errors import RecipeError
from hubextrap.methods.rules import assign_rules
from hubextrap.recipe import parse_recipe

CONFIG = """\
merge_method: two_point
models:
  - model: me/run@step_0
  - model: me/run@step_100
  - model: me/run@step_200
parameters:
  target_step: 400
"""


def lines_of(parameters: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        parse_recipe(CONFIG + parameters, "c.yaml")
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("conditions", "rules", "rest"),
    [
        ("damping: [{filter: mlp, value: 0.5}, {value: 0.9}]", [("*mlp*", {}, 0.5)], ({}, 0.9)),
        ("damping: {filter: mlp, value: 0.5}", [("*mlp*", {}, 0.5)], ({}, 1.0)),
        ("damping: [{filter: '*', value: 0.5}]", [], ({}, 0.5)),
        ("damping: {value: 0.5}", [], ({}, 0.5)),
        ("damping: [0.5]", [], ({}, 0.5)),
        ("damping: [{filter: 'a[0]*?', value: 0}]", [("*a[[]0][*][?]*", {}, 0.0)], ({}, 1.0)),
        (
            "base_step: [{filter: mlp, value: 100}, {value: 0}]\n  damping: 0.5",
            [("*mlp*", {"base_step": 100}, 0.5)],
            ({"base_step": 0}, 0.5),
        ),
        (
            "base_step: 100\n  damping: [{filter: mlp, value: 0.5}]",
            [("*mlp*", {"base_step": 100}, 0.5)],
            ({"base_step": 100}, 1.0),
        ),
        (
            "base_step: [{filter: mlp, value: 100}, {filter: norm, value: 0}]\n  damping: [{filter: mlp, value: 0.5}, {filter: norm, value: 0.25}, {value: 0.75}]",
            [("*mlp*", {"base_step": 100}, 0.5), ("*norm*", {"base_step": 0}, 0.25)],
            ({}, 0.75),
        ),
    ],
)
def test_what_they_say(
    conditions: str, rules: list[tuple[str, dict[str, object], float]], rest: tuple[dict[str, object], float]
) -> None:
    recipe = parse_recipe(f"{CONFIG}  {conditions}\n")
    *some, last = recipe.rules
    assert [(rule.match[0], rule.parameters, rule.damping) for rule in some] == rules
    assert (last.match, last.parameters, last.damping) == (("*",), *rest)
    assert recipe.text == f"{CONFIG}  {conditions}\n"
    assert parse_recipe(recipe.to_yaml()).fingerprint() == recipe.fingerprint()


@pytest.mark.parametrize(
    ("parameters", "line", "said"),
    [
        ("  damping:\n    - {filter: mlp, value: 2}\n    - {value: 1}", 9, "damping[0].value: must be a number from 0 (the last checkpoint) to 1"),
        ("  damping:\n    - filter: mlp\n      value: x", 10, "damping[0].value: must be a number from 0"),
        ("  damping:\n    - {filter: mlp, value: 0}\n    - {value: 2}", 8, "damping: must be a number from 0"),
        ("  damping:\n    - {filter: mlp}", 9, "damping[0]: must be {filter: mlp, value: 0.5}, or {value: 1} for all other"),
        ("  damping:\n    - {filter: 3, value: 0}", 9, "damping[0].filter: must be text: a part of the tensors' names"),
        ("  damping:\n    - {value: 0, filtre: mlp}", 9, "damping[0].filtre: unknown key; known here: filter, value"),
        ("  damping:\n    - {value: 0}\n    - {filter: mlp, value: 0.5}", 10, "damping[1]: never counts: the entry before is for all"),
        ("  damping:\n    - 1\n    - {filter: mlp, value: 0.5}", 9, "damping[0]: must be {filter: mlp"),
        ("  damping: [0, 0.5, 1]", 8, "damping: a list of numbers is a gradient over the layers to mergekit: `hubextrap mergekit-yaml CONFIG OUT` runs this config as it is; here, write rules, {match: '*.layers.0.*', method: two_point, damping: …}, under parameters.tensors"),
        ("  damping:\n    - {filter: mlp, value: [0, 1]}", 9, "damping[0].value: a list of numbers is a gradient"),
        ("  base_step: [0, 100]", 8, "base_step: a list of numbers is a gradient over the layers"),
        ("  max_expected_error: {filter: mlp, value: 1}", 8, "max_expected_error: takes no filters: the error is that of the whole"),
        ("  base_step: [{filter: mlp, value: 150}]", 8, "base_step[0]: tensors *mlp*: two_point: base_step 150 is not an observed step"),
        ("  base_step: [{filter: mlp, value: a}]", 8, "base_step[0].value: must be a whole number"),
        (
            "  damping: [{filter: mlp, value: 0}]\n  base_step: [{filter: norm, value: 0}]",
            9,
            "base_step: has other filters than damping; give both the same ones in the same order: they become rules",
        ),
        ("  tensors: [{match: a, method: persistence}]", 6, "tensors: mergekit has no such parameter"),
    ],
)  # fmt: skip
def test_what_they_cannot_say(parameters: str, line: int, said: str) -> None:
    (problem,) = lines_of(parameters)
    assert problem.startswith(f"c.yaml:{line}: parameters")
    assert said in problem


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ("[{filter: MLP, value: 100}, {value: 0}]", "MLP matches no tensor of the model"),
        ("[{filter: mlp, value: 100}, {filter: mlp.w, value: 0}]", "mlp.w matches only tensors that earlier"),
    ],
)
def test_a_filter_that_takes_no_tensor_is_called_as_it_is_written(filters: str, said: str) -> None:
    recipe = parse_recipe(f"{CONFIG}  base_step: {filters}\n")
    with pytest.raises(RecipeError) as error:
        assign_rules(recipe.rules, ["a.mlp.w", "b"])
    assert str(error.value).startswith(f"parameters.base_step: filter: {said}")


@pytest.mark.parametrize(
    "target", ["[{filter: mlp, value: 300}, {value: 400}]", "[300, 400]", "{filter: a, value: b}", "[a, b]"]
)
def test_one_step_for_all_tensors(target: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(CONFIG.replace("400", target), "c.yaml")
    (problem,) = str(error.value).splitlines()
    assert problem.startswith("c.yaml:7: parameters.target_step: ")
    assert "`hubextrap mergekit-yaml CONFIG OUT` runs this config as it is" in problem


@pytest.mark.parametrize("key", ["damping", "base_step"])
def test_in_our_own_form_they_are_pointed_to(key: str) -> None:
    text = f"trajectory: {{repo: a/b}}\nmerge_method: two_point\nparameters:\n  target_step: 4\n  {key}: [{{filter: mlp, value: 0}}]\n"
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "c.yaml")
    (problem,) = str(error.value).splitlines()
    assert problem == (
        f"c.yaml:5: parameters.{key}: filters are mergekit's; here write parameters.tensors: "
        f"[{{match: '*mlp*', method: two_point, {key}: …}}]"
    )
