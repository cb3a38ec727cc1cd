"""What is put to a checkpoint, and how: one object from the recipe or the command line to what measures."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hubextrap.errors import EvaluationError, wrong_argument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.recipe import EvaluateSection

Backend = Literal["hf", "vllm"]
Format = Literal["exact", "math", "choice"]
DEFAULT_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Answering:
    """How often and how a problem of our own tasks is answered; None leaves it to the task."""

    repeats: int | None = None
    temperature: float | None = None
    """0 is greedy."""
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.repeats is not None and self.repeats < 1:
            raise EvaluationError(f"repeats {self.repeats}: a problem has to be answered at least once")
        if self.temperature is not None and self.temperature < 0:
            raise EvaluationError(f"temperature {self.temperature:g}: has to be 0 (greedy) or above")
        if self.temperature == 0 and (self.repeats or 1) > 1:
            raise EvaluationError(
                "temperature 0 gives the same answer every time; leave out repeats, or give a temperature"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise EvaluationError(f"max_tokens {self.max_tokens}: has to be at least 1")

    def __bool__(self) -> bool:
        return self != Answering()

    def options(self) -> list[str]:
        """The options of `hubextrap eval` that say the same."""
        given = zip(("--repeats", "--temperature", "--max-tokens"), astuple(self), strict=True)
        return [part for name, value in given if value is not None for part in (name, f"{value:g}")]


@dataclass(frozen=True, slots=True)
class TaskFile:
    """Problems in a JSON Lines file."""

    path: Path
    """A name will do."""
    format: Format

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, PathLike)):
            raise wrong_argument("path", "the path of a file of problems", self.path)
        object.__setattr__(self, "path", Path(self.path))

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Tasks and settings of an evaluation, the same for every checkpoint."""

    tasks: Sequence[str] = ()
    """lm-eval tasks, groups or tags, and our own."""
    include_path: Sequence[Path] = ()
    """Folders with task files of the user's own."""
    task_files: Sequence[TaskFile] = ()
    """Files of problems."""
    answering: Answering | None = None
    """How often and how the problems of our own tasks and of ``task_files`` are answered."""
    limit: int | None = None
    """Only the first so many documents of each task."""
    batch_size: int | None = None
    """Sequences at a time, ``DEFAULT_BATCH_SIZE`` if None; samples depend on it."""
    num_fewshot: int | None = None
    """Examples in the prompt, where a task does not fix them at 0."""
    seed: int = 0
    """Of every random generator, set anew before each checkpoint."""
    apply_chat_template: bool = False
    device: str = "auto"
    """``auto`` takes the first CUDA device where there is one; else as torch names it."""
    dtype: str = "auto"
    """``auto`` for each checkpoint's own, or as torch names it."""
    backend: Backend = "hf"
    """``hf`` is transformers; ``vllm`` is lm-eval's model for vLLM."""
    executor: str = "local"
    """Who runs the models: ``local`` for this process, one by one; ``ray`` for a Ray cluster."""

    def __post_init__(self) -> None:
        """One task, folder or file in place of several is a list of one."""
        from hubextrap.given import check_executor  # what a recipe takes is imported with it

        check_executor(self.executor)
        for name, kinds, wanted in (
            ("tasks", str, "the name of a task, or a list of names"),
            ("include_path", (str, PathLike), "a folder, or a list of folders"),
            ("task_files", TaskFile, "a TaskFile, or a list of them"),
        ):
            given = getattr(self, name)
            several = (given,) if isinstance(given, kinds) else given
            if not isinstance(several, (list, tuple)) or not all(isinstance(one, kinds) for one in several):
                raise wrong_argument(name, wanted, given)
            object.__setattr__(self, name, several)

    @classmethod
    def of(cls, section: EvaluateSection, **where: Any) -> EvaluationOptions:
        """What a recipe's evaluate section says.

        Args:
            where: device, dtype, backend and executor, which no recipe says.
        """
        return cls(
            tasks=section.tasks,
            include_path=[Path(path) for path in section.include_path or ()],
            task_files=[TaskFile(Path(path), section.format) for path in section.task_files],
            answering=Answering(section.repeats, section.temperature, section.max_tokens),
            limit=section.limit,
            batch_size=section.batch_size,
            num_fewshot=section.num_fewshot,
            seed=section.seed,
            apply_chat_template=section.apply_chat_template,
            **where,
        )

    @property
    def names(self) -> list[str]:
        """What will be measured, by the names of the tasks."""
        return [*dict.fromkeys(self.tasks), *(file.name for file in self.task_files)]
