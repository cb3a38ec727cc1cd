"""Rules: the first match counts, and a rule for nothing is an error."""

from __future__ import annotations

import pytest

from hubextrap.errors import MethodError, RecipeError
from hubextrap.methods import Rule, assign_rules

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.up_proj.weight",
]
REST = Rule(("*",), "two_point")


def test_first_match_counts() -> None:
    norms = Rule(("*norm*",), "persistence")
    layers = Rule(("model.layers.?.*", "lm_head*"), "least_squares")
    assigned = assign_rules([norms, layers, REST], NAMES)
    assert [assigned[name] for name in NAMES] == [REST, norms, layers]


def test_globs_are_case_sensitive_and_match_whole_names() -> None:
    assert not Rule(("*NORM*",), "persistence").matches(NAMES[1])
    assert not Rule(("norm",), "persistence").matches(NAMES[1])


def test_a_rule_that_matches_nothing() -> None:
    with pytest.raises(RecipeError) as error:
        assign_rules([Rule(("*nrom*", "ln_*"), "persistence"), REST], NAMES)
    assert str(error.value) == (
        "parameters.tensors[0]: *nrom*, ln_* matches no tensor of the model; its tensors have names like "
        + ", ".join(NAMES)
    )


def test_a_rule_that_comes_too_late() -> None:
    rules = [Rule(("model.*",), "persistence"), Rule(("*norm*",), "persistence"), REST]
    with pytest.raises(RecipeError, match=r"tensors\[1\]: \*norm\* .* earlier rules"):
        assign_rules(rules, NAMES)


def test_coefficients_of_all_targets() -> None:
    rule = Rule(("*",), "two_point", {"base_step": 100}, damping=0.5)
    assert rule.coefficients([0, 100, 200], [200, 300, 400]).tolist() == [
        [0, 0, 1],
        [0, -0.5, 1.5],
        [0, -1, 2],
    ]


def test_an_error_says_which_rule() -> None:
    with pytest.raises(MethodError, match=r"^tensors \*norm\*: two_point: base_step 50"):
        Rule(("*norm*",), "two_point", {"base_step": 50}).coefficients([0, 100, 200], [400])
    with pytest.raises(MethodError, match=r"^two_point: base_step 50"):
        Rule(("*",), "two_point", {"base_step": 50}).coefficients([0, 100, 200], [400])
