"""An option, a recipe's key or an argument that would have no effect is an error, and every one is thought of.

The tables name every option of every command, every key of every recipe and every argument of the Python API;
one that is new fails here until it is said when it has an effect.
"""

# ruff: noqa: E501 - tables

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import REGROUND, Ground, commands, run_main

import hubextrap
from hubextrap import MergeOptions, PushTarget, ReadingOptions, Run, api
from hubextrap.errors import HubExtrapError, RecipeError
from hubextrap.evaluation import EvaluationOptions, Gate, Harness, evaluate
from hubextrap.evaluation.own_tasks import Answering, TaskFile
from hubextrap.logits import LogProbRequest
from hubextrap.logits.completing import Sampling
from hubextrap.recipe import (
    Recipe,
    RegroundRecipe,
    WatchRecipe,
    load_recipe,
    parse_recipe,
    parse_watch_recipe,
)
from hubextrap.regrounding import ExtrapolationCallback
from hubextrap.scans import Scan
from hubextrap.trajectory import TrajectoryOptions, find_trajectory

ALWAYS = "*"
"""Has its effect whatever comes with it."""

FORCE = ALWAYS
"""Counts where a target lies beyond what the past can rehearse; elsewhere, as that of rm, it changes nothing."""

SELECTION = {
    "pattern": "x{step}",
    "series": "x",
    "min_step": "1",
    "max_step": "9",
    "base": "x",
    "step_scale": "1",
}
OUTPUT = {
    # of what is predicted from adapters: {} is the rest of a line
    "as_": ("recipe.yaml {} --as merged", "the checkpoints are full models", "absent {} --as adapter"),
    "rank": ("recipe.yaml {} --as merged --rank 8", "rank goes with as: adapter", "absent {} --rank exact"),
}


def output_of(rest: str) -> dict[str, object]:
    """The entries of `OUTPUT` for a command."""
    return {name: tuple(text.format(rest) for text in entry) for name, entry in OUTPUT.items()}


OPTIONS: dict[str, dict[str, object]] = {
    # option: ALWAYS, or (a command line that is refused, what it says, one in which the option counts)
    "steps": dict.fromkeys(
        ["pattern", "series", "min_step", "max_step", "base", "step_scale", "fast", "as_json", "quiet"], ALWAYS
    ),
    "scan": {
        "sample": ("run --exact --sample 4096", "give one of them", "absent --sample 4096"),
        "exact": ("run --sample 4096 --exact", "give one of them", "absent --exact"),
        "reference_share": ("run --sample 4096 --reference-share 0.5", "draws from all weights", "absent --reference-share 0.5"),
        **dict.fromkeys(["out", "logprobs", "memory", "workers", "cache", "executor", "quiet", "as_json"], ALWAYS),
        **{
            name: (f"recipe.yaml --{name.replace('_', '-')}={value}", "is for a REF", f"absent --{name.replace('_', '-')}={value}")
            for name, value in SELECTION.items()
        },
        "sample_from": ("run --sample-from 10", "--logprobs", "absent --logprobs p --sample-from 10"),
        "max_new_tokens": (
            "run --logprobs problems.jsonl --max-new-tokens 512",
            "--sample-from",
            "absent --logprobs p --sample-from 0 --max-new-tokens 512",
        ),
        "chat_template": ("run --apply-chat-template", "--logprobs", "absent --logprobs p --apply-chat-template"),
        "batch_size": ("run --batch-size 8", "--logprobs", "absent --logprobs p --batch-size 8"),
        "device": ("run --device cpu", "--logprobs", "absent --logprobs p --device cpu"),
    },
    "predict": {
        "to": ALWAYS,
        "sample": ("run --dry-run --scan scan.safetensors --sample 4096", "holds what was read", "absent --sample 4096"),
        "exact": ("run --dry-run --scan scan.safetensors --exact", "holds what was read", "absent --exact"),
        **dict.fromkeys(["pattern", "series", "min_step", "max_step", "base", "step_scale", "clock"], ALWAYS),
        **dict.fromkeys(["walk", "scan", "memory", "workers", "cache", "executor", "force", "dry_run"], ALWAYS),
        **dict.fromkeys(["write_recipe", "summary", "quiet", "as_json"], ALWAYS),
        "tasks": ("absent --eval ,", "names nothing", "absent --eval a"),
        **{
            name: (f"run {option}", "--eval", f"absent --eval a {option}")
            for name, option in {
                "include_path": "--include-path x", "limit": "--limit 2", "batch_size": "--batch-size 2", "output": "--output r.json",
                "max_loss": "--max-loss 0", "min_score": "--min-score 0",
            }.items()
        },
        "push_if_better": (
            "run --push-if-better --eval a", "--push", "absent --eval a --push a/b --out o --push-if-better"
        ),
        **{
            name: (f"run --dry-run {option}", "--dry-run", f"absent {option}")
            for name, option in {
                "out": "--out o", "push": "--push a/b", "device": "--device cpu", "allow_non_finite": "--allow-non-finite",
            }.items()
        },
        "private": ("run --private", "--push", "absent --push a/b --private"),
        "create_pr": ("run --create-pr", "--push", "absent --push a/b --create-pr"),
        "as_": ("run --to 60 --dry-run --as adapter", "the checkpoints are full models", "absent --as adapter"),
        "rank": ("run --to 60 --dry-run --as merged --rank 8", "rank goes with as: adapter", "absent --rank 8"),
    },
    "backtest": {
        "sample": ("scan.safetensors --sample 4096", "is for a REF or a RECIPE", "absent --sample 4096"),
        "exact": ("scan.safetensors --exact", "is for a REF or a RECIPE", "absent --exact"),
        **dict.fromkeys(["clock", "memory", "workers", "cache", "executor", "write_recipe", "summary", "quiet", "as_json"], ALWAYS),
        **{
            name: (f"scan.safetensors --{name.replace('_', '-')}={value}", "is for a REF", f"absent --{name.replace('_', '-')}={value}")
            for name, value in SELECTION.items()
        },
    },
    "report": {
        "sample": ("scan.safetensors --sample 4096", "is for a REF or a RECIPE", "absent --sample 4096"),
        "exact": ("scan.safetensors --exact", "is for a REF or a RECIPE", "absent --exact"),
        **dict.fromkeys(["evaluation", "out", "png", "clock", "title"], ALWAYS),
        **dict.fromkeys(["memory", "workers", "cache", "executor", "quiet", "as_json"], ALWAYS),
        **{
            name: (f"scan.safetensors --{name.replace('_', '-')}={value}", "is for a REF", f"absent --{name.replace('_', '-')}={value}")
            for name, value in SELECTION.items()
        },
    },
    "plan": {
        **dict.fromkeys(["out", "push", "memory", "workers", "cache", "no_push_check", "summary", "quiet", "as_json"], ALWAYS),
        "force": FORCE,
        "scan": ("mixed.yaml --scan scan.safetensors", "no effect", "recipe.yaml --scan absent"),
        "as_": ("mixed.yaml --as adapter", "goes with space: weights", "absent --as adapter"),
        "rank": output_of("")["rank"],
    },
    "merge": {
        "scan": ALWAYS,
        "force": FORCE,
        **dict.fromkeys(
            ["out", "push", "memory", "workers", "cache", "executor", "device", "allow_non_finite", "summary", "quiet", "as_json"], ALWAYS
        ),
        **output_of("--out o"),
        "private": ("recipe.yaml --out o --private", "--push", "absent --push a/b --private"),
        "create_pr": ("recipe.yaml --out o --create-pr", "--push", "absent --push a/b --create-pr"),
    },
    "submit": {
        **dict.fromkeys(["out", "push", "slurm", "jobs", "scan", "memory", "workers", "cache", "dry_run", "quiet", "as_json"], ALWAYS),
        "force": FORCE,
        "private": ("recipe.yaml --out o --slurm --private", "--push", "absent --slurm --push a/b --private"),
        "create_pr": ("recipe.yaml --out o --slurm --create-pr", "--push", "absent --slurm --push a/b --create-pr"),
        "tasks": ("recipe.yaml --jobs 2 --push a/b --tasks 3", "--slurm", "absent --slurm --tasks 3"),
        "sbatch": ("recipe.yaml --jobs 2 --push a/b --sbatch=--qos=x", "--slurm", "absent --slurm --sbatch=--qos=x"),
        **{
            name: (f"recipe.yaml --slurm --out o --{name} {value}", "--jobs", f"absent --jobs 2 --{name} {value}")
            for name, value in {"flavor": "x", "timeout": "9m", "bucket": "a/b"}.items()
        },
    },
    "worker": dict.fromkeys(["last", "quiet", "as_json"], ALWAYS),
    "finish": dict.fromkeys(["wait", "summary", "quiet", "as_json"], ALWAYS),
    "push": dict.fromkeys(["private", "create_pr", "message", "quiet", "as_json"], ALWAYS),
    "run": {
        "scan": ("mixed.yaml --scan scan.safetensors", "no effect", "recipe.yaml --out run --scan absent"),
        "force": FORCE,
        **dict.fromkeys(["summary", "memory", "workers", "cache", "executor", "quiet", "as_json"], ALWAYS),
        **output_of("--out o"),
        "out": ("mixed.yaml --out o", "no weights", "recipe.yaml --out run"),
        "output": ("recipe.yaml --out o --output r.json", "no evaluate section", "evaluate.yaml --out run --output r"),
        "max_loss": ("recipe.yaml --out o --max-loss 0", "no evaluate section", "evaluate.yaml --out run --max-loss 0"),
        "min_score": ("recipe.yaml --out o --min-score 0", "no evaluate section", "evaluate.yaml --out run --min-score 0"),
        "push_if_better": ("evaluate.yaml --out o --push-if-better", "no push section", "pushes.yaml --out run --push-if-better"),
        "device": ("mixed.yaml --device cpu", "space: logits", "recipe.yaml --out run --device cpu"),
        "allow_non_finite": ("mixed.yaml --allow-non-finite", "space: logits", "recipe.yaml --out run --allow-non-finite"),
    },
    "verify": dict.fromkeys(["quiet", "as_json"], ALWAYS),
    "eval": {
        **dict.fromkeys(["task_file", "no_against", "limit", "num_fewshot", "seed", "chat_template", "dtype"], ALWAYS),
        **dict.fromkeys(["backend", "executor", "output", "summary", "publish", "quiet", "as_json"], ALWAYS),
        "all_steps": ALWAYS,
        **{
            name: (f"merged --no-against --tasks a --{name.replace('_', '-')}={value}", "goes with --all-steps", f"absent --all-steps --tasks a --{name.replace('_', '-')}={value}")
            for name, value in SELECTION.items()
            if name != "base"
        },
        "base": ("merged --no-against --task-file problems.jsonl --base=x", "no row is an adapter", "absent --tasks a --base=x"),
        "plot": ("merged --no-against --tasks a --plot p.png", "goes with --all-steps", "absent --all-steps --tasks a --plot p.png"),
        "run": ("merged --no-against --tasks a --run run", "no effect with --no-against", "absent --tasks a --run run"),
        "tasks": ("absent --tasks ,", "names nothing", "absent --tasks a"),
        "include_path": ("absent --task-file problems.jsonl --include-path run", "--tasks", "absent --tasks a --include-path x"),
        "answer_format": ("absent --tasks a --format exact", "--task-file", "absent --task-file f --format exact"),
        "repeats": ("merged --no-against --tasks hellaswag --repeats 2", "repeats, temperature and max_tokens", "absent --task-file f --repeats 2"),
        "temperature": ("merged --no-against --tasks hellaswag --temperature 1", "repeats, temperature and max_tokens", "absent --task-file f --temperature 1"),
        "max_tokens": ("merged --no-against --tasks hellaswag --max-tokens 2", "repeats, temperature and max_tokens", "absent --task-file f --max-tokens 2"),
        "against": ("absent --tasks a --against ,", "names nothing", "absent --tasks a --against absent"),
        "batch_size": ("merged --no-against --task-file problems.jsonl --backend vllm --batch-size 2", "no effect", "absent --tasks a --batch-size 2"),
        "device": ("merged --no-against --task-file problems.jsonl --backend vllm --device cpu", "no effect", "absent --tasks a --device cpu"),
        "max_loss": ("merged --no-against --task-file problems.jsonl --max-loss 0", "last", "absent --tasks a --max-loss 0"),
        "min_score": ("merged --no-against --task-file problems.jsonl --min-score a=0", "a is not evaluated", "absent --tasks a --min-score 0"),
        "create_pr": ("absent --tasks a --create-pr", "--publish", "absent --tasks a --publish --create-pr"),
    },
    "sweep": {
        "scan": ALWAYS,
        "force": FORCE,
        **dict.fromkeys(["out", "clock", "memory", "workers", "cache", "executor", "dtype", "backend", "quiet", "as_json"], ALWAYS),
        "horizons": ("evaluate.yaml --out o --horizons ,", "has to be numbers", "absent --out o --horizons 2"),
        "damping": ("still.yaml --out o --damping 0.5", "no effect", "absent --out o --damping 0.5"),
        "device": ("evaluate.yaml --out o --backend vllm --device cpu", "no effect", "absent --out o --device cpu"),
    },
    "walk": {
        "scan": ALWAYS,
        **dict.fromkeys(["clock", "out", "push", "memory", "workers", "cache", "executor", "device", "dtype", "quiet", "as_json"], ALWAYS),
        **output_of("--prompts problems.jsonl --out o"),
        "prompts": ("walk.yaml --out o --prompts problems.jsonl", "the recipe's target_step says how", "recipe.yaml --out o --prompts absent"),
        "tasks": ("recipe.yaml --prompts problems.jsonl --tasks radd --out o", "either prompts", "recipe.yaml --tasks absent --out o"),
        "include_path": ("recipe.yaml --prompts problems.jsonl --include-path run --out o", "without tasks", "recipe.yaml --tasks absent --include-path run --out o"),
        "by": ("walk.yaml --by score --out o", "the recipe's target_step says how", "recipe.yaml --prompts absent --by score --out o"),
        "samples": ("recipe.yaml --prompts problems.jsonl --by own_answers --samples 2 --out o", "with own_answers", "recipe.yaml --prompts absent --samples 2 --out o"),
        "answer_format": ("recipe.yaml --prompts problems.jsonl --format math --out o", "with own_answers", "recipe.yaml --prompts absent --samples 2 --format math --out o"),
        "max_tokens": ("walk.yaml --max-tokens 3 --out o", "the recipe's target_step says how", "recipe.yaml --prompts absent --max-tokens 3 --out o"),
        "limit": ("walk.yaml --limit 3 --out o", "the recipe's target_step says how", "recipe.yaml --prompts absent --limit 3 --out o"),
        "seed": ("recipe.yaml --prompts problems.jsonl --seed 0 --out o", "with own_answers", "recipe.yaml --prompts absent --samples 2 --seed 0 --out o"),
        "chat_template": ("walk.yaml --apply-chat-template --out o", "the recipe's target_step says how", "recipe.yaml --prompts absent --apply-chat-template --out o"),
        "private": ("recipe.yaml --prompts problems.jsonl --out o --private", "--push", "recipe.yaml --prompts absent --push a/b --private"),
        "create_pr": ("recipe.yaml --prompts problems.jsonl --out o --create-pr", "--push", "recipe.yaml --prompts absent --push a/b --create-pr"),
    },
    "watch": {
        **dict.fromkeys(["out", "once", "sample", "exact", "memory", "workers", "cache", "executor", "summary", "quiet", "as_json"], ALWAYS),
        "every": ("run --out o --once --every 5s", "has no effect with --once", "absent --out o --every 5s"),
        **{
            name: (f"watch.yaml --out o --{name.replace('_', '-')}={value}", "is for a REF", f"absent --out o --{name.replace('_', '-')}={value}")
            for name, value in SELECTION.items()
        },
    },
    "reground": dict.fromkeys(["out", "clock", "memory", "workers", "quiet", "as_json"], ALWAYS),
    "generate": {
        "scan": ("logits.yaml x --scan scan.safetensors", "no effect", "logits.yaml x --scan absent"),
        **dict.fromkeys(["max_new_tokens", "temperature", "chat_template", "device", "dtype", "quiet", "as_json"], ALWAYS),
        "prompts": ALWAYS,
        "target_step": ("logits.yaml x --target-step 61", "61", "absent x --target-step 60"),
        "top_p": ("logits.yaml x --top-p 1", "--temperature", "absent x --temperature 1 --top-p 1"),
        "top_k": ("logits.yaml x --top-k 0", "--temperature", "absent x --temperature 1 --top-k 0"),
        "seed": ("logits.yaml x --seed 0", "--temperature", "absent x --temperature 1 --seed 0"),
    },
    "lm-eval": {},
    "mergekit-yaml": {},
    "hub serve": dict.fromkeys(["host", "port", "token", "user", "xet", "run_jobs"], ALWAYS),
    "recipes ls": {},
    "recipes cp": {},
    "recipes validate": {},
}  # fmt: skip


def test_every_option_is_in_the_table() -> None:
    there = {
        words: {parameter.name for parameter in command.params if parameter.param_type_name == "option"}
        for words, command in commands().items()
    }
    assert {words: set(options) for words, options in OPTIONS.items()} == there


CONDITIONAL = [
    pytest.param(words, name, entry, id=f"{words} {name}")
    for words, options in OPTIONS.items()
    for name, entry in options.items()
    if entry != ALWAYS
]


@pytest.fixture
def stage(ground: Ground) -> Ground:
    ground.recipe("mixed.yaml", space="logits", evaluate={"task_files": "problems.jsonl"})
    ground.recipe("fitted.yaml", merge_method="low_rank")
    ground.recipe("pushes.yaml", evaluate={"task_files": "problems.jsonl"}, push={"repo": "me/x"})
    ground.recipe("walk.yaml", parameters={"target_step": {"up_to": 60, "prompts": "problems.jsonl"}})
    ground.recipe("still.yaml", merge_method="persistence", evaluate={"task_files": "problems.jsonl"})
    return ground


@pytest.mark.parametrize(("words", "name", "entry"), CONDITIONAL)
def test_an_option_counts_or_is_refused(
    words: str, name: str, entry: tuple[str, str, str], stage: Ground
) -> None:
    idle, said, effective = entry
    before = sorted(stage.folder.rglob("*"))
    refused = run_main(*words.split(), *idle.split(), "--quiet")
    assert refused.code in (1, 2), refused
    assert said in " ".join(refused.err.replace("│", " ").split())
    assert sorted(stage.folder.rglob("*")) == before
    taken = run_main(*words.split(), *effective.split(), "--quiet")
    assert taken.code == 1, taken  # something else is wrong with it, so that it costs nothing
    assert said not in taken.err


def walked(**target: Any) -> dict[str, Any]:
    """Sections of a recipe whose step is to be chosen."""
    return {"parameters": {"target_step": {"up_to": 60} | target}}


RECIPE: dict[str, object] = {
    # key: ALWAYS, or (sections of a recipe that is refused, what it says)
    **dict.fromkeys(
        ["version", "trajectory", "trajectory.repo", "trajectory.base", "trajectory.clock", "trajectory.checkpoints", "trajectory.checkpoints.model", "trajectory.checkpoints.step", "trajectory.steps.pattern", "trajectory.steps.series", "trajectory.steps.min", "trajectory.steps.max", "trajectory.steps.only", "trajectory.steps.scale", "trajectory.tensors.ignore", "trajectory.tensors.copy", "trajectory.tensors.rename", "merge_method", "parameters", "parameters.target_step", "parameters.target.full_rate_steps", "parameters.tensors.match", "parameters.tensors.method", "space", "dtype", "push.repo", "push.revision", "push.private", "push.create_pr", "push.commit_message", "evaluate", "evaluate.tasks", "evaluate.task_files", "evaluate.limit", "evaluate.num_fewshot", "evaluate.batch_size", "evaluate.seed", "evaluate.apply_chat_template", "evaluate.repeats", "evaluate.temperature", "evaluate.max_tokens"],
        ALWAYS,
    ),
    "trajectory.steps": (
        {"trajectory": {"checkpoints": [{"model": "run/step_0", "step": 0}], "steps": {"max": 1}}},
        "steps goes with repo",
    ),
    "trajectory.tensors": (
        {"space": "logits", "trajectory": {"repo": "run", "tensors": {"ignore": "mtp.*"}}},
        "logits have no tensors to name",
    ),
    "parameters.target": (
        {"parameters": {"target_step": 60, "target": {"full_rate_steps": 10}}},
        "both say what to predict",
    ),
    "parameters.damping": (
        {"merge_method": "persistence", "parameters": {"target_step": 60, "damping": 0.5}},
        "damping has no effect on persistence",
    ),
    "parameters.tensors.damping": (
        {"parameters": {"target_step": 60, "tensors": [{"match": "*", "method": "persistence", "damping": "auto"}]}},
        "damping has no effect on persistence",
    ),
    "parameters.max_expected_error": (
        {"space": "logits", "parameters": {"target_step": 60, "max_expected_error": 1.0}},
        "goes with space: weights",
    ),
    "parameters.fit": ({"parameters": {"target_step": 60, "fit": "sample"}}, "no rule here follows from the weights"),
    "parameters.tensors": (
        {"space": "logits", "parameters": {"target_step": 60, "tensors": [{"match": "*", "method": "ema"}]}},
        "goes with space: weights",
    ),
    **dict.fromkeys(
        [f"parameters.target_step.{key}" for key in ("up_to", "by", "prompts", "max_tokens", "limit", "apply_chat_template")],
        ALWAYS,
    ),
    "parameters.target_step.up_to.full_rate_steps": ALWAYS,
    "parameters.target_step.tasks": (walked(prompts="f", tasks="a"), "either prompts"),
    "parameters.target_step.include_path": (walked(prompts="f", include_path="x"), "no effect without tasks"),
    "parameters.target_step.format": (walked(tasks="a", by="score", format="exact"), "no effect on tasks"),
    "parameters.target_step.samples": (walked(prompts="f", by="own_answers", samples=2), "samples has no effect with own_answers"),
    "parameters.target_step.seed": (walked(prompts="f", seed=1), "seed has no effect with own_answers"),
    "out_dtype": ({"space": "logits", "out_dtype": "float32"}, "goes with space: weights"),
    "output": ({"space": "logits", "output": {}}, "goes with space: weights"),
    "output.as": ALWAYS,  # of a run of adapters; see below
    "output.rank": ({"output": {"as": "merged", "rank": 8}}, "rank goes with as: adapter"),
    "push": ({"space": "logits", "push": {"repo": "a/b"}}, "goes with space: weights"),
    "evaluate.include_path": ({"evaluate": {"task_files": "f", "include_path": "x"}}, "no effect without tasks"),
    "evaluate.format": ({"evaluate": {"tasks": "a", "format": "math"}}, "no effect without task_files"),
    "evaluate.against": ({"evaluate": {"tasks": "a", "against": ["last", "last"]}}, "twice"),
}  # fmt: skip
REGROUND_KEYS: dict[str, object] = {
    **dict.fromkeys(
        [
            "version",
            "reground",
            "reground.model",
            "reground.shell",
            "reground.train",
            "reground.checkpoint",
            "reground.window",
            "reground.jump",
            "reground.rule",
            "reground.iterations",
            "reground.max_rl_steps",
            "reground.max_represented_steps",
            "reground.max_skipped",
            "reground.guard",
            "reground.guard.max_error",
            "reground.guard.probe",
            "reground.guard.prompts",
            "reground.clock",
            "reground.keep",
            "push",
            "push.repo",
            "push.private",
        ],
        ALWAYS,
    ),
    "reground.guard.margin": ({"margin": 0.1}, "go with a probe"),
    "reground.guard.shell": ({"shell": False}, "go with a probe"),
    "reground.guard.longest_jump": ({"longest_jump": 8}, "go with a probe"),
    "reground.guard.max_tokens": ({"max_tokens": 8}, "go with prompts"),
    "reground.guard.apply_chat_template": ({"apply_chat_template": False}, "go with prompts"),
}


WATCH_KEYS: dict[str, object] = {
    "version": ALWAYS,
    **{key: ALWAYS for key in RECIPE if key.startswith("trajectory")},
    "trajectory.checkpoints": ({"trajectory": {"checkpoints": [{"model": "a/b", "step": 1}]}, "watch": {}}, "does not grow"),
    "trajectory.checkpoints.model": ALWAYS,
    "trajectory.checkpoints.step": ALWAYS,
    "trajectory.steps.only": ({"trajectory": {"repo": "a/b", "steps": {"only": 3}}, "watch": {}}, "names steps"),
    "trajectory.tensors": ({"trajectory": {"repo": "a/b", "tensors": {"ignore": "mtp.*"}}, "watch": {}}, "recipes of merges"),
    **dict.fromkeys(
        [
            "watch",
            "watch.predict",
            "watch.predict.to",
            "watch.predict.horizon",
            "watch.predict.ahead",
            *(f"watch.evaluate.{key}" for key in ("tasks", "include_path", "limit", "batch_size")),
            *(f"watch.push.{key}" for key in ("repo", "revision", "private", "create_pr", "commit_message")),
            "watch.command",
            "watch.every",
            "watch.since",
        ],
        ALWAYS,
    ),
    "watch.walk": ({"watch": {"walk": "f"}}, "walk goes with predict"),
    "watch.evaluate": ({"watch": {"evaluate": {"tasks": "a"}}}, "evaluate goes with predict"),
    "watch.push": ({"watch": {"push": {"repo": "a/b"}}}, "push goes with predict"),
    "watch.shell": ({"watch": {"shell": True}}, "shell goes with a command"),
    "watch.timeout": ({"watch": {"timeout": 3}}, "timeout goes with a command"),
}  # fmt: skip


def keys_of(model: Any, path: str = "") -> Iterator[str]:
    """The dotted path of every key of a recipe's model."""
    from hubextrap.recipe.parsing import _models_in

    for field, info in model.model_fields.items():
        name = info.alias or field
        place = f"{path}.{name}" if path else name
        yield place
        for inner in _models_in(info.annotation):
            yield from keys_of(inner, place)


def test_every_key_is_in_the_tables() -> None:
    assert set(keys_of(Recipe)) == set(RECIPE)
    assert set(keys_of(RegroundRecipe)) == set(REGROUND_KEYS)
    assert set(keys_of(WatchRecipe)) == set(WATCH_KEYS)


@pytest.mark.parametrize("key", [key for key, entry in WATCH_KEYS.items() if entry != ALWAYS])
def test_a_key_of_watch_without_effect_is_refused(key: str) -> None:
    sections, said = WATCH_KEYS[key]  # type: ignore[misc]
    with pytest.raises(RecipeError, match=said):
        parse_watch_recipe(yaml.safe_dump({"trajectory": {"repo": "a/b"}} | sections))


@pytest.mark.parametrize("key", [key for key, entry in RECIPE.items() if entry != ALWAYS])
def test_a_key_without_effect_is_refused(key: str) -> None:
    sections, said = RECIPE[key]  # type: ignore[misc]
    plain = {"trajectory": {"repo": "a/b"}, "merge_method": "two_point", "parameters": {"target_step": 60}}
    with pytest.raises(RecipeError, match=said):
        parse_recipe(yaml.safe_dump(plain | sections))


@pytest.mark.parametrize("key", [key for key, entry in REGROUND_KEYS.items() if entry != ALWAYS])
def test_a_key_of_the_guard_without_effect_is_refused(key: str) -> None:
    guard, said = REGROUND_KEYS[key]  # type: ignore[misc]
    with pytest.raises(RecipeError, match=said):
        hubextrap.recipe.parse_reground_recipe(yaml.safe_dump({"reground": REGROUND | {"guard": guard}}))


def merged(recipe: dict[str, Any], **arguments: Any) -> object:
    """`api.run` of a recipe, which must not come as far as to write anything."""
    content = {"trajectory": {"repo": "run"}, "merge_method": "two_point", "parameters": {"target_step": 60}}
    return api.run(parse_recipe(yaml.safe_dump(content | recipe)), **arguments)


def beside_an_open_run(**arguments: Any) -> object:
    recipe = load_recipe("recipe.yaml")
    with Run.of(recipe) as run:
        return api.merge(recipe, out="o", run=run, **arguments)


MIXED: dict[str, Any] = {"space": "logits", "evaluate": {"task_files": "problems.jsonl"}}
ARGUMENTS: dict[Callable[..., Any], dict[str, object]] = {
    # argument: ALWAYS, or (a call that is refused, what it says)
    api.backtest: {
        **dict.fromkeys(["run", "clock"], ALWAYS),
        "options": (lambda: api.backtest(load_recipe("recipe.yaml"), options=TrajectoryOptions(max_step=20)), "no effect"),
        "sample": (lambda: api.backtest("scan.safetensors", sample=4096), "no effect on a scan"),
        "settings": (lambda: api.backtest(Scan.load("scan.safetensors"), settings=MergeOptions(device="cuda")), "no effect"),
    },
    api.advised_recipe: dict.fromkeys(["found", "draft"], ALWAYS),
    api.save_recipe: dict.fromkeys(["recipe", "verdict", "path", "parents"], ALWAYS),
    api.check_recipe_place: dict.fromkeys(["path", "parents"], ALWAYS),
    api.predict: {
        **dict.fromkeys(["run", "to", "out", "push", "settings"], ALWAYS),
        "how": (lambda: api.predict("run", 60, limit=3), "has no effect without evaluate"),
    },
    api.check_publication: dict.fromkeys(["references", "rows", "limit", "create_pr", "pins"], ALWAYS),
    api.complete: {
        **dict.fromkeys(["recipe", "prompts", "sampling", "how"], ALWAYS),
        "scan": (lambda: api.complete(load_recipe("logits.yaml"), ["x"], scan="scan.safetensors"), "no effect"),
        "target_step": (lambda: api.complete(load_recipe("logits.yaml"), ["x"], target_step=61), "61"),
    },
    api.evaluate_steps: {
        **dict.fromkeys(["run", "options", "named", "plot"], ALWAYS),
        "beside": (lambda: api.evaluate_steps("run", beside=["merged"]), "nothing to measure it with"),
        "output": (lambda: api.evaluate_steps("run", output="r.json"), "nothing to save"),
        "trajectory": (
            lambda: api.evaluate_steps(find_trajectory("run"), trajectory=TrajectoryOptions(max_step=9)),
            "no effect",
        ),
    },
    api.merge: {
        **dict.fromkeys(["recipe", "out", "push", "settings"], ALWAYS),
        "scan": ALWAYS,
        "run": (lambda: beside_an_open_run(scan="scan.safetensors"), "no effect on a run that is open"),
    },
    api.plan: {
        **dict.fromkeys(["recipe", "out", "push", "check_push", "run", "settings"], ALWAYS),
        "scan": (lambda: api.plan(load_recipe("mixed.yaml"), scan="scan.safetensors"), "no effect"),
    },
    api.prepare: dict.fromkeys(["recipe", "run", "settings", "read_weights", "variants", "check"], ALWAYS),
    api.publish: dict.fromkeys(["table", "publication"], ALWAYS),
    api.push: dict.fromkeys(["folder", "target"], ALWAYS),
    api.reground: dict.fromkeys(["recipe", "out", "settings", "output"], ALWAYS),
    api.watch: {
        **dict.fromkeys(["run", "out", "every", "sample", "settings", "output"], ALWAYS),
        "options": (lambda: api.watch("watch.yaml", "o", options=TrajectoryOptions(max_step=9)), "no effect"),
    },
    api.report: {
        **dict.fromkeys(["run", "evaluations", "out", "png"], ALWAYS),
        "how": (lambda: api.report("scan.safetensors", sample="exact"), "no effect on a scan"),
        "settings": (lambda: api.report("scan.safetensors", settings=ReadingOptions()), "no effect"),
    },
    api.run: {
        "scan": (lambda: merged(MIXED, scan="scan.safetensors"), "no effect"),
        **dict.fromkeys(["recipe", "opened"], ALWAYS),
        "out": (lambda: merged(MIXED, out="o"), "no weights to write"),
        "output": (lambda: merged({}, out="o", output=Path("r.json")), "no evaluate section"),
        "settings": (lambda: merged(MIXED, settings=MergeOptions(allow_non_finite=True)), "no effect"),
        "gate": (lambda: merged({}, out="o", gate=Gate(0.1)), "no evaluate section"),
    },
    api.scan: {
        **dict.fromkeys(["trajectory", "out", "sample", "logprobs"], ALWAYS),
        "reference_share": (lambda: api.scan("run", sample=4096, reference_share=0.5), "draws from all weights"),
        "options": (lambda: api.scan(find_trajectory("run"), options=TrajectoryOptions(max_step=20)), "no effect"),
        "settings": (lambda: api.scan(find_trajectory("run"), settings=MergeOptions(device="cuda")), "no effect"),
    },
    api.sweep: {
        **dict.fromkeys(["recipe", "out", "horizons", "settings", "clock"], ALWAYS),
        "scan": ALWAYS,
        "damping": (lambda: api.sweep(load_recipe("still.yaml"), "o", damping=[0.5]), "no effect"),
        "where": (lambda: api.sweep(load_recipe("evaluate.yaml"), "o", device="cpu", backend="vllm"), "no effect"),
    },
    api.sweep_files: {"out": ALWAYS},
    api.walk: {
        **dict.fromkeys(["recipe", "out", "push", "settings"], ALWAYS),
        "prompts": (lambda: api.walk(load_recipe("walk.yaml"), "problems.jsonl", out="o"), "no effect"),
        "scan": ALWAYS,
        "how": (lambda: api.walk(load_recipe("walk.yaml"), out="o", limit=3), "no effect"),
    },
    api.submit: dict.fromkeys(["recipe", "queue", "out", "push", "settings", "scan", "dry_run"], ALWAYS),
    api.worker: dict.fromkeys(["place", "units", "finish_if_last"], ALWAYS),
    api.finish: dict.fromkeys(["place", "wait", "if_last"], ALWAYS),
    api.verify: {"reference": ALWAYS},
    find_trajectory: dict.fromkeys(["reference", "options", "named", "pins"], ALWAYS),
    TrajectoryOptions: dict.fromkeys(["pattern", "series", "min_step", "max_step", "steps", "base", "step_scale"], ALWAYS),
    hubextrap.resolve_checkpoint: dict.fromkeys(["reference", "step", "pins"], ALWAYS),
    hubextrap.load_recipe: {"path": ALWAYS},
    hubextrap.load_reground_recipe: {"path": ALWAYS},
    hubextrap.load_watch_recipe: {"path": ALWAYS},
    parse_recipe: dict.fromkeys(["text", "name"], ALWAYS),
    evaluate: {
        **dict.fromkeys(["references", "options", "named"], ALWAYS),
        "base_model": (
            lambda: evaluate("merged", task_files=[TaskFile(Path("problems.jsonl"), "exact")], base_model="x"),
            "no row is an adapter",
        ),
    },
    EvaluationOptions: {
        **dict.fromkeys(["tasks", "task_files", "answering", "limit", "seed", "apply_chat_template"], ALWAYS),
        **dict.fromkeys(["dtype", "backend", "executor"], ALWAYS),
        "num_fewshot": (
            lambda: evaluate([("a", "run")], task_files=[TaskFile(Path("problems.jsonl"), "exact")], num_fewshot=2),
            "no effect",
        ),
        "include_path": (lambda: Harness(EvaluationOptions(task_files=[TaskFile(Path("f"), "exact")], include_path=[Path()])), "no effect"),
        "device": (lambda: Harness(EvaluationOptions(["a"], device="cpu", backend="vllm")), "no effect"),
        "batch_size": (lambda: Harness(EvaluationOptions(["a"], batch_size=2, backend="vllm")), "no effect"),
    },
    Answering: {
        "repeats": (lambda: Answering(2, 0), "same answer every time"),
        **dict.fromkeys(["temperature", "max_tokens"], ALWAYS),
    },
    # see `settings`
    ReadingOptions: dict.fromkeys(["memory", "workers", "cache", "executor"], ALWAYS),
    MergeOptions: dict.fromkeys(["memory", "workers", "cache", "executor", "device", "allow_non_finite", "force"], ALWAYS),
    Run: dict.fromkeys(["trajectory", "reading", "pins", "clock"], ALWAYS),
    Run.of: dict.fromkeys(["what", "reading", "scan", "clock"], ALWAYS),
    api.Completing: dict.fromkeys(["chat", "device", "dtype", "on_prompt", "on_text", "on_end"], ALWAYS),
    PushTarget: dict.fromkeys(["repo", "revision", "private", "create_pr", "message"], ALWAYS),
    LogProbRequest: {
        **dict.fromkeys(["prompts", "sample_from", "apply_chat_template", "batch_size", "device"], ALWAYS),
        "max_new_tokens": (lambda: LogProbRequest(Path("problems.jsonl"), max_new_tokens=3), "no effect"),
    },
    Sampling: {
        **dict.fromkeys(["max_new_tokens", "temperature"], ALWAYS),
        "top_p": (lambda: Sampling(top_p=0.5), "no effect"),
        "top_k": (lambda: Sampling(top_k=5), "no effect"),
        "seed": (lambda: Sampling(seed=5), "no effect"),
    },
    ExtrapolationCallback: {
        **dict.fromkeys(["m", "n", "rule", "windows", "max_error", "probe", "moments", "snapshots", "memory"], ALWAYS),
        **dict.fromkeys(["own_answers", "clock"], ALWAYS),
        "max_tokens": (lambda: ExtrapolationCallback(4, 4, max_tokens=8), "no effect"),
        "apply_chat_template": (lambda: ExtrapolationCallback(4, 4, apply_chat_template=True), "no effect"),
        "probe_margin": (lambda: ExtrapolationCallback(4, 4, probe_margin=0.1), "give a probe and its margin"),
        "max_n": (lambda: ExtrapolationCallback(4, 4, max_n=8), "no effect"),
    },
}  # fmt: skip


def test_every_argument_is_in_the_table() -> None:
    public = {getattr(api, name) for name in api.__all__} | {
        getattr(hubextrap, name) for name in hubextrap.__all__ if name != "__version__"
    }
    functions = {one for one in public if inspect.isfunction(one) or hasattr(one, "__wrapped__")}
    assert functions <= set(ARGUMENTS)
    for function, known in ARGUMENTS.items():
        names = set(inspect.signature(function).parameters) - {"progress"}
        assert names == set(known), function


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(*entry, id=f"{function.__name__} {name}")
        for function, entries in ARGUMENTS.items()
        for name, entry in entries.items()
        if entry != ALWAYS
    ],
)
def test_an_argument_without_effect_is_refused(call: Callable[[], Any], said: str, stage: Ground) -> None:
    before = sorted(stage.folder.rglob("*"))
    with pytest.raises(HubExtrapError, match=said):
        call()
    assert sorted(stage.folder.rglob("*")) == before
