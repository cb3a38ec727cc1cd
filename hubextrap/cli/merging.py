"""`hubextrap plan`, `merge`, `push` and `run`: one recipe, one call into the API, one summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubextrap.cli.effect import refuse_idle
from hubextrap.cli.terminal import tell, tell_json

if TYPE_CHECKING:
    from hubextrap.api import MergeOptions
    from hubextrap.hub import PushTarget

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file; `hubextrap recipes ls` lists some.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; it must not be there yet.")]
PushTo = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="REPO[@REVISION]",
        help="Push there, straight from memory, instead of where the recipe's push section says.",
    ),
]
Private = Annotated[
    bool,
    typer.Option("--private", help="Make the repo private when it is created; refuse one that is public."),
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        help="Memory that the process may take, e.g. 512MiB or 2GB; CUDA libraries of torch come on top.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Threads that read, compute and write.")]
Cache = Annotated[bool, typer.Option("--cache", help="Download checkpoints into the Hub cache first.")]
Device = Annotated[str, typer.Option("--device", help="cpu, or cuda: the same bytes.")]
ScanFile = Annotated[
    Path | None,
    typer.Option(
        "--scan",
        metavar="FILE",
        help="A scan of these checkpoints, as `hubextrap scan RECIPE --out FILE` saves it: weights are not "
        "read once more for what it knows.",
    ),
]
AllowNonFinite = Annotated[
    bool, typer.Option("--allow-non-finite", help="Write NaN and infinite weights too.")
]


def summary_place(path: Path | None) -> Path | None:
    """Refuse a --summary that cannot be written to, before any work is done."""
    from hubextrap.cli.markdown import check_summary

    check_summary(path)
    return path


Summary = Annotated[
    Path | None,
    typer.Option(
        "--summary",
        callback=summary_place,
        metavar="FILE",
        help="Add the result as Markdown to this file, e.g. $GITHUB_STEP_SUMMARY.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def plan(
    recipe: RecipeFile,
    out: Out = None,
    push: PushTo = None,
    memory: Memory = "512MiB",
    workers: Workers = 2,
    cache: Cache = False,
    scan: ScanFile = None,
    no_push_check: Annotated[
        bool,
        typer.Option("--no-push-check", help="Do not ask the Hub whether this token may push there."),
    ] = False,
    summary: Summary = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would read, write and hold, and every problem, without touching tensor bytes."""
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, plan_markdown
    from hubextrap.cli.progress import open_progress
    from hubextrap.cli.summaries import print_plan
    from hubextrap.recipe import load_recipe

    loaded = load_recipe(recipe)
    report = api.plan(
        loaded,
        out=out,
        push=_targets(push),
        check_push=not no_push_check,
        settings=_settings(memory, workers, cache),
        scan=scan,
        progress=open_progress(quiet),
    )
    if summary is not None:
        append_summary(summary, plan_markdown(recipe, report))
    if as_json:
        tell_json(json.dumps(report.as_dict(), indent=2))
    else:
        print_plan(recipe, report)
    if report.problems:
        raise typer.Exit(1)


def merge(
    ctx: typer.Context,
    recipe: RecipeFile,
    out: Out = None,
    push: PushTo = None,
    private: Private = False,
    create_pr: CreatePr = False,
    memory: Memory = "512MiB",
    workers: Workers = 2,
    cache: Cache = False,
    scan: ScanFile = None,
    device: Device = "cpu",
    allow_non_finite: AllowNonFinite = False,
    summary: Summary = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict the recipe's target step, into a folder (--out) or straight onto the Hub (--push)."""
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, predictions_markdown
    from hubextrap.cli.progress import open_progress
    from hubextrap.cli.summaries import prediction_as_json, print_prediction
    from hubextrap.recipe import load_recipe

    if push is None:
        why = "goes with --push REPO; of the recipe's push section, private and create_pr say it"
        refuse_idle(ctx, ("private", "create_pr"), why)
    loaded = load_recipe(recipe)
    result = api.merge(
        loaded,
        out=out,
        push=_targets(push, private, create_pr),
        settings=_settings(memory, workers, cache, device, allow_non_finite),
        scan=scan,
        progress=open_progress(quiet),
    )
    if summary is not None:
        append_summary(summary, predictions_markdown(result.predictions))
    if as_json:
        tell_json(json.dumps([prediction_as_json(prediction) for prediction in result.predictions], indent=2))
        return
    for prediction in result.predictions:
        print_prediction(prediction)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a merged model.")],
    target: Annotated[str, typer.Argument(metavar="REPO[@REVISION]", help="Where it goes.")],
    private: Private = False,
    create_pr: CreatePr = False,
    message: Annotated[str | None, typer.Option("--message", help="Title of the commit.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Push a merged folder to the Hub as one commit."""
    from hubextrap import api
    from hubextrap.cli.progress import open_progress
    from hubextrap.cli.summaries import push_as_json, push_line
    from hubextrap.hub import PushTarget

    parsed = PushTarget.parse(target, private=private, create_pr=create_pr, message=message)
    result = api.push(folder, parsed, progress=open_progress(quiet))
    if as_json:
        tell_json(json.dumps(push_as_json(parsed, result), indent=2))
    else:
        tell(push_line(parsed, result))


def run(
    ctx: typer.Context,
    recipe: RecipeFile,
    out: Out = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Save the evaluation as JSON in this file.")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss",
            min=0,
            metavar="X",
            help="Exit with 3 when a prediction is worse than the last observed checkpoint by more than "
            "this, in the metric's own unit, on the main metric of any task.",
        ),
    ] = None,
    summary: Summary = None,
    memory: Memory = "512MiB",
    workers: Workers = 2,
    cache: Cache = False,
    scan: ScanFile = None,
    device: Device = "cpu",
    allow_non_finite: AllowNonFinite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Merge, push and evaluate, as the recipe says."""
    from hubextrap import api
    from hubextrap.cli.eval import print_evaluation
    from hubextrap.cli.markdown import (
        append_summary,
        evaluation_markdown,
        predictions_markdown,
    )
    from hubextrap.cli.progress import open_progress
    from hubextrap.cli.summaries import print_prediction, run_as_json
    from hubextrap.evaluate import check_loss
    from hubextrap.recipe import load_recipe

    loaded = load_recipe(recipe)
    if loaded.space == "logits":
        refuse_idle(
            ctx, ("device", "allow_non_finite"), "has no effect with space: logits, which merges no weights"
        )
    if max_loss is not None:
        api.check_judged(loaded)
    result = api.run(
        loaded,
        out=out,
        output=output,
        settings=_settings(memory, workers, cache, device, allow_non_finite),
        scan=scan,
        progress=open_progress(quiet),
    )
    if summary is not None:
        append_summary(summary, predictions_markdown(result.predictions))
        if result.tables:
            append_summary(summary, evaluation_markdown(result.tables))
    if as_json:
        tell_json(json.dumps(run_as_json(result), indent=2))
    else:
        for prediction in result.predictions:
            print_prediction(prediction)
        for table in result.tables:
            print_evaluation(table)
        if output is not None:
            tell(f"results saved in {output}")
    if max_loss is not None and loaded.evaluate is not None:
        check_loss(result.tables, max_loss, loaded.evaluate.tasks)


def parse_size(text: str) -> int:
    """Bytes of ``512MiB``, ``2GB``, ``1073741824`` …

    Raises:
        typer.BadParameter: it is no such size.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = text.strip().rstrip("BbKkMmGgTtIi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no size; write it like 512MiB or 2GB") from None
    if size <= 0:
        raise typer.BadParameter(f"{text!r}: has to be above 0")
    return size


def _settings(
    memory: str, workers: int, cache: bool, device: str = "cpu", allow_non_finite: bool = False
) -> MergeOptions:
    from hubextrap.api import MergeOptions

    return MergeOptions(parse_size(memory), workers, cache, device, allow_non_finite)


def _targets(reference: str | None, private: bool = False, create_pr: bool = False) -> list[PushTarget]:
    from hubextrap.hub import PushTarget

    return [] if reference is None else [PushTarget.parse(reference, private=private, create_pr=create_pr)]
