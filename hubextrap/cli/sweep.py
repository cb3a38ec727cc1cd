"""`hubextrap sweep`: measure a grid of predictions, choose one, and say how good it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hubextrap.cli.merging import ScanFile
from hubextrap.cli.terminal import tell, tell_json

if TYPE_CHECKING:
    from hubextrap.evaluate.sweep_report import SweepResult
    from hubextrap.evaluate.table import Backend

_WIDTH_OFF_TERMINAL = 200


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file with an evaluate section.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="For results; give it again to go on or to widen.")
    ],
    horizons: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Steps to predict, as multiples of the observed way from the first step to the last: "
            "1.25,1.5,2. The recipe's target steps if not given.",
        ),
    ] = None,
    damping: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Shares of the way from the last checkpoint to the prediction: 0.5,1. The recipe's if not "
            "given.",
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory that the merge may take, e.g. 512MiB.")] = "512MiB",
    workers: Annotated[int, typer.Option(min=1, help="Threads of the merge.")] = 2,
    cache: Annotated[bool, typer.Option("--cache", help="Download checkpoints into the Hub cache.")] = False,
    scan: ScanFile = None,
    device: Annotated[str, typer.Option(help="Of the evaluation: cpu, cuda, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the evaluation: bfloat16, float32, …")] = "auto",
    backend: Annotated[str, typer.Option(help="hf (transformers), or vllm.")] = "hf",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure a grid of predictions from one pass over the weights; choose on half the problems."""
    from hubextrap import api
    from hubextrap.cli.merging import parse_size
    from hubextrap.cli.progress import open_progress
    from hubextrap.recipe import load_recipe

    if backend not in ("hf", "vllm"):
        raise typer.BadParameter(f"--backend {backend}: has to be hf or vllm")
    result = api.sweep(
        load_recipe(recipe),
        out,
        horizons=_numbers("--horizons", horizons),
        damping=_numbers("--damping", damping),
        settings=api.MergeOptions(parse_size(memory), workers, cache),
        scan=scan,
        device=device,
        dtype=dtype,
        backend=cast("Backend", backend),
        progress=open_progress(quiet),
    )
    if as_json:
        tell_json(result.model_dump_json(indent=2))
        return
    _print(result)
    tell(f"results are in {out}: {', '.join(api.sweep_files(out))}")
    if result.is_better:
        tell(f"merge what was chosen: hubextrap merge {out / 'best.yaml'} --out DIR")


def _print(result: SweepResult) -> None:
    from rich.console import Console

    from hubextrap.evaluate.sweep_report import sweep_rich

    width = None if sys.stdout.isatty() else _WIDTH_OFF_TERMINAL
    Console(width=width, highlight=False).print(sweep_rich(result))


def _numbers(option: str, text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise typer.BadParameter(f"{option} {text}: has to be numbers with commas in between")
    return numbers
