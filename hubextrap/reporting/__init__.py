"""The report on a trajectory: plots and one self-contained page, from saved statistics and results only."""

from __future__ import annotations

from hubextrap.reporting.accuracy import Accuracy, collect_accuracy
from hubextrap.reporting.answering import Answer
from hubextrap.reporting.page import render_page
from hubextrap.reporting.sections import Section, build_sections

__all__ = ["Accuracy", "Answer", "Section", "build_sections", "collect_accuracy", "render_page"]
