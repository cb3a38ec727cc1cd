"""The streaming linear combination: planned from headers, carried out with bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS
    from hubextrap.engine.plan import MergePlan, plan_merge
    from hubextrap.engine.run import MergeOutput, run_plan

__all__ = ["DEFAULT_MEMORY", "DEFAULT_WORKERS", "MergeOutput", "MergePlan", "plan_merge", "run_plan"]

__getattr__ = names_of(__name__)
