"""What one pass over a trajectory found, and the small file that keeps it.

The file is safetensors: integer and float tables, and one JSON object in its metadata for everything else.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, model_validator

from hubextrap._version import __version__
from hubextrap.claims import DIGEST, digest_of
from hubextrap.clocks import RateHistory
from hubextrap.containment import open_regular, regular_at
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import CheckpointError, CorruptFile, ReferenceNotFound, SourceError, wrong_argument
from hubextrap.foreign_data import first_problem, parse_json, shorten
from hubextrap.methods import MAX_STEP
from hubextrap.notebooks import counted, one_line, steps_in_words
from hubextrap.scans.checks import check_examples, check_logprobs, check_tables, is_hash, is_line
from hubextrap.scans.logprobs import LogProbs, LogProbSource
from hubextrap.statistics.linearity import BINS, Linearity, RandomWalk
from hubextrap.statistics.table import GramTable
from hubextrap.tensors.headers import DTYPES, HEADER_LIMIT, build_header, header_end, parse_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

FORMAT = "hubextrap-scan"
VERSION = "1"
EXAMPLES = 4
"""Weights of each tensor whose values are kept, for plots."""
_NUMPY: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F64": np.dtype("<f8"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class ScannedCheckpoint:
    """A checkpoint as it was read."""

    step: int
    name: str
    repo: str | None
    revision: str
    commit: str | None
    path: str
    dtype: str
    """safetensors names of its float dtypes, e.g. ``BF16`` or ``BF16/F32``."""
    pin: str
    """What stands for its bytes: two scans with the same pins have read the same."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The reference protocol: the same filters and R² over weights that were drawn."""

    fraction: float
    counts: NDArray[np.int64]
    """(N, BINS + 3)."""


@dataclass(frozen=True, slots=True)
class Scan:
    """All that the pass found; N tensors, K checkpoints."""

    gram_table: GramTable
    series: str
    checkpoints: tuple[ScannedCheckpoint, ...]
    counts: NDArray[np.int64]
    """(N, BINS + 3): kept weights by R² of their line, then those left out (``linearity.UNMOVED`` …); see
    ``sampled``."""
    random_walk: RandomWalk
    """What a pure random walk would give at these steps."""
    example_places: NDArray[np.int64]
    """(N, EXAMPLES): elements drawn from each tensor; −1 where it has fewer."""
    example_values: NDArray[np.float32]
    """(N, EXAMPLES, K): their values; NaN where there is none. Of adapters, what they had moved by."""
    sample: Sample | None = None
    logprobs: LogProbs | None = None
    rates: RateHistory | None = None
    """What lay beside the last checkpoint said of the learning rate."""
    sampled: int | None = None
    """Of adapters: ``counts`` are of so many weights of each tensor at most, drawn and scaled up to all.
    Those of tensors that were trained whole are of all; so are all where it is None."""

    def __repr__(self) -> str:
        weights = counted(int(self.gram_table.elements.sum()), "weight")
        what = (counted(len(self.steps), "checkpoint"), steps_in_words(self.steps), self.series)
        return one_line(self, *what, counted(len(self.tensors), "tensor"), weights)

    @property
    def steps(self) -> tuple[int, ...]:
        return self.gram_table.steps

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.gram_table.tensors

    @property
    def pins(self) -> tuple[tuple[int, str], ...]:
        """(step, pin) of every checkpoint."""
        return tuple((checkpoint.step, checkpoint.pin) for checkpoint in self.checkpoints)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """How each of the K checkpoints is stored, e.g. ``BF16`` or ``BF16/F32``: see `backtest_table`."""
        return tuple(checkpoint.dtype for checkpoint in self.checkpoints)

    def delta_norms(self) -> NDArray[np.float64]:
        """(N, K): ‖W_k − W_0‖ of each tensor."""
        squares = np.diagonal(self.gram_table.gram, axis1=1, axis2=2)
        # that of a run that came back to its start may be rounded to below 0
        return np.asarray(np.sqrt(squares.clip(min=0.0)), dtype=np.float64)

    def linearity(self, rows: Iterable[int] | None = None) -> Linearity:
        """R² over all weights of some tensors (all of them by default)."""
        chosen = self.counts if rows is None else self.counts[list(rows)]
        return Linearity.from_counts(chosen.sum(axis=0))

    @property
    def sampled_in_words(self) -> str | None:
        """What figures of single weights are of; None where they are of all."""
        if self.sampled is None:
            return None
        return f"from a sample of {self.sampled:,} weights per tensor, as these are adapters"

    def kinds(self) -> dict[str, list[int]]:
        """Rows of the tensors of each kind of module, e.g. ``q_proj``, in order of first appearance."""
        found: dict[str, list[int]] = {}
        for row, tensor in enumerate(self.tensors):
            found.setdefault(module_kind(tensor), []).append(row)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values: totals, and a row for each kind of module."""
        norms = self.delta_norms()
        sampled = self.sample
        return {
            "series": self.series,
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "tensors": len(self.tensors),
            **self.linearity().as_dict(),
            "random_walk": asdict(self.random_walk),
            "sampled": self.sampled,
            "same_weights": [list(steps) for steps in self.gram_table.same_weights()],
            "delta_norm": {
                str(step): float(norm)
                for step, norm in zip(self.steps, np.sqrt((norms**2).sum(axis=0)), strict=True)
            },
            "kinds": [
                {
                    "kind": kind,
                    "tensors": len(rows),
                    **self.linearity(rows).as_dict(),
                    "delta_norm": float(np.sqrt((norms[rows, -1] ** 2).sum())),
                }
                for kind, rows in self.kinds().items()
            ],
            "sample": sampled
            and {
                "fraction": sampled.fraction,
                **Linearity.from_counts(sampled.counts.sum(axis=0)).as_dict(),
            },
            "logprobs": self.logprobs and self.logprobs.as_dict(),
        }

    def save(self, path: Path | str) -> None:
        """Write the file; it appears whole, or not at all. Equal scans give equal bytes.

        Raises:
            OutputError: the disk did not take it.
        """
        path = Path(path)
        described: dict[str, Any] = {
            "hubextrap": __version__,
            "series": self.series,
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "tensors": list(self.tensors),
            "random_walk": asdict(self.random_walk),
            "sample": self.sample and self.sample.fraction,
            "logprobs": self.logprobs
            and {**asdict(self.logprobs.source), "texts": list(self.logprobs.texts)},
        }
        if self.rates is not None:
            described["rates"] = self.rates.as_json()
        if self.sampled is not None:
            described["sampled"] = self.sampled
        tables: dict[str, NDArray[Any]] = {
            "elements": self.gram_table.elements,
            "gram": self.gram_table.gram,
            "counts": self.counts,
            "example_places": self.example_places,
            "example_values": self.example_values,
        }
        if self.sample is not None:
            tables["sample_counts"] = self.sample.counts
        if self.logprobs is not None:
            tables["logprobs"] = self.logprobs.values
            tables["logprob_responses"] = self.logprobs.responses
            tables["logprob_tokens"] = self.logprobs.tokens
        metadata = {"format": FORMAT, "version": VERSION, "scan": json.dumps(described, sort_keys=True)}
        write_tables(path, tables, metadata | {DIGEST: _digest(metadata, tables)})

    @classmethod
    def load(cls, path: Path | str) -> Scan:
        """Read what ``save`` wrote; every claim in it is checked, and that it is as it was written.

        A file from before there was a sha256 in it is read too.

        Raises:
            ReferenceNotFound: no such file.
            CorruptFile: it is no scan, a damaged one, or one of another version.
            SourceError: it cannot be read. WrongArgument: it is no path.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise wrong_argument("scan", "a Scan, or the path of its file", path)
        path = Path(path)
        tables, metadata = _read_tables(path)
        if metadata.get("format") != FORMAT:
            raise _corrupt(path, "is a safetensors file but not a scan; make one with `hubextrap scan`")
        if metadata.get("version") != VERSION:
            raise _corrupt(
                path,
                f"is a scan of format version {metadata.get('version')}, and this hubextrap reads version "
                f"{VERSION}; scan again, or use the hubextrap that wrote it",
            )
        try:
            described = parse_json(
                metadata["scan"], str(path), remedy="remove it, then scan again", limit=HEADER_LIMIT
            )
            return _build(_Described.model_validate(described), tables, metadata)
        except (KeyError, TypeError, ValueError) as error:
            said = f"{error.args[0]} is missing" if isinstance(error, KeyError) else first_problem(error)
            raise _corrupt(path, f"is a damaged scan ({said}); remove it, then scan again") from error


class _Described(BaseModel):
    """The JSON object in a scan's file."""

    series: str
    checkpoints: tuple[ScannedCheckpoint, ...] = Field(min_length=2)
    tensors: tuple[str, ...] = Field(min_length=1)
    random_walk: RandomWalk
    sample: float | None = Field(gt=0, le=1)
    logprobs: dict[str, Any] | None
    rates: dict[str, Any] | None = None
    """Not in files from before there was a clock."""
    sampled: int | None = Field(default=None, gt=0)
    """Not in files of which every weight was looked at."""

    def rate_history(self) -> RateHistory | None:
        """ValueError on what is none."""
        if self.rates is None:
            return None
        try:
            return RateHistory.from_json(self.rates, "rates")
        except CorruptFile as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _can_be(self) -> _Described:
        steps, texts = [checkpoint.step for checkpoint in self.checkpoints], [self.series]
        if steps != sorted(set(steps)) or steps[0] < 0 or steps[-1] > MAX_STEP:
            raise ValueError(f"checkpoints: its steps {steps[:20]} do not increase from 0 to {MAX_STEP}")
        for one in self.checkpoints:
            texts += [text for text in astuple(one) if isinstance(text, str)]
            if (one.repo is None) != (one.commit is None):
                raise ValueError(f"checkpoints: the commit of step {one.step} does not match its repo")
            if one.commit is not None and not is_hash(one.commit):
                raise ValueError(f"checkpoints: the commit of step {one.step} is not a commit")
            if one.dtype and not set(one.dtype.split("/")) <= DTYPES.keys():
                raise ValueError(f"checkpoints: the dtype of step {one.step} is not one of safetensors")
        if not all(map(is_line, texts)):
            raise ValueError("checkpoints: a text is not one line")
        if len(set(self.tensors)) < len(self.tensors):
            raise ValueError("tensors: holds a name twice")
        if not all(0 <= share <= 1 for share in astuple(self.random_walk)):
            raise ValueError("random_walk: does not hold shares from 0 to 1")
        return self


def module_kind(tensor: str) -> str:
    """What kind of module a tensor belongs to: ``model.layers.3.self_attn.q_proj.weight`` → ``q_proj``."""
    parts = [part for part in tensor.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] == "weight":
        return parts[-2]
    return ".".join(parts[-2:])


def write_tables(path: Path, tables: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file beside its place and rename it there."""
    names = {dtype: name for name, dtype in _NUMPY.items()}
    header = build_header(
        [(name, names[table.dtype], table.shape) for name, table in tables.items()], metadata
    )
    content = (np.ascontiguousarray(table).tobytes() for table in tables.values())
    write_whole(path, header, *content, remedy="make room, or choose another --out")


def _read_tables(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        with os.fdopen(open_regular(regular_at(path)), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(8)
            header_end(content, size, str(path))  # what is no scan is not read
            content += file.read(size - len(content))
        shard = parse_header(content, len(content), str(path))
    except FileNotFoundError:
        raise ReferenceNotFound(f"{path}: no such file; make it with `hubextrap scan`", file=path) from None
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read: {error.strerror}; give a scan's file that you may read", file=path
        ) from error
    except CheckpointError as error:
        said = str(error).removeprefix(f"{path}: ").partition("; ")[0]
        raise _corrupt(path, f"is not a complete scan ({said}); remove it, then scan again") from error
    tables = {}
    for info in shard.tensors:
        if (dtype := _NUMPY.get(info.dtype)) is None:
            problem = f"table {shorten(repr(info.name))} is {info.dtype}, so this is not a scan"
            raise _corrupt(path, f"{problem}; make one with `hubextrap scan`")
        table = np.frombuffer(content, dtype, info.nbytes // dtype.itemsize, info.offset)
        tables[info.name] = table.reshape(info.shape)
    return tables, shard.metadata


def _corrupt(path: Path, problem: str) -> CorruptFile:
    return CorruptFile(f"{path}: {problem}", file=path)


def _digest(metadata: Mapping[str, str], tables: Mapping[str, NDArray[Any]]) -> str:
    """Of all that a scan's file says, whatever the order of its tables."""
    content = hashlib.sha256(digest_of(metadata).encode())
    for name, table in sorted(tables.items()):
        content.update(f"{name}\0{table.dtype.str}{table.shape}".encode())
        content.update(np.ascontiguousarray(table).tobytes())
    return content.hexdigest()


def _build(described: _Described, tables: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Scan:
    """KeyError, TypeError or ValueError on anything that does not fit."""
    stated = {key: value for key, value in metadata.items() if key != DIGEST}
    if unknown := sorted(stated.keys() - {"format", "version", "scan"}):
        raise ValueError(f"it holds an unknown field {unknown[0]}")
    digest = _digest(stated, tables)
    checkpoints, tensors, sample = described.checkpoints, described.tensors, described.sample
    n, k = len(tensors), len(checkpoints)
    steps = tuple(checkpoint.step for checkpoint in checkpoints)

    def table(name: str, dtype: str, *shape: int) -> NDArray[Any]:
        if name not in tables:
            raise ValueError(f"table {name} is missing")
        found = tables.pop(name)
        if found.shape != shape or found.dtype != _NUMPY[dtype]:
            raise ValueError(
                f"table {name} is {found.dtype} {list(found.shape)}, but should be {dtype} {list(shape)}"
            )
        return found

    logprobs = None
    if (source := described.logprobs) is not None:
        texts = TypeAdapter(tuple[str, ...]).validate_python(source.pop("texts"))
        logprobs = LogProbs(
            steps,
            TypeAdapter(LogProbSource).validate_python(source),
            texts,
            table("logprob_responses", "I64", len(texts)),
            table("logprob_tokens", "I64", len(texts)),
            table("logprobs", "F32", len(texts), k),
        )
    scan = Scan(
        gram_table=GramTable(steps, tensors, table("elements", "I64", n), table("gram", "F64", n, k, k)),
        series=described.series,
        checkpoints=checkpoints,
        counts=table("counts", "I64", n, BINS + 3),
        random_walk=described.random_walk,
        example_places=table("example_places", "I64", n, EXAMPLES),
        example_values=table("example_values", "F32", n, EXAMPLES, k),
        sample=None if sample is None else Sample(sample, table("sample_counts", "I64", n, BINS + 3)),
        logprobs=logprobs,
        rates=described.rate_history(),
        sampled=described.sampled,
    )
    if tables:
        raise ValueError(f"it holds an unknown table {next(iter(tables))}")
    sample_counts = None if scan.sample is None else scan.sample.counts
    check_tables(scan.gram_table, scan.counts, sample_counts, sampled=scan.sampled is not None)
    check_examples(scan.gram_table, scan.example_places, scan.example_values)
    if logprobs is not None:
        check_logprobs(logprobs)
    if metadata.get(DIGEST, digest) != digest:
        raise ValueError(f"{DIGEST}: the content is not what was written")
    return scan
