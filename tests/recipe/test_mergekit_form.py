"""Plain mergekit configs: accepted where we do what mergekit does, refused with a reason where not."""

from __future__ import annotations

import pytest

from hubextrap.errors import RecipeError
from hubextrap.methods import Rule
from hubextrap.recipe import CheckpointEntry, parse_recipe

CONFIG = """\
merge_method: two_point
base_model: me/base
models:
  - model: me/run@step_100
    parameters: {step: 100}
  - model: me/run@step_200
    parameters:
      step: 200
parameters:
  target_step: 400
  base_step: 100
dtype: float32
out_dtype: bfloat16
"""


def test_a_config_is_a_recipe() -> None:
    recipe = parse_recipe(CONFIG)
    assert recipe.trajectory.checkpoints == (
        CheckpointEntry(model="me/base", step=0),
        CheckpointEntry(model="me/run@step_100", step=100),
        CheckpointEntry(model="me/run@step_200", step=200),
    )
    assert recipe.rules == (Rule(("*",), "two_point", {"base_step": 100}, 1.0),)
    assert (recipe.dtype, recipe.out_dtype, recipe.target_steps) == ("float32", "bfloat16", (400,))
    assert recipe.text == CONFIG


def test_it_is_the_same_recipe_as_in_our_own_form() -> None:
    recipe = parse_recipe(CONFIG)
    ours = parse_recipe(recipe.to_yaml())
    assert ours.fingerprint() == recipe.fingerprint()
    assert "trajectory:" in recipe.to_yaml()


def test_base_model_may_be_listed_too() -> None:
    listed = CONFIG.replace("models:\n", "models:\n  - model: me/base\n")
    assert parse_recipe(listed).fingerprint() == parse_recipe(CONFIG).fingerprint()
    with_step = CONFIG.replace("models:\n", "models:\n  - {model: me/base, parameters: {step: 20}}\n")
    checkpoints = parse_recipe(with_step).trajectory.checkpoints
    assert checkpoints is not None
    assert [entry.step for entry in checkpoints] == [20, 100, 200]


def test_the_result_is_stored_as_mergekit_stores_it() -> None:
    assert parse_recipe(CONFIG.replace("out_dtype: bfloat16\n", "")).out_dtype == "float32"
    neither = CONFIG.replace("out_dtype: bfloat16\n", "").replace("dtype: float32\n", "")
    assert parse_recipe(neither).out_dtype is None


def test_our_sections_are_accepted() -> None:
    recipe = parse_recipe(
        CONFIG + "push: {repo: me/x}\nevaluate: {tasks: gsm8k}\ntokenizer_source: me/run@step_200\n"
    )
    assert recipe.push is not None
    assert recipe.push.revision == "main"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("dtype: float32", "chat_template: auto"),
            ":12: chat_template: not supported here: the chat template is that",
        ),
        (
            ("dtype: float32", "tokenizer: {source: union}"),
            ":12: tokenizer: not supported here: the tokenizer is that",
        ),
        (
            ("dtype: float32", "slices: []"),
            ":12: slices: not supported here: slices stack layers of several models",
        ),
        (
            ("dtype: float32", "modules: {}"),
            ":12: modules: not supported here: a recipe predicts one language model",
        ),
        (
            ("out_dtype: bfloat16", "tokenizer_source: union"),
            ":13: tokenizer_source: 'union': the tokenizer is that of the last",
        ),
        (
            ("dtype: float32\n", ""),
            ":1: out_dtype needs dtype: float32 beside it; without dtype mergekit rounds",
        ),
        (("dtype: float32", "dtype: bfloat16"), ":12: dtype: must be float32, not 'bfloat16'"),
        (("dtype: float32", "random_seed: 1"), ":12: random_seed: unknown key; known here: version, models"),
        (
            ("{step: 100}", "{weight: 1.0, step: 100}"),
            ":5: models[0].parameters.weight: unknown key; known here: step",
        ),
        (
            ("me/run@step_100\n    parameters: {step: 100}", "me/run"),
            ":4: models[0]: no step for me/run, nor in its name; write it beside the model: parame",
        ),
        (
            ("me/run@step_100", "{path: x}"),
            ":4: models[0].model: has to be text here, as in me/run@step_100; `hubextrap mergekit-yaml CON",
        ),
        (
            ("me/run@step_100", "me/run+me/lora"),
            ":4: models[0].model: 'me/run+me/lora' puts an adapter on a model; merge it into the model first",
        ),
        (
            ("target_step: 400", "target_step: [300, 400]"),
            ":10: parameters.target_step: a list of numbers is a gradient over the layers to mergekit: ",
        ),
        (
            ("target_step: 400", "target_step: 400\n  tensors: [{match: a, method: persistence}]"),
            "tensors: mergekit has",
        ),
        (
            ("me/run@step_200\n    parameters:\n      step: 200", "me/copy@step_100"),
            ":3: models: step 100 is there twice: me/run@step_100 and me/copy@step_100",
        ),
        (
            ("target_step: 400", "target_step: 150"),
            ":9: parameters: target step 150 is before the last observed step",
        ),
        (
            ("step: 200", "step: 100"),
            ":8: models[1].parameters.step: me/run@step_200 says step 200 by its name",
        ),
        (
            ("two_point", "task_arithmetic"),
            ":1: merge_method: task_arithmetic is mergekit's own method: `hubex",
        ),
        (
            ("base_step: 100", "normalize: false"),
            ":11: parameters.normalize: unknown key; two_point takes base_step",
        ),
    ],
)
def test_one_thing_wrong(change: tuple[str, str], problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(CONFIG.replace(*change, 1))
    assert len(str(error.value).splitlines()) == 1, error.value
    assert problem in str(error.value)


@pytest.mark.slow
def test_mergekit_itself_reads_what_we_accept() -> None:
    """The shape is mergekit's own, extra sections included."""
    config = pytest.importorskip("mergekit.config")
    yaml = pytest.importorskip("yaml")
    read = config.MergeConfiguration.model_validate(yaml.safe_load(CONFIG + "push: {repo: me/x}\n"))
    assert [entry.parameters["step"] for entry in read.models] == [100, 200]
    assert (read.dtype, read.out_dtype) == ("float32", "bfloat16")
