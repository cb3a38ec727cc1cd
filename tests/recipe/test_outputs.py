"""`output`: what is made of adapters, as a recipe, a command line and a prediction of one's own say it."""

from __future__ import annotations

import pytest

from hubextrap.errors import RecipeError
from hubextrap.methods import Rule
from hubextrap.recipe import OutputSection, check_output_section, draw_up, parse_recipe

PLAIN = "trajectory: {repo: me/run}\nmerge_method: two_point\nparameters: {target_step: 60}\n"


@pytest.mark.parametrize(
    ("section", "as_", "rank"),
    [
        ("{}", "adapter", None),
        ("{as: adapter}", "adapter", None),
        ("{as: merged}", "merged", None),
        ("{rank: 1}", "adapter", 1),
        ("{as: adapter, rank: 65536}", "adapter", 65536),
        ("{rank: exact}", "adapter", "exact"),
    ],
)
def test_what_it_says(section: str, as_: str, rank: int | str | None) -> None:
    recipe = parse_recipe(f"{PLAIN}output: {section}\n")
    assert recipe.output is not None
    assert (recipe.output.as_, recipe.output.rank) == (as_, rank)
    again = parse_recipe(recipe.to_yaml())
    assert again.output == recipe.output
    assert again.fingerprint() == recipe.fingerprint()


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{as: full}", "output.as: must be adapter or merged, not 'full'"),
        ("{rank: 0}", "output.rank: must be a whole number from 1 to 65536, or exact, not 0"),
        ("{rank: 65537}", "output.rank: must be a whole number from 1 to 65536, or exact, not 65537"),
        ("{rank: 8.0}", "output.rank: must be a whole number from 1 to 65536, or exact, not 8.0"),
        ("{rank: true}", "output.rank: must be a whole number from 1 to 65536, or exact, not True"),
        ("{rank: all}", "output.rank: must be a whole number from 1 to 65536, or exact, not 'all'"),
        ("{as: merged, rank: 8}", "output: rank goes with as: adapter; a merged model has the full"),
        ("{as_: merged}", "output.as_: unknown key; did you mean as?"),
        ("{kind: merged}", "output.kind: unknown key; known here: as, rank"),
        ("merged", "output: must be a section with keys of its own, not 'merged'"),
    ],
)
def test_what_is_wrong_with_it(section: str, problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(f"{PLAIN}output: {section}\n", "r.yaml")
    assert str(error.value).startswith(f"r.yaml:4: {problem}")


def test_its_keys_belong_under_it() -> None:
    with pytest.raises(RecipeError, match=r"r.yaml:4: as: unknown key; it belongs under output"):
        parse_recipe(f"{PLAIN}as: merged\n", "r.yaml")


def test_recipes_without_it_are_the_same_as_before() -> None:
    """A merge that was stopped goes on, and a sweep keeps what it measured."""
    known = "a935c22a7c9f33e01cde2421ba40289d24fb793931365e686a21d84fb2886bb5"
    assert parse_recipe(PLAIN).fingerprint() == known
    sections = ["{}", "{as: merged}", "{rank: 8}", "{rank: 9}", "{rank: exact}"]
    found = {parse_recipe(f"{PLAIN}output: {section}\n").fingerprint() for section in sections}
    assert len(found | {known}) == len(sections) + 1


@pytest.mark.parametrize(
    ("written", "as_", "rank", "known"),
    [
        (None, None, None, None),
        (None, "merged", None, ("merged", None)),
        (None, None, 4, ("adapter", 4)),
        ("{rank: 8}", "adapter", None, ("adapter", 8)),
        ("{rank: 8}", None, "exact", ("adapter", "exact")),
        ("{rank: 8}", "merged", None, ("merged", None)),
        ("{as: merged}", "adapter", 4, ("adapter", 4)),
    ],
)
def test_what_is_said_elsewhere_takes_its_place(
    written: str | None, as_: str | None, rank: int | str | None, known: tuple[object, object] | None
) -> None:
    recipe = parse_recipe(PLAIN + (f"output: {written}\n" if written else ""))
    said = recipe.with_output(as_, rank)
    assert (None if said.output is None else (said.output.as_, said.output.rank)) == known
    assert parse_recipe(said.text).output == said.output, "a card has what was run"


@pytest.mark.parametrize(
    ("written", "as_", "rank", "problem"),
    [
        ("output: {as: merged}\n", None, 4, "output: rank goes with as: adapter"),
        ("", "merged", "exact", "output: rank goes with as: adapter"),
        ("", "full", None, "output.as: must be adapter or merged, not 'full'"),
        ("", None, 0, "output.rank: must be a whole number from 1 to 65536, or exact, not 0"),
        ("space: logits\n", "adapter", None, "goes with space: weights"),
    ],
)
def test_what_cannot_be_said_elsewhere(written: str, as_: str, rank: int | str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(PLAIN + written).with_output(as_, rank)


def test_of_full_models_it_has_no_effect() -> None:
    recipe = parse_recipe(f"{PLAIN}output: {{as: adapter}}\n", "r.yaml")
    check_output_section(recipe, True)
    check_output_section(parse_recipe(PLAIN), False)
    with pytest.raises(
        RecipeError, match=r"^output \(line 4\): has no effect: the checkpoints are full"
    ) as error:
        check_output_section(recipe, False)
    assert (error.value.file, error.value.line) == ("r.yaml", 4)
    with pytest.raises(RecipeError, match=r"^output \(--as, --rank\): has no effect"):
        check_output_section(recipe.with_output("merged"), False)


def test_a_recipe_that_is_drawn_up_says_it() -> None:
    sections = {"output": {"as": "adapter", "rank": 4}, "push": {"repo": "me/x"}}
    recipe = draw_up({"repo": "me/run"}, Rule(("*",), "two_point"), {"target_step": (60,)}, sections=sections)
    assert recipe.output == OutputSection.model_validate({"rank": 4})
    assert "output:\n  as: adapter\n  rank: 4\n" in recipe.text
