"""Running lm-eval on checkpoints that are to be compared: the same tasks, seeds and settings for each."""

from __future__ import annotations

import gc
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import EvaluationError
from hubextrap.evaluate.quiet import quiet_libraries, quiet_lm_eval
from hubextrap.evaluate.scores import records_of, scores_of
from hubextrap.evaluate.table import EvaluationTable, Row, Settings
from hubextrap.evaluate.tasks import load_tasks
from hubextrap.hub_access import reason
from hubextrap.logits import Mixture
from hubextrap.progress import SilentProgress
from hubextrap.trajectory import Checkpoint, resolve_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.evaluate.model import CheckpointModel
    from hubextrap.progress import Progress

DEFAULT_BATCH_SIZE = 16
_PACKAGES = ("hubextrap", "lm_eval", "torch", "transformers")


def evaluate(
    references: Sequence[tuple[str, Checkpoint | Mixture | str]],
    tasks: Sequence[str],
    *,
    include_path: Sequence[Path] = (),
    limit: int | None = None,
    batch_size: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    apply_chat_template: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> EvaluationTable:
    """Measure checkpoints with lm-eval.

    What can be wrong without a model is checked first: lm-eval, tasks and their data, references.

    Args:
        references: (label, checkpoint, mixture of logits, or reference). The row ``last`` is what all others
            are compared with, rows whose label starts with ``prediction`` are judged; other labels are free.
        tasks: lm-eval tasks, groups or tags.
        include_path: folders with task files of the user's own.
        limit: only the first so many documents of each task.
        batch_size: sequences at a time, 16 if None; samples depend on it.
        num_fewshot: examples in the prompt, where a task does not fix them at 0.
        seed: of every random generator, set anew before each checkpoint.
        device: ``auto`` takes the first CUDA device where there is one; else as torch names it.
        dtype: ``auto`` for each checkpoint's own, or as torch names it.

    Raises:
        EvaluationError: lm-eval is not installed, a task is unknown, a model does not load or run.
        TrajectoryError, CheckpointError: a reference leads nowhere.
    """
    progress = progress or SilentProgress()
    _check_labels([label for label, _ in references])
    names = list(dict.fromkeys(tasks))
    manager = load_tasks(names, include_path)
    checkpoints = [
        (label, resolve_checkpoint(item) if isinstance(item, str) else item) for label, item in references
    ]
    device, batch_size = _device(device), batch_size or DEFAULT_BATCH_SIZE
    rows: list[Row] = []
    defaults: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    with quiet_libraries():
        for label, checkpoint in checkpoints:
            progress.say(f"{label}: {checkpoint.name}")
            model = _load(label, checkpoint, device, dtype, batch_size, progress)
            defaults[label] = model.generation_defaults()
            found = _simple_evaluate(
                model,
                f"{checkpoint.name}: {', '.join(names)}",
                tasks=names,
                task_manager=manager,
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                limit=limit,
                apply_chat_template=apply_chat_template,
                **{
                    f"{part}_seed": seed
                    for part in ("random", "numpy_random", "torch_random", "fewshot_random")
                },
            )
            rows.append(_row(label, checkpoint, found))
            del model
            _free_memory()
    settings = Settings(
        seed=seed,
        batch_size=batch_size,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        device=device,
        dtype=dtype,
        versions={package: version(package) for package in _PACKAGES},
        tasks=records_of(found),
    )
    mixed = [(label, item) for label, item in checkpoints if isinstance(item, Mixture)]
    return EvaluationTable(settings=settings, rows=tuple(rows), notes=_notes(limit, defaults, mixed))


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise EvaluationError("nothing to evaluate; name at least one checkpoint")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise EvaluationError(f"{twice[0]} is there twice; name every checkpoint once")


def _device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(
    label: str, checkpoint: Checkpoint | Mixture, device: str, dtype: str, batch_size: int, progress: Progress
) -> CheckpointModel:
    from hubextrap.evaluate.model import load_checkpoint

    return load_checkpoint(
        label, checkpoint, device=device, dtype=dtype, batch_size=batch_size, progress=progress
    )


def _simple_evaluate(model: CheckpointModel, what: str, **settings: Any) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from torch import OutOfMemoryError

    try:
        with quiet_lm_eval():
            results: dict[str, Any] = simple_evaluate(model, log_samples=True, **settings)
    except OutOfMemoryError as error:
        raise EvaluationError(
            f"{what}: out of memory on {settings['device']}; choose a smaller --batch-size"
        ) from error
    except Exception as error:  # a task's own code runs in there
        raise EvaluationError(f"{what}: lm-eval failed: {reason(error)}") from error
    return results


def _row(label: str, checkpoint: Checkpoint | Mixture, found: Mapping[str, Any]) -> Row:
    if isinstance(checkpoint, Mixture):
        step, commit = checkpoint.target_step, None
    else:
        step, commit = checkpoint.step if checkpoint.step >= 0 else None, checkpoint.commit
    return Row(
        label=label,
        step=step,
        reference=checkpoint.name,
        commit=commit,
        scores=scores_of(found),
    )


def _notes(
    limit: int | None, defaults: Mapping[str, Mapping[str, Any]], mixed: Sequence[tuple[str, Mixture]]
) -> tuple[str, ...]:
    notes = [f"The {label} mixes logits while decoding: {mixture.pinned_name}." for label, mixture in mixed]
    if limit is not None:
        notes.append(f"Only the first {limit} documents of each task were used: enough to try things out.")
    if len({json.dumps(values, sort_keys=True, default=str) for values in defaults.values()}) > 1:
        listed = "; ".join(f"{label}: {dict(values) or 'none'}" for label, values in defaults.items())
        notes.append(
            f"The checkpoints' own generation defaults differ ({listed}): where a task leaves these open, "
            "its figures are not comparable."
        )
    return tuple(notes)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
