"""From a recipe's evaluate section to what measures its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.evaluate import Answering, Harness, TaskFile

if TYPE_CHECKING:
    from hubextrap.evaluate.table import Backend
    from hubextrap.progress import Progress
    from hubextrap.recipe import EvaluateSection


def harness_of(
    section: EvaluateSection,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend = "hf",
) -> Harness:
    """The tasks and settings of a recipe's evaluate section, loaded.

    Raises:
        EvaluationError: lm-eval is not installed, a task cannot be loaded, or a setting has no effect.
    """
    harness = Harness(
        section.tasks,
        include_path=[Path(path) for path in section.include_path or ()],
        task_files=[TaskFile(Path(path), section.format) for path in section.task_files],
        answering=Answering(section.repeats, section.temperature, section.max_tokens),
        limit=section.limit,
        batch_size=section.batch_size,
        num_fewshot=section.num_fewshot,
        seed=section.seed,
        apply_chat_template=section.apply_chat_template,
        device=device,
        dtype=dtype,
        backend=backend,
        progress=progress,
    )
    harness.check_examples()
    return harness
