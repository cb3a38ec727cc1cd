"""The short names of methods: no two alike, short enough for a table, and each leads back to its recipe."""

from __future__ import annotations

import pytest
import yaml

from hubextrap.statistics import BacktestCandidate, candidates
from hubextrap.statistics.plain_names import as_recipe, plain_name, with_article

MORE = (
    BacktestCandidate.of("low_rank", rank=2),
    BacktestCandidate.of("least_squares", window=3),
    BacktestCandidate.of("least_squares", window=4, through_last=True),
    BacktestCandidate.of("two_point", base_step=40),
    *(BacktestCandidate.of(name, "auto") for name in ("two_point", "calibrated", "low_rank")),
    BacktestCandidate.of("two_point", 0.5),
)


def test_no_two_are_alike_and_all_are_short() -> None:
    names = [one.name for one in (*candidates(), *MORE)] + [
        "recipe",
        "rank 1",
        "last-half line",
        "theirs(n=2)",
    ]
    plain = [plain_name(name) for name in names]
    assert len(set(plain)) == len(names)
    assert max(len(plain_name(one.name)) for one in candidates()) <= 24
    assert plain_name("theirs(n=2)") == "theirs(n=2)"


@pytest.mark.parametrize("candidate", [*candidates(), *MORE], ids=lambda one: one.name)
def test_the_lines_for_a_recipe_say_what_was_tried(candidate: BacktestCandidate) -> None:
    written = yaml.safe_load("\n".join(as_recipe(candidate.name)))
    (rule,) = candidate.rules
    parameters = written.get("parameters", {})
    assert (written["merge_method"], parameters.pop("damping", 1.0)) == (rule.method, rule.damping)
    assert parameters == dict(rule.parameters)


def test_a_recipe_of_ones_own_is_called_so() -> None:
    assert (plain_name("recipe"), as_recipe("recipe")) == ("your recipe", ())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("late_lines", "the late lines (fixed)"),
        ("least_squares(window=half, through_last=true)", "the last-half line"),
        ("persistence", "the last checkpoint"),
        ("recipe", "your recipe"),
        ("low_rank", "rank 1"),
        ("theirs(n=2)", "theirs(n=2)"),
    ],
)
def test_in_a_sentence(name: str, said: str) -> None:
    assert with_article(name) == said
