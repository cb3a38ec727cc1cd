"""`report`: one page and its plots from a saved scan and saved evaluations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hubextrap.clocks import ClockChoice
from hubextrap.containment import open_regular
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import OutputError
from hubextrap.evaluation.outcomes import outcomes_of
from hubextrap.evaluation.table import EvaluationTable
from hubextrap.extras import require
from hubextrap.output_files import file_problem
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans import Scan
from hubextrap.statistics import judge_run
from hubextrap.statistics.backtesting import backtest_table
from hubextrap.timing import clock_of_scan


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written."""

    page: Path
    pngs: tuple[Path, ...]
    headline: str
    sentences: tuple[str, ...]


def report(
    scan_file: Path | str,
    *,
    evaluations: Sequence[Path | str] = (),
    out: Path | str = "report.html",
    png: Path | str | None = None,
    title: str | None = None,
    clock: ClockChoice = "auto",
    progress: Progress | None = None,
) -> ReportResult:
    """Write the page to ``out``, and every plot into the folder ``png``; an earlier page and its plots are
    replaced, any other file is not.

    Args:
        title: heading of the page; the scan's file name where it is None.
        clock: what horizons are counted by; see `timing.clock_of_scan`.

    Raises:
        MissingExtra: matplotlib is not installed.
        ReferenceNotFound, CorruptFile, SourceError: the scan cannot be read.
        EvaluationError: an evaluation cannot be read, or two do not go together.
        OutputError: the page or a plot cannot be written, or another file is there.
    """
    scan_file, out = Path(scan_file), Path(out)
    _check_replaceable(out, b"<!doctype html>")
    for place in (out.parent, *(() if png is None else (Path(png),))):
        _check_folder(place)
    scan = Scan.load(scan_file)
    table = replace(scan.gram_table, clock=clock_of_scan(clock, scan, progress or SilentProgress()))
    tables = {Path(path): EvaluationTable.load(Path(path)) for path in evaluations}
    require("report", "the report")  # once the files are known to be good, for they are read faster
    from hubextrap.reporting import build_sections, collect_accuracy, render_page
    from hubextrap.reporting.style import to_png

    accuracies = collect_accuracy(tables)
    backtest = backtest_table(table, dtypes=scan.dtypes)
    said = judge_run(backtest, scores=outcomes_of(tables.values()))
    sections = build_sections(scan, backtest, accuracies)
    plots = [] if png is None else [(Path(png) / f"{section.name}.png", section) for section in sections]
    if png is not None and os.path.lexists(png) and not Path(png).is_dir():
        raise OutputError(
            f"{png}: cannot be written: it is no folder; choose another --out or --png", file=png
        )
    _check_replaceable(out, b"<!doctype html>")
    for path, _ in plots:
        _check_replaceable(path, b"\x89PNG")
    _write(out, render_page(title or scan_file.name, scan, said, sections).encode(errors="replace"))
    for path, section in plots:
        _write(path, to_png(section.draw, section.height))
    return ReportResult(out, tuple(path for path, _ in plots), said.headline, said.sentences)


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
