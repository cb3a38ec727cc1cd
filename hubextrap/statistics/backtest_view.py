"""A backtest as a table for readers: every method by its plain name, its mean error by horizon."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from hubextrap.figures import said_of_sample, with_stderr
from hubextrap.notebooks import counted, html_table, steps_in_words
from hubextrap.statistics.judgement import judge_run
from hubextrap.statistics.plain_names import plain_name
from hubextrap.statistics.verdict import HORIZONS, horizon_means, pair_counts, step_in_words

if TYPE_CHECKING:
    from hubextrap.statistics.backtesting import Backtest

Figure: TypeAlias = tuple[float | None, float | None]
"""A figure, and its standard error where it comes from a sample."""
NOTE = (
    "1 is the last checkpoint as it is; above 1, doing nothing is better. Expected: the error that was "
    "forecast from the checkpoints known at the time."
)
ROUNDED = (
    "Errors are those of the signal; total is the mean error against the checkpoints as they are stored, "
    "rounding included."
)


def classes(found: Backtest) -> list[tuple[str, str, int]]:
    """Each class of horizons: its name, the step that it ends at, and how many predictions are in it."""
    ends = [(f"to {end:g}", step_in_words(found, end)) for end in HORIZONS]
    both = zip([*ends, ("farther", "")], pair_counts(found), strict=True)
    return [(end, step, count) for (end, step), count in both]


def further_headings(found: Backtest) -> tuple[str, ...]:
    """Of the columns behind those of the classes."""
    return ("worst", "expected", *(["total"] if found.rounded else []))


def rows(found: Backtest) -> list[tuple[str, list[Figure]]]:
    """The name and the figures of each method, the best first."""
    return [
        (
            entry.method,
            [
                *zip(entry.means, entry.stderrs, strict=True),
                (entry.worst, entry.worst_stderr),
                (entry.expected, entry.expected_stderr),
                *([(entry.total, entry.total_stderr)] if found.rounded else []),
            ],
        )
        for entry in horizon_means(found)
    ]


def notes(found: Backtest) -> list[str]:
    """What the columns are, and what the figures are of; a sentence or two each."""
    return [NOTE, *([ROUNDED] if found.rounded else []), *said_of_sample(found.sampled)]


def title(found: Backtest) -> str:
    """What the figures are."""
    return f"mean relative error{' of the signal' * found.rounded} by horizon, (target − last)/(last − first)"


def as_html(found: Backtest) -> str:
    """The verdict and the table."""
    verdict = judge_run(found)
    about = f"{counted(len(found.steps), 'checkpoint')}, {steps_in_words(found.steps)}: {title(found)}"
    headings = [
        f"{end}{f' ({step})' * bool(step)}, {counted(count, 'prediction')}"
        for end, step, count in classes(found)
    ]
    return html_table(
        f"{verdict.line}. {about}",
        ["method", *headings, *further_headings(found)],
        [
            [plain_name(name), *(with_stderr(*figure, digits=3) for figure in figures)]
            for name, figures in rows(found)
        ],
        [*verdict.sentences, *notes(found)],
    )
