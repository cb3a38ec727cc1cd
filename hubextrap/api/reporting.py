"""`report`: one page and its plots from a run or a scan of it, and saved evaluations."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hubextrap.api.scanning import scan_run
from hubextrap.clocks import STEPS, Clock, ClockChoice
from hubextrap.containment import open_regular
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import ClockError, OutputError, RecipeError
from hubextrap.evaluation.outcomes import outcomes_of
from hubextrap.evaluation.slopes import table_slopes
from hubextrap.evaluation.table import PREDICTION, EvaluationTable
from hubextrap.extras import require
from hubextrap.given import (
    check_names,
    check_reads,
    names_scan,
    optional_path,
    path_of,
    paths_of,
    run_of,
    sample_choice,
)
from hubextrap.notebooks import one_line
from hubextrap.opening import ReadingOptions, Run
from hubextrap.output_files import file_problem
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans import Scan
from hubextrap.scans.given import sample_of
from hubextrap.statistics import BacktestCandidate, RunVerdict, backtest_memory, candidates, judge_run
from hubextrap.statistics.backtesting import backtest_table
from hubextrap.timing import clock_of_scan
from hubextrap.trajectory import Trajectory

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hubextrap.recipe import Recipe
    from hubextrap.reporting import Page
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.statistics import Backtest
    from hubextrap.statistics.hindsight import Hindsight


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written."""

    page: Path
    pngs: tuple[Path, ...]
    verdict: RunVerdict
    sampled: int | None = None
    """So many weights of each tensor were looked at; None for all."""

    @property
    def headline(self) -> str:
        return self.verdict.headline

    @property
    def sentences(self) -> tuple[str, ...]:
        return self.verdict.sentences

    def __repr__(self) -> str:
        return one_line(self, str(self.page), self.headline)


class Reporting(TypedDict, total=False):
    """What `report` takes beside the run, the evaluations and where the page goes."""

    title: str | None
    """Heading of the page; the name of the scan's file or of the run if not given."""
    clock: ClockChoice | None
    """What horizons are counted by, instead of what the recipe says; see `timing.chosen_clock`."""
    sample: SampleChoice
    """How many weights of each tensor to look at; ``exact`` for all; ``auto``, if not given, for a sample of
    large runs on the Hub and all weights of others."""


def report(
    run: Scan | Trajectory | Recipe | Path | str,
    *,
    evaluations: Sequence[Path | str] | Path | str = (),
    out: Path | str = "report.html",
    png: Path | str | None = None,
    settings: ReadingOptions | None = None,
    progress: Progress | None = None,
    **how: Unpack[Reporting],
) -> ReportResult:
    """Write the page to ``out``, and every plot into the folder ``png``; an earlier page and its plots are
    replaced, any other file is not.

    Args:
        run: a scan or its file, from which this takes seconds; or a trajectory, a recipe, its file or a
            reference, whose weights are read once. A recipe's own rules are tried too.
        how: see `Reporting`.

    Raises:
        MissingExtra: matplotlib is not installed.
        ReferenceNotFound, CorruptFile, SourceError: the scan or the run cannot be read.
        EvaluationError: an evaluation cannot be read, or two do not go together.
        OutputError: the page or a plot cannot be written, or another file is there.
        RecipeError: ``settings`` or ``sample`` for a scan, which needs no weights.
        HubExtrapError: see `scan`.
    """
    check_names("report", how, Reporting)
    title, clock = how.get("title"), how.get("clock")
    sample = sample_choice(how.get("sample", "auto"), settings)
    out, png, told = path_of("out", out), optional_path("png", png), progress or SilentProgress()
    given = paths_of("evaluations", evaluations)
    _check_replaceable(out, b"<!doctype html>")
    for place in (out.parent, *(() if png is None else (png,))):
        _check_folder(place)
    named, found = _looked_up(run, told)
    if isinstance(found, Scan):
        if settings is not None:
            raise RecipeError("settings have no effect on the report of a scan, which reads no weights")
        check_reads(sample)
    tables = {path: EvaluationTable.load(path) for path in given}
    require("report", "the report")  # once the files are known to be good, for they are read faster
    from hubextrap.reporting import Page, collect_accuracy

    scan, chosen, choice, tried = _scanned(found, settings, sample, clock, told)
    backtest = backtest_table(replace(scan.gram_table, clock=chosen), tried, dtypes=scan.dtypes)
    verdict = judge_run(backtest, scores=outcomes_of(tables.values()))
    tasks, notes = _told(tables.values())
    clocks = _clocks(chosen, choice, scan)
    page = Page(title or named, scan, backtest, verdict, collect_accuracy(tables), clocks, tasks, notes)
    plots = _write_all(page, out, png)
    return ReportResult(out, plots, verdict, sample_of(scan))


def _write_all(page: Page, out: Path, png: Path | None) -> tuple[Path, ...]:
    """Write the page, and every plot into the folder; the plots' files.

    Raises:
        OutputError: one of them cannot be written, and none is.
    """
    from hubextrap.reporting.style import to_png

    plots = [] if png is None else [(Path(png) / f"{one.name}.png", one) for one in page.sections]
    if png is not None and os.path.lexists(png) and not Path(png).is_dir():
        raise OutputError(
            f"{png}: cannot be written: it is no folder; choose another --out or --png", file=png
        )
    _check_replaceable(out, b"<!doctype html>")
    for path, _ in plots:
        _check_replaceable(path, b"\x89PNG")
    _write(out, page.render().encode(errors="replace"))
    for path, section in plots:
        _write(path, to_png(section.draw, section.height))
    return tuple(path for path, _ in plots)


def write_page(
    scan: Scan,
    backtest: Backtest,
    hindsight: Hindsight,
    clock: Clock,
    choice: ClockChoice,
    *,
    title: str,
    out: Path,
) -> RunVerdict:
    """Write the page of a run that is watched; the verdict on it.

    Args:
        choice: what a recipe says to have the clock.

    Raises:
        OutputError: it cannot be written.
    """
    from hubextrap.reporting import Page

    verdict = judge_run(backtest)
    clocks = _clocks(clock, choice, scan)
    page = Page(title, scan, backtest, verdict, (), clocks, hindsight=hindsight)
    _write(out, page.render().encode(errors="replace"))
    return verdict


def _told(tables: Collection[EvaluationTable]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks that were asked for, and what stands below the scores: whether they still rise, and notes."""
    tasks = (task for table in tables for task in table.settings.requested)
    slopes = (slope.sentence for table in tables for slope in table_slopes(table, _observed(table)))
    notes = (note for table in tables for note in table.notes)
    return tuple(dict.fromkeys(tasks)), tuple(dict.fromkeys((*slopes, *notes)))


def _observed(table: EvaluationTable) -> list[str]:
    """The rows of the run's own checkpoints, in step order."""
    rows = [row for row in table.rows if row.step is not None and not row.label.startswith(PREDICTION)]
    return [row.label for row in sorted(rows, key=lambda row: row.step or 0)]


def _looked_up(
    run: Scan | Trajectory | Recipe | Path | str, progress: Progress
) -> tuple[str, Scan | Trajectory | Recipe]:
    """What is meant, and what to call it; no weights are read yet."""
    if isinstance(run, Scan):
        return run.series, run
    if isinstance(run, (str, Path)) and names_scan(str(run)):
        return Path(run).name, Scan.load(run)
    found = run_of("run", run, progress=progress)
    if isinstance(run, (str, Path)):
        return Path(run).name, found
    return (found.series if isinstance(found, Trajectory) else "recipe"), found


def _scanned(
    found: Scan | Trajectory | Recipe,
    settings: ReadingOptions | None,
    sample: SampleChoice,
    clock: ClockChoice | None,
    progress: Progress,
) -> tuple[Scan, Clock, ClockChoice | None, list[BacktestCandidate]]:
    """The scan, its clock, what was said of that, and what to rehearse."""
    tried = list(candidates())
    if isinstance(found, Scan):
        return found, clock_of_scan(clock or "auto", found, progress), clock, tried
    if not isinstance(found, Trajectory):
        tried.append(BacktestCandidate("recipe", found.rules))
        clock = clock or (found.trajectory.clock if found.trajectory.clock != "auto" else None)
    with Run.of(found, settings, clock=clock, progress=progress) as opened:
        scan = scan_run(opened, sample=sample, afterwards=backtest_memory(opened.times))
        return scan, opened.clock, clock, tried


def _clocks(chosen: Clock, choice: ClockChoice | None, scan: Scan) -> list[tuple[Clock, ClockChoice | None]]:
    """Those that the page offers, the chosen one first, each with what a recipe says to have it."""
    if chosen.name != STEPS.name:
        return [(chosen, "learning_rate" if choice in (None, "auto") else choice), (STEPS, STEPS.name)]
    if scan.rates is not None and scan.rates.changes:
        by_rate = clock_of_scan("learning_rate", scan, SilentProgress())
        with suppress(ClockError):  # nothing was trained between two checkpoints: it cannot be chosen
            by_rate.times(scan.steps)
            return [(STEPS, STEPS.name), (by_rate, "learning_rate")]
        return [(STEPS, STEPS.name)]
    return [(STEPS, None if choice in (None, "auto") else choice)]


def _check_folder(folder: Path) -> None:
    """Refuse, before anything is read, a folder that cannot be made, or that no file can be put into."""
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        problem = None if place.is_dir() else "is a file"
        if problem is None and not os.access(place, os.W_OK | os.X_OK):
            problem = "cannot be written to"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "no such name"
    if problem is not None:
        raise OutputError(f"{folder}: {place}: {problem}; choose another --out or --png", file=folder)


def _check_replaceable(path: Path, beginning: bytes) -> None:
    """Refuse to write over what is not an earlier report's: a scan, say, or a device."""
    if problem := file_problem(path):
        raise OutputError(f"{path}: cannot be written: {problem}; choose another --out or --png", file=path)
    if not os.path.lexists(path):
        return
    with os.fdopen(open_regular(path), "rb") as file:
        if file.read(len(beginning)) == beginning:
            return
    raise OutputError(
        f"{path}: is there already and is no report's; choose another --out or --png", file=path
    )


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, remedy="choose another --out or --png", parents=True)
