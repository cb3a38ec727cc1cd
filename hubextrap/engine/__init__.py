"""The streaming linear combination: planned from headers, carried out with bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.engine.budget import DEFAULT_MEMORY, Budget
from hubextrap.engine.plan import MergePlan, plan_merge

if TYPE_CHECKING:
    from hubextrap.engine.run import MergeOutput, run_plan

__all__ = ["DEFAULT_MEMORY", "Budget", "MergeOutput", "MergePlan", "plan_merge", "run_plan"]


def __getattr__(name: str) -> Any:
    if name in ("MergeOutput", "run_plan"):  # these import torch
        from hubextrap.engine import run

        return getattr(run, name)
    raise AttributeError(name)
