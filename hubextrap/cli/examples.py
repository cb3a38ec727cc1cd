"""What every help ends with: lines to copy, and the page that says more."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from hubextrap.addresses import DOCUMENTATION, page

EXAMPLES: dict[str, tuple[str, tuple[str, ...]]] = {
    # words of the command: page, lines
    "": (
        "",
        (
            "hubextrap predict me/my-run --to 60",
            "hubextrap backtest me/my-run",
            "hubextrap merge recipe.yaml --out predicted",
        ),
    ),
    "predict": (
        "predict",
        (
            "hubextrap predict me/my-run --to 60 --out predicted",
            "hubextrap predict ./run --dry-run",
        ),
    ),
    "steps": ("trajectories", ("hubextrap steps me/my-run", "hubextrap steps ./run --min-step 10 --fast")),
    "scan": (
        "scan",
        (
            "hubextrap scan me/my-run --out my-run.safetensors",
            "hubextrap scan ./run --sample 4096 --out sampled.safetensors",
            "hubextrap scan recipe.yaml",
        ),
    ),
    "backtest": (
        "backtest",
        (
            "hubextrap backtest me/my-run --max-step 30",
            "hubextrap backtest me/my-run --exact",
            "hubextrap backtest scan.safetensors --json",
        ),
    ),
    "report": (
        "report",
        (
            "hubextrap report ./run --out report.html",
            "hubextrap report scan.safetensors --evaluation results.json --out scored.html",
        ),
    ),
    "plan": (
        "recipes",
        (
            "hubextrap plan recipe.yaml --out predicted",
            "hubextrap plan recipe.yaml --push me/my-model@step_60",
        ),
    ),
    "merge": (
        "recipes",
        (
            "hubextrap merge recipe.yaml --out predicted",
            "hubextrap merge recipe.yaml --push me/my-model@step_60 --private",
        ),
    ),
    "submit": (
        "slurm",
        (
            "hubextrap submit recipe.yaml --out predicted --slurm --sbatch=--partition=cpu",
            "hubextrap submit recipe.yaml --push me/my-model@step_60 --jobs 8",
        ),
    ),
    "worker": ("slurm", ("hubextrap worker .predicted.partial/work 0 1 2",)),
    "finish": ("slurm", ("hubextrap finish .predicted.partial/work --wait",)),
    "push": ("provenance", ("hubextrap push ./predicted me/my-model@step_60",)),
    "run": ("recipes", ("hubextrap run recipe.yaml --out predicted --output results.json",)),
    "verify": (
        "provenance",
        ("hubextrap verify ./predicted", "hubextrap verify me/my-model@step_60"),
    ),
    "eval": (
        "evaluation",
        (
            "hubextrap eval ./predicted --tasks gsm8k --output results.json",
            "hubextrap eval me/my-model@step_60 --task-file problems.jsonl",
            "hubextrap eval ./run --all-steps --task-file problems.jsonl",
        ),
    ),
    "sweep": ("sweep", ("hubextrap sweep recipe.yaml --out sweep --horizons 0.25,0.5,1",)),
    "walk": ("walk", ("hubextrap walk recipe.yaml --prompts problems.jsonl --out walked",)),
    "watch": (
        "watch",
        (
            "hubextrap watch ./run --out watched",
            "hubextrap watch watch.yaml --out watched --once --summary s.md",
        ),
    ),
    "reground": (
        "reground",
        (
            "hubextrap recipes cp reground_trl loop.yaml",
            "hubextrap reground loop.yaml --out regrounded",
        ),
    ),
    "generate": (
        "logits",
        ('hubextrap generate logits.yaml "1 + 1 ="', "hubextrap generate logits.yaml --prompts prompts.txt"),
    ),
    "lm-eval": (
        "logits",
        ("hubextrap lm-eval --model hubextrap --tasks gsm8k \\\n     --model_args recipe=recipe.yaml",),
    ),
    "mergekit-yaml": ("mergekit", ("hubextrap mergekit-yaml config.yaml merged",)),
    "hub": ("localhub", ("hubextrap hub serve ./hub",)),
    "hub serve": ("localhub", ("hubextrap hub serve ./hub", "hubextrap hub serve ./hub --port 0 --user me")),
    "recipes": ("recipes", ("hubextrap recipes ls", "hubextrap recipes cp calibrated my-recipe.yaml")),
    "recipes ls": ("recipes", ("hubextrap recipes ls",)),
    "recipes cp": ("recipes", ("hubextrap recipes cp calibrated my-recipe.yaml",)),
    "recipes validate": ("recipes", ("hubextrap recipes validate recipe.yaml",)),
}
"""Their folders and files are what tests have under these names, and run them with."""


class Explained(TyperCommand):
    """A command whose help has examples."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        super().format_help(ctx, formatter)
        explain(ctx)


def explain(ctx: typer.Context) -> None:
    """Print the end of a help, which typer has printed by Rich, not by the formatter."""
    typer.echo(explanation(ctx))


def explanation(ctx: typer.Context) -> str:
    """The end of a command's help; no line of it is wrapped, so that each can be copied."""
    words: list[str] = []
    place: Any = ctx
    while place.parent is not None:
        words.insert(0, place.info_name or "")
        place = place.parent
    return examples_of(" ".join(words))


def examples_of(words: str) -> str:
    """The same by the command's words, "" for all commands."""
    about, lines = EXAMPLES[words]
    more = page(about) if about else DOCUMENTATION
    heading = "Example" if len(lines) == 1 else "Examples"
    return f" {heading}:\n" + "".join(f"   {line}\n" for line in lines) + f"\n More: {more}"
