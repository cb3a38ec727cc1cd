"""`hubextrap eval`: measure checkpoints with lm-eval, and print one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from hubextrap.cli.gating import Gating
from hubextrap.cli.options import (
    BatchSize,
    ChatTemplate,
    CreatePr,
    Executor,
    IncludePath,
    Limit,
    Measuring,
    ResultsFile,
    Said,
    Seed,
    Selection,
    Summary,
    Tasks,
    grouped,
    names,
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

    def options(self, ctx: typer.Context, measuring: Measuring, executor: str) -> EvaluationOptions:
        """The same for the API, where each option has an effect."""
        from hubextrap.evaluation import Answering, EvaluationOptions, TaskFile

        if not self.task_file:
            refuse_idle(ctx, ("answer_format",), "goes with --task-file FILE")
        if not (tasks := split_list("--tasks", self.tasks)):
            refuse_idle(ctx, ("include_path",), "goes with --tasks: it is where tasks are looked for by name")
        kind = cast("Format", self.answer_format)
        return EvaluationOptions(
            tasks,
            include_path=self.include_path or (),
            task_files=[TaskFile(file, kind) for file in self.task_file or ()],
            answering=Answering(self.repeats, self.temperature, self.max_tokens),
            limit=self.limit,
            batch_size=self.batch_size,
            num_fewshot=self.num_fewshot,
            seed=self.seed,
            apply_chat_template=self.chat_template,
            executor=executor,
            **measuring.arguments(),
        )


@grouped
def evaluate(
    ctx: typer.Context,
    references: list[str] = typer.Argument(
        ...,
        metavar="REF...",
        help="Predictions or other models: org/name@revision or local folders. "
        "With --all-steps: a run first.",
    ),
    *,
    questions: Questions,
    all_steps: bool = typer.Option(
        False,
        "--all-steps",
        help="Measure every checkpoint of the first REF, a run. Say whether its scores still rise. Without "
        "--tasks: only what its trainer logged.",
    ),
    selection: Selection,
    plot: Path | None = typer.Option(
        None, metavar="FILE", help="With --all-steps: draw the scores over the steps, as a PNG."
    ),
    run: str | None = typer.Option(
        None,
        metavar="REF",
        help="The run that the predictions were made from, a folder or a repo. It holds last, base "
        "and target.",
    ),
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
    executor: Executor = "local",
    output: ResultsFile = None,
    gating: Gating,
    summary: Summary = None,
    publish: bool = typer.Option(
        False, "--publish", help="Commit the scores to the model's repo: to its card and to .eval_results."
    ),
    create_pr: CreatePr = False,
    said: Said,
) -> None:
    """Score predictions with lm-eval, beside the checkpoints that they were made from."""
    options, gate = questions.options(ctx, measuring, executor), gating.gate()
    if against is not None and no_against:
        raise typer.BadParameter("--against and --no-against exclude each other")
    if not publish:
        refuse_idle(ctx, ("create_pr",), "goes with --publish")
    if all_steps:
        why = "does not go with --all-steps, which measures the run that comes first"
        refuse_idle(ctx, ("against", "no_against", "run", "publish", *names(Gating)), why)
        if not options.names:
            idle = {*names(Questions), *names(Measuring), "executor", "output"} - {"tasks", "task_file"}
            refuse_idle(ctx, idle, "has no effect without --tasks or --task-file: nothing is measured")
        _all_steps(references, options, selection, output, plot, summary, said)
        return
    refuse_idle(ctx, (*(set(names(Selection)) - {"base"}), "plot"), "goes with --all-steps")
    if no_against:
        refuse_idle(ctx, ("run",), "has no effect with --no-against")
    chosen = None if against is None and not no_against else split_list("--against", against)
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, evaluation_markdown, gate_markdown
    from hubextrap.evaluation import check_replaceable, check_writable, compared_checkpoints
    from hubextrap.evaluation import evaluate as measure
    from hubextrap.extras import require
    from hubextrap.trajectory import Pins

    if output is not None:
        check_writable(output)
    require("eval", "an evaluation", load=False)  # before anything is asked of a Hub
    progress, pins = said.progress, Pins()
    rows = compared_checkpoints(references, chosen, run=run, pins=pins, progress=progress)
    if output is not None:
        check_replaceable(output, options.names, [(label, row.name) for label, row in rows])
    if gate is not None:
        gate.check([label for label, _ in rows], options.names)
    publication = None
    if publish:
        limit = options.limit
        publication = api.check_publication(references, rows, limit=limit, create_pr=create_pr, pins=pins)
    table = measure(rows, options, base_model=selection.base, progress=progress)
    if output is not None:
        table.save(output)
    if summary is not None:
        append_summary(summary, evaluation_markdown([table]))
    if said.as_json:
        tell_json(table)
    else:
        print_evaluation(table)
    if chosen is None and _is_alone(table):
        tell(_ALONE, err=said.as_json)
    judged = None if gate is None else gate.judge([table], options.tasks)
    if judged is not None and summary is not None:
        append_summary(summary, gate_markdown(judged), first=True)
    if publication is not None:
        result = api.publish(table, publication, progress)
        tell(f"scores published: {result.pull_request_url or result.url}", err=said.as_json)
    if judged is not None:
        judged.refuse()


_ALONE = (
    "There is nothing to compare the prediction with: the checkpoints that it was made from are not found. "
    "Name their run: --run FOLDER; or the last of them: --against last=REF"
)


def _is_alone(table: EvaluationTable) -> bool:
    """Whether a prediction stands in a table without what it is to be compared with."""
    from hubextrap.evaluation.table import PREDICTION

    return table.last is None and any(row.label.startswith(PREDICTION) for row in table.rows)


def _all_steps(
    references: list[str],
    options: EvaluationOptions,
    selection: Selection,
    output: Path | None,
    plot: Path | None,
    summary: Path | None,
    said: Said,
) -> None:
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary
    from hubextrap.evaluation.step_scores import steps_markdown, steps_rich

    run, *beside = references
    found = api.evaluate_steps(
        run,
        options,
        beside=beside,
        trajectory=selection.options(),
        output=output,
        plot=plot,
        progress=said.progress,
    )
    if summary is not None:
        append_summary(summary, steps_markdown(found))
    if said.as_json:
        tell_json(found.as_dict())
        return
    tell(f"{run}: {len(found.steps)} checkpoints, steps {found.steps[0]} to {found.steps[-1]}")
    console(100).print(steps_rich(found))


def print_evaluation(table: EvaluationTable) -> None:
    """The table on stdout, as wide as the terminal."""
    from hubextrap.evaluation import to_rich

    console().print(to_rich(table))
