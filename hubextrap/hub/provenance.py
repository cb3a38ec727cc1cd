"""``hubextrap.json``: what a prediction was made from, so that anyone can make it again and check its bytes.

The file is a function of the inputs, the recipe and the versions: no time, no host, no path of the machine,
no secret. The same prediction writes the same file.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from hubextrap._version import __version__
from hubextrap.claims import sealed
from hubextrap.clocks import horizon_of
from hubextrap.digests import sha256_hex
from hubextrap.methods import MAX_STEP
from hubextrap.notebooks import counted, one_line, steps_in_words
from hubextrap.redaction import redact
from hubextrap.statistics.table import GROUPS
from hubextrap.trajectory.checkpoint import is_untouched_base
from hubextrap.trajectory.run_name import path_in_run, paths_in_run, run_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hubextrap.clocks import Clock
    from hubextrap.statistics import Trust
    from hubextrap.tensors.interfaces import FileInfo
    from hubextrap.trajectory.checkpoint import Checkpoint

PROVENANCE_FILE = "hubextrap.json"

_CONTROL = re.compile("[\x00-\x1f\x7f]")
"""What no name and no line of a provenance holds."""
READ = "read"
"""The context in which a provenance is validated that others may have written."""

_DRIVE = re.compile("[A-Za-z]:")
_PACKAGES = ("numba", "safetensors", "huggingface_hub")
_ABSOLUTE_PATH = re.compile(
    r"""(?P<quote>["'])(?:(?:file://)?/|~/|[A-Za-z]:[\\/])(?P<quoted>[^"'\n]*)(?P=quote)  # may hold blanks
      | (?<![^\s,=\[{(])(?:(?:file://)?/|~/|[A-Za-z]:[\\/])(?P<bare>[^\s,\]}"'#]*)""",
    re.VERBOSE,
)


def is_plain_name(file: str) -> bool:
    """Whether ``file`` is the one way to write a path inside a folder, on any system, and no control text."""
    path = PurePosixPath(file)
    return (
        path.as_posix() == file != "."
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in file
        and _DRIVE.match(file) is None
        and _CONTROL.search(file) is None
    )


def without_private_parts(text: str) -> str:
    """``text`` without secrets, and with absolute paths cut to their last part: fit to be published."""
    return _ABSOLUTE_PATH.sub(_last_part, redact(text))


def _last_part(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    path = match["quoted"] if quote else match["bare"]
    name = PurePosixPath(path.replace("\\", "/")).name
    return f"{quote}{name}{quote}" if name else match[0]


def _inside_folder(file: str) -> str:
    if not is_plain_name(file):
        raise ValueError(f"{file!r} does not lie inside the model's folder")
    return file


def _one_line(text: str, info: ValidationInfo) -> str:
    if info.context == READ and _CONTROL.search(text):
        raise ValueError(f"{text!r} holds a control character")
    return text


FileName = Annotated[str, AfterValidator(_inside_folder)]
Line = Annotated[str, AfterValidator(_one_line)]
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


HowRead: TypeAlias = Literal["whole", "part", "header"]


class InputFile(_Part):
    """One weight file that went in: how much of it was read, and what the whole was compared with."""

    file: FileName
    size: int = Field(ge=0)
    read: HowRead
    """Whole, but for small tensors that are not needed; the tensors that are needed; or no tensor."""
    listed: str | None = Field(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")
    """The sha256 that the Hub lists for it, a git blob id where it is no LFS file; None: it is local."""
    compared: bool
    """Whether all bytes were hashed and have that hash. What is read in part cannot be compared."""

    @classmethod
    def of(cls, file: str, info: FileInfo, read: HowRead) -> InputFile:
        """What is said of a file of which so much is read."""
        compared = read == "whole" and info.digest is not None
        return cls(file=file, size=info.size, read=read, listed=info.digest, compared=compared)


class InputCheckpoint(_Part):
    """One checkpoint that went in. A local one has no repo and no commit; its ``path`` is that in the run."""

    step: Step
    repo: Line | None
    revision: Line
    commit: str | None = Field(pattern="^[0-9a-f]{40}$")
    path: Line
    files: tuple[InputFile, ...] = ()
    """Its weight files; empty where hubextrap was older and compared none."""

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, files: Iterable[InputFile] = (), place: str | None = None
    ) -> InputCheckpoint:
        """What is said of a checkpoint; ``place`` is a local one's in its run, by its path alone if None."""
        local = checkpoint.repo is None
        if is_untouched_base(checkpoint):
            place = checkpoint.name
        return cls(
            step=checkpoint.step,
            repo=checkpoint.repo,
            revision="local" if local else checkpoint.revision,
            commit=checkpoint.commit,
            path=_published(place or path_in_run(checkpoint)) if local else checkpoint.path,
            files=tuple(files),
        )


class CoefficientRule(_Part):
    """The tensors that ``match`` (a glob; first match wins) and the coefficient that each step gets there."""

    match: str
    method: Line
    coefficients: dict[int, float]


class OutputShard(_Part):
    """One weight file, or one beside the weights, as it was written."""

    file: FileName
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ClockRecord(_Part):
    """The clock that a prediction went by, where that was not the step."""

    name: Line
    said: Line
    """In one line: where it comes from, and the schedule that it goes on by."""
    details: dict[str, Any]
    times: tuple[float, ...]
    """Of the inputs, in full-rate steps."""
    target_time: float

    @classmethod
    def of(cls, clock: Clock, times: Sequence[float], target_time: float) -> ClockRecord | None:
        """None for the clock of steps."""
        details = clock.as_json()
        if details is None:
            return None
        return cls(
            name=clock.name,
            said=without_private_parts(clock.in_words()),
            details=_publishable(details),
            times=tuple(times),
            target_time=target_time,
        )


class TrustRecord(_Part):
    """Up to where the run's own past trusted the method, as `hubextrap backtest` judges it."""

    horizon: float = Field(ge=0)
    """(target − last) / (last − first) on the clock; 0: nowhere beyond the last checkpoint."""
    step: Step | None
    """The step that lies there; None where the clock never gets there."""

    @classmethod
    def of(cls, found: Trust | None) -> TrustRecord | None:
        return None if found is None else cls(horizon=found.horizon, step=found.step)


class SampleRecord(_Part):
    """What was looked at where not all weights were: the expected error comes from it, and coefficients that
    are fitted to the weights do."""

    weights_per_tensor: int = Field(ge=1)
    """Of each tensor, where it has as many."""
    drawn: Line = "by name and number of elements"
    groups: int = Field(default=GROUPS, ge=2)
    """Of each tensor's weights: how a figure changes without one of them says its standard error."""


class AdapterRecord(_Part):
    """What was made of a run of LoRA adapters."""

    output: Literal["adapter", "merged"]
    """An adapter like those of the run, or the model with it merged in."""
    rank: int | None = Field(default=None, ge=1)
    """The adapter's."""
    lost: dict[Line, float] | None = None
    """What the cut to that rank lost of each change's energy ‖Δ‖², by the base's tensor; None: nothing was
    cut."""
    base: InputCheckpoint | None = None
    """The model that it was merged into, with the files that were read; of an adapter where tensors that
    were trained whole begin at the base's."""
    base_name: Line | None = None
    """The base's repo, by whoever predicted or the adapters' own configuration; None of a folder."""

    @property
    def in_words(self) -> str:
        return "a full model" if self.rank is None else f"an adapter of rank {self.rank}"


_ONLY_WHERE_THERE = ("run", "clock", "expected_relative_error_stderr", "sample", "trusted", "adapter")
"""Fields that the file does not have where there is nothing to say."""


class Provenance(_Part):
    """The content of ``hubextrap.json``."""

    format: Literal[1] = 1
    versions: dict[Line, Line]
    merge_method: Line
    parameters: dict[str, Any]
    target_step: Step | None
    run: Line | None = None
    """The run's name, where the inputs do not say it: that of the local folder that holds the steps."""
    horizon: float | None
    """(target − last) / (last − first) on the clock: how far beyond what was observed, in units of that."""
    clock: ClockRecord | None = None
    """What time was counted by; None: by steps."""
    expected_relative_error: float | None = Field(default=None, ge=0)
    """The error to expect by this run's own past, 1 being the last checkpoint as it is; None: it was not
    asked, or could not say. Where rounding to 16 bits drowns the updates, of the motion's two leading
    directions."""
    expected_relative_error_stderr: float | None = Field(default=None, ge=0)
    """Of what the sample says; None: all weights were read."""
    sample: SampleRecord | None = None
    """None: whatever was compared was compared in all weights."""
    trusted: TrustRecord | None = None
    """None: nothing said it."""
    adapter: AdapterRecord | None = None
    """None: the run is one of whole models."""
    inputs: tuple[InputCheckpoint, ...] = Field(min_length=1)
    coefficients: tuple[CoefficientRule, ...]
    dtype: Line
    """In which the sums were accumulated, e.g. ``float32``."""
    out_dtype: Line | None
    """In which the weights are stored; None: each tensor as in the last checkpoint."""
    shards: tuple[OutputShard, ...]
    files: tuple[OutputShard, ...] | None = None
    """What was written beside the weights, but for the card, which may be edited, and this file; None where
    that was before there was this field: then they are not covered."""
    recipe: str

    def __repr__(self) -> str:
        what = f"{self.merge_method} to step {self.target_step}"
        observed = f"{counted(len(self.inputs), 'checkpoint')}, {steps_in_words(self.steps)}"
        return one_line(self, what, f"from {observed}", counted(len(self.shards), "weight file"))

    __str__ = __repr__

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in self.inputs)

    @property
    def full_rate_steps(self) -> float | None:
        """How far behind the last checkpoint the target lies, where that was said and no step."""
        if "target" not in self.parameters or self.target_step is None:
            return None
        return self.target_step - self.steps[-1]

    @property
    def trusted_in_words(self) -> str | None:
        """``step 425``; or how many full-rate steps behind the last one, where the clock never gets there."""
        if self.trusted is None:
            return None
        if self.trusted.step is not None:
            return f"step {self.trusted.step:,}"
        times: Sequence[float] = self.steps if self.clock is None else self.clock.times
        return (
            f"step {self.steps[-1]:,} + {self.trusted.horizon * (times[-1] - times[0]):,.0f} full-rate steps"
        )

    @property
    def run_name(self) -> str | None:
        """What the run is called; None where nothing says it."""
        return self.run or run_name(self.inputs)

    @property
    def repos(self) -> tuple[str, ...]:
        """The Hub repos that went in, in step order, each once."""
        return tuple(dict.fromkeys(checkpoint.repo for checkpoint in self.inputs if checkpoint.repo))

    def to_bytes(self) -> bytes:
        """The file: JSON with a fixed order of keys and its own digest: equal provenance, equal bytes."""
        left_out = {name for name in _ONLY_WHERE_THERE if getattr(self, name) is None}
        content = sealed(self.model_dump(mode="json", exclude=left_out))
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 6)


def build_provenance(
    *,
    checkpoints: Sequence[Checkpoint],
    merge_method: str,
    parameters: Mapping[str, Any],
    target_step: int | None,
    coefficients: Sequence[CoefficientRule],
    shards: Sequence[OutputShard],
    dtype: str,
    out_dtype: str | None,
    recipe: str,
    expected_relative_error: float | None = None,
    expected_relative_error_stderr: float | None = None,
    sample: SampleRecord | None = None,
    files: Mapping[str, bytes] | None = None,
    input_files: Sequence[Sequence[InputFile]] | None = None,
    clock: ClockRecord | None = None,
    trusted: TrustRecord | None = None,
    adapter: AdapterRecord | None = None,
) -> Provenance:
    """Collect the provenance of a finished merge; everything in it is fit to be published.

    Args:
        checkpoints: in step order.
        input_files: the weight files of each checkpoint.
        parameters: the method's, as the recipe gives them (JSON values).
        recipe: the recipe's own text.
        files: what is written beside the weights, by path, but for the card and this file.
    """
    if clock is None:
        horizon = horizon_of([checkpoint.step for checkpoint in checkpoints], target_step)
    else:
        horizon = horizon_of(clock.times, clock.target_time)
    inputs = tuple(
        InputCheckpoint.of(checkpoint, read, place)
        for checkpoint, read, place in zip(
            checkpoints, input_files or [()] * len(checkpoints), paths_in_run(checkpoints), strict=True
        )
    )
    name = run_name(checkpoints)
    return Provenance(
        versions={"hubextrap": __version__, **{name: _version_of(name) for name in _PACKAGES}},
        merge_method=merge_method,
        parameters=_publishable(dict(sorted(parameters.items()))),
        target_step=target_step,
        run=None if name is None or name == run_name(inputs) else _published(name),
        horizon=horizon,
        clock=clock,
        expected_relative_error=_rounded(expected_relative_error),
        expected_relative_error_stderr=_rounded(expected_relative_error_stderr),
        sample=sample,
        trusted=trusted,
        adapter=adapter,
        inputs=inputs,
        coefficients=tuple(
            rule.model_copy(update={"coefficients": dict(sorted(rule.coefficients.items()))})
            for rule in coefficients
        ),
        dtype=dtype,
        out_dtype=out_dtype,
        shards=tuple(sorted(shards, key=lambda shard: shard.file)),
        files=None
        if files is None
        else tuple(
            OutputShard(file=file, size=len(content), sha256=sha256_hex(content))
            for file, content in sorted(files.items())
        ),
        recipe=without_private_parts(recipe),
    )


def _published(name: str) -> str:
    return _CONTROL.sub(" ", redact(name))


def _publishable(value: Any) -> Any:
    if isinstance(value, str):
        return without_private_parts(value)
    if isinstance(value, dict):
        return {str(key): _publishable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_publishable(item) for item in value]
    return value


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # e.g. run from a source tree
        return "unknown"
