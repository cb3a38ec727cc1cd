"""Odd values for every option and argument of every command: an answer or one clear error, no traceback."""

from __future__ import annotations

import random
import shutil
from typing import Any

import pytest
import yaml
from command_lines import ODD, REGROUND, Ended, Ground, commands, run_main
from harness import weights_read

from hubextrap.localhub import LocalHub

BASES = {
    "steps": ["run"],
    "predict": ["run", "--to", "60", "--dry-run", "--quiet"],
    "scan": ["run", "--out", "other.safetensors", "--quiet"],
    "backtest": ["scan.safetensors", "--quiet"],
    "report": ["scan.safetensors"],
    "plan": ["recipe.yaml", "--quiet"],
    "merge": ["recipe.yaml", "--quiet"],
    "submit": ["recipe.yaml", "--out", "submitted", "--slurm", "--dry-run", "--quiet"],
    "worker": ["work", "0", "--quiet"],
    "finish": ["work", "--quiet"],
    "push": ["merged", "{repo}", "--quiet"],
    "run": ["recipe.yaml", "--quiet"],
    "verify": ["merged"],
    "eval": ["merged", "--no-against", "--task-file", "problems.jsonl", "--quiet"],
    "sweep": ["evaluate.yaml", "--out", "swept", "--quiet"],
    "walk": ["recipe.yaml", "--prompts", "problems.jsonl", "--out", "walked", "--quiet"],
    "watch": ["run", "--out", "watched", "--once", "--quiet"],
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
COSTLY = ("report", "watch", "eval", "sweep", "walk", "mergekit-yaml")
"""Odd values that are none cost seconds there, or imports of somebody else's."""
WITH_LOGPROBS = [*BASES["scan"], "--logprobs", "problems.jsonl"]


def test_every_command_has_a_line() -> None:
    assert set(BASES) == set(commands())


def odd_lines(words: str, base: list[str]) -> list[list[str]]:
    """Every odd command line of a command."""
    found: list[list[str]] = [[*base, value] for value in ODD]
    place = 0
    for parameter in commands()[words].params:
        name, values = parameter.opts[0], [f"{parameter.opts[0]}={value}" for value in ODD]
        if parameter.param_type_name == "argument":
            found += [[*base[:place], value, *base[place + 1 :]] for value in ODD]
            place += 1
        elif getattr(parameter, "is_flag", False):
            found += [[*base, name], [*base, f"{name}=x"]]
        else:
            found += [[*base, value] for value in values]
    return found


def problem_of(ended: Ended) -> str | None:
    """What is wrong with how a command ended, whatever it was given."""
    if "Traceback" in ended.out + ended.err:
        return "a traceback"
    if ended.code not in (0, 1, 2, 3):
        return f"exit code {ended.code}"
    if ended.code and not ended.err and "problem" not in ended.out:
        return "no word of what is wrong"
    return None


def try_lines(words: str, lines: list[list[str]], ground: Ground) -> None:
    problems = []
    for line in lines:
        given = [ground.repo if word == "{repo}" else word for word in line]
        seconds = 0.1 if words == "hub serve" else None  # it serves until it is interrupted
        ended = run_main(*words.split(), *given, seconds=seconds, until="Ctrl-C")
        if problem := problem_of(ended):
            problems.append(f"{words} {line!r:.200}: {problem}: {ended.err[-400:]}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("words", [words for words in BASES if words not in COSTLY])
def test_odd_values(words: str, ground: Ground) -> None:
    lines = odd_lines(words, BASES[words])
    try_lines(words, random.Random(7).sample(lines, 8), ground)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what mergekit imports
@pytest.mark.parametrize("words", BASES)
def test_more_odd_values(words: str, ground: Ground) -> None:
    lines = odd_lines(words, BASES[words])
    count = 12 if words in COSTLY else 70
    try_lines(words, random.Random(8).sample(lines, min(count, len(lines))), ground)


@pytest.mark.slow
def test_odd_values_beside_logprobs(ground: Ground) -> None:
    lines = odd_lines("scan", WITH_LOGPROBS)
    try_lines("scan", random.Random(9).sample(lines, 20), ground)


BEFORE_WEIGHTS = {
    "plan": ["hub.yaml", "--quiet"],
    "merge": ["hub.yaml", "--out", "made", "--quiet"],
    "run": ["hub.yaml", "--out", "made", "--quiet"],
    "scan": ["{repo}", "--out", "made", "--quiet"],
    "sweep": ["hub.yaml", "--out", "made", "--quiet"],
}
"""Lines whose weights lie on the Hub, which says afterwards what was read of them."""


def try_before_weights(words: str, count: int, ground: Ground, hub: LocalHub) -> None:
    """What is refused is refused before a weight is read; nothing that is refused is left behind."""
    hub.create_repo(ground.repo)
    for folder in sorted((ground.folder / "run").iterdir()):
        hub.commit(ground.repo, {path.name: path for path in folder.iterdir()}, revision=folder.name)
    ground.recipe("hub.yaml", trajectory={"repo": ground.repo}, merge_method="low_rank")
    lines = random.Random(10).sample(odd_lines(words, BEFORE_WEIGHTS[words]), count)
    problems = []
    for line in lines:
        hub.requests.clear()
        before = sorted(ground.folder.rglob("*"))
        ended = run_main(words, *[ground.repo if word == "{repo}" else word for word in line])
        if problem := problem_of(ended):
            problems.append(f"{line!r:.200}: {problem}: {ended.err[-400:]}")
        if ended.code and (read := weights_read(hub)):
            problems.append(f"{line!r:.200}: refused after {len(read)} reads of weights: {ended.err[-400:]}")
        left = [path for path in ground.folder.rglob("*") if path not in before]
        if ended.code and left:
            problems.append(f"{line!r:.200}: refused, and left {left}: {ended.err[-400:]}")
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("words", ["merge", "run", "scan"])
def test_refused_before_weights_are_read(words: str, ground: Ground, hub: LocalHub) -> None:
    try_before_weights(words, 6, ground, hub)


@pytest.mark.slow
@pytest.mark.parametrize("words", BEFORE_WEIGHTS)
def test_more_is_refused_before_weights_are_read(words: str, ground: Ground, hub: LocalHub) -> None:
    try_before_weights(words, 40, ground, hub)


@pytest.mark.slow
def test_known_odd_values(ground: Ground) -> None:
    """What once ended in a traceback."""
    for words, *line in (
        ("steps", "9" * 400),
        ("steps", "/proc"),
        ("steps", "~nobody-of-that-name/run"),
        ("steps", "run", "--step-scale", "1e308"),
        ("merge", "recipe.yaml", "--out", "/", "-q"),
        ("scan", "run", "--out", "x" * 5000, "-q"),
        ("report", "scan.safetensors", "--out", "."),
        ("report", "scan.safetensors", "--out", "recipe.yaml/page.html"),
        ("report", "scan.safetensors", "--title", "\udcff"),
        ("sweep", "evaluate.yaml", "--out", "o", "--horizons", "nan", "-q"),
        ("sweep", "evaluate.yaml", "--out", "o", "--horizons", "1e300", "-q"),
        ("push", "merged", "me/x", "--message", "\udcff", "-q"),
        ("hub", "serve", "served", "--port", "0", "--host", "\ud800"),
        ("hub", "serve", "served", "--port", "0", "--host", "x" * 300),
        ("generate", "logits.yaml", "\udcff", "-q"),
        ("generate", "logits.yaml", "1+1=", "--device", "meta", "-q"),
        ("generate", "logits.yaml", "1+1=", "--apply-chat-template", "-q"),
        ("scan", "run", "--logprobs", "problems.jsonl", "--apply-chat-template", "-q"),
        ("scan", "run", "--logprobs", "problems.jsonl", "--device", "meta", "-q"),
    ):
        ended = run_main(words, *line)
        assert problem_of(ended) is None, (words, line, ended)
        assert ended.code == 1 or "--title" in line, (words, line, ended)


KEYS: dict[str, Any] = {
    "trajectory": {
        "repo": "run",
        "steps": {
            "pattern": "step_{step}",
            "series": "x",
            "min": 0,
            "max": 30,
            "only": [0, 30],
            "scale": 1.0,
        },
        "base": "run/step_0",
        "checkpoints": [{"model": "run/step_0", "step": 0}],
    },
    "merge_method": "two_point",
    "parameters": {
        "target_step": 60,
        "damping": 1.0,
        "max_expected_error": 1.0,
        "base_step": 0,
        "tensors": [{"match": "*norm*", "method": "least_squares", "window": 2, "damping": 0.5}],
    },
    "space": "weights",
    "dtype": "float32",
    "out_dtype": "float32",
    "version": 1,
    "output": {"as": "merged", "rank": 8},
    "push": {"repo": "me/x", "revision": "main", "private": True, "create_pr": False, "commit_message": "x"},
    "evaluate": {"tasks": "a", "task_files": "f", "against": "last", "limit": 1, "seed": 0},
    "models": [{"model": "run/step_0", "parameters": {"step": 0}}],
    "base_model": "run/step_0",
}
VALUES: tuple[Any, ...] = (
    *ODD, None, True, -1, 0, 0.5, 10**30, 10**400, float("nan"), float("inf"), [], [[]], [None], ["a", 1], {},
    {"a": {}}, {1: 2}, "a\0b", "\ud800",
)  # fmt: skip


def places(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and mappings."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, inner in items:
        found.append((*place, key))
        if isinstance(inner, (dict, list)):
            found += places(inner, (*place, key))
    return found


def with_value(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at one place, and with what leads there alone beside the necessary."""
    if not place:
        return value
    if isinstance(content, list):
        return [with_value(content[0], place[1:], value), *content[1:]]
    return content | {place[0]: with_value(content[place[0]], place[1:], value)}


def odd_recipes() -> list[dict[str, Any]]:
    plain = {
        "trajectory": {"repo": "run"},
        "merge_method": "two_point",
        "parameters": {"target_step": 60},
    }
    found = []
    for place in places(KEYS):
        top, second = place[0], place[1] if len(place) > 1 else None
        base = plain | {top: KEYS[top]}
        if isinstance(KEYS[top], dict) and second is not None:
            base[top] = plain.get(top, {}) | {second: KEYS[top][second]}
        if top in ("models", "base_model"):
            base = {key: value for key, value in base.items() if key != "trajectory"} | {
                name: KEYS[name] for name in ("models", "base_model")
            }
        found += [with_value(base, place, value) for value in VALUES]
    return found


def try_recipes(count: int, seed: int, ground: Ground) -> None:
    problems = []
    for content in random.Random(seed).sample(odd_recipes(), count):
        text = yaml.safe_dump(content, sort_keys=False)
        (ground.folder / "odd.yaml").write_text(text, encoding="utf-8")
        for words in (("recipes", "validate", "odd.yaml"), ("plan", "odd.yaml", "--quiet")):
            if problem := problem_of(ended := run_main(*words)):
                problems.append(f"{words[0]}: {problem}: {ended.err[-400:]}\n{text[:500]}")
    assert not problems, "\n".join(problems)


def test_odd_values_in_recipes(ground: Ground) -> None:
    try_recipes(30, 1, ground)


@pytest.mark.slow
def test_more_odd_values_in_recipes(ground: Ground) -> None:
    try_recipes(400, 2, ground)


@pytest.mark.slow
def test_odd_values_in_recipes_of_reground(ground: Ground) -> None:
    problems = []
    full = REGROUND | {"guard": {"max_error": 1.0, "probe": "p {model}", "margin": 0.1, "longest_jump": 8}}
    for place in places(full):
        for value in VALUES:
            text = yaml.safe_dump({"reground": with_value(full, place, value)}, sort_keys=False)
            (ground.folder / "odd.yaml").write_text(text, encoding="utf-8")
            if problem := problem_of(ended := run_main("recipes", "validate", "odd.yaml")):
                problems.append(f"{problem}: {ended.err[-400:]}\n{text[:500]}")
    assert not problems, "\n".join(problems)
