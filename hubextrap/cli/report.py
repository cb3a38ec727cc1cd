"""`hubextrap report`: one page that says whether to trust an extrapolation, and its plots."""

from __future__ import annotations

from pathlib import Path

import typer

from hubextrap.cli.options import Clock
from hubextrap.cli.terminal import tell


def report(
    scan: Path = typer.Argument(..., metavar="SCAN", help="A file that `hubextrap scan` saved."),
    evaluation: list[Path] = typer.Option(
        [], metavar="RESULTS", help="Scores saved by `hubextrap eval --output`. May be repeated."
    ),
    out: Path = typer.Option(Path("report.html"), help="The page to write."),
    png: Path | None = typer.Option(None, metavar="DIR", help="Also write every plot as a PNG into DIR."),
    clock: Clock = None,
    title: str | None = typer.Option(None, help="Heading of the page, instead of the scan's file name."),
) -> None:
    """Write one HTML page from a scan: a verdict, every plot, and when to worry. It opens offline."""
    from hubextrap import api

    found = api.report(scan, evaluations=evaluation, out=out, png=png, title=title, clock=clock or "auto")
    tell(found.headline)
    for sentence in found.sentences:
        tell(f"  {sentence}")
    tell(f"wrote {found.page}" + (f" and {len(found.pngs)} plots in {png}" if png else ""))
