"""`hubextrap plan`, `merge`, `push` and `run`: one recipe, one call into the API, one summary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from hubextrap.cli.gating import Gating, PushIfBetter
from hubextrap.cli.jobs import annotate
from hubextrap.cli.options import (
    CreatePr,
    Force,
    Looking,
    Merging,
    Out,
    OutPlace,
    Private,
    PushTo,
    RecipeFile,
    ResultsFile,
    Said,
    ScanFile,
    Summary,
    grouped,
    one_place,
    push_targets,
    refuse_idle,
)
from hubextrap.cli.outputting import Outputting
from hubextrap.cli.terminal import tell, tell_json
from hubextrap.errors import RecipeError


@grouped
def plan(
    recipe: RecipeFile,
    place: OutPlace = None,
    *,
    out: Out = None,
    push: PushTo = None,
    outputting: Outputting,
    scan: ScanFile = None,
    force: Force = False,
    reading: Looking,
    no_push_check: bool = typer.Option(
        False, "--no-push-check", help="Do not ask the Hub whether your token may push there."
    ),
    summary: Summary = None,
    said: Said,
) -> None:
    """Check a recipe, and show what it would read, write and need. No weights are read."""
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, plan_markdown
    from hubextrap.cli.summaries import print_plan
    from hubextrap.recipe import load_recipe

    out = one_place(out, place)
    loaded = outputting.on(load_recipe(recipe))
    report = api.plan(
        loaded,
        out=out,
        push=push_targets(push),
        check_push=not no_push_check,
        settings=replace(reading.merge_options(), force=force),
        scan=scan,
        progress=said.progress,
    )
    if summary is not None:
        append_summary(summary, plan_markdown(recipe, report))
    if said.as_json:
        tell_json(report.as_dict())
    else:
        print_plan(recipe, report)
    if report.problems:
        from hubextrap.api.measuring import line_said

        for problem in report.problems:
            annotate(problem, RecipeError(problem, file=recipe, line=line_said(problem)))
        raise typer.Exit(1)


@grouped
def merge(
    ctx: typer.Context,
    recipe: RecipeFile,
    place: OutPlace = None,
    *,
    out: Out = None,
    push: PushTo = None,
    private: Private = False,
    create_pr: CreatePr = False,
    outputting: Outputting,
    scan: ScanFile = None,
    merging: Merging,
    summary: Summary = None,
    said: Said,
) -> None:
    """Predict the recipe's target step. Write the model to a folder (--out) or to the Hub (--push)."""
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, predictions_markdown
    from hubextrap.cli.summaries import prediction_as_json, print_prediction, print_walk
    from hubextrap.recipe import load_recipe

    out = one_place(out, place)
    if push is None:
        why = "goes with --push REPO; of the recipe's push section, private and create_pr say it"
        refuse_idle(ctx, ("private", "create_pr"), why)
    loaded = outputting.on(load_recipe(recipe))
    result = api.merge(
        loaded,
        out=out,
        push=push_targets(push, private, create_pr),
        settings=merging.merge_options(),
        scan=scan,
        progress=said.progress,
    )
    if summary is not None:
        append_summary(summary, predictions_markdown(result.predictions))
    if said.as_json:
        tell_json([prediction_as_json(prediction) for prediction in result.predictions])
        return
    if result.walk is not None:
        print_walk(result.walk)
    for prediction in result.predictions:
        print_prediction(prediction)


@grouped
def push(
    folder: Path = typer.Argument(..., metavar="DIR", help="Folder that `hubextrap merge` wrote."),
    target: str = typer.Argument(..., metavar="REPO[@REVISION]", help="Repo and branch to push to."),
    *,
    private: Private = False,
    create_pr: CreatePr = False,
    message: str | None = typer.Option(None, "--message", metavar="TEXT", help="Title of the commit."),
    said: Said,
) -> None:
    """Push a predicted model to the Hub, as one commit."""
    from hubextrap import api
    from hubextrap.cli.summaries import push_as_json, push_line
    from hubextrap.hub import PushTarget

    parsed = PushTarget.parse(target, private=private, create_pr=create_pr, message=message)
    result = api.push(folder, parsed, progress=said.progress)
    if said.as_json:
        tell_json(push_as_json(parsed, result))
    else:
        tell(push_line(parsed, result))


@grouped
def run(
    ctx: typer.Context,
    recipe: RecipeFile,
    place: OutPlace = None,
    *,
    out: Out = None,
    outputting: Outputting,
    output: ResultsFile = None,
    gating: Gating,
    push_if_better: PushIfBetter = False,
    summary: Summary = None,
    scan: ScanFile = None,
    merging: Merging,
    said: Said,
) -> None:
    """Merge, push and evaluate: everything that the recipe asks for."""
    gate = gating.gate(push_if_better)
    from hubextrap import api
    from hubextrap.cli.eval import print_evaluation
    from hubextrap.cli.markdown import (
        append_summary,
        evaluation_markdown,
        gate_markdown,
        predictions_markdown,
    )
    from hubextrap.cli.summaries import prediction_as_json, print_prediction, print_walk, unpushed_line
    from hubextrap.recipe import load_recipe

    out = one_place(out, place)
    loaded = outputting.on(load_recipe(recipe))
    if loaded.space == "logits":
        idle = ("device", "allow_non_finite", "executor", "push_if_better")
        refuse_idle(ctx, idle, "has no effect with space: logits, which merges no weights")
    result = api.run(
        loaded,
        out=out,
        output=output,
        gate=gate,
        settings=merging.merge_options(),
        scan=scan,
        progress=said.progress,
    )
    if summary is not None:
        if result.gate is not None:
            append_summary(summary, gate_markdown(result.gate))
        append_summary(summary, predictions_markdown(result.predictions))
        if result.tables:
            append_summary(summary, evaluation_markdown(result.tables))
    if said.as_json:
        tell_json(
            {
                "predictions": [prediction_as_json(prediction) for prediction in result.predictions],
                "evaluations": [table.model_dump(mode="json") for table in result.tables],
            }
            | ({} if result.walk is None else {"walk": result.walk.model_dump(mode="json")})
            | ({} if result.gate is None else {"gate": result.gate.as_dict()})
        )
    else:
        if result.walk is not None:
            print_walk(result.walk)
        for prediction in result.predictions:
            print_prediction(prediction)
        for table in result.tables:
            print_evaluation(table)
        if output is not None:
            tell(f"results saved in {output}")
    if result.gate is not None:
        result.gate.refuse(*(map(unpushed_line, result.predictions) if push_if_better else ()))
