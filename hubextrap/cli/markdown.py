"""What commands say as Markdown, for a job's summary page: `--summary FILE`."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hubextrap.cli.progress import format_bytes, format_memory
from hubextrap.cli.summaries import LISTED, as_sum, push_line, trust_in_words, trusted_in_words
from hubextrap.errors import OutputError
from hubextrap.figures import ONE, margin, said_of_sample, sample_in_words, with_stderr
from hubextrap.foreign_text import as_shown, markdown_block, markdown_code, markdown_text, own_lines
from hubextrap.output_files import append_problem
from hubextrap.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.api import PlanReport, Prediction, PredictResult
    from hubextrap.evaluation import EvaluationTable, GateResult
    from hubextrap.statistics import Backtest, RunVerdict


def check_summary(path: Path | None) -> Path | None:
    """Find out before any work whether `append_summary` can add to the file, and give it back; None is none.

    Raises:
        OutputError: it cannot.
    """
    if path is not None:
        with _open_summary(path) as (file, is_new):
            _BEGAN[path] = file.tell()
        if is_new:
            path.unlink()
    return path


_BEGAN: dict[Path, int] = {}
"""Bytes of each summary that were there before this command."""


def append_summary(path: Path, text: str, *, first: bool = False) -> None:
    """Add ``text`` to the file, which is made if it is not there.

    Args:
        first: before what this command has added, not behind it.

    Raises:
        OutputError: it cannot be written.
    """
    added = redact(text).rstrip("\n") + "\n\n"
    with _open_summary(path) as (file, _):
        if first and (began := _BEGAN.get(path, file.tell())) < file.tell():
            with path.open("rb") as read:
                read.seek(began)
                behind = read.read().decode(errors="backslashreplace")
            file.truncate(began)
            added += behind
        file.write(added)


@contextmanager
def _open_summary(path: Path) -> Iterator[tuple[TextIO, bool]]:
    """The file, to be added to, and whether it was made."""
    try:
        if problem := append_problem(path):
            raise OSError(errno.EINVAL, problem)
        is_new = not path.exists()
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            yield file, is_new
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "no such name"
        raise OutputError(
            f"{str(path)[:200]}: the summary cannot be written ({said}); name another file", file=path
        ) from error


def failure_markdown(message: str) -> str:
    """Why a command failed: one line, or a line and what else there is."""
    line, *more = as_shown(message).split("\n")
    told = f"❌ {markdown_text(line)}"
    return f"{told}\n\n{markdown_block(own_lines(*more), 'text')}" if more else told


def gate_markdown(result: GateResult) -> str:
    """Whether the predictions passed, figure by figure; those that did not first."""
    figures = sorted(result.figures, key=lambda figure: figure.passed)
    lines = [f"{'✅' if one.passed else '❌'} {markdown_text(one.sentence)}" for one in figures[:LISTED]]
    return "\n\n".join([*lines, *[f"… {len(figures)} in all"] * (len(figures) > LISTED)])


def plan_markdown(recipe: Path, report: PlanReport) -> str:
    """A plan: problems first, then what is predicted, observed, read and written."""
    verdict = f"❌ {_count(report.problems, 'problem')}" if report.problems else "✅ no problems found"
    parts = [f"### Plan of {markdown_code(str(recipe))}: {verdict}"]
    if report.problems:
        parts.append(markdown_block(own_lines(*report.problems), "text"))
    parts += [markdown_text(verdict.line) for verdict in report.verdicts if verdict is not None]
    if report.warnings:
        parts.append(markdown_block(own_lines(*(f"warning: {line}" for line in report.warnings)), "text"))
    reaches = zip(
        report.target_steps,
        map(_horizon, report.horizons),
        (
            _horizon(error) + margin(stderr, 3)
            for error, stderr in zip(report.expected_relative_errors, report.expected_stderrs, strict=True)
        ),
        trusted_in_words(report),
        strict=True,
    )
    what = "walk to step" if report.walks else "predict step"
    parts.append(_table((what, "horizon", "expected error", "trust"), list(reaches)))
    parts += said_of_sample(report.sampled, ONE)
    if report.clock != "steps":
        parts.append(f"Clock: {markdown_text(report.clock)}.")
    if report.files:
        parts.append(
            f"Reads {format_bytes(report.bytes_read)}, writes {format_bytes(report.bytes_written)} in "
            f"{_count(report.files, 'file')} per prediction, holds {format_memory(report.peak_memory)} of "
            "memory at most."
        )
    if report.outputs:
        parts.append("Goes to " + ", ".join(map(markdown_code, report.outputs)) + ".")
    for match, method, coefficients in report.rules:
        for target, row in zip(report.target_steps, coefficients, strict=True):
            parts.append(f"{markdown_code(match)} at step {target}: {markdown_code(method)}: {as_sum(row)}")
    observed = [
        (step, markdown_code(name), commit[:8] if commit else "", "" if size is None else format_bytes(size))
        for step, name, commit, size in report.checkpoints
    ]
    parts.append(_table(("observe step", "checkpoint", "commit", "size"), observed))
    if report.notes:
        parts.append(markdown_block(own_lines(*report.notes), "text"))
    return "\n\n".join(parts)


def predictions_markdown(predictions: Sequence[Prediction]) -> str:
    """What a merge or a run made: one line per prediction."""
    lines = []
    for prediction in predictions:
        provenance = prediction.provenance
        at = "" if provenance.full_rate_steps is None else " at the peak rate"
        if prediction.verdict is not None:
            lines.append(f"- **{markdown_text(prediction.verdict.line)}**")
        line = f"- step {prediction.step}{at} from steps up to {provenance.steps[-1]}"
        if provenance.horizon is not None:
            line += f", horizon {_horizon(provenance.horizon)}"
        if provenance.expected_relative_error is not None:
            stderr = provenance.expected_relative_error_stderr
            line += f", expected error {with_stderr(provenance.expected_relative_error, stderr, 3)}"
        if provenance.sample is not None:
            line += f" {sample_in_words(provenance.sample.weights_per_tensor)} ({ONE})"
        if provenance.trusted is not None and provenance.trusted_in_words is not None:
            line += f", {trust_in_words(provenance.trusted.horizon, provenance.trusted_in_words)}"
        if provenance.clock is not None:
            line += f" ({markdown_text(provenance.clock.said)})"
        if prediction.folder is not None:
            line += f", in {markdown_code(str(prediction.folder))}"
        if prediction.target is not None and prediction.pushed is not None:
            commit = markdown_code(prediction.pushed.commit[:8])
            line += f", at {markdown_code(prediction.target.name)} as {commit}"
        if prediction.identical_to_last:
            line += "; every weight is the same as in the last checkpoint: nothing was predicted"
        told = (*prediction.warnings, *prediction.notes, *prediction.caveats)
        lines += [line, *(f"  - {markdown_code(caveat)}" for caveat in told)]
    return "### Predicted\n\n" + "\n".join(lines)


def backtest_markdown(reference: str, found: Backtest, verdict: RunVerdict) -> str:
    """A backtest: the verdict first, then what stands behind it, and every method's errors."""
    from hubextrap.statistics import backtest_view, horizon_classes, pair_counts

    classes = zip(horizon_classes(found), pair_counts(found), strict=True)
    header = ("method", *(f"{title}: {count}" for title, count in classes), "worst", "expected")
    rows = [
        (
            markdown_code(name),
            *(with_stderr(*figure, digits=3) for figure in figures[: len(header) - 1]),
        )
        for name, figures in backtest_view.rows(found)
    ]
    said = "\n".join(f"- {markdown_text(sentence)}" for sentence in verdict.sentences)
    parts = [f"### {markdown_text(verdict.line)}", f"Backtest of {markdown_code(reference)}.", said]
    parts += [_table(header, rows), *map(markdown_text, said_of_sample(found.sampled))]
    return "\n\n".join(parts)


def answer_markdown(run: str, found: PredictResult) -> str:
    """What `predict` answers: the verdict first."""
    from hubextrap.cli.answers import answer_rows

    rows = "\n".join(f"- {name}: {markdown_text(text)}" for name, text in answer_rows(found))
    made = found.prediction
    if made is not None and made.pushed is not None and made.target is not None:
        rows += f"\n- pushed: {markdown_text(push_line(made.target, made.pushed))}"
    said = "\n".join(f"- {markdown_text(sentence)}" for sentence in found.verdict.sentences)
    parts = [f"### {markdown_text(found.verdict.line)}", f"Run {markdown_code(run)}.", rows, said]
    if found.recipe is not None:
        parts.append(markdown_block(found.recipe.text.strip(), "yaml"))
    if found.tables:
        parts.append(evaluation_markdown(found.tables))
    return "\n\n".join(parts)


def evaluation_markdown(tables: Sequence[EvaluationTable]) -> str:
    """The tables of an evaluation, verdicts and notes below each."""
    from hubextrap.evaluation import to_markdown

    return "### Evaluated\n\n" + "\n".join(map(to_markdown, tables))


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows[:LISTED]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    return text + (f"\n\n… {len(rows)} in all" if len(rows) > LISTED else "")


def _horizon(horizon: float | None) -> str:
    return "" if horizon is None else f"{horizon:.3g}"


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"
