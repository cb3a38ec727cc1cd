"""What one pass over a trajectory found: the scan's file, and the tensors found until it is written."""

from __future__ import annotations

from hubextrap.scans.logprobs import LogProbs, LogProbSource
from hubextrap.scans.parts import ReferenceSample, ScannedCheckpoint
from hubextrap.scans.scan import Scan, module_kind

__all__ = ["LogProbSource", "LogProbs", "ReferenceSample", "Scan", "ScannedCheckpoint", "module_kind"]
