"""Plain mergekit configs: accepted where we do what mergekit does, refused with a reason where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubextrap.errors import RecipeError
from hubextrap.methods import Rule
from hubextrap.recipe import CheckpointEntry, parse_recipe
from hubextrap.recipe.mergekit_models import ModelReference

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
            ":4: models[0].model: has to be text here, as in me/run@step_100, or BASE+ADAPTER for a LoRA",
        ),
        (
            ("me/run@step_100", "me/base+me/lora@step_100"),
            ":6: models[1].model: must be me/base, or an adapter of it as the others are, not me/run@",
        ),
        (
            ("me/run@step_100", "a+b+c"),
            ":4: models[0].model: has to be me/run@step_100, or BASE+ADAPTER for a LoRA adapter on its",
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


ADAPTERS = """\
merge_method: two_point
base_model: me/base
models:
  - model: me/base+me/run@step_100
  - model: me/base+me/run@step_200
    parameters: {step: 200}
parameters: {target_step: 400}
dtype: float32
out_dtype: bfloat16
"""
OF_ADAPTERS = """\
trajectory:
  checkpoints:
    - {model: me/run@step_100, step: 100}
    - {model: me/run@step_200, step: 200}
  base: me/base
  clock: steps
merge_method: two_point
parameters: {target_step: 400}
out_dtype: bfloat16
output: {as: merged}
"""


def test_adapters_on_their_base_are_a_run_of_adapters() -> None:
    recipe = parse_recipe(ADAPTERS)
    assert recipe.fingerprint() == parse_recipe(OF_ADAPTERS).fingerprint()
    assert parse_recipe(recipe.to_yaml()).fingerprint() == recipe.fingerprint()
    assert recipe.with_output("adapter", 8).output is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("models:\n", "models:\n  - model: me/base\n"),
        ("base_model: me/base\nmodels:\n", "models:\n  - {model: me/base, parameters: {step: 0}}\n"),
        ("me/base+me/run@step_100", "{model: {path: me/base}, lora: {path: me/run, revision: step_100}}"),
        ("me/base+me/run@step_100", "{model: me/base, lora: me/run@step_100}"),
        ("base_model: me/base", "base_model: {model: {path: me/base, revision: null}, lora: null}"),
        ("dtype: float32", "dtype: float32\ntokenizer_source: me/base"),
        ("dtype: float32", "dtype: float32\ntokenizer_source: me/base+me/run@step_200"),
    ],
)
def test_the_same_written_otherwise(one: str, other: str) -> None:
    assert one in ADAPTERS
    assert parse_recipe(ADAPTERS.replace(one, other, 1)).fingerprint() == parse_recipe(ADAPTERS).fingerprint()


def test_steps_are_those_of_the_adapters() -> None:
    """A base may be another run's checkpoint; and step 0 an adapter, as trainers write it."""
    text = ADAPTERS.replace("me/base", "me/sft@step_500")
    recipe = parse_recipe(text)
    assert [entry.step for entry in recipe.trajectory.checkpoints or ()] == [100, 200]
    assert recipe.trajectory.base == "me/sft@step_500"
    own = ADAPTERS.replace("base_model: me/base", "base_model: me/base+me/run@step_0")
    assert [entry.step for entry in parse_recipe(own).trajectory.checkpoints or ()] == [0, 100, 200]


def test_the_base_counts_among_the_steps() -> None:
    """A method is tried on step 0 too, which no entry lists."""
    parse_recipe(ADAPTERS.replace("{target_step: 400}", "{target_step: 400, base_step: 0}"))
    with pytest.raises(RecipeError, match="base_step"):
        parse_recipe(ADAPTERS.replace("{target_step: 400}", "{target_step: 400, base_step: 50}"))


@pytest.mark.parametrize(
    ("one", "other", "problem"),
    [
        (
            "me/base+me/run@step_200",
            "me/other+me/run@step_200",
            ":5: models[1].model: must be me/base, or an adapter of it as the others are, not me/other+",
        ),
        (
            "base_model: me/base\n",
            "base_model: me/other\n",
            ":2: base_model: must be me/base, or an adapter of it as the others are, not me/other;",
        ),
        (
            "base_model: me/base\n",
            "",
            ":1: base_model: has to be me/base: the adapters' base is step 0 here, which a recipe names; or",
        ),
        (
            "models:\n",
            "models:\n  - model: me/base+me/run@step_0\n",
            ":3: models: step 0 is there twice: me/base and me/base+me/run@step_0",
        ),
        (
            "models:\n",
            "models:\n  - {model: me/base, parameters: {step: 20}}\n",
            ":3: models: me/base alone is the untouched base, step 0; leave its step out",
        ),
        ("me/run@step_100", "me/run", ":4: models[0]: no step for me/run, nor in its name;"),
        (
            "step: 200",
            "step: 100",
            ":6: models[1].parameters.step: me/run@step_200 says step 200 by its name",
        ),
        (
            "dtype: float32",
            "tokenizer_source: me/x\ndtype: float32",
            ":8: tokenizer_source: 'me/x': the tokenizer is that of the base; leave it out, or name me/",
        ),
        (
            "me/base+me/run@step_100",
            "{model: me/base, lora: me/run@step_100, override_architecture: X}",
            ":4: models[0].model: override_architecture: a recipe takes checkpoints as they are;",
        ),
        (
            "me/base+me/run@step_100",
            "{model: {path: me/base, revision: 3}, lora: me/run@step_100}",
            ":4: models[0].model: has to be text, or {path: …, revision: …}, both text, not {'path'",
        ),
        (
            "me/base+me/run@step_100",
            "me/base+",
            ":4: models[0].model: has to be me/run@step_100, or BASE+ADAPT",
        ),
    ],
)
def test_adapters_that_are_no_run(one: str, other: str, problem: str) -> None:
    assert one in ADAPTERS
    with pytest.raises(RecipeError) as error:
        parse_recipe(ADAPTERS.replace(one, other, 1))
    assert len(str(error.value).splitlines()) == 1, error.value
    assert problem in str(error.value)


def test_a_folder_may_have_a_plus_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a+b" / "step_100").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    checkpoints = parse_recipe(CONFIG.replace("me/run@step_100", "a+b/step_100")).trajectory.checkpoints
    assert checkpoints is not None
    assert checkpoints[1] == CheckpointEntry(model="a+b/step_100", step=100)


@pytest.mark.slow
def test_mergekit_reads_these_references_alike() -> None:
    common = pytest.importorskip("mergekit.common")
    for value in (
        "me/base+me/run@step_100",
        "me/base@main",
        {"model": {"path": "me/base"}, "lora": {"path": "me/run", "revision": "step_100"}},
        {"model": "me/base", "lora": "me/run@step_100"},
    ):
        theirs = common.ModelReference.model_validate(value)
        assert str(ModelReference.model_validate(value)) == str(theirs)


@pytest.mark.slow
def test_mergekit_itself_reads_what_we_accept() -> None:
    """The shape is mergekit's own, extra sections included."""
    config = pytest.importorskip("mergekit.config")
    yaml = pytest.importorskip("yaml")
    read = config.MergeConfiguration.model_validate(yaml.safe_load(CONFIG + "push: {repo: me/x}\n"))
    assert [entry.parameters["step"] for entry in read.models] == [100, 200]
    assert (read.dtype, read.out_dtype) == ("float32", "bfloat16")
