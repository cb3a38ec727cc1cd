"""Recipes: what is read, and how every mistake is put."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hubextrap.errors import RecipeError
from hubextrap.methods import Rule, method_names
from hubextrap.recipe import CheckpointEntry, Recipe, load_recipe, parse_recipe

DESIGN = """\
trajectory:
  repo: relex-rlvr/RLVR-Qwen2.5-Math-1.5B
  steps: {pattern: "step_{step}", max: 75}
  base: Qwen/Qwen2.5-Math-1.5B
merge_method: two_point
parameters:
  target_step: 500
  damping: 0.5
  base_step: 10
  tensors:
    - {match: "*norm*", method: persistence}
    - {match: ["*mlp*", "*attn*"], method: least_squares, window: 4, damping: 1}
dtype: float32
out_dtype: bfloat16
push: {repo: me/predicted, revision: step_500, private: true}
evaluate: {tasks: [minerva_math500], against: [last, base]}
"""

MINIMAL = """\
trajectory: {repo: me/run}
merge_method: two_point
parameters: {target_step: 400}
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "r.yaml")
    lines = str(error.value).splitlines()
    if len(lines) > 1:
        assert lines.pop(0) == f"r.yaml has {len(lines)} problems:"
    return lines


def test_a_whole_recipe() -> None:
    recipe = parse_recipe(DESIGN)
    assert recipe.trajectory.repo == "relex-rlvr/RLVR-Qwen2.5-Math-1.5B"
    assert recipe.trajectory.base == "Qwen/Qwen2.5-Math-1.5B"
    assert (recipe.trajectory.steps.pattern, recipe.trajectory.steps.max) == ("step_{step}", 75)
    assert recipe.target_steps == (500,)
    assert recipe.out_dtype == "bfloat16"
    assert recipe.push is not None
    assert (recipe.push.repo, recipe.push.revision, recipe.push.private) == ("me/predicted", "step_500", True)
    assert recipe.evaluate is not None
    assert (recipe.evaluate.tasks, recipe.evaluate.against) == (("minerva_math500",), ("last", "base"))
    assert recipe.text == DESIGN


def test_rules_end_with_the_recipe_s_own_method_and_inherit_its_damping() -> None:
    assert parse_recipe(DESIGN).rules == (
        Rule(("*norm*",), "persistence", {}, 0.5),
        Rule(("*mlp*", "*attn*"), "least_squares", {"window": 4}, 1.0),
        Rule(("*",), "two_point", {"base_step": 10}, 0.5),
    )


def test_defaults() -> None:
    recipe = parse_recipe(MINIMAL)
    assert recipe.dtype == "float32"
    assert recipe.out_dtype is None
    assert recipe.push is None
    assert recipe.evaluate is None
    assert recipe.rules == (Rule(("*",), "two_point", {}, 1.0),)
    assert recipe.trajectory.steps.scale == 1.0


def test_several_targets_and_numbers_as_people_write_them() -> None:
    text = MINIMAL.replace("{target_step: 400}", "{target_step: [300, 1e3], base_step: 1e2, damping: 1e-1}")
    recipe = parse_recipe(text + 'push: {repo: me/x, revision: "step_{target_step}"}\n')
    assert recipe.target_steps == (300, 1000)
    assert recipe.rules[-1].parameters == {"base_step": 100}
    assert recipe.parameters.damping == 0.1
    assert recipe.push is not None
    assert recipe.push.revision_for(300) == "step_300"


def test_an_explicit_list() -> None:
    recipe = parse_recipe(
        MINIMAL.replace(
            "{repo: me/run}", "{checkpoints: [{model: ./a, step: 0}, {model: me/run@b, step: 70}]}"
        )
    )
    assert recipe.trajectory.checkpoints == (
        CheckpointEntry(model="./a", step=0),
        CheckpointEntry(model="me/run@b", step=70),
    )


def test_every_problem_at_once_with_its_line() -> None:
    text = """\
# a recipe with everything wrong
trajectory:
  repo: me/run
  steps: {max: 200, patern: "step_{step}", min: yes}
merge_method: two_point
parameters:
  taget_step: 400
  base_step: 1.5
  damping: 2
  tensors:
    - {match: "*norm*", method: persistance}
    - {method: least_squares, windw: 2}
dtype: bfloat16
out_dtype: bf16
push: {repo: me, revision: 1234}
evaluate: {task: a}
target_step: 1
merge_method: x
"""
    expected = (
        ("4: trajectory.steps.min", "a whole number, not 'yes'"),
        ("4: trajectory.steps.patern", "did you mean pattern?"),
        ("7: parameters.taget_step", "did you mean target_step?"),
        ("8: parameters.base_step", "whole number or auto or null, not 1.5"),
        ("9: parameters.damping", "or auto, not 2"),
        ("11: parameters.tensors[0].method", f"persistence? (known: {', '.join(method_names())})"),
        ("12: parameters.tensors[1].match", "missing"),
        ("12: parameters.tensors[1].windw", "did you mean window?"),
        ("13: dtype", "must be float32, not 'bfloat16'"),
        ("14: out_dtype", "bfloat16 or float16, not 'bf16'"),
        ("15: push.repo", "owner/name, not 'me'"),
        ("15: push.revision", "text, not 1234; put it in quotes"),
        ("16: evaluate.task", "did you mean tasks?"),
        ("17: target_step", "belongs under parameters"),
        ("18: merge_method", "twice, first in line 5"),
    )
    for line, (place, said) in zip(problems_of(text), expected, strict=True):
        assert line.startswith(f"r.yaml:{place}: "), line
        assert said in line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("{repo: me/run}", "{}"),
            ":1: trajectory: give either repo",
        ),
        (("{repo: me/run}", "{repo: a/b, checkpoints: []}"), ":1: trajectory: give either repo"),
        (("{repo: me/run}", "{checkpoints: []}"), ":1: trajectory: checkpoints is empty"),
        (
            ("{repo: me/run}", "me/run"),
            ":1: trajectory: must be a section with keys of its own, not 'me/run'",
        ),
        (("{repo: me/run}", '{repo: ""}'), ":1: trajectory.repo: must not be empty"),
        (("{repo: me/run}", "{repo: }"), ":1: trajectory: give either repo"),
        (("{repo: me/run}", "{repo: 7}"), ":1: trajectory.repo: must be text, not 7; put it in quotes"),
        (("{repo: me/run}", "{repo: [a]}"), ":1: trajectory.repo: must be text, not a list"),
        (
            ("{repo: me/run}", "{repo: a/b, steps: {min: 9, max: 1}}"),
            ":1: trajectory.steps: min 9 is above max 1",
        ),
        (
            ("{repo: me/run}", "{repo: a/b, steps: {pattern: step}}"),
            ":1: trajectory.steps.pattern: needs {step} exactly",
        ),
        (
            ("{repo: me/run}", "{repo: a/b, steps: {scale: 0}}"),
            ":1: trajectory.steps.scale: must be above 0, not 0",
        ),
        (
            ("{repo: me/run}", "{repo: a/b, steps: {only: []}}"),
            ":1: trajectory.steps.only: must not be empty",
        ),
        (
            ("{repo: me/run}", "{repo: a/b, steps: {only: [1, x]}}"),
            "steps.only[1]: must be a whole number, not 'x'",
        ),
        (
            ("{repo: me/run}", "{repo: a/b, steps: {min: -1}}"),
            ":1: trajectory.steps.min: must be at least 0, not -1",
        ),
        (
            ("{repo: me/run}", "{checkpoints: [{model: a, step: 1}], steps: {max: 2}}"),
            ":1: trajectory: steps goes with repo; with checkpoints, list only the ones to use",
        ),
        (
            ("{repo: me/run}", "{checkpoints: [{model: a}]}"),
            ":1: trajectory.checkpoints[0]: no step for a, and its",
        ),
        (("two_point", "linear"), ":2: merge_method: linear is mergekit's own method. Here"),
        (("two_point", ""), ":2: merge_method: must be text, not empty"),
        (("400", "4.5"), ":3: parameters.target_step[0]: must be a whole number, not 4.5"),
        (("400", "[]"), ":3: parameters.target_step: must not be empty"),
        (("400", "[1, 1]"), ":3: parameters.target_step: names a step twice"),
        (("400", "true"), ":3: parameters.target_step[0]: must be a whole number, not true"),
        (("{target_step: 400}", ""), ":3: parameters: must be a section with keys of its own, not empty"),
        (
            ("target_step: 400", "target_step: 400, window: 3"),
            "window: unknown key; it belongs to least_squares",
        ),
        (
            ("target_step: 400", "target_step: 400, tensors: 3"),
            ":3: parameters.tensors: must be a list, not 3",
        ),
        (
            ("target_step: 400", "target_step: 400, tensors: [3]"),
            "tensors[0]: must be a section with keys of its own",
        ),
        (
            ("target_step: 400", "target_step: 400, damping: some"),
            ":3: parameters.damping: must be a number",
        ),
        (("target_step: 400", "target_step: 400, damping: .nan"), ":3: parameters.damping: must be"),
        (("merge_method", "version: 2\nmerge_method"), ":2: version: must be 1, not 2"),
        (
            ("merge_method", "slices: []\nmerge_method"),
            ":2: slices: unknown key; known here: version, trajectory",
        ),
    ],
)
def test_one_thing_wrong(change: tuple[str, str], problem: str) -> None:
    lines = problems_of(MINIMAL.replace(*change, 1))
    assert len(lines) == 1, lines
    assert problem in lines[0]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("push: me/x", ":4: push: must be a section with keys of its own, not 'me/x'"),
        ("push: {}", ":4: push.repo: missing"),
        ("push: {repo: me/x@main}", ":4: push.repo: must be owner/name, not 'me/x@main'"),
        ("push: {repo: me/x, private: 1}", ":4: push.private: must be true or false, not 1"),
        ("push: {repo: me/x, branch: b}", ":4: push.branch: unknown key; known here: repo, revision"),
        ("evaluate: {tasks: []}", ":4: evaluate.tasks: must not be empty"),
        ("evaluate: {tasks: [7]}", ":4: evaluate.tasks[0]: must be text, not 7"),
        (
            "evaluate: {tasks: a, against: [lsat]}",
            ":4: evaluate.against: 'lsat' is not last",
        ),
        ("evaluate: {tasks: a, limit: 0}", ":4: evaluate.limit: must be at least 1, not 0"),
        ("dtype: 16", ":4: dtype: must be text, not 16; put it in quotes"),
        (
            "# hf_abcdefghijklmnopqrstuvwx",
            ":4: contains what looks like a Hub token",
        ),
    ],
)
def test_other_sections(section: str, problem: str) -> None:
    lines = problems_of(MINIMAL + section + "\n")
    assert len(lines) == 1, lines
    assert problem in lines[0]
    assert "hf_abc" not in lines[0]


def test_several_targets_need_a_branch_each() -> None:
    text = MINIMAL.replace("400", "[300, 400]") + "push: {repo: me/x}\n"
    assert "push.revision needs {target_step}" in problems_of(text)[0]


@pytest.mark.parametrize("text", ["- 1\n", "text\n", "3\n"])
def test_not_a_mapping(text: str) -> None:
    assert "a recipe must be keys with their values, not" in problems_of(text)[0]


EXPLICIT = """\
trajectory:
  checkpoints:
    - {model: a/0, step: 0}
    - {model: a/1, step: 100}
    - {model: a/2, step: 200}
merge_method: two_point
parameters:
  target_step: 400
"""


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("step: 100", "step: 200"), ":2: trajectory.checkpoints: step 200 is there twice: a/1 and a/2"),
        (("400", "150"), ":7: parameters: target step 150 is before the last observed step 200"),
        (("400", "400\n  base_step: 50"), ":7: parameters: two_point: base_step 50 is not an observed step"),
        (
            ("400", "400\n  tensors:\n    - {match: a, method: least_squares, window: 9}"),
            ":10: parameters.tensors[0]: tensors a: least_squares: window 9 does not fit",
        ),
    ],
)
def test_listed_steps_are_tried_at_once(change: tuple[str, str], problem: str) -> None:
    lines = problems_of(EXPLICIT.replace(*change, 1))
    assert len(lines) == 1, lines
    assert problem in lines[0]


def test_canonical_form_is_read_back() -> None:
    for text in (DESIGN, MINIMAL, EXPLICIT):
        recipe = parse_recipe(text)
        again = parse_recipe(recipe.to_yaml())
        assert again.model_dump() == recipe.model_dump()
        assert again.rules == recipe.rules
        assert again.to_yaml() == recipe.to_yaml()
        assert again.fingerprint() == recipe.fingerprint()


@settings(max_examples=50, deadline=None)
@given(repo=st.text(min_size=1, max_size=20), target=st.integers(0, 10**9), damping=st.floats(0, 1))
def test_any_recipe_survives_its_canonical_form(repo: str, target: int, damping: float) -> None:
    recipe = Recipe.model_validate(
        {
            "trajectory": {"repo": repo},
            "merge_method": "two_point",
            "parameters": {"target_step": target, "damping": damping},
        }
    )
    assert parse_recipe(recipe.text).model_dump() == recipe.model_dump()


def test_the_fingerprint_is_of_what_decides_the_bytes() -> None:
    fingerprint = parse_recipe(DESIGN).fingerprint()
    assert len(fingerprint) == 64
    for same in (
        DESIGN.replace("push:", "# comment\npush:"),
        DESIGN.replace("me/predicted", "you/other"),
        DESIGN.replace("minerva_math500", "gsm8k"),
        DESIGN.replace("target_step: 500", "target_step: [5e2]"),
        DESIGN.replace("dtype: float32\n", "", 1),
    ):
        assert parse_recipe(same).fingerprint() == fingerprint
    for other in (
        DESIGN.replace("500\n", "600\n", 1),
        DESIGN.replace("max: 75", "max: 80"),
        DESIGN.replace("base_step: 10", "base_step: 11"),
        DESIGN.replace("window: 4", "window: 5"),
        DESIGN.replace("damping: 0.5", "damping: 0.6"),
        DESIGN.replace("bfloat16", "float16"),
        DESIGN.replace("*norm*", "*ln*"),
    ):
        assert parse_recipe(other).fingerprint() != fingerprint


def test_recipes_do_not_change_and_travel_between_processes() -> None:
    recipe = parse_recipe(DESIGN)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.merge_method = "persistence"  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(recipe))
    assert (again, again.text) == (recipe, DESIGN)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file") as caught:
        load_recipe(tmp_path / "none.yaml")
    assert caught.value.file == str(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        os.truncate(file.fileno(), 10**10)
    with pytest.raises(RecipeError, match="larger than 1000 kB"):
        load_recipe(tmp_path / "huge.yaml")


def test_a_file_with_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_recipe(path).target_steps == (400,)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abt:{}[]-\n '\"0123456789_#*&!", max_size=80))
def test_any_text_is_a_recipe_or_an_error(text: str) -> None:
    with pytest.raises(RecipeError, match="recipe"):
        parse_recipe(text)


def test_each_wrong_key_of_a_clock_is_named_by_its_own_line() -> None:
    text = (
        "trajectory:\n  repo: me/run\n  clock:\n    schedule: linear\n    total_steps: '400'\n"
        "    warmup_step: 20\nmerge_method: two_point\nparameters: {target_step: 80}\n"
    )
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    said = str(caught.value)
    assert "r.yaml:5: trajectory.clock.total_steps: '400' does not fit" in said
    assert "r.yaml:6: trajectory.clock.warmup_step: unknown; linear takes warmup_steps, total_steps" in said
    with pytest.raises(RecipeError, match=r"r\.yaml:3: trajectory\.clock\.schedule: is missing"):
        parse_recipe(text.replace("    schedule: linear\n", ""), "r.yaml")
