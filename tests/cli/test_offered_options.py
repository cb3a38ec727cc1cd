"""A message offers no option that the command which says it does not have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from command_lines import commands

PACKAGE = Path(__file__).parents[2] / "hubextrap"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
COMMAND = re.compile(r"`hubextrap ((?:hub |recipes )?[a-z-]+)([^`]*)`")

WRITE = "merge run walk sweep"
PREDICT = "plan merge run walk predict"
OFFERED: dict[str, dict[str, str]] = {
    "api/chain.py": {"--max-loss": "run", "--out": "run", "--output": "run", "--push-if-better": "run"},
    "api/adapted.py": {"--rank": PREDICT},
    "api/drafting.py": {"--write-recipe": "predict backtest"},
    "api/grid.py": {"--out": "sweep walk"},
    "api/predicting.py": dict.fromkeys(
        ["--to", "--base", "--eval", "--max-step", "--out", "--push", "--push-if-better", "--as", "--rank"],
        "predict",
    ),
    "api/stepwise.py": {"--tasks": "eval", "--task-file": "eval"},
    "evaluation/inputs.py": {"--run": "eval", "--against": "eval"},
    "evaluation/step_scores.py": {"--json": "eval"},
    "reporting/recipe_text.py": {"--base": "predict"},
    "api/looking.py": {"--force": "plan merge run"},
    "api/preparing.py": {"--device": "merge run predict"},
    "api/merging.py": {"--private": "push", "--create-pr": "push"},
    "api/outlook.py": {"--scan": "plan merge run walk sweep", "--force": "plan merge run sweep"},
    "api/output.py": {"--out": f"plan {WRITE}"},
    "api/planning.py": {"--out": "plan merge run", "--push": "plan"},
    "api/publishing.py": {"--publish": "eval"},
    "api/regrounding.py": {"--out": "reground"},
    "api/watching.py": {"--out": "watch"},
    "engine/sampling.py": {"--exact": "scan"},
    "api/watcher.py": dict.fromkeys(["--out", "--sample", "--exact"], "watch"),
    "watching/history.py": {"--out": "watch"},
    "api/reporting.py": {"--out": "report", "--png": "report"},
    "api/scanning.py": {
        **dict.fromkeys(["--logprobs", "--reference-share", "--out"], "scan"),
        "--exact": "scan backtest report predict",
    },
    "api/existing_scan.py": dict.fromkeys(
        ["--logprobs", "--reference-share", "--out", "--sample", "--exact"], "scan"
    ),
    "api/staging.py": {"--out": f"plan {WRITE}"},
    "api/sweeping.py": {"--damping": "sweep", "--out": "sweep", "--horizons": "sweep"},
    "api/walking.py": {"--push": "walk"},
    "work/bucket.py": {"--bucket": "submit"},
    "work/kinds.py": {"--out": "submit"},
    "executors/slurm.py": {"--dry-run": "submit", "--executor": "merge run", "--out": "submit"},
    "executors/on_ray.py": {
        "--executor": "eval merge run scan",
        "--memory": "merge run scan",
        "--device": "eval",
    },
    "executors/ray_cluster.py": {"--executor": "eval merge run scan"},
    "executors/jobs.py": {"--push": "submit", "--jobs": "submit"},
    "durable/log.py": {"--out": f"scan {WRITE}"},
    "durable/places.py": {"--out": f"plan reground {WRITE}"},
    "given.py": {
        "--executor": "merge run scan backtest report",
        **dict.fromkeys(["--sample", "--exact"], "scan backtest report predict"),
        "--reference-share": "scan",
    },
    "evaluation/backend.py": {"--as": "predict", "--backend": "eval sweep", "--executor": "eval sweep"},
    "evaluation/run.py": {"--base": "eval"},
    "evaluation/comparison.py": {"--against": "eval", "--run": "eval"},
    "evaluation/curve.py": {"--out": "sweep", "--plot": "eval"},
    "evaluation/own_tasks.py": {"--format": "eval walk"},
    "evaluation/publishing.py": {"--publish": "eval", "--limit": "eval", "--include-path": "eval"},
    "evaluation/tasks.py": {"--tasks": "eval walk", "--task-file": "eval"},
    "logits/logprobs.py": {"--logprobs": "scan", "--sample-from": "scan"},
    "opening.py": {"--scan": "plan generate merge run walk sweep"},
    "recipe/models.py": {"--as": PREDICT, "--rank": PREDICT},
    "recipe/parsing.py": {"--as": PREDICT, "--rank": PREDICT},
    "regrounding/state.py": {"--out": "reground"},
    "scans/tables.py": {"--out": "scan"},
    "scans/tensor_scan.py": {"--out": "scan"},
}
"""For each file the options that its messages offer, with all commands that say them to somebody."""
ELSEWHERE = {
    "adapters/base.py": ("--base",),  # for the commands that have it
    "adapters/run.py": ("--base", "--min-step"),
    "api/fingerprint.py": ("--allow-non-finite",),  # how a changed setting is called
    "tensors/native_names.py": ("--hf", "--model"),  # torchtitan's
    "tensors/torch_files/dcp_names.py": (  # the same
        "--backend", "--local", "--target", "--input-dir", "--output-dir", "--origin-hf-dir",
    ),
    "tensors/torch_files/fsdp.py": ("--backend", "--local", "--target"),
    "trajectory/converting.py": (  # of trainers' own commands
        "--backend", "--local", "--target", "--tag", "--safe", "--config", "--megatron-ckpt-path",
        "--hf-ckpt-path", "--extra", "--input-dir", "--output-dir", "--origin-hf-dir", "--local-dir",
        "--revision", "--include", "--save",
    ),
    "evaluation/options.py": ("--repeats", "--temperature", "--max-tokens"),  # of a line that is printed
    "evaluation/publishing.py": (
        "--batch-size", "--seed", "--device", "--dtype", "--against", "--no-against", "--tasks",
        "--task-file", "--format", "--num-fewshot", "--apply-chat-template", "--backend",
    ),
    "extras.py": ("--force-reinstall",),  # pip's
    "recipe/mergekit_programs.py": ("--out",),  # of merge CONFIG, and of mergekit's own programs
    "recipe/yaml_nodes.py": ("--out-path",),  # mergekit-multi's
    # DeepSpeed's and verl's; the recipe's key stands beside it
    "tensors/combinable.py": ("--safe", "--pattern", "--backend", "--local", "--target"),
    # with the recipe's key or the commands that have it beside
    "executors/jobs.py": ("--all", "--label", "--with", "--namespace", "--finish", "--wait"),  # hf, uv
    "executors/slurm.py": (  # sbatch's
        "--array", "--chdir", "--cpus-per-task", "--dependency", "--job-name", "--me", "--mem", "--name",
        "--nodes", "--ntasks", "--output", "--parsable", "--partition", "--requeue",
    ),
    "engine/run.py": ("--allow-non-finite",),
    "evaluation/asking.py": ("--prompts",),
    "evaluation/own_tasks.py": ("--repeats",),
    "evaluation/run.py": ("--batch-size",),
    "evaluation/tasks.py": ("--include-path",),
    "evaluation/threshold.py": ("--against", "--max-loss", "--min-score", "--push-if-better"),
    "logits/responses.py": ("--apply-chat-template",),
    "methods/calibrating.py": ("--force",),
    "regrounding/round_rates.py": ("--clock",),
    "reporting/live.py": ("--sample",),  # of a line that is printed
    "tensors/cache.py": ("--cache",),
    "tensors/opening.py": ("--min-step", "--cache"),
    "tensors/transfer.py": ("--cache",),
    "timing.py": ("--clock",),
    "scans/given.py": ("--scan", "--sample", "--exact"),  # for whoever gave a scan, and to make another
    "statistics/judgement.py": ("--clock", "--exact"),  # of what was read by a sample
    "trajectory/choosing.py": ("--series", "--pattern"),
    "trajectory/series.py": ("--pattern",),
    "trajectory/reference.py": ("--scan",),  # for the commands that have it
    "trajectory/wholeness.py": ("--min-step", "--max-step"),
}  # fmt: skip
"""Options that are not offered to whoever reads them, or that say for whom they are."""


def texts() -> list[tuple[str, str]]:
    """Every string that is said to somebody, by the file it is in; the parts of one text as one."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(("cli/", "localhub/")) or place == "redaction.py":  # typer says its own
            continue
        tree = ast.parse(path.read_text())
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        said |= {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append((place, "".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                found.append((place, node.value))
    return found


def options() -> dict[str, set[str]]:
    return {
        words: {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for words, command in commands().items()
    }


def test_each_is_one_of_the_command_that_offers_it() -> None:
    there = options()
    for place, offered in OFFERED.items():
        for option, verbs in offered.items():
            lacking = [verb for verb in verbs.split() if option not in there[verb]]
            assert not lacking, (place, option, lacking)


def test_every_option_in_a_message_is_known_here() -> None:
    """A new one needs an entry, and the entry a look at who says it."""
    found: dict[str, set[str]] = {}
    for place, text in texts():
        for option in OPTION.findall(COMMAND.sub("", text)):
            if "hubextrap " not in text:  # a whole command line
                found.setdefault(place, set()).add(option)
    known = {place: {*OFFERED.get(place, {}), *ELSEWHERE.get(place, ())} for place in {*OFFERED, *ELSEWHERE}}
    for place, those in found.items():
        assert those <= known.get(place, set()), (place, those - known.get(place, set()))


def test_whole_command_lines_that_are_advised() -> None:
    there = options()
    count = 0
    for place, text in texts():
        for words, rest in COMMAND.findall(text):
            verb = next((verb for verb in (words, words.split()[0]) if verb in there), None)
            assert verb is not None or words.split()[0] in ("hub", "recipes"), (place, words)
            if verb in (None, "lm-eval", "mergekit-yaml"):
                continue
            count += 1
            assert set(OPTION.findall(rest)) <= there[str(verb)], (place, words, rest)
    assert count > 15


@pytest.mark.slow
def test_what_run_says_of_a_place_that_it_cannot_use() -> None:
    """It has no --push."""
    assert "--push" not in options()["run"]
    assert not [text for _, text in texts() if "with --push" in text]
