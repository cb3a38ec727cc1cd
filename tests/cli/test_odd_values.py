"""Odd values for every option and argument of every command: an answer or a clear error, never a traceback."""

from __future__ import annotations

import pytest
from command_lines import ODD, Ended, Ground, commands, run_main

BASES = {
    "steps": ["run"],
    "scan": ["run", "--quiet"],
    "backtest": ["scan.safetensors", "--quiet"],
    "report": ["scan.safetensors"],
    "plan": ["recipe.yaml", "--quiet"],
    "merge": ["recipe.yaml", "--quiet"],
    "push": ["merged", "{repo}", "--quiet"],
    "run": ["recipe.yaml", "--quiet"],
    "verify": ["merged"],
    "eval": ["merged", "--no-against", "--task-file", "problems.jsonl", "--quiet"],
    "sweep": ["evaluate.yaml", "--out", "swept", "--quiet"],
    "reground": ["reground.yaml", "--out", "grounded", "--quiet"],
    "generate": ["logits.yaml", "1+1=", "--max-new-tokens", "2", "--quiet"],
    "lm-eval": [],
    "mergekit-yaml": [],
    "hub serve": ["served", "--port", "0"],
    "recipes ls": [],
    "recipes cp": ["low_rank"],
    "recipes validate": ["recipe.yaml"],
}
"""A good command line for each command; options are added to it, arguments take the place of its words."""
COSTLY = ("eval", "sweep")
"""Each odd value that is no error costs an evaluation."""


def lines(words: str) -> list[list[str]]:
    """Every odd command line of a command."""
    command = commands()[words]
    base = BASES[words]
    found = []
    place = 0
    for parameter in command.params:
        for value in ODD:
            if parameter.param_type_name == "argument":
                found.append([*base[:place], value, *base[place + 1 :]])
            elif not getattr(parameter, "is_flag", False):
                found.append([*base, f"{parameter.opts[0]}={value}"])
        if parameter.param_type_name == "argument":
            place += 1
        elif getattr(parameter, "is_flag", False):
            found.append([*base, parameter.opts[0]])
            found.append([*base, f"{parameter.opts[0]}=x"])
    found += [[*base, value] for value in ODD]
    return found


def problem_of(ended: Ended) -> str | None:
    if "Traceback" in ended.out + ended.err:
        return "a traceback"
    if ended.code not in (0, 1, 2, 3):
        return f"exit code {ended.code}"
    if ended.code and not ended.err:
        return "no word of what is wrong"
    return None


def tried(words: str, line: list[str], ground: Ground) -> str | None:
    line = [word.format(repo=ground.repo) if word == "{repo}" else word for word in line]
    ended = run_main(*words.split(), *line, seconds=0.1 if words == "hub serve" else None)
    problem = problem_of(ended)
    if problem and words == "plan" and ended.code == 1 and ended.out:
        return None  # its problems are its output
    shown = [word if len(word) < 60 else f"{word[:50]}…" for word in line]
    return problem and f"{words} {shown}: {problem}: {ended.err[-300:]}"


@pytest.mark.parametrize("words", BASES)
def test_odd_values(words: str, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    t = time.time()
    probs = []
    for line in lines(words):
        t1 = time.time()
        try:
            p = tried(words, line, ground)
        except BaseException as e:
            p = f"{words} {line}: raised {e!r}"
        if time.time() - t1 > 3:
            print("SLOW", words, [w[:40] for w in line], time.time() - t1)
        if p:
            probs.append(p)
    print(words, len(lines(words)), time.time() - t)
    for p in probs:
        print("   ", p.encode("utf-8", "backslashreplace").decode())
