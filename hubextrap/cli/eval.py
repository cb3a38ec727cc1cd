"""`hubextrap eval`: measure checkpoints with lm-eval, and print one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from hubextrap.cli.effect import refuse_idle
from hubextrap.cli.merging import summary_place
from hubextrap.cli.terminal import tell, tell_json

if TYPE_CHECKING:
    from hubextrap.evaluate import EvaluationTable
    from hubextrap.evaluate.options import Backend
    from hubextrap.evaluate.own_tasks import Format

_WIDTH_OFF_TERMINAL = 200


def evaluate(
    ctx: typer.Context,
    references: list[str] = typer.Argument(
        ..., metavar="REF...", help="Predictions or other checkpoints: org/name@revision or local folders."
    ),
    tasks: list[str] = typer.Option(
        [],
        metavar="LIST",
        help="lm-eval tasks, groups or tags, and hubextrap's own, with commas in between, or one an option.",
    ),
    include_path: list[Path] = typer.Option(
        [], "--include-path", metavar="DIR", help="Folder with task files of your own; may be repeated."
    ),
    task_file: list[Path] = typer.Option(
        [], "--task-file", metavar="FILE", help="Problems, one JSON object a line; may be repeated."
    ),
    answer_format: str = typer.Option(
        "exact",
        "--format",
        help="How answers to --task-file are judged: exact (the same text), math (math-verify) or choice.",
    ),
    repeats: int | None = typer.Option(
        None, help="Answers a problem, of --task-file and hubextrap's own tasks: avg@k, maj@k, pass@k."
    ),
    temperature: float | None = typer.Option(
        None, help="Of these answers; 0 is greedy. 1 for several answers and greedy for one if not given."
    ),
    max_tokens: int | None = typer.Option(None, help="Tokens of an answer, of the same tasks."),
    against: list[str] | None = typer.Option(
        None,
        metavar="LIST",
        help="What to compare with: last, base, target (found through hubextrap.json), last=REF and the "
        "like, or any REF; with commas in between, or one an option. Of the three, all that are found if "
        "not given.",
    ),
    no_against: bool = typer.Option(False, "--no-against", help="Only what is named."),
    limit: int | None = typer.Option(None, min=1, help="Only the first so many documents of each task."),
    batch_size: int | None = typer.Option(None, min=1, help="Sequences at a time; 16 if not given."),
    num_fewshot: int | None = typer.Option(None, min=0, help="Examples in the prompt."),
    seed: int = typer.Option(0, min=0, help="Of every random generator, set anew for each checkpoint."),
    chat_template: bool = typer.Option(False, "--apply-chat-template", help="Wrap prompts in it."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one."),
    dtype: str = typer.Option("auto", help="bfloat16, float32, …; auto is each checkpoint's own."),
    backend: str = typer.Option("hf", help="hf (transformers), or vllm, through lm-eval's model for it."),
    output: Path | None = typer.Option(None, metavar="FILE", help="Save figures and settings as JSON."),
    max_loss: float | None = typer.Option(
        None,
        min=0,
        metavar="X",
        help="Exit with 3 when a prediction is worse than the last observed checkpoint by more than this, in "
        "the metric's own unit, on the main metric of any task.",
    ),
    summary: Path | None = typer.Option(
        None,
        metavar="FILE",
        callback=summary_place,
        help="Add the table as Markdown to this file, e.g. $GITHUB_STEP_SUMMARY.",
    ),
    publish: bool = typer.Option(
        False, "--publish", help="Commit the scores to the model's repo: card, model-index, .eval_results."
    ),
    create_pr: bool = typer.Option(
        False, "--create-pr", help="With --publish: open a pull request instead of committing."
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
    as_json: bool = typer.Option(False, "--json", help="Print what --output saves instead of the table."),
) -> None:
    """Measure predictions with lm-eval beside the checkpoints that they came from."""
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, evaluation_markdown
    from hubextrap.cli.progress import open_progress
    from hubextrap.evaluate import (
        Answering,
        TaskFile,
        check_judgeable,
        check_loss,
        check_replaceable,
        check_writable,
        compared_checkpoints,
    )
    from hubextrap.evaluate import evaluate as run_evaluation
    from hubextrap.trajectory import Pins

    if backend not in ("hf", "vllm"):
        raise typer.BadParameter(f"--backend {backend}: has to be hf or vllm")
    if against is not None and no_against:
        raise typer.BadParameter("--against and --no-against exclude each other")
    if not publish:
        refuse_idle(ctx, ("create_pr",), "goes with --publish")
    if not task_file:
        refuse_idle(ctx, ("answer_format",), "goes with --task-file FILE")
    names = _split(tasks)
    if not names:
        refuse_idle(ctx, ("include_path",), "goes with --tasks: it is where tasks are looked for by name")
    chosen = [] if no_against else None if against is None else _split(against)
    for option, given, parts in (("--tasks", tasks, names), ("--against", against, chosen)):
        if given and not parts:
            raise typer.BadParameter(f"{option} names nothing; leave it out, or name something")
    if output is not None:
        check_writable(output)
    progress = open_progress(quiet)
    pins = Pins()
    rows = compared_checkpoints(references, chosen, pins=pins, progress=progress)
    files = [TaskFile(file, cast("Format", answer_format)) for file in task_file]
    if output is not None:
        measured = [*names, *(file.name for file in files)]
        check_replaceable(output, measured, [(label, row.name) for label, row in rows])
    if max_loss is not None:
        check_judgeable([label for label, _ in rows])
    publication = None
    if publish:
        publication = api.check_publication(references, rows, limit=limit, create_pr=create_pr, pins=pins)
    table = run_evaluation(
        rows,
        names,
        include_path=include_path,
        task_files=files,
        answering=Answering(repeats, temperature, max_tokens),
        limit=limit,
        batch_size=batch_size,
        num_fewshot=num_fewshot,
        seed=seed,
        apply_chat_template=chat_template,
        device=device,
        dtype=dtype,
        backend=cast("Backend", backend),
        progress=progress,
    )
    if output is not None:
        table.save(output)
    if summary is not None:
        append_summary(summary, evaluation_markdown([table]))
    if as_json:
        tell_json(table.model_dump_json(indent=2))
    else:
        print_evaluation(table)
    if publication is not None:
        result = api.publish(table, publication, progress)
        tell(f"scores published: {result.pull_request_url or result.url}", err=as_json)
    if max_loss is not None:
        check_loss([table], max_loss, names)


def print_evaluation(table: EvaluationTable) -> None:
    """The table on stdout, as wide as the terminal."""
    from rich.console import Console

    from hubextrap.evaluate import to_rich

    width = None if sys.stdout.isatty() else _WIDTH_OFF_TERMINAL
    Console(width=width, highlight=False).print(to_rich(table))


def _split(lists: list[str]) -> list[str]:
    return [part.strip() for text in lists for part in text.split(",") if part.strip()]
