"""The report on a trajectory: plots and one self-contained page, from saved statistics and results only."""

from __future__ import annotations

from hubextrap.extras import require

require("report", "the report")

from hubextrap.reporting.accuracy import collect_accuracy
from hubextrap.reporting.page import Page
from hubextrap.reporting.sections import build_sections

__all__ = ["Page", "build_sections", "collect_accuracy"]
