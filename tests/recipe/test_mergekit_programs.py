"""A config for mergekit itself is one error, which says what runs it and what is like it here."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import pytest

from hubextrap.errors import RecipeError
from hubextrap.methods import method_names
from hubextrap.recipe import parse_recipe
from hubextrap.recipe.mergekit_programs import METHODS

CONFIG = """\
models:
  - model: me/math-model
    parameters: {{weight: [0, 0.5, 1], density: 0.53, gamma: 0.1}}
  - model: me/code-model
    parameters:
      weight:
        - {{filter: mlp, value: 0.5}}
        - {{value: 1}}
merge_method: {method}
base_model: Qwen/Base
parameters: {{normalize: true, int8_mask: true, t: 0.5}}
tokenizer: {{source: union}}
chat_template: auto
dtype: bfloat16
out_dtype: float16
"""
SLICES = """\
slices:
  - sources: [{{model: me/a, layer_range: [0, 24]}}]
  - sources: [{{model: me/b, layer_range: [8, 32]}}]
merge_method: {method}
parameters: {{target_step: 400}}
dtype: bfloat16
"""
MODULES = """\
modules:
  text:
    models: [{{model: me/a}}, {{model: me/b}}]
merge_method: {method}
"""


def error_of(text: str) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "c.yaml")
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


@pytest.mark.parametrize("shape", [CONFIG, SLICES, MODULES], ids=["models", "slices", "modules"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_of_mergekits_own(method: str, shape: str) -> None:
    text = shape.format(method=method)
    said = error_of(text)
    line = 1 + text[: text.index("merge_method")].count("\n")
    assert said.startswith(
        f"c.yaml:{line}: merge_method: {method} is mergekit's own method: `hubextrap merge"
    )
    assert "two_point" in said


def test_in_a_recipe_of_our_own_form_it_is_no_config_to_run() -> None:
    said = error_of(
        "trajectory: {repo: me/run}\nmerge_method: ties\nparameters: {density: 0.5, target_step: 4}\n"
    )
    assert said.startswith(
        "c.yaml:2: merge_method: ties is mergekit's own method. No method here does the same"
    )
    assert "mergekit-yaml" not in said


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("shape", [SLICES, MODULES], ids=["slices", "modules"])
def test_a_shape_that_only_mergekit_makes(method: str, shape: str) -> None:
    said = error_of(shape.format(method=method))
    assert said.startswith("c.yaml:1: ")
    assert said.endswith("`hubextrap mergekit-yaml CONFIG OUT` runs this config as it is")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "base_model: me/a\ngate_mode: hidden\nexperts: [{source_model: me/b, positive_prompts: [x]}]\n",
            ":3: experts: a config of mergekit-moe: `mergekit-moe CONFIG OUT` runs it",
        ),
        (
            "genome: {models: [me/a, me/b], merge_method: dare_ties}\ntasks: [{name: gsm8k}]\n",
            ":1: genome: a config of mergekit-evolve: `mergekit-evolve CONFIG` runs it",
        ),
        (
            "name: one\n" + CONFIG.format(method="ties") + "---\n" + CONFIG.format(method="linear"),
            ":17: a second YAML document begins here, and a recipe is one: give each a file of its own",
        ),
        (
            CONFIG.format(method="task_arithmetics"),
            ":9: merge_method: there is no merge method task_arithmetics; ",
        ),
        (CONFIG.format(method="my_own"), ":9: merge_method: there is no merge method my_own"),
    ],
    ids=["moe", "evolve", "multi", "misspelt", "of nobody"],
)
def test_what_else_mergekit_has(text: str, said: str) -> None:
    assert error_of(text).startswith(f"c.yaml{said}")


@pytest.mark.parametrize(
    ("models", "shared", "said"),
    [
        ("[{model: me/run@step_100, parameters: {weight: 1.43}}]", "", "step: 100}, and for α = 1.43 parameters: {target_step: 143}"),
        ("[{model: me/b}, {model: me/run@step_20, parameters: {weight: 3}}]", "lambda: 0.5", "step: 20}, and for α = 1.5 parameters: {target_step: 30}"),
        ("[{model: me/run, parameters: {}}]", "weight: 2", "me/run with parameters: {step: 100}, and for α = 2 parameters: {target_step: 200}"),
        ("[{model: me/run@step_10, parameters: {weight: 1.43}}]", "", "{target_step: about 14}"),
        ("[{model: me/run, parameters: {weight: 3}}]", "normalize: true, lambda: 2", "α = 2 parameters: {target_step: 200}"),
        ("[{model: me/run, parameters: {weight: 0.5}}]", "", "α = 0.5 lies not beyond the second"),
        ("[{model: me/run, parameters: {weight: [0, 1]}}]", "", "target_step: α × that step"),
        ("[{model: me/run, parameters: {weight: 1}}, {model: me/c, parameters: {weight: 1}}]", "", "target_step: α × that step"),
        ("nothing", "weight: .nan", "target_step: α × that step"),
    ],
)  # fmt: skip
def test_task_arithmetic_of_one_model_is_a_line(models: str, shared: str, said: str) -> None:
    text = f"merge_method: task_arithmetic\nbase_model: me/b\nmodels: {models}\nparameters: {{{shared}}}\n"
    assert said in error_of(text)


def test_that_line_gives_the_same_weights() -> None:
    """base + α·(model − base), as two_point's coefficients."""
    from hubextrap.methods import coefficients

    assert coefficients("two_point", [0, 100], 143).tolist() == pytest.approx([1 - 1.43, 1.43])


@pytest.mark.slow
def test_every_method_of_the_mergekit_that_is_installed() -> None:
    registry = pytest.importorskip("mergekit.merge_methods.registry")
    theirs = {
        one.spec.name for one in registry.registered_methods() if type(one).__module__.startswith("mergekit")
    }
    assert theirs == METHODS.keys()
