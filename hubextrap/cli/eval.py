"""`hubextrap eval`: measure checkpoints with lm-eval, and print one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from hubextrap.cli.options import (
    BatchSize,
    ChatTemplate,
    CreatePr,
    IncludePath,
    Limit,
    MaxLoss,
    Measuring,
    ResultsFile,
    Said,
    Seed,
    Summary,
    Tasks,
    grouped,
    refuse_idle,
    split_list,
)
from hubextrap.cli.terminal import console, tell, tell_json

if TYPE_CHECKING:
    from hubextrap.evaluation import EvaluationOptions, EvaluationTable
    from hubextrap.evaluation.options import Format


@dataclass(frozen=True)
class Questions:
    """What is put to each checkpoint, and how."""

    tasks: Tasks = None
    include_path: IncludePath = None
    task_file: list[Path] | None = typer.Option(
        None, metavar="FILE", help="Problems, one JSON object per line. May be repeated."
    )
    answer_format: str = typer.Option(
        "exact",
        "--format",
        metavar="exact|math|choice",
        help="How answers to --task-file are judged: exact (same text), math (by math-verify) or choice.",
    )
    repeats: int | None = typer.Option(
        None,
        metavar="K",
        help="Answers per problem, for avg@k, maj@k and pass@k. For --task-file and hubextrap's own tasks.",
    )
    temperature: float | None = typer.Option(
        None,
        metavar="X",
        help="Temperature of these answers. 0 is greedy. Default: greedy for one answer, 1 for several.",
    )
    max_tokens: int | None = typer.Option(None, metavar="N", help="Longest of these answers, in tokens.")
    limit: Limit = None
    batch_size: BatchSize = None
    num_fewshot: int | None = typer.Option(None, min=0, metavar="N", help="Solved examples in each prompt.")
    seed: Seed = 0
    chat_template: ChatTemplate = False

    def options(self, ctx: typer.Context, measuring: Measuring) -> EvaluationOptions:
        """The same for the API, where each option has an effect."""
        from hubextrap.evaluation import Answering, EvaluationOptions, TaskFile

        if not self.task_file:
            refuse_idle(ctx, ("answer_format",), "goes with --task-file FILE")
        if not (names := split_list("--tasks", self.tasks)):
            refuse_idle(ctx, ("include_path",), "goes with --tasks: it is where tasks are looked for by name")
        kind = cast("Format", self.answer_format)
        return EvaluationOptions(
            names,
            include_path=self.include_path or (),
            task_files=[TaskFile(file, kind) for file in self.task_file or ()],
            answering=Answering(self.repeats, self.temperature, self.max_tokens),
            limit=self.limit,
            batch_size=self.batch_size,
            num_fewshot=self.num_fewshot,
            seed=self.seed,
            apply_chat_template=self.chat_template,
            **measuring.arguments(),
        )


@grouped
def evaluate(
    ctx: typer.Context,
    references: list[str] = typer.Argument(
        ..., metavar="REF...", help="Predictions or other models: org/name@revision or local folders."
    ),
    *,
    questions: Questions,
    against: list[str] | None = typer.Option(
        None,
        metavar="LIST",
        help="What to compare with: last, base or target, which hubextrap.json names; last=REF and so on; or "
        "any other REF. Separate them by commas or repeat the option. Default: all of the three that are "
        "found.",
    ),
    no_against: bool = typer.Option(
        False, "--no-against", help="Compare with nothing: measure only what is named."
    ),
    measuring: Measuring,
    output: ResultsFile = None,
    max_loss: MaxLoss = None,
    summary: Summary = None,
    publish: bool = typer.Option(
        False, "--publish", help="Commit the scores to the model's repo: to its card and to .eval_results."
    ),
    create_pr: CreatePr = False,
    said: Said,
) -> None:
    """Score predictions with lm-eval, beside the checkpoints that they were made from."""
    options = questions.options(ctx, measuring)
    if against is not None and no_against:
        raise typer.BadParameter("--against and --no-against exclude each other")
    if not publish:
        refuse_idle(ctx, ("create_pr",), "goes with --publish")
    chosen = None if against is None and not no_against else split_list("--against", against)
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, evaluation_markdown
    from hubextrap.evaluation import (
        check_judgeable,
        check_loss,
        check_replaceable,
        check_writable,
        compared_checkpoints,
    )
    from hubextrap.evaluation import evaluate as measure
    from hubextrap.extras import require
    from hubextrap.trajectory import Pins

    if output is not None:
        check_writable(output)
    require("eval", "an evaluation", load=False)  # before anything is asked of a Hub
    progress, pins = said.progress, Pins()
    rows = compared_checkpoints(references, chosen, pins=pins, progress=progress)
    if output is not None:
        check_replaceable(output, options.names, [(label, row.name) for label, row in rows])
    if max_loss is not None:
        check_judgeable([label for label, _ in rows])
    publication = None
    if publish:
        limit = options.limit
        publication = api.check_publication(references, rows, limit=limit, create_pr=create_pr, pins=pins)
    table = measure(rows, options, progress=progress)
    if output is not None:
        table.save(output)
    if summary is not None:
        append_summary(summary, evaluation_markdown([table]))
    if said.as_json:
        tell_json(table)
    else:
        print_evaluation(table)
    if publication is not None:
        result = api.publish(table, publication, progress)
        tell(f"scores published: {result.pull_request_url or result.url}", err=said.as_json)
    if max_loss is not None:
        check_loss([table], max_loss, options.tasks)


def print_evaluation(table: EvaluationTable) -> None:
    """The table on stdout, as wide as the terminal."""
    from hubextrap.evaluation import to_rich

    console().print(to_rich(table))
