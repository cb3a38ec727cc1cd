"""``parameters.fit``: from which weights coefficients and expected errors follow."""

from __future__ import annotations

import pytest

from hubextrap.errors import RecipeError
from hubextrap.recipe import Recipe, parse_recipe
from hubextrap.sample_sizes import DEFAULT_SAMPLE, LEAST_SAMPLE, MOST_SAMPLE

OURS = """\
trajectory: {{repo: me/run}}
merge_method: {method}
parameters:
  target_step: 500
  fit: {fit}
"""
MERGEKITS = """\
merge_method: {method}
models: [{{model: a/b@step_3}}, {{model: a/b@step_6}}, {{model: a/b@step_9}}]
base_model: a/b@step_0
parameters:
  target_step: 12
  fit: {fit}
"""


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "r.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("fit", "size"),
    [
        ("sample", DEFAULT_SAMPLE),
        ("exact", None),
        ("{sample: 16384}", 16384),
        (f"{{sample: {LEAST_SAMPLE}}}", 64),
        (f"{{sample: {MOST_SAMPLE}}}", 16_777_216),
    ],
)
def test_what_is_written_is_what_is_read(fit: str, size: int | None) -> None:
    recipe = parse_recipe(OURS.format(method="calibrated", fit=fit))
    assert recipe.fit_sample == size
    canonical = Recipe.model_validate(recipe.model_dump()).to_yaml()
    assert ("fit:" in canonical) == (size is not None)
    assert (f"sample: {size}" in canonical) == (size is not None)  # the number, whatever the default becomes
    again = parse_recipe(canonical)
    assert again.fit_sample == size
    assert again.fingerprint() == recipe.fingerprint()


def test_without_a_word_all_weights_count_and_the_fingerprint_is_as_it_was() -> None:
    plain = parse_recipe("\n".join(OURS.format(method="calibrated", fit="exact").splitlines()[:-1]))
    said = parse_recipe(OURS.format(method="calibrated", fit="exact"))
    sampled = parse_recipe(OURS.format(method="calibrated", fit="sample"))
    assert plain.fit_sample is None
    assert plain.fingerprint() == said.fingerprint() != sampled.fingerprint()
    # of recipes before there were samples, whose stopped merges go on
    assert plain.fingerprint() == "4ad63bfd5647b100a55d517a1aab4173fa3eba89121d6a3adb0a72681ac4963b"


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ("0.5", "must be sample, {sample: 16384} with the weights per tensor, or exact, not 0.5"),
        ("", "or exact, not None"),
        ("16384", "or exact, not 16384"),
        ("[sample]", "or exact, not ['sample']"),
        ("{sample: 0.001}", "or exact, not {'sample': 0.001}"),
        ("{sample: true}", "or exact, not {'sample': True}"),
        ("{sample: 4096, blocks: 4}", "or exact, not {'sample': 4096, 'blocks': 4}"),
        ("{}", "or exact, not {}"),
        ("Sample", "or exact, not 'Sample'"),
        ("{sample: 63}", "sample must be from 64 to 16,777,216 weights per tensor, not 63"),
        ("{sample: 16777217}", "sample must be from 64 to 16,777,216 weights per tensor, not 16,777,217"),
        ("{filter: mlp, value: sample}", "takes no filters: one sample is drawn for the whole model"),
    ],
)
def test_what_it_is_not_is_told_with_its_line(fit: str, said: str) -> None:
    message = refusal(OURS.format(method="calibrated", fit=fit))
    assert message.startswith("r.yaml:5: parameters.fit: ")
    assert message.endswith(said)


@pytest.mark.parametrize("form", [OURS, MERGEKITS])
@pytest.mark.parametrize("fit", ["sample", "exact"])
def test_where_no_weight_decides_it_is_an_error(form: str, fit: str) -> None:
    text = form.format(method="two_point", fit=fit)
    line = 1 + text[: text.index("fit:")].count("\n")
    assert refusal(text).startswith(f"r.yaml:{line}: parameters.fit: has no effect: no rule here follows")


@pytest.mark.parametrize("asked", ["damping: auto", "base_step: auto", "max_expected_error: 0.9"])
def test_where_weights_decide_it_counts(asked: str) -> None:
    recipe = parse_recipe(OURS.format(method="two_point", fit="sample") + f"  {asked}\n")
    assert recipe.fit_sample == DEFAULT_SAMPLE


def test_one_rule_that_needs_weights_is_enough_and_none_has_a_sample_of_its_own() -> None:
    rules = "  tensors: [{match: '*mlp*', method: low_rank}]\n"
    assert parse_recipe(OURS.format(method="two_point", fit="sample") + rules).fit_sample == DEFAULT_SAMPLE
    own = "  tensors: [{match: '*mlp*', method: low_rank, fit: sample}]\n"
    assert "parameters.tensors[0].fit: unknown key" in refusal(
        OURS.format(method="low_rank", fit="exact") + own
    )


def test_logits_are_fitted_to_a_sample_too() -> None:
    recipe = parse_recipe(OURS.format(method="low_rank", fit="sample") + "space: logits\n")
    assert recipe.fit_sample == DEFAULT_SAMPLE


def test_what_no_rule_needs_any_more_is_not_written() -> None:
    recipe = parse_recipe(OURS.format(method="two_point", fit="sample") + "  max_expected_error: 1\n")
    freed = recipe.towards({"max_expected_error": None})
    assert freed.fit_sample is None
    assert parse_recipe(freed.text).fingerprint() == freed.fingerprint()


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ("{sample: 4096}", "mergekit has no such section; write sample, which is 4,096 weights per tensor"),
        ("{filter: mlp, value: sample}", "takes no filters: one sample is drawn for the whole model"),
        ("[sample, exact]", "give one value: one sample is drawn for the whole model"),
        ("16384", "must be sample"),
    ],
)
def test_what_a_mergekit_config_cannot_say(fit: str, said: str) -> None:
    message = refusal(MERGEKITS.format(method="calibrated", fit=fit))
    assert message.startswith("r.yaml:6: parameters.fit: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("fit", ["sample", "[sample]"])
def test_a_mergekit_config_may_sample(fit: str) -> None:
    recipe = parse_recipe(MERGEKITS.format(method="calibrated", fit=fit))
    assert recipe.fit_sample == DEFAULT_SAMPLE
