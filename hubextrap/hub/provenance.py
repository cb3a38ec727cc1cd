"""``hubextrap.json``: what a prediction was made from, so that anyone can make it again and check its bytes.

The file is a function of the inputs, the recipe and the versions: no time, no host, no path of the machine,
no secret. The same prediction writes the same file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hubextrap._version import __version__
from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.containment import entry_at, read_named
from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_json, shorten
from hubextrap.hub.provenance_checks import check_provenance, horizon_of, is_plain_name, one_line
from hubextrap.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint

PROVENANCE_FILE = "hubextrap.json"

_PACKAGES = ("torch", "safetensors", "huggingface_hub")
_ABSOLUTE_PATH = re.compile(
    r"""(?P<quote>["'])(?:(?:file://)?/|~/|[A-Za-z]:[\\/])(?P<quoted>[^"'\n]*)(?P=quote)  # may hold blanks
      | (?<![^\s,=\[{(])(?:(?:file://)?/|~/|[A-Za-z]:[\\/])(?P<bare>[^\s,\]}"'#]*)""",
    re.VERBOSE,
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


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputFile(_Part):
    """One weight file that went in: how much of it was read, and what the whole was compared with."""

    file: str
    size: int = Field(ge=0)
    read: Literal["whole", "part", "header"]
    """Whole, but for small tensors that are not needed; the tensors that are needed; or no tensor."""
    listed: str | None
    """The sha256 that the Hub lists for it, a git blob id where it is no LFS file; None: it is local."""
    compared: bool
    """Whether all bytes were hashed and have that hash. What is read in part cannot be compared."""


class InputCheckpoint(_Part):
    """One checkpoint that went in. Of a local folder (no repo, no commit) ``path`` is the last part."""

    step: int
    repo: str | None
    revision: str
    commit: str | None
    path: str
    files: tuple[InputFile, ...] = ()
    """Its weight files; empty where hubextrap was older and compared none."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, files: Iterable[InputFile] = ()) -> InputCheckpoint:
        local = checkpoint.repo is None
        return cls(
            step=checkpoint.step,
            repo=checkpoint.repo,
            revision="local" if local else checkpoint.revision,
            commit=checkpoint.commit,
            path=one_line(redact(Path(checkpoint.path).name)) if local else checkpoint.path,
            files=tuple(files),
        )


class CoefficientRule(_Part):
    """The tensors that ``match`` (a glob; first match wins) and the coefficient that each step gets there."""

    match: str
    method: str
    coefficients: dict[int, float]


class OutputShard(_Part):
    """One weight file, or one beside the weights, as it was written."""

    file: Annotated[str, AfterValidator(_inside_folder)]
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Provenance(_Part):
    """The content of ``hubextrap.json``."""

    format: Literal[1] = 1
    versions: dict[str, str]
    merge_method: str
    parameters: dict[str, Any]
    target_step: int | None
    horizon: float | None
    """(target − last) / (last − base): how far beyond what was observed, in units of what was observed."""
    expected_relative_error: float | None = None
    """What this run's own past let expect, 1 being the last checkpoint as it is; None: it was not asked, or
    could not say. Where rounding to 16 bits drowns the updates, of the motion's two leading directions."""
    inputs: tuple[InputCheckpoint, ...] = Field(min_length=1)
    coefficients: tuple[CoefficientRule, ...]
    dtype: str
    """In which the sums were accumulated, e.g. ``float32``."""
    out_dtype: str | None
    """In which the weights are stored; None: each tensor as in the last checkpoint."""
    shards: tuple[OutputShard, ...]
    files: tuple[OutputShard, ...] | None = None
    """What was written beside the weights, but for the card, which may be edited, and this file; None where
    that was before there was this field: then they are not covered."""
    recipe: str

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in self.inputs)

    @property
    def repos(self) -> tuple[str, ...]:
        """The Hub repos that went in, in step order, each once."""
        return tuple(dict.fromkeys(checkpoint.repo for checkpoint in self.inputs if checkpoint.repo))

    def to_bytes(self) -> bytes:
        """The file: JSON with a fixed order of keys and its own digest: equal provenance, equal bytes."""
        content = sealed(self.model_dump(mode="json"))
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


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
    files: Mapping[str, bytes] | None = None,
    input_files: Sequence[Sequence[InputFile]] | None = None,
) -> Provenance:
    """Collect the provenance of a finished merge; everything in it is fit to be published.

    Args:
        checkpoints: in step order.
        input_files: the weight files of each checkpoint.
        parameters: the method's, as the recipe gives them (JSON values).
        recipe: the recipe's own text.
        files: what is written beside the weights, by path, but for the card and this file.
    """
    return Provenance(
        versions={"hubextrap": __version__, **{name: _version_of(name) for name in _PACKAGES}},
        merge_method=merge_method,
        parameters=_publishable(dict(sorted(parameters.items()))),
        target_step=target_step,
        horizon=horizon_of([checkpoint.step for checkpoint in checkpoints], target_step),
        expected_relative_error=None
        if expected_relative_error is None
        else round(expected_relative_error, 6),
        inputs=tuple(
            InputCheckpoint.of(checkpoint, read)
            for checkpoint, read in zip(checkpoints, input_files or [()] * len(checkpoints), strict=True)
        ),
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
            OutputShard(file=file, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for file, content in sorted(files.items())
        ),
        recipe=without_private_parts(recipe),
    )


def read_provenance(source: bytes | Path, name: str | None = None) -> Provenance:
    """Read ``hubextrap.json`` from its bytes, its path, or the folder that holds it.

    Args:
        name: what messages call it; the path when None.

    Raises:
        CorruptFile: it is not there, is not JSON, or does not say what it must; names the field.
    """
    if isinstance(source, Path):
        path = source / PROVENANCE_FILE if source.is_dir() else source
        name = name or str(path)
        try:
            source = _bytes_of(path)
        except OSError as error:
            raise CorruptFile(
                f"{name}: cannot be read ({error.strerror}); only hubextrap's own output has one"
            ) from error
    name = name or PROVENANCE_FILE
    content = parse_json(source, name, remedy="download or merge the model again")
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > 1:
        raise CorruptFile(
            f"{name}: has format {content['format']}, this hubextrap reads format 1; upgrade hubextrap"
        )
    try:
        stated = content.pop(DIGEST, None) if isinstance(content, dict) else None
        provenance = Provenance.model_validate(content)
        check_provenance(provenance)
        if stated is not None:
            unsealed({**content, DIGEST: stated})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "the file"
        said = shorten(f"{field}: {problem['msg']}", 500)
        raise CorruptFile(f"{name}: {said}; download or merge the model again") from error
    except (ValueError, OverflowError) as error:
        raise CorruptFile(f"{name}: {shorten(str(error), 500)}; download or merge the model again") from error
    return provenance


def _bytes_of(path: Path) -> bytes:
    """The file's bytes; OSError where they cannot be read, or lie outside of its folder."""
    entry = entry_at(os.path.realpath(path.parent), str(path))
    if entry.problem is not None and os.path.lexists(path):
        raise OSError(errno.EINVAL, entry.problem, str(path))
    return read_named(path)


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
