"""The options that several commands take, each declared once, and groups of them that go to one place.

A command's parameter that is annotated with a group is read option by option: see `grouped`.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from hubextrap.cli.markdown import check_summary
from hubextrap.cli.progress import open_progress
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS, MiB
from hubextrap.errors import RecipeError
from hubextrap.evaluation.options import DEFAULT_BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from hubextrap.api import MergeOptions, ReadingOptions
    from hubextrap.hub import PushTarget
    from hubextrap.progress import Progress
    from hubextrap.trajectory import TrajectoryOptions

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file. `hubextrap recipes ls` lists some to copy.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder to write the model to. It must not exist yet."),
]
OutPlace = Annotated[Path | None, typer.Argument(metavar="OUT", help="The same as --out.")]
OutFolder = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Folder for the results. Give the same one again to go on after a stop."
    ),
]
PushTo = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="REPO[@REVISION]",
        help="Push the model to this repo, without a local copy. It replaces the recipe's push section.",
    ),
]
Private = Annotated[
    bool,
    typer.Option("--private", help="Create the repo as private. An existing public repo is refused."),
]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request instead of committing to the branch.")
]
ResultsFile = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Save the scores and the settings behind them as JSON."),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        metavar="N",
        help="Seed of all random draws. It is set again for each checkpoint and each prompt.",
    ),
]
ScanFile = Annotated[
    Path | None,
    typer.Option(
        "--scan",
        metavar="FILE",
        help="A scan of these checkpoints, saved by `hubextrap scan --out FILE`. What it holds is not read "
        "from the weights again.",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="LIST",
        help="Names of lm-eval tasks, groups or tags, or of hubextrap's own tasks. Separate them by commas "
        "or repeat the option.",
    ),
]
IncludePath = Annotated[
    list[Path] | None,
    typer.Option(
        "--include-path",
        metavar="DIR",
        help="Folder with your own task files. May be repeated.",
    ),
]
Clock = Annotated[
    str | None,
    typer.Option(
        "--clock",
        metavar="CLOCK",
        help="What counts as time. `steps`: the training step. `learning_rate`: the learning rate added up, "
        "read from trainer_state.json beside the last checkpoint. A file: the same, from its columns step "
        "and learning_rate. Default: what the recipe says; else the learning rate if it is found and "
        "changes; else steps.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Predict even beyond what the run's past can test. That is then a warning, not an error.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="Use only the first N problems of each task."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, metavar="N", help=f"Sequences per batch. Default: {DEFAULT_BATCH_SIZE}."
    ),
]
WriteRecipe = Annotated[
    Path | None,
    typer.Option(
        "--write-recipe",
        metavar="FILE",
        help="Save the recipe of the best method in this file, for `hubextrap run`.",
    ),
]
ChatTemplate = Annotated[
    bool, typer.Option("--apply-chat-template", help="Wrap each prompt in the model's chat template.")
]


Summary = Annotated[
    Path | None,
    typer.Option(
        "--summary",
        callback=check_summary,
        metavar="FILE",
        help="Append the result as Markdown to this file, for example $GITHUB_STEP_SUMMARY.",
    ),
]


@dataclass(frozen=True)
class Selection:
    """Which checkpoints of a REF; a recipe or a scan says itself which ones it takes."""

    pattern: str | None = typer.Option(
        None, metavar="TEXT", help="How checkpoints are named, for example 'step_{step}'."
    )
    series: str | None = typer.Option(
        None,
        metavar="NAME",
        help="Which series to take, if the run has several. `hubextrap steps` names them.",
    )
    min_step: int | None = typer.Option(None, metavar="STEP", help="First step to use.")
    max_step: int | None = typer.Option(None, metavar="STEP", help="Last step to use.")
    base: str | None = typer.Option(
        None,
        metavar="REF",
        help="The model at step 0, if it is not among the checkpoints; of adapters, their base model.",
    )
    step_scale: float = typer.Option(
        1.0, metavar="X", help="Training steps per unit of the number in a checkpoint's name."
    )

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
        metavar="SIZE",
        help="Memory that the command may use, for example 512MiB or 2GB.",
    )
    workers: int = typer.Option(
        DEFAULT_WORKERS, min=1, metavar="N", help="Number of threads that read, compute and write."
    )

    def merge_options(self) -> MergeOptions:
        from hubextrap.api import MergeOptions

        return MergeOptions(**asdict(self) | {"memory": parse_size(self.memory)})


def check_executor(name: str) -> str:
    """Refuse what is no executor while the command line is read: typer.BadParameter."""
    from hubextrap import given

    try:
        return given.check_executor(name)
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from error


Executor = Annotated[
    str,
    typer.Option(
        callback=check_executor,
        metavar="local|ray",
        help="Who does the work: this process, or the workers of a Ray cluster.",
    ),
]


@dataclass(frozen=True)
class Looking(Limits):
    """How checkpoints are looked into."""

    cache: bool = typer.Option(
        False, "--cache", help="Download the checkpoints into the Hugging Face cache first."
    )


@dataclass(frozen=True)
class Reading(Looking):
    """How weights are read."""

    executor: Executor = "local"

    def options(self) -> ReadingOptions:
        from hubextrap.api import ReadingOptions

        return ReadingOptions(parse_size(self.memory), self.workers, self.cache, self.executor)


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
        metavar="DEVICE",
        help="Where weights are combined: cpu, cuda or cuda:1. The result has the same bytes. cuda needs "
        "torch, whose memory comes on top of --memory.",
    )
    allow_non_finite: bool = typer.Option(
        False, "--allow-non-finite", help="Write weights even if some are NaN or infinite."
    )
    force: Force = False


@dataclass(frozen=True)
class Placing:
    """Where a model that answers runs."""

    device: str = typer.Option(
        "auto",
        metavar="DEVICE",
        help="Where the model runs: cpu, cuda, cuda:1, … auto takes a GPU if there is one.",
    )
    dtype: str = typer.Option(
        "auto",
        metavar="DTYPE",
        help="Number format of the model: bfloat16, float32, … auto keeps each checkpoint's own.",
    )


@dataclass(frozen=True)
class Measuring(Placing):
    """How a model is measured."""

    backend: str = typer.Option(
        "hf", metavar="hf|vllm", help="What runs the model: hf (transformers) or vllm, each through lm-eval."
    )

    def arguments(self) -> dict[str, Any]:
        if self.backend not in ("hf", "vllm"):
            raise typer.BadParameter(f"--backend {self.backend}: has to be hf or vllm")
        return asdict(self)


@dataclass(frozen=True)
class Said:
    """What is said on the way, and how the result is."""

    quiet: bool = typer.Option(False, "--quiet", "-q", help="Show no progress.")
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


def one_place(out: Path | None, place: Path | None) -> Path | None:
    """Where to write, said by --out or, as mergekit has it, by a second argument.

    Raises:
        typer.BadParameter: both say it.
    """
    if out is not None and place is not None:
        raise typer.BadParameter(f"OUT ({place}) and --out {out} both say where to write; give one of them")
    return place if out is None else out


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
