"""The options that several commands take, each declared once, and groups of them that go to one place.

A command's parameter that is annotated with a group is read option by option: see `grouped`.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from hubextrap.cli.markdown import check_summary
from hubextrap.cli.progress import open_progress
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS, MiB
from hubextrap.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from hubextrap.api import MergeOptions, ReadingOptions
    from hubextrap.evaluation import Gate
    from hubextrap.hub import PushTarget
    from hubextrap.progress import Progress
    from hubextrap.trajectory import TrajectoryOptions

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file; `hubextrap recipes ls` lists some.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; it must not be there yet.")]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="For all of the results; give it again to go on.")
]
PushTo = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="REPO[@REVISION]",
        help="Push there, straight from memory, instead of where the recipe's push section says.",
    ),
]
Private = Annotated[
    bool,
    typer.Option("--private", help="Make the repo private when it is created; refuse one that is public."),
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
ResultsFile = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Save the evaluation, figures and settings, as JSON."),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, help="Of every random generator, set anew for each checkpoint and each prompt."
    ),
]
ScanFile = Annotated[
    Path | None,
    typer.Option(
        "--scan",
        metavar="FILE",
        help="A scan of these checkpoints, as `hubextrap scan RECIPE --out FILE` saves it: weights are not "
        "read once more for what it knows.",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="LIST",
        help="lm-eval tasks, groups or tags, and hubextrap's own, with commas in between, or one per option.",
    ),
]
IncludePath = Annotated[
    list[Path] | None,
    typer.Option(
        "--include-path",
        metavar="DIR",
        help="Folder with task files of your own; may be repeated.",
    ),
]
Clock = Annotated[
    str | None,
    typer.Option(
        "--clock",
        metavar="steps|learning_rate|FILE",
        help="What time is counted by: learning_rate reads trainer_state.json beside the last checkpoint, a "
        "FILE holds step and learning_rate. Else as the recipe says, or by the learning rate where it is "
        "found and changed.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Predict beyond what the past of the run can rehearse too: a warning instead of an error.",
    ),
]
ChatTemplate = Annotated[bool, typer.Option("--apply-chat-template", help="Wrap prompts in it.")]


Summary = Annotated[
    Path | None,
    typer.Option(
        "--summary",
        callback=check_summary,
        metavar="FILE",
        help="Add the result as Markdown to this file, e.g. $GITHUB_STEP_SUMMARY.",
    ),
]


@dataclass(frozen=True)
class Selection:
    """Which checkpoints of a REF; a recipe or a scan says itself which ones it takes."""

    pattern: str | None = typer.Option(None, help="How the names of a REF are built, e.g. 'step_{step}'.")
    series: str | None = typer.Option(None, help="Which series of a REF, where several are there.")
    min_step: int | None = typer.Option(None, help="First step to take of a REF.")
    max_step: int | None = typer.Option(None, help="Last step to take of a REF.")
    base: str | None = typer.Option(None, help="Reference of the model at step 0 of a REF.")
    step_scale: float = typer.Option(1.0, help="Steps per unit of the number in the names of a REF.")

    def options(self) -> TrajectoryOptions:
        from hubextrap.trajectory import TrajectoryOptions

        return TrajectoryOptions(**asdict(self))


def check_size(text: str) -> str:
    """See that it is a size while the command line is read, before the work's imports; see `parse_size`.

    Raises:
        typer.BadParameter: it is no such size.
    """
    parse_size(text)
    return text


@dataclass(frozen=True)
class Limits:
    """What work on weights may take."""

    memory: str = typer.Option(
        f"{DEFAULT_MEMORY // MiB}MiB",
        callback=check_size,
        help="Memory that the process may take, e.g. 512MiB or 2GB.",
    )
    workers: int = typer.Option(DEFAULT_WORKERS, min=1, help="Threads that read, compute and write.")

    def merge_options(self) -> MergeOptions:
        from hubextrap.api import MergeOptions

        return MergeOptions(**asdict(self) | {"memory": parse_size(self.memory)})


@dataclass(frozen=True)
class Reading(Limits):
    """How weights are read."""

    cache: bool = typer.Option(False, "--cache", help="Download checkpoints into the Hub cache first.")

    def options(self) -> ReadingOptions:
        from hubextrap.api import ReadingOptions

        return ReadingOptions(parse_size(self.memory), self.workers, self.cache)


def check_device(device: str) -> str:
    """Refuse what is no name of a device that merges, before torch is imported to look for it.

    Raises:
        typer.BadParameter: says so.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise typer.BadParameter(f"{device!r}: weights are combined on cpu or a CUDA device; write cpu")
    return device


@dataclass(frozen=True)
class Merging(Reading):
    """How weights are merged."""

    device: str = typer.Option(
        "cpu",
        callback=check_device,
        help="cpu, or cuda: the same bytes; torch, which cuda needs, comes on top of --memory.",
    )
    allow_non_finite: bool = typer.Option(
        False, "--allow-non-finite", help="Write NaN and infinite weights too."
    )
    force: Force = False


@dataclass(frozen=True)
class Placing:
    """Where a model that answers runs."""

    device: str = typer.Option(
        "auto", help="Of the model: cpu, cuda, cuda:1, …; auto takes a GPU where there is one."
    )
    dtype: str = typer.Option(
        "auto", help="Of the model: bfloat16, float32, …; auto is each checkpoint's own."
    )


@dataclass(frozen=True)
class Measuring(Placing):
    """How a model is measured."""

    backend: str = typer.Option("hf", help="hf (transformers), or vllm, through lm-eval's model for it.")

    def arguments(self) -> dict[str, Any]:
        if self.backend not in ("hf", "vllm"):
            raise typer.BadParameter(f"--backend {self.backend}: has to be hf or vllm")
        return asdict(self)


@dataclass(frozen=True)
class Gating:
    """What a prediction has to reach."""

    max_loss: float | None = typer.Option(
        None,
        "--max-loss",
        metavar="X",
        help="Exit with 3 when a prediction loses more than X against the last observed checkpoint, on the "
        "main metric of any task, in its unit. A negative X asks for a gain: -0.02 is at least 0.02.",
    )
    min_score: list[str] | None = typer.Option(
        None,
        "--min-score",
        metavar="[TASK=]X",
        help="Exit with 3 when the main metric of a prediction is worse than X, on any task or on this one. "
        "Several: with commas in between, or one per option.",
    )

    def gate(self) -> Gate | None:
        """The same for the API; None where nothing is asked for.

        Raises:
            typer.BadParameter: a bound is no number, or there are two for the same.
        """
        from hubextrap.evaluation.threshold import Gate

        if self.max_loss is not None and not math.isfinite(self.max_loss):
            raise typer.BadParameter(f"--max-loss {self.max_loss}: is no number; write one, e.g. 0.02")
        bounds: dict[str, float] = {}
        for text in split_list("--min-score", self.min_score):
            task, _, number = text.rpartition("=")
            if "=" in text and not task:
                raise typer.BadParameter(f"--min-score {text}: names no task; write TASK=X, or X")
            if task in bounds:
                raise typer.BadParameter(f"--min-score {text}: there is a bound for that already; give one")
            bounds[task] = _bound(text, number)
        if self.max_loss is None and not bounds:
            return None
        return Gate(self.max_loss, bounds.pop("", None), bounds)


def _bound(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"--min-score {text}: has to end with a number, as in 0.5 or gsm8k=0.5")
    return value


@dataclass(frozen=True)
class Said:
    """What is said on the way, and how the result is."""

    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress.")
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON.")

    @property
    def progress(self) -> Progress:
        return open_progress(self.quiet)


def names(group: type) -> list[str]:
    """The parameters of a group."""
    return [field.name for field in fields(group)]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each group among its parameters spread out into options, as typer reads them."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = groups.get(name)
        taken = [(name, hints[name], parameter.default)]
        if group is not None:
            kinds = get_type_hints(group, include_extras=True)
            taken = [(field.name, kinds[field.name], field.default) for field in fields(group)]
        parameters += [
            inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for one, kind, default in taken
        ]

    def spread(**given: Any) -> None:
        made = {
            name: group(**{part: given.pop(part) for part in names(group)}) for name, group in groups.items()
        }
        try:
            command(**given, **made)
        except RecipeError as error:
            if error.file is None and "recipe" in given:  # of what cannot be done with it, not of its text
                error.file = str(given["recipe"])
            raise

    spread.__name__, spread.__doc__, spread.__module__ = command.__name__, command.__doc__, command.__module__
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread


def refuse_idle(ctx: typer.Context, parameters: Collection[str], why: str) -> None:
    """Refuse any of these options that was given, as it would have no effect; also with its default value.

    What a run takes (--memory, --workers, --cache), prints (--quiet, --json) or must not ask
    (--no-push-check) always has its effect, also where there is nothing to hold, download or ask.

    Args:
        parameters: names of the command's parameters.
        why: completes "--option …".

    Raises:
        typer.BadParameter: one of them was given.
    """
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        if parameter.name in parameters and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} {why}")


def push_targets(reference: str | None, private: bool = False, create_pr: bool = False) -> list[PushTarget]:
    """What --push names, as the API takes it."""
    from hubextrap.hub import PushTarget

    return [] if reference is None else [PushTarget.parse(reference, private=private, create_pr=create_pr)]


def split_list(option: str, lists: list[str] | None) -> list[str]:
    """What lists with commas name; an option that is given has to name something."""
    named = [part.strip() for text in lists or () for part in text.split(",") if part.strip()]
    if lists and not named:
        raise typer.BadParameter(f"{option} names nothing; leave it out, or name something")
    return named


def parse_size(text: str) -> int:
    """Bytes of ``512MiB``, ``2GB``, ``1073741824`` …

    Raises:
        typer.BadParameter: it is no such size.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = text.strip().rstrip("BbKkMmGgTtIi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no size; write it like 512MiB or 2GB") from None
    if size <= 0:
        raise typer.BadParameter(f"{text!r}: has to be above 0")
    return size
