"""What one pass over a trajectory found: the scan's file, and the tensors found until it is written."""

from __future__ import annotations

from hubextrap.scans.logprobs import LogProbs, LogProbSource
from hubextrap.scans.scan import Sample, Scan, ScannedCheckpoint, module_kind

__all__ = ["LogProbSource", "LogProbs", "Sample", "Scan", "ScannedCheckpoint", "module_kind"]
