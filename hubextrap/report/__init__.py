"""The report on a trajectory: plots and one self-contained page, from saved statistics and results only."""

from __future__ import annotations

from hubextrap.report.accuracy import Accuracy, collect_accuracy
from hubextrap.report.answering import Answer
from hubextrap.report.page import render_page
from hubextrap.report.sections import Section, build_sections

__all__ = ["Accuracy", "Answer", "Section", "build_sections", "collect_accuracy", "render_page"]
