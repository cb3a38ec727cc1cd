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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{model}",
            "{modle}",
            (
                "3: reground.train: unknown placeholder {modle}; did you mean model?; known here: "
                "{model}, {start_step}, {steps}, {output}; for the text itself write {{modle}}"
            ),
        ),
        (
            "--output {output}",
            "",
            "3: reground.train: lacks {output}: without it the command would not know it",
        ),
        (
            "--model {model}",
            "",
            "3: reground.train: lacks {model}: without it the command would not know it",
        ),
        (
            "python t.py",
            "cd x && python t.py",
            (
                "3: reground.train: && is a shell's, and the command runs without one; say shell: true, "
                "or put the commands into a script"
            ),
        ),
        ("t.py", "it's.py", "3: reground.train: its quotes do not fit: No closing quotation"),
        (
            "  window: 20",
            "  windwo: 20",
            "5: reground.windwo: unknown key; did you mean window?",
        ),
        ("window: 20", "window: 0", "5: reground.window: must be at least 1, not 0"),
        ("jump: 60", "jump: far", "6: reground.jump: must be a whole number, not 'far'"),
        (
            "iterations: 4",
            "max_skipped: 4",
            (
                "1: reground: says nothing of when to stop; give iterations, max_rl_steps or "
                "max_represented_steps"
            ),
        ),
        (
            "iterations: 4",
            "max_rl_steps: 19",
            "1: reground: max_rl_steps 19 is less than one window of 20",
        ),
        (
            "checkpoint-{step}",
            "../x",
            "4: reground.checkpoint: '../x' has to lie in the round's {output}; give it relative to that",
        ),
        (
            "checkpoint-{step}",
            "{step}/{step}",
            "4: reground.checkpoint: has {step} more than once",
        ),
        (
            "iterations: 4",
            "iterations: 4\n  rule: line",
            "8: reground.rule: must be two_point, anchored or calibrated, not 'line'",
        ),
        (
            "iterations: 4",
            "iterations: 4\n  guard:\n    max_error: 0",
            "9: reground.guard.max_error: must be a number above 0, or off, not 0",
        ),
        (
            "iterations: 4",
            "iterations: 4\n  guard:\n    margin: 0.1",
            "8: reground.guard: margin, shell and longest_jump go with a probe, and there is none",
        ),
        (
            "iterations: 4",
            "iterations: 4\n  guard:\n    probe: score {model}",
            (
                "8: reground.guard: a probe needs a margin, 0 or more: what its score has to change by to "
                "count, about twice its standard error"
            ),
        ),
        (
            "iterations: 4",
            "iterations: 4\n  guard:\n    probe: score {output}\n    margin: 1",
            (
                "9: reground.guard.probe: unknown placeholder {output}; known here: {model}; for the text "
                "itself write {{output}}"
            ),
        ),
        (
            "iterations: 4",
            "iterations: 4\n  guard: {probe: score {model}, margin: 1}",
            "8: not valid YAML: while parsing a flow mapping expected ',' or '}', but got '{'",
        ),
        (
            "iterations: 4",
            "iterations: 4\n  guard: {probe: 'score {model}', margin: 1, longest_jump: 30}",
            "1: reground: guard.longest_jump 30 is less than jump 60",
        ),
        (
            "iterations: 4",
            "iterations: 4\npush: {repo: model}",
            "8: push.repo: must be owner/name, not 'model'; every checkpoint gets a branch of its own",
        ),
    ],
)
def test_what_is_wrong_has_a_line(old: str, new: str, said: str) -> None:
    assert problem(old, new) == f"r.yaml:{said}"


def test_all_problems_at_once() -> None:
    said = problem("window: 20\n  jump: 60", "window: x\n  jump: -1").splitlines()
    assert said == [
        "r.yaml has 2 problems:",
        "r.yaml:5: reground.window: must be a whole number, not 'x'",
        "r.yaml:6: reground.jump: must be at least 1, not -1",
    ]


@pytest.mark.parametrize("quoted", ['"{model}"', "'{model}'", '"dir/{model}"', "\\{model}"])
def test_a_placeholder_in_a_shells_quotes_is_refused(quoted: str) -> None:
    """The quotes that a value is put in with would end them."""
    shell = TEXT + "  shell: true\n"
    text = shell.replace("--model {model}", f"--model {quoted}")
    with pytest.raises(RecipeError, match=r"reground.train: \{model\} stands in quotes; leave them out"):
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
