"""Options: declared once, with the library's own defaults, the same for every command that takes a run."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from command_lines import Ground, commands, run_main

from hubextrap import LogProbRequest, MergeOptions, Sampling, TrajectoryOptions
from hubextrap.cli.options import Limits, Selection, names, parse_size
from hubextrap.engine.defaults import DEFAULT_MEMORY, MiB
from hubextrap.evaluation import EvaluationOptions

MEANINGS = {
    "--out": 4,  # a new folder, a folder to go on in, a scan's file, a page
    "--dry-run": 2,  # of a prediction, of what is submitted
    "--tasks": 2,  # of lm-eval, of Slurm's array
    "--device": 3,  # of the sums, of the model that answers, of --logprobs
    "--batch-size": 2,  # sequences of an evaluation, responses of --logprobs
    "--prompts": 2,  # a file of lines, of JSON lines
    "--format": 2,
    "--limit": 2,
    "--max-tokens": 2,
    "--max-new-tokens": 2,
    "--temperature": 2,
}
"""Flags that mean something else in another command, and how many things they mean."""
WORK = ("plan", "merge", "run", "scan", "backtest", "sweep", "walk", "watch", "reground")
LIBRARY: dict[type, dict[tuple[str, ...], tuple[str, ...]]] = {
    # the object of the library that options go to: options by their commands
    MergeOptions: {WORK: ("memory", "workers"), ("merge", "run"): ("device", "allow_non_finite", "cache")},
    TrajectoryOptions: {("steps", "scan", "backtest", "eval"): tuple(names(Selection))},
    LogProbRequest: {("scan",): ("max_new_tokens", "batch_size", "device", "sample_from")},
    Sampling: {("generate",): ("max_new_tokens", "temperature", "top_p", "top_k", "seed")},
    EvaluationOptions: {
        ("eval",): ("limit", "batch_size", "num_fewshot", "seed"),
        ("eval", "sweep"): ("device", "dtype", "backend"),
    },
}


def options() -> list[tuple[str, Any]]:
    """(command, option) of all."""
    return [
        (words, parameter)
        for words, command in commands().items()
        for parameter in command.params
        if parameter.param_type_name == "option"
    ]


def test_a_flag_is_declared_once() -> None:
    declared = defaultdict(set)
    for _, option in options():
        shape = (tuple(option.opts), option.help, option.metavar, option.multiple)
        declared[option.opts[0]].add(shape)
    assert {flag: len(shapes) for flag, shapes in declared.items() if len(shapes) > 1} == MEANINGS


def test_defaults_are_the_library_s() -> None:
    there = {(words, option.name): option.default for words, option in options()}
    for home, places in LIBRARY.items():
        wanted = {field.name: field.default for field in fields(home)}
        for words, name in ((words, name) for of, taken in places.items() for words in of for name in taken):
            given = parse_size(there[words, name]) if name == "memory" else there[words, name]
            assert given == wanted[name], (words, name)


def test_a_figure_in_a_default_comes_from_its_constant() -> None:
    default = next(field.default.default for field in fields(Limits) if field.name == "memory")
    assert default == f"{DEFAULT_MEMORY // MiB}MiB"
    for file in Path(__file__).parents[2].joinpath("hubextrap", "cli").glob("*.py"):
        assert '"512MiB"' not in file.read_text(encoding="utf-8"), file


def test_a_command_that_takes_a_run_takes_what_says_which_steps() -> None:
    takers = {words for words, option in options() if option.name == "series"}
    assert takers == {"predict", "steps", "scan", "backtest", "report", "watch", "eval"}
    for words in takers:
        assert {option.name for of, option in options() if of == words} >= set(names(Selection))
    runs = {
        words
        for words, command in commands().items()
        for parameter in command.params
        if parameter.param_type_name == "argument" and str(parameter.metavar).split("|")[0] == "REF"
    }
    assert runs | {"eval"} == takers  # of a run with --all-steps


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        (["--min-step", "10"], [10, 20, 30]),
        (["--max-step", "20"], [0, 10, 20]),
        (["--series", "step_", "--pattern", "step_{step}"], [0, 10, 20, 30]),
        (["--step-scale", "2"], [0, 20, 40, 60]),
        (["--min-step", "10", "--base", "run/step_0"], [0, 10, 20, 30]),
    ],
    ids=lambda each: " ".join(map(str, each)),
)
def test_a_backtest_is_of_the_steps_that_are_asked_for(
    given: list[str], steps: list[int], ground: Ground
) -> None:
    ended = run_main("backtest", "run", *given, "--quiet", "--json")
    assert ended.code == 0, ended
    rows = json.loads(ended.out)["rows"]
    assert {row["target_step"] for row in rows} <= set(steps)
    assert max(row["target_step"] for row in rows) == steps[-1]
    listed = run_main("steps", "run", *given, "--quiet", "--fast", "--json")
    assert [row["step"] for row in json.loads(listed.out)] == steps
