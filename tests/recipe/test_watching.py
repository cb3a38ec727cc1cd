"""The recipe of `hubextrap watch`: what it takes, and what it refuses with its line."""

from __future__ import annotations

import pytest

from hubextrap.errors import RecipeError
from hubextrap.recipe import WatchRecipe, parse_recipe, parse_watch_recipe

RUN = "trajectory: {repo: a/b}\n"


def test_all_that_it_can_say() -> None:
    text = """\
watch:
  predict: {horizon: 0.5}
  walk: prompts.jsonl
  evaluate: {tasks: gsm8k, limit: 10}
  push: {repo: a/c, revision: "step_{target_step}-from_{last_step}", private: true}
  shell: true
  command: cat > said.json
  timeout: 5
  every: 2
  since: 100
"""
    watch = parse_watch_recipe(RUN + text).watch
    assert watch.predict is not None
    assert (watch.predict.horizon, watch.every, watch.since, watch.timeout) == (0.5, 2, 100, 5)


def test_true_is_as_far_as_the_past_supports() -> None:
    watch = parse_watch_recipe(f"{RUN}watch: {{predict: true}}\n").watch
    assert watch.predict is not None
    assert not watch.predict.model_fields_set


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("watch:\n  prdict: true\n", "recipe:3: watch.prdict: unknown key; did you mean predict"),
        ("watch:\n  predict: false\n", "recipe:3: watch.predict: must be true"),
        ("watch:\n  predict: {to: 3, ahead: 4}\n", "give one of them"),
        (
            "watch:\n  predict: true\n  push: {repo: a/c, revision: 'x{step}'}\n",
            "recipe:4: watch.push: unknown",
        ),
        ("watch:\n  command: a && b\n", "recipe:3: watch.command: && needs a shell"),
        ("watch:\n  every: 0\n", "recipe:3: watch.every: must be at least 1"),
        ("merge_method: low_rank\nwatch: {}\n", "recipe:2: merge_method: unknown key"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_watch_recipe(RUN + text)
    assert said in str(caught.value)


def test_it_is_for_no_other_command() -> None:
    with pytest.raises(RecipeError, match="for `hubextrap watch`"):
        parse_recipe(f"{RUN}watch: {{}}\n")
    with pytest.raises(RecipeError, match="has no watch section"):
        parse_watch_recipe(f"{RUN}merge_method: two_point\nparameters: {{target_step: 3}}\n")


def test_how_far_the_run_goes_may_be_said_later() -> None:
    one, other = (WatchRecipe.of_run("a/b", pattern="s{step}", max_step=most) for most in (None, 9))
    assert one.identity() == other.identity()
    assert one.identity() != WatchRecipe.of_run("a/b").identity()
    with pytest.raises(RecipeError, match="step"):
        WatchRecipe.of_run("a/b", pattern="no")
