"""The recipe of `hubextrap reground`: every mistake with its line, commands that are what they seem."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from hubextrap.errors import RecipeError
from hubextrap.recipe import parse_reground_recipe
from hubextrap.recipe.commands import command_line, filled, placeholders

TEXT = """\
reground:
  model: me/base
  train: python t.py --model {model} --from {start_step} --steps {steps} --output {output}
  checkpoint: "checkpoint-{step}"
  window: 20
  jump: 60
  iterations: 4
"""
AWKWARD = 'it\'s a "$HOME" `model`; & 100 % {steps}'


def problem(old: str, new: str) -> str:
    """What is said when ``old`` is ``new``."""
    assert old in TEXT
    with pytest.raises(RecipeError) as caught:
        parse_reground_recipe(TEXT.replace(old, new), "r.yaml")
    return str(caught.value)


def test_defaults_and_canonical_form() -> None:
    recipe = parse_reground_recipe(TEXT)
    assert recipe.reground.rule == "two_point"
    assert (recipe.reground.guard.max_error, recipe.reground.keep, recipe.push) == (1.0, "all", None)
    assert parse_reground_recipe(recipe.to_yaml()).values() == recipe.values()
    assert recipe.text == TEXT
    listed = TEXT.replace(TEXT.splitlines()[2], '  train: [t, "{model}", "{steps}", "{output}"]')
    recipe = parse_reground_recipe(listed)
    assert recipe.reground.train == ("t", "{model}", "{steps}", "{output}")
    assert parse_reground_recipe(recipe.to_yaml()).values() == recipe.values()
    assert recipe.values()["reground.train"] == ["t", "{model}", "{steps}", "{output}"]


GUARDED = "iterations: 4\n  guard:\n    "
WRONG = (
    ("{model}", "{modle}", "3: reground.train", "unknown placeholder {modle}; did you mean model?"),
    ("--output {output}", "", "3: reground.train", "lacks {output}"),
    ("--model {model}", "", "3: reground.train", "lacks {model}"),
    ("python t.py", "cd x && python t.py", "3: reground.train", "set shell: true"),
    ("t.py", "it's.py", "3: reground.train", "No closing quotation"),
    ("  window: 20", "  windwo: 20", "5: reground.windwo", "did you mean window?"),
    ("window: 20", "window: 0", "5: reground.window", "at least 1, not 0"),
    ("jump: 60", "jump: far", "6: reground.jump", "a whole number, not 'far'"),
    ("iterations: 4", "max_skipped: 4", "1: reground", "when to stop"),
    ("iterations: 4", "max_rl_steps: 19", "1: reground", "19 is less than one window of 20"),
    ("checkpoint-{step}", "../x", "4: reground.checkpoint", "'../x' must lie in"),
    ("checkpoint-{step}", "{step}/{step}", "4: reground.checkpoint", "more than once"),
    ("iterations: 4", "iterations: 4\n  rule: line", "8: reground.rule", "or calibrated, not 'line'"),
    ("iterations: 4", GUARDED + "max_error: 0", "9: reground.guard.max_error", "above 0, or off, not 0"),
    ("iterations: 4", GUARDED + "margin: 0.1", "8: reground.guard", "go with a probe"),
    ("iterations: 4", GUARDED + "probe: score {model}", "8: reground.guard", "needs a margin"),
    (
        "iterations: 4",
        GUARDED + "probe: score {output}\n    margin: 1",
        "9: reground.guard.probe",
        "unknown placeholder {output}; known here: {model};",
    ),
    (
        "iterations: 4",
        "iterations: 4\n  guard: {probe: score {model}, margin: 1}",
        "8",
        "not valid YAML",
    ),
    (
        "iterations: 4",
        "iterations: 4\n  guard: {probe: 'score {model}', margin: 1, longest_jump: 30}",
        "1: reground",
        "longest_jump 30 is less than jump 60",
    ),
    ("iterations: 4", "iterations: 4\npush: {repo: model}", "8: push.repo", "owner/name, not 'model'"),
)


@pytest.mark.parametrize(("old", "new", "place", "said"), WRONG)
def test_what_is_wrong_has_a_line(old: str, new: str, place: str, said: str) -> None:
    (line,) = problem(old, new).splitlines()
    assert line.startswith(f"r.yaml:{place}: ")
    assert said in line


def test_all_problems_at_once() -> None:
    said = problem("window: 20\n  jump: 60", "window: x\n  jump: -1").splitlines()
    places = [line.partition(" must be ")[0] for line in said]
    assert places == ["r.yaml has 2 problems:", "r.yaml:5: reground.window:", "r.yaml:6: reground.jump:"]


@pytest.mark.parametrize("quoted", ['"{model}"', "'{model}'", '"dir/{model}"', "\\{model}"])
def test_a_placeholder_in_a_shells_quotes_is_refused(quoted: str) -> None:
    """The quotes that a value is put in with would end them."""
    shell = TEXT + "  shell: true\n"
    text = shell.replace("--model {model}", f"--model {quoted}")
    with pytest.raises(RecipeError, match=r"train: \{model\} stands in quotes"):
        parse_reground_recipe(text)
    parse_reground_recipe(shell.replace("--model {model}", "--model {model} \"--model\" 'x'"))


def test_a_value_is_one_argument_whatever_is_in_it() -> None:
    values = {"model": AWKWARD, "steps": 20}
    assert command_line("t --m {model} --m={model} 'a b' {{steps}}", False, values) == (
        "t",
        "--m",
        AWKWARD,
        f"--m={AWKWARD}",
        "a b",
        "{steps}",
    )
    assert command_line(("t", "a  {model}"), False, values) == ("t", f"a  {AWKWARD}")
    program, flag, script = command_line("printf '%s\\n' {model} --m={model} | cat", True, values)
    assert (program, flag) == ("/bin/sh", "-c")
    done = subprocess.run([program, flag, script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{AWKWARD}\n--m={AWKWARD}\n"
    assert shlex.split(script)[2] == AWKWARD


def test_braces_that_are_no_placeholder_stay() -> None:
    text = """a={"b": {"c": 1}} ${oc.env:X} {} {{steps}} {steps}"""
    assert placeholders(text) == ["steps"]
    assert filled(text, {"steps": 3}) == """a={"b": {"c": 1}} ${oc.env:X} {} {steps} 3"""
