"""`hubextrap predict`: from a run to a predicted model and one honest answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from hubextrap.cli.gating import Gating, PushIfBetter
from hubextrap.cli.options import (
    BatchSize,
    Clock,
    CreatePr,
    IncludePath,
    Limit,
    Merging,
    Out,
    Private,
    PushTo,
    ResultsFile,
    Said,
    ScanFile,
    Selection,
    Summary,
    WriteRecipe,
    grouped,
    names,
    push_targets,
    refuse_idle,
    split_list,
)
from hubextrap.cli.outputting import Outputting
from hubextrap.cli.sampling import Sampled
from hubextrap.cli.terminal import tell_json


@dataclass(frozen=True)
class Measured:
    """What is measured of the prediction."""

    tasks: list[str] | None = typer.Option(
        None,
        "--eval",
        metavar="TASKS",
        help="Score the prediction on these tasks, beside the first and last checkpoints and the real one "
        "if it is there. Names of lm-eval tasks or of hubextrap's own, separated by commas.",
    )
    include_path: IncludePath = None
    limit: Limit = None
    batch_size: BatchSize = None
    output: ResultsFile = None

    def arguments(self, ctx: typer.Context) -> dict[str, Any]:
        """The same for the API, where each option has an effect."""
        tasks = split_list("--eval", self.tasks)
        if not tasks:
            idle = ("include_path", "limit", "batch_size", "output", *names(Gating), "push_if_better")
            refuse_idle(ctx, idle, "goes with --eval TASKS")
        return {
            "evaluate": tasks,
            "include_path": self.include_path or (),
            "limit": self.limit,
            "batch_size": self.batch_size,
            "output": self.output,
        }


@grouped
def predict(
    ctx: typer.Context,
    run: str = typer.Argument(
        ..., metavar="REF", help="A run as in `hubextrap steps`: a repo (org/name) or a folder."
    ),
    *,
    to: int | None = typer.Option(
        None,
        "--to",
        min=0,
        metavar="STEP",
        help="Step to predict. Default: the farthest that the run's past supports.",
    ),
    selection: Selection,
    out: Out = None,
    push: PushTo = None,
    private: Private = False,
    create_pr: CreatePr = False,
    outputting: Outputting,
    walk: Path | None = typer.Option(
        None,
        "--walk",
        metavar="PROMPTS",
        help="Choose the step, up to --to, by the model's own answers to the prompts in this file. One JSON "
        "object per line.",
    ),
    measured: Measured,
    gating: Gating,
    push_if_better: PushIfBetter = False,
    clock: Clock = None,
    scan: ScanFile = None,
    sampled: Sampled,
    merging: Merging,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only give the answer. No weights are written."),
    write_recipe: WriteRecipe = None,
    summary: Summary = None,
    said: Said,
) -> None:
    """Predict a later step of a run, and say how far to trust the prediction.

    It takes the method that did best on the run's own past.
    """
    if push is None:
        refuse_idle(ctx, ("private", "create_pr", "push_if_better"), "goes with --push REPO")
    if dry_run:
        idle = ["out", "push", "private", "create_pr", "tasks", "output", "device", "allow_non_finite"]
        idle += [*names(Gating), "push_if_better"]
        refuse_idle(ctx, idle, "has no effect with --dry-run, which makes no prediction")
    if scan is not None:
        refuse_idle(ctx, names(Sampled), f"has no effect with --scan: {scan} holds what was read")
    from hubextrap import api
    from hubextrap.cli.answers import answer_as_json, print_answer
    from hubextrap.cli.markdown import answer_markdown, append_summary, gate_markdown
    from hubextrap.cli.summaries import print_walk, unpushed_line

    targets = push_targets(push, private, create_pr)
    found = api.predict(
        run,
        to,
        options=selection.options(),
        out=out,
        push=targets[0] if targets else None,
        walk=walk,
        as_=outputting.as_,
        rank=outputting.rank_given,
        **measured.arguments(ctx),
        gate=gating.gate(push_if_better),
        clock=clock,
        scan=scan,
        sample=sampled.choice,
        settings=merging.merge_options(),
        dry_run=dry_run,
        write_recipe=write_recipe,
        progress=said.progress,
    )
    if summary is not None:
        if found.gate is not None:
            append_summary(summary, gate_markdown(found.gate))
        append_summary(summary, answer_markdown(run, found))
    if said.as_json:
        tell_json(answer_as_json(found))
    else:
        print_answer(found)
        if found.walk is not None:
            print_walk(found.walk)
        for table in found.tables:
            from hubextrap.cli.eval import print_evaluation

            print_evaluation(table)
    if found.gate is not None and found.prediction is not None:
        found.gate.refuse(*([unpushed_line(found.prediction)] if push_if_better else []))
