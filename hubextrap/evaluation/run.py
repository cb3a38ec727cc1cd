"""Running lm-eval on checkpoints that are to be compared: the same tasks, seeds and settings for each."""

from __future__ import annotations

import gc
import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.base import Bases
from hubextrap.digests import sha256_of_json
from hubextrap.errors import CheckpointError, EvaluationError, SourceError, wrong_argument
from hubextrap.evaluation.asking import Questions, asked_of_tasks
from hubextrap.evaluation.backend import check_adapters, check_backend, load_model
from hubextrap.evaluation.options import DEFAULT_BATCH_SIZE, Answering, EvaluationOptions
from hubextrap.evaluation.own_tasks import task_specs
from hubextrap.evaluation.quiet import quiet_libraries, quiet_lm_eval
from hubextrap.evaluation.scores import config_sha256, docs_sha256, records_of, scores_of
from hubextrap.evaluation.table import EvaluationTable, MeasurementSettings, Part, Row, Score, TaskRecord
from hubextrap.evaluation.tasks import load_tasks
from hubextrap.extras import require
from hubextrap.foreign_text import own_lines
from hubextrap.hub_access import reason
from hubextrap.lazy import by_name
from hubextrap.logits import Mixture
from hubextrap.logits.loading import Models, check_loadable
from hubextrap.progress import SilentProgress
from hubextrap.tensors.devices import device_problem
from hubextrap.trajectory import Checkpoint, Pins, resolve_checkpoint
from hubextrap.trajectory.checkpoint import ADAPTER, BASE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hubextrap.progress import Progress

MAX_NUMBER = 2**32 - 1
"""What numpy takes as a seed; no other setting needs more."""
_PACKAGES = ("hubextrap", "lm_eval", "torch", "transformers", "math_verify", "vllm")
"""What figures depend on, as far as it is installed."""


def evaluate(
    references: Sequence[tuple[str, Checkpoint | Mixture | Path | str] | Path | str] | Path | str,
    options: EvaluationOptions | Sequence[str] = (),
    *,
    base_model: Checkpoint | Path | str | None = None,
    progress: Progress | None = None,
    **named: Any,
) -> EvaluationTable:
    """Measure checkpoints with lm-eval.

    What can be wrong without a model is checked first: lm-eval, tasks and their data, references.

    Args:
        references: (label, checkpoint, mixture of logits, or reference); or one or several references, which
            are their own labels. The row ``last`` is what all others
            are compared with, rows whose label starts with ``prediction`` are judged; other labels are free.
        options: tasks and settings, or tasks alone.
        base_model: of those that are adapters; None for what their configurations name.
        named: fields of `EvaluationOptions` that differ from ``options``: ``limit=100``.

    Raises:
        MissingExtra: as `Harness`.
        EvaluationError: a task is unknown, a model does not load or run.
        TrajectoryError, CheckpointError: a reference leads nowhere.
    """
    labelled = _labelled(references)
    if not labelled:
        raise EvaluationError("nothing to evaluate; name at least one checkpoint")
    if twice := [label for label, count in Counter(label for label, _ in labelled).items() if count > 1]:
        raise EvaluationError(f"{twice[0]} is there twice; name every checkpoint once")
    if not isinstance(options, EvaluationOptions):
        options = EvaluationOptions(options)
    pins = Pins()
    harness = Harness(replace(options, **named), progress, Bases(None, pins))
    checkpoints = [
        (label, item if isinstance(item, (Checkpoint, Mixture)) else resolve_checkpoint(item, pins=pins))
        for label, item in labelled
    ]
    bases = None if base_model is None else _bases(base_model, [item for _, item in checkpoints], pins)
    harness.check((item for _, item in checkpoints), bases)
    return harness.table(harness.measure_all(checkpoints))


def _bases(base_model: Checkpoint | Path | str, items: Iterable[Checkpoint | Mixture], pins: Pins) -> Bases:
    """The base that adapters among what is measured are put on.

    Raises:
        EvaluationError: none of it is an adapter.
        HubExtrapError: the base cannot be had.
    """
    every = [one for item in items for one in (item.checkpoints if isinstance(item, Mixture) else (item,))]
    if not any(one.kind == ADAPTER for one in every):
        raise EvaluationError("base_model (--base) has no effect: no row is an adapter; leave it out")
    if not isinstance(base_model, Checkpoint):
        base_model = resolve_checkpoint(base_model, step=0, pins=pins)
    return Bases(base_model, pins)


def _labelled(given: Any) -> list[tuple[str, Checkpoint | Mixture | Path | str]]:
    """What is to be measured, each with its label.

    Raises:
        WrongArgument: it is nothing that can be.
    """
    several = [given] if isinstance(given, (str, PathLike)) else given
    wanted = "a reference, or a list of references or of (label, reference, Checkpoint or Mixture)"
    if not isinstance(several, (list, tuple)):
        raise wrong_argument("references", wanted, given)
    found: list[tuple[str, Checkpoint | Mixture | Path | str]] = []
    for one in several:
        label, item = one if isinstance(one, (list, tuple)) and len(one) == 2 else (str(one), one)
        if not isinstance(label, str) or not isinstance(item, (str, PathLike, Checkpoint, Mixture)):
            raise wrong_argument("references", wanted, one)
        found.append((label, Path(item) if isinstance(item, PathLike) else item))
    return found


class Measurement(Part):
    """One checkpoint measured."""

    row: Row
    tasks: dict[str, TaskRecord]
    generation_defaults: dict[str, Any]
    """What the checkpoint's own generation config says about how completions are drawn."""
    mixture: str | None = None
    """Which logits it mixes, pinned, where it is no checkpoint."""

    def labelled(self, label: str) -> Measurement:
        """The same under another label."""
        return self.model_copy(update={"row": self.row.model_copy(update={"label": _in_utf8(label)})})

    def of(self, label: str, checkpoint: Checkpoint) -> Measurement:
        """The same for a checkpoint that holds the same bytes; its step and name may be others."""
        return self.model_copy(update={"row": _row(label, checkpoint, self.row.scores)})


class Harness:
    """lm-eval with the same tasks, seeds and settings for every checkpoint that it measures."""

    def __init__(
        self,
        options: EvaluationOptions,
        progress: Progress | None = None,
        bases: Bases | None = None,
    ) -> None:
        """
        Args:
            bases: what is known of the bases of adapters.

        Raises:
            MissingExtra: lm-eval, or what its own model or a task needs, cannot be imported.
            EvaluationError: the backend is not installed, a task is unknown or cannot be loaded, or an option
                would have no effect.
        """
        self.progress = progress or SilentProgress()
        tasks = list(dict.fromkeys(options.tasks))
        for name in ("limit", "batch_size", "num_fewshot", "seed"):
            _check_number(name, getattr(options, name))
        if options.include_path and not tasks:
            raise EvaluationError("include_path has no effect without tasks: it is where they are looked for")
        require("eval", "an evaluation")
        check_backend(options.backend, options.device, options.batch_size)
        self._specs = task_specs(tasks, options.task_files, options.answering)
        self._manager = load_tasks(self._specs, options.include_path)
        self._what = ", ".join(options.names)
        self.settings = MeasurementSettings(
            seed=options.seed,
            batch_size=options.batch_size or DEFAULT_BATCH_SIZE,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            apply_chat_template=options.apply_chat_template,
            device=chosen_device(options.device, options.executor),
            dtype=options.dtype,
            backend=options.backend,
            versions=evaluation_versions(),
            requested=tuple(tasks),
            task_files={file.name: file.format for file in options.task_files},
            answering=tuple((options.answering or Answering()).options()),
            tasks={},
        )
        self._check_examples()
        device = options.device if options.backend == "vllm" else self.settings.device
        self.options = replace(options, device=device)
        """As they were given, with the device that was chosen."""
        self._models = Models(bases, dtype=options.dtype, device=self.settings.device)

    def fingerprint(self) -> str:
        """sha256 of all that a figure depends on beside the weights: tasks with their data, and settings."""
        tasks = {}
        with quiet_libraries():
            for name, task in self._manager.load(self._specs)["tasks"].items():
                tasks[name] = [config_sha256(task.dump_config()), docs_sha256(task.eval_docs)]
                if self.settings.num_fewshot or task.config.num_fewshot:
                    tasks[name].append(docs_sha256(task.fewshot_docs()))
        return sha256_of_json([self.settings.model_dump(mode="json"), tasks])

    def questions(self) -> Questions | None:
        """The tasks' problems as a model is asked them; None where it is to answer none by text.

        Raises:
            EvaluationError: a task cannot make its prompts.
        """
        limit, examples = self.settings.limit, self.settings.num_fewshot
        with quiet_libraries():
            tasks = self._manager.load(self._specs)["tasks"]
        parts = asked_of_tasks(tasks, limit=limit, num_fewshot=examples)
        return Questions(parts, self.settings.apply_chat_template) if parts else None

    def _check_examples(self) -> None:
        """Refuse a number of examples where each task fixes it at 0."""
        if not (examples := self.settings.num_fewshot):
            return
        with quiet_libraries():
            loaded = self._manager.load(self._specs)["tasks"]
        if all(task.config.num_fewshot == 0 for task in loaded.values()):
            raise EvaluationError(
                f"num_fewshot {examples} has no effect: each of these tasks fixes its examples at none"
            )

    @property
    def bases(self) -> Bases:
        """What is known of the bases of adapters."""
        return self._models.bases

    def check(self, items: Iterable[Checkpoint | Mixture], bases: Bases | None = None) -> None:
        """Find out before any is measured which of them cannot be: small files are read, and adapters.

        Args:
            bases: what is known of the bases of adapters, from now on.

        Raises:
            EvaluationError: all that cannot be loaded.
        """
        self._models.bases = bases = bases or self.bases
        items = list(items)
        check_adapters(items, self.options.backend, self.options.executor)
        if self.settings.backend != "hf":  # vLLM knows other models
            return
        bases.find(item for item in items if isinstance(item, Checkpoint))
        needed: dict[Checkpoint, bool] = {}  # whether its tokenizer, too
        for item in items:
            for one in item.checkpoints if isinstance(item, Mixture) else (item,):
                own = not isinstance(item, Mixture) or one == item.checkpoints[-1]
                needed[one] = needed.get(one, False) or own
        problems = []
        for one, own in needed.items():
            try:
                with quiet_libraries():
                    chat = own and self.settings.apply_chat_template
                    check_loadable(one, tokenizer=own, chat=chat, bases=bases)
            except (CheckpointError, SourceError) as error:
                problems.append(str(error))
        if problems:
            raise EvaluationError(own_lines(*dict.fromkeys(problems)))

    def measure_all(self, rows: Sequence[tuple[str, Checkpoint | Mixture]]) -> list[Measurement]:
        """Put all tasks to several, in their order.

        Raises:
            HubExtrapError: as `measure_each`.
        """
        found = dict(self.measure_each(rows))
        return [found[number] for number in range(len(rows))]

    def measure_each(
        self, rows: Sequence[tuple[str, Checkpoint | Mixture]]
    ) -> Iterator[tuple[int, Measurement]]:
        """Put all tasks to several, by the executor that the options name; each as it ends, with its number.

        Raises:
            HubExtrapError: as `measure`, or the executor's own.
        """
        check_adapters((model for _, model in rows), self.options.backend, self.options.executor)
        if self.options.executor == "local":
            # those on one base one after the other, so that it is read once
            order = sorted(range(len(rows)), key=lambda number: not self._has_base(rows[number][1]))
            yield from ((number, self.measure(*rows[number])) for number in order)
        elif rows:
            yield from by_name("hubextrap.api.elsewhere:measure_elsewhere")(self, rows)

    def measure(self, label: str, checkpoint: Checkpoint | Mixture) -> Measurement:
        """Put all tasks to one checkpoint.

        Raises:
            EvaluationError: the model does not load or run.
        """
        import torch

        if isinstance(checkpoint, Checkpoint) and checkpoint.kind == BASE:
            checkpoint = self.bases.of(checkpoint) or checkpoint
        self.progress.say(f"{label}: {checkpoint.name}")
        settings = self.settings
        generators = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        with quiet_libraries():
            model = load_model(label, checkpoint, settings, self._models, self.progress)
            # lm-eval's vLLM model does not look at them
            defaults = model.generation_defaults() if hasattr(model, "generation_defaults") else {}
            found = _simple_evaluate(
                model,
                f"{checkpoint.name}: {self._what}",
                tasks=list(self._specs),
                task_manager=self._manager,
                num_fewshot=settings.num_fewshot,
                batch_size=settings.batch_size,
                limit=settings.limit,
                apply_chat_template=settings.apply_chat_template,
                **dict.fromkeys(generators, settings.seed),
            )
            del model
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return Measurement(
            row=_row(label, checkpoint, scores_of(found)),
            tasks=records_of(found),
            generation_defaults=defaults,
            mixture=checkpoint.pinned_name if isinstance(checkpoint, Mixture) else None,
        )

    def _has_base(self, model: Checkpoint | Mixture) -> bool:
        return isinstance(model, Checkpoint) and self.bases.of(model) is not None

    def table(self, measurements: Sequence[Measurement]) -> EvaluationTable:
        """The rows in one table."""
        return EvaluationTable(
            settings=self.settings.model_copy(update={"tasks": measurements[-1].tasks}),
            rows=tuple(measurement.row for measurement in measurements),
            notes=_notes(self.settings.limit, measurements),
        )


def _check_number(name: str, number: int | None) -> None:
    """Refuse what lm-eval and the random generators would not take."""
    low = 1 if name in ("limit", "batch_size") else 0
    if number is not None and not low <= number <= MAX_NUMBER:
        raise EvaluationError(f"{name} {number}: has to be from {low} to {MAX_NUMBER}")


def evaluation_versions() -> dict[str, str]:
    """The versions of what figures depend on."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def chosen_device(device: str, executor: str = "local") -> str:
    """What ``auto`` stands for: CUDA where there is some, else the CPU.

    Raises:
        EvaluationError: it cannot be used.
    """
    if executor != "local":
        there: str = by_name("hubextrap.executors.named:device_of")(executor, device)
        return there
    if device != "auto":
        if (problem := device_problem(device)) is not None:
            raise EvaluationError(problem)
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _simple_evaluate(model: Any, what: str, **settings: Any) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from torch import OutOfMemoryError

    try:
        with quiet_lm_eval():
            results: dict[str, Any] = simple_evaluate(model, log_samples=True, **settings)
    except OutOfMemoryError as error:
        said = "out of memory on the device; choose a smaller batch_size (--batch-size of eval)"
        raise EvaluationError(f"{what}: {said}") from error
    except Exception as error:  # a task's own code runs in there
        raise EvaluationError(f"{what}: lm-eval failed: {reason(error)}") from error
    return results


def _row(label: str, checkpoint: Checkpoint | Mixture, scores: tuple[Score, ...]) -> Row:
    if isinstance(checkpoint, Mixture):
        step, commit = checkpoint.target_step, None
    else:
        step, commit = checkpoint.step if checkpoint.step >= 0 else None, checkpoint.commit
    label, reference = _in_utf8(label), _in_utf8(checkpoint.name)
    return Row(label=label, step=step, reference=reference, commit=commit, scores=scores)


def _in_utf8(text: str) -> str:
    """``text`` as a file can hold it: the bytes of a folder's name that are no UTF-8 are written out."""
    return text.encode(errors="backslashreplace").decode()


def _notes(limit: int | None, measurements: Sequence[Measurement]) -> tuple[str, ...]:
    notes = [
        f"The {measured.row.label} mixes logits while decoding: {measured.mixture}."
        for measured in measurements
        if measured.mixture is not None
    ]
    if limit is not None:
        notes.append(f"Only the first {limit} documents of each task were used: enough to try things out.")
    defaults = {measured.row.label: measured.generation_defaults for measured in measurements}
    if len({json.dumps(values, sort_keys=True, default=str) for values in defaults.values()}) > 1:
        listed = "; ".join(f"{label}: {dict(values) or 'none'}" for label, values in defaults.items())
        notes.append(
            f"The checkpoints' own generation defaults differ ({listed}): where a task leaves these open, "
            "its figures are not comparable."
        )
    return tuple(notes)
