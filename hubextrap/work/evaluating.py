"""An evaluation that travels: a unit is one model, which answers all tasks.

Files of problems travel with the plan. Data sets and models are each worker's own to fetch, pinned by commit;
local checkpoints and folders of task files have to lie where every worker sees them under the same path.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hubextrap.containment import read_named
from hubextrap.errors import CorruptFile, EvaluationError
from hubextrap.evaluation.options import Answering, EvaluationOptions, TaskFile
from hubextrap.evaluation.run import Harness, Measurement, evaluation_versions
from hubextrap.foreign_data import parse_json
from hubextrap.hub.side_files import is_side_file
from hubextrap.logits.mixture import Mixture
from hubextrap.tensors import open_source
from hubextrap.tensors.local import LocalSource
from hubextrap.work.hands import check_unmoved
from hubextrap.work.kinds import Hands, Work, checkpoint_as_json, checkpoint_from_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.work.kinds import Stamp
    from hubextrap.work.records import Record

BASELINE = 1_500_000_000
"""Bytes that a process takes beside the weights: torch, transformers and lm-eval, tasks, a short context."""
_WEIGHTS = ".safetensors"
_PLAIN = ("limit", "batch_size", "num_fewshot", "seed", "apply_chat_template", "device", "dtype", "backend")
"""The options that are JSON values."""


@dataclass(frozen=True)
class EvalWork(Work):
    """Models that are put the same tasks."""

    options: EvaluationOptions
    """Without files of problems."""
    problems: tuple[tuple[str, str, str], ...]
    """Name, format and content of each file of problems."""
    models: tuple[tuple[str, Checkpoint | Mixture], ...]
    """Each with its label."""
    stamps: tuple[tuple[Mapping[str, Stamp], ...], ...]
    """Of each model's checkpoints, size and time (ns) of a local one's files."""
    sizes: tuple[int, ...]
    """Bytes of each model's weights."""
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    digest: str = ""

    kind = "eval"

    @classmethod
    def of(cls, options: EvaluationOptions, models: Sequence[tuple[str, Checkpoint | Mixture]]) -> EvalWork:
        """The work of an evaluation, whose options name the device itself.

        Raises:
            EvaluationError: a file of problems cannot be read any more.
            HubExtrapError: a checkpoint cannot be looked into.
        """
        looked = [[_look(one) for one in _checkpoints(model)] for _, model in models]
        files = tuple((file.path.name, file.format, _text(file.path)) for file in options.task_files)
        folders = [Path(path).absolute() for path in options.include_path]
        return cls(
            replace(options, task_files=(), include_path=folders, executor="local"),
            files,
            tuple(models),
            tuple(tuple(stamps for stamps, _ in one) for one in looked),
            tuple(sum(size for _, size in one) for one in looked),
        )

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for label, _ in self.models)

    def bytes_of(self, unit: int) -> int:
        return self.sizes[unit]

    @property
    def peak_memory(self) -> int:
        widened = 1 if self.options.dtype == "auto" else 2  # at most, from two bytes a weight to four
        return BASELINE + widened * max(self.sizes, default=0)

    @property
    def gpus(self) -> int:
        return int(self.options.device.startswith("cuda") or self.options.backend == "vllm")

    def hands(self, progress: Progress) -> EvalHands:
        return EvalHands(self, progress)

    def same_results(self, other: EvalWork) -> bool:
        return self.to_bytes() == other.to_bytes()

    @classmethod
    def here(cls) -> dict[str, str]:
        return _versions()

    def measured(self, record: Record) -> Measurement:
        """What is on record of a model.

        Raises:
            CorruptFile: it does not say what a measurement says.
        """
        try:
            return Measurement.model_validate(record.content["measurement"])
        except (ValueError, KeyError) as error:
            raise CorruptFile(
                f"the record of unit {record.unit} ({self.labels[record.unit]}) is none of a measurement; "
                "remove it, and the unit is done again"
            ) from error

    def _content(self) -> dict[str, Any]:
        options, answering = self.options, self.options.answering
        return {
            "tasks": list(options.tasks),
            "include_path": list(map(str, options.include_path)),
            "answering": None if answering is None else asdict(answering),
            "options": {name: getattr(options, name) for name in _PLAIN},
            "problems": list(map(list, self.problems)),
            "models": [
                {
                    "label": label,
                    "checkpoints": list(map(checkpoint_as_json, _checkpoints(model), stamps)),
                    "mixed": [list(model.coefficients), model.target_step]
                    if isinstance(model, Mixture)
                    else None,
                    "size": size,
                }
                for (label, model), stamps, size in zip(self.models, self.stamps, self.sizes, strict=True)
            ],
        }

    @classmethod
    def _from_content(cls, stated: Mapping[str, Any], digest: str) -> EvalWork:
        models, stamps = [], []
        for one in stated["models"]:
            pairs = [checkpoint_from_json(each) for each in one["checkpoints"]]
            checkpoints = tuple(checkpoint for checkpoint, _ in pairs)
            model: Checkpoint | Mixture = checkpoints[0]
            if one["mixed"] is not None:
                coefficients, step = one["mixed"]
                model = Mixture(checkpoints, tuple(coefficients), step)
            models.append((one["label"], model))
            stamps.append(tuple(of for _, of in pairs))
        answering = stated["answering"]
        return cls(
            EvaluationOptions(
                stated["tasks"],
                include_path=list(map(Path, stated["include_path"])),
                answering=None if answering is None else Answering(**answering),
                **{name: stated["options"][name] for name in _PLAIN},
            ),
            tuple((_plain_name(name), kind, text) for name, kind, text in stated["problems"]),
            tuple(models),
            tuple(stamps),
            tuple(one["size"] for one in stated["models"]),
            stated["versions"],
            digest,
        )


class EvalHands(Hands):
    """Puts the tasks to one model after the other; tasks are loaded once."""

    def __init__(self, plan: EvalWork, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._files: TemporaryDirectory[str] | None = None
        self._harness: Harness | None = None

    def do(self, unit: int, records: Mapping[int, Record]) -> dict[str, Any]:
        label, model = self._plan.models[unit]
        harness = self._open()
        self._check(unit)
        found = harness.measure(label, model)
        self._check(unit)
        return {"measurement": parse_json(found.model_dump_json(), label)}

    def close(self) -> None:
        if self._files is not None:
            self._files.cleanup()

    def _open(self) -> Harness:
        if self._harness is None:
            plan = self._plan
            for folder in plan.options.include_path:
                if not folder.is_dir():
                    raise EvaluationError(
                        f"{folder}: is not there on this machine ({os.uname().nodename}); include_path has "
                        "to name folders that every worker sees under the same path",
                        file=folder,
                    )
            self._files = TemporaryDirectory(prefix="hubextrap-tasks-")
            files = []
            for name, kind, text in plan.problems:
                path = Path(self._files.name, name)
                path.write_bytes(text.encode())
                files.append(TaskFile(path, kind))  # type: ignore[arg-type]
            self._harness = Harness(replace(plan.options, task_files=files), self._progress)
        return self._harness

    def _check(self, unit: int) -> None:
        """Refuse local checkpoints that are not as they were.

        Raises:
            SourceError: somebody has written to one.
        """
        _, model = self._plan.models[unit]
        for one, stamps in zip(_checkpoints(model), self._plan.stamps[unit], strict=True):
            if stamps:
                with closing(open_source(one)) as source:
                    check_unmoved(source, stamps, one.step)


def _versions() -> dict[str, str]:
    """Without what follows a plus: nodes with a GPU have another build of the same torch."""
    return {name: version.partition("+")[0] for name, version in evaluation_versions().items()}


def _checkpoints(model: Checkpoint | Mixture) -> tuple[Checkpoint, ...]:
    return model.checkpoints if isinstance(model, Mixture) else (model,)


def _look(checkpoint: Checkpoint) -> tuple[dict[str, Stamp], int]:
    """The stamps of a local checkpoint's files that a model is made from; the bytes of any one's weights."""
    stamps: dict[str, Stamp] = {}
    size = 0
    with closing(open_source(checkpoint)) as source:
        for file, info in source.files().items():
            size += info.size * file.endswith(_WEIGHTS)
            if isinstance(source, LocalSource) and (file.endswith(_WEIGHTS) or is_side_file(file)):
                length, time, *_ = source.stamp(file)
                stamps[file] = length, time
    return stamps, size


def _text(path: Path) -> str:
    try:
        return read_named(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read any more; run the command again", file=path) from error


def _plain_name(name: str) -> str:
    if not name or Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file")
    return name
