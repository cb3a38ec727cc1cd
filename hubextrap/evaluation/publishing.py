"""An evaluation as a model's repo shows it: for the card, for leaderboards, and for whoever runs it again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.outcomes import outcomes_of
from hubextrap.evaluation.render import format_figure, markdown_table, to_markdown
from hubextrap.evaluation.table import BASE, LAST, TARGET, EvaluationTable
from hubextrap.foreign_text import markdown_block, markdown_code, markdown_text, terminal_line
from hubextrap.hub.publish import SOURCE, Results, benchmark_task
from hubextrap.hub_access import hub_api
from hubextrap.statistics import not_judged, with_scores

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

    from hubextrap.evaluation.table import Row, Score, TaskRecord
    from hubextrap.hub import PushTarget

RESULTS_FILE = "hubextrap-eval.json"
CURVE_FILE = "hubextrap-eval.png"


def results_of(table: EvaluationTable, row: Row, target: PushTarget) -> Results:
    """What is published of ``table`` in the repo of the model that ``row`` measures.

    Raises:
        EvaluationError: only some of the problems were used.
        PushError: the Hub cannot be asked which data sets are benchmarks.
    """
    refuse_limit(table.settings.limit)
    public = table.model_copy(update={"rows": tuple(map(_public, table.rows))})
    source = f"{hub_api().endpoint}/{target.repo}/blob/{target.revision}/{RESULTS_FILE}"
    return Results(
        markdown="\n\n".join([to_markdown(public).strip(), _how(public, row)]),
        figures=[_figure(score, table.settings.tasks.get(score.task), source) for score in row.scores],
        benchmarks=_benchmarks(table, row, source),
        verdict=_verdict(table, row),
        files={RESULTS_FILE: (public.model_dump_json(indent=2) + "\n").encode()},
    )


def _verdict(table: EvaluationTable, row: Row) -> str:
    """What the scores of one prediction come to; "" where nothing judges them."""
    kept = tuple(one for one in table.rows if one is row or one.label == LAST)
    scores = outcomes_of([table.model_copy(update={"rows": kept})])
    return with_scores(not_judged("Not judged"), scores).line if scores else ""


def refuse_limit(limit: int | None) -> None:
    """Raise EvaluationError where figures are on some of the problems only."""
    if limit is not None:
        raise EvaluationError(
            f"--publish: with --limit {limit} the figures are not those of the tasks; leave one of them out"
        )


def command(table: EvaluationTable, row: Row) -> str:
    """The command that measures the same again, from the commits that were measured."""
    settings = table.settings
    words = ["hubextrap", "eval", _pinned(row)]
    against = [
        f"{other.label}={_pinned(other)}" if other.label in (LAST, BASE, TARGET) else _pinned(other)
        for other in table.rows
        if other != row
    ]
    words += ["--against", ",".join(against)] if against else ["--no-against"]
    if settings.requested:
        words += ["--tasks", ",".join(settings.requested)]
    for name, kind in settings.task_files.items():
        words += ["--task-file", f"{name}.jsonl", "--format", kind]
    words += [*settings.answering, "--batch-size", str(settings.batch_size), "--seed", str(settings.seed)]
    if settings.num_fewshot is not None:
        words += ["--num-fewshot", str(settings.num_fewshot)]
    words += ["--apply-chat-template"] * settings.apply_chat_template
    words += ["--device", settings.device, "--dtype", settings.dtype]
    words += ["--backend", settings.backend] if settings.backend != "hf" else []
    return shlex.join(words)


def _public(row: Row) -> Row:
    """``row`` without the path of a local folder."""
    return row if row.commit is not None else row.model_copy(update={"reference": Path(row.reference).name})


def _pinned(row: Row) -> str:
    if row.commit is None:
        return row.reference
    repo, _, rest = row.reference.partition("@")
    _, colon, folder = rest.partition(":")
    return f"{repo}@{row.commit}{colon}{folder}"


def _how(table: EvaluationTable, row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in table.settings.versions.items())
    notes = []
    tasks = table.settings.tasks
    if any(task.dataset is None and name not in table.settings.task_files for name, task in tasks.items()):
        notes.append("`--include-path` has to name the folder of the tasks whose data are not on the Hub.")
    if table.settings.task_files:
        notes.append("The files of problems are not published; their sha256 below is of what they hold.")
    header = "task", "version", "few-shot", "answers", "problems", "sha256 of task", "sha256 of problems"
    rows = [
        [
            *map(markdown_text, (name, task.version)),
            *map(str, (task.num_fewshot, task.repeats, task.documents)),
            *(markdown_code((value or "")[:16]) for value in (task.sha256, task.problems_sha256)),
        ]
        for name, task in tasks.items()
    ]
    again = f"Measured with {markdown_text(versions)}. To run it again:\n\n"
    again += markdown_block(command(table, row), "bash")
    about = (
        "Differences are on the same problems, with a 95 % interval by a paired bootstrap. "
        f"`{RESULTS_FILE}` holds every figure of every problem."
    )
    return "\n\n".join([about, again, *notes, markdown_table(header, rows, "llrrrll")])


def _figure(score: Score, task: TaskRecord | None, source: str) -> EvalResult:
    from huggingface_hub import EvalResult

    known: dict[str, Any] = {}
    if task is not None:  # a group has no record
        for name, text in (("dataset_config", task.dataset_config), ("dataset_split", task.split)):
            known[name] = None if text is None else terminal_line(text)
        known["dataset_args"] = {"num_few_shot": task.num_fewshot}
    return EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type=terminal_line((task.dataset if task is not None else None) or score.task),
        dataset_name=terminal_line(score.task),
        **known,
        metric_type=terminal_line(score.metric),
        metric_name=terminal_line(score.title),
        metric_value=round(score.value, 6),
        source_name=SOURCE,
        source_url=source,
    )


def _benchmarks(table: EvaluationTable, row: Row, source: str) -> dict[str, EvalResultEntry]:
    """An entry for each task on a registered benchmark: its first figure that is a share, in percent."""
    from huggingface_hub import EvalResultEntry

    entries = {}
    for name, task in table.settings.tasks.items():
        score = next((each for each in row.scores if each.task == name and _is_share(each)), None)
        if task.dataset is None or score is None:
            continue
        if (found := benchmark_task(task.dataset, task.dataset_config, task.split)) is None:
            continue
        entries[re.sub(r"[^\w.-]+", "-", name)] = EvalResultEntry(
            dataset_id=task.dataset,
            task_id=found[0],
            dataset_revision=found[1],
            value=round(100 * score.value, 4),
            source_url=source,
            source_name=SOURCE,
            notes=f"{terminal_line(score.title)} in percent, {task.num_fewshot}-shot, "
            f"± {format_figure(100 * score.stderr) if score.stderr is not None else 'unknown'}",
        )
    return entries


def _is_share(score: Score) -> bool:
    return score.higher_is_better is True and score.problems is not None and 0 <= score.value <= 1
