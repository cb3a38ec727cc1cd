"""What one pass over a trajectory found, and the small file that keeps it.

The file is safetensors: integer and float tables, and one JSON object in its metadata for everything else.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, model_validator

from hubextrap._version import __version__
from hubextrap.claims import DIGEST
from hubextrap.clocks import RateHistory
from hubextrap.errors import CorruptFile, wrong_argument
from hubextrap.foreign_data import first_problem, parse_json
from hubextrap.methods import MAX_STEP
from hubextrap.notebooks import counted, one_line, steps_in_words
from hubextrap.recipe.tensor_names import RENAMED
from hubextrap.scans.checks import (
    check_examples,
    check_logprobs,
    check_sample,
    check_tables,
    is_hash,
    is_line,
)
from hubextrap.scans.logprobs import LogProbs, LogProbSource
from hubextrap.scans.parts import ReferenceSample, ScannedCheckpoint
from hubextrap.scans.sampled import SampledWeights, sampled_weights
from hubextrap.scans.tables import TABLE_DTYPES, corrupt, read_tables, tables_digest, write_tables
from hubextrap.statistics.linearity import BINS, Linearity, RandomWalk
from hubextrap.statistics.spread import norm_stderrs
from hubextrap.statistics.table import GROUPS, GramSample, GramTable
from hubextrap.tensors.headers import DTYPES, HEADER_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

FORMAT = "hubextrap-scan"
VERSION = "1"
EXAMPLES = 4
"""Weights of each tensor whose values are kept, for plots."""


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
    reference: ReferenceSample | None = None
    logprobs: LogProbs | None = None
    rates: RateHistory | None = None
    """What lay beside the last checkpoint said of the learning rate."""
    sampled: int | None = None
    """``counts`` are of so many weights of each tensor at most, drawn and scaled up to all; of all where it
    is None. Of adapters with exact Gram matrices, those of tensors that were trained whole are of all."""
    weights: SampledWeights | None = None
    """Those that everything here was estimated from; None where Gram matrices are exact."""
    block_counts: NDArray[np.int64] | None = None
    """(N, GROUPS, BINS + 3): the ``weights`` alone, counted by group."""

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

    def holds(self, step: int, pin: str, digest: str | None) -> bool:
        """Whether it is of a checkpoint with that pin, or with these weights under the same names."""
        found = next((one for one in self.checkpoints if one.step == step), None)
        if found is None or found.pin == pin:
            return found is not None
        same_names = found.pin.partition(RENAMED)[2] == pin.partition(RENAMED)[2]
        return digest is not None and found.digest == digest and same_names

    @property
    def dtypes(self) -> tuple[str, ...]:
        """How each of the K checkpoints is stored, e.g. ``BF16`` or ``BF16/F32``: see `backtest_table`."""
        return tuple(checkpoint.dtype for checkpoint in self.checkpoints)

    def delta_norms(self) -> NDArray[np.float64]:
        """(N, K): ‖W_k − W_0‖ of each tensor."""
        squares = np.diagonal(self.gram_table.gram, axis1=1, axis2=2)
        # that of a run that came back to its start may be rounded to below 0
        return np.asarray(np.sqrt(squares.clip(min=0.0)), dtype=np.float64)

    def delta_norm_stderrs(self, rows: Sequence[int] | None = None) -> NDArray[np.float64] | None:
        """(K,): the standard errors of ‖W_k − W_0‖ of some tensors together (all of them by default); None
        where all weights were read."""
        table = self.gram_table if rows is None else self.gram_table.of(np.asarray(rows, np.int64))
        if table.sample is None:
            return None
        squares = np.diagonal(table.gram, axis1=1, axis2=2).clip(min=0.0)
        spread = np.sqrt((squares * norm_stderrs(table) ** 2).sum(axis=0))
        norms = np.sqrt(squares.sum(axis=0))
        return np.asarray(np.divide(spread, norms, out=np.zeros_like(norms), where=norms > 0))

    def linearity(self, rows: Iterable[int] | None = None) -> Linearity:
        """R² over all weights of some tensors (all of them by default)."""
        chosen = slice(None) if rows is None else list(rows)
        if self.block_counts is None:
            return Linearity.from_counts(self.counts[chosen].sum(axis=0))
        elements = self.gram_table.elements[chosen]
        return Linearity.of_sample(self.counts[chosen], self.block_counts[chosen], elements)

    @property
    def sampled_in_words(self) -> str | None:
        """What figures of single weights are of; None where they are of all."""
        if self.sampled is None:
            return None
        said = f"from a sample of {self.sampled:,} weights per tensor"
        return said if self.weights is not None else f"{said}, as these are adapters"

    def kinds(self) -> dict[str, list[int]]:
        """Rows of the tensors of each kind of module, e.g. ``q_proj``, in order of first appearance."""
        found: dict[str, list[int]] = {}
        for row, tensor in enumerate(self.tensors):
            found.setdefault(module_kind(tensor), []).append(row)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values: totals, and a row for each kind of module."""
        norms, stderrs, reference = self.delta_norms(), self.delta_norm_stderrs(), self.reference
        steps = [str(step) for step in self.steps]
        return {
            "series": self.series,
            "checkpoints": [checkpoint.as_json() for checkpoint in self.checkpoints],
            "tensors": len(self.tensors),
            **self.linearity().as_dict(),
            "random_walk": asdict(self.random_walk),
            "sampled": self.sampled,
            "same_weights": [list(steps) for steps in self.gram_table.same_weights()],
            "delta_norm": {
                step: float(norm) for step, norm in zip(steps, np.sqrt((norms**2).sum(axis=0)), strict=True)
            },
            **(
                {}
                if stderrs is None
                else {"delta_norm_stderr": dict(zip(steps, stderrs.tolist(), strict=True))}
            ),
            "kinds": [
                {
                    "kind": kind,
                    "tensors": len(rows),
                    **self.linearity(rows).as_dict(),
                    "delta_norm": float(np.sqrt((norms[rows, -1] ** 2).sum())),
                }
                | (
                    {}
                    if (known := self.delta_norm_stderrs(rows)) is None
                    else {"delta_norm_stderr": float(known[-1])}
                )
                for kind, rows in self.kinds().items()
            ],
            "reference": reference
            and {
                "fraction": reference.fraction,
                **Linearity.from_counts(reference.counts.sum(axis=0)).as_dict(),
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
            "checkpoints": [checkpoint.as_json() for checkpoint in self.checkpoints],
            "tensors": list(self.tensors),
            "random_walk": asdict(self.random_walk),
            "sample": self.reference and self.reference.fraction,
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
        if self.reference is not None:
            tables["sample_counts"] = self.reference.counts
        if self.weights is not None:
            assert self.gram_table.sample is not None
            assert self.block_counts is not None
            described["weights"] = self.weights.as_json()
            tables["blocks"] = self.gram_table.sample.blocks
            tables["block_counts"] = self.block_counts
            stored = zip(self.steps, self.weights.stored, strict=True)
            tables |= {f"weights_{step}": weights for step, weights in stored}
        if self.logprobs is not None:
            tables["logprobs"] = self.logprobs.values
            tables["logprob_responses"] = self.logprobs.responses
            tables["logprob_tokens"] = self.logprobs.tokens
        metadata = {"format": FORMAT, "version": VERSION, "scan": json.dumps(described, sort_keys=True)}
        write_tables(path, tables, metadata | {DIGEST: tables_digest(metadata, tables)})

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
        tables, metadata = read_tables(path)
        if metadata.get("format") != FORMAT:
            raise corrupt(path, "is a safetensors file but not a scan; make one with `hubextrap scan`")
        if metadata.get("version") != VERSION:
            raise corrupt(
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
            raise corrupt(path, f"is a damaged scan ({said}); remove it, then scan again") from error


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
    weights: dict[str, Any] | None = None
    """Not in files of exact Gram matrices."""

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


def _build(described: _Described, tables: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Scan:
    """KeyError, TypeError or ValueError on anything that does not fit."""
    stated = {key: value for key, value in metadata.items() if key != DIGEST}
    if unknown := sorted(stated.keys() - {"format", "version", "scan"}):
        raise ValueError(f"it holds an unknown field {unknown[0]}")
    digest = tables_digest(stated, tables)
    checkpoints, tensors, sample = described.checkpoints, described.tensors, described.sample
    n, k = len(tensors), len(checkpoints)
    steps = tuple(checkpoint.step for checkpoint in checkpoints)

    def table(name: str, dtype: str, *shape: int) -> NDArray[Any]:
        if name not in tables:
            raise ValueError(f"table {name} is missing")
        found = tables.pop(name)
        if found.shape != shape or found.dtype != TABLE_DTYPES[dtype]:
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
    gram_table = GramTable(steps, tensors, table("elements", "I64", n), table("gram", "F64", n, k, k))
    weights, block_counts = None, None
    if described.weights is not None:
        kept = [tables.pop(f"weights_{step}", np.zeros((0, 0), np.uint8)) for step in steps]
        if not all(one.dtype == np.uint8 and one.ndim == 1 for one in kept):
            raise ValueError("a table of sampled weights is missing, or is not bytes")
        weights = sampled_weights(described.weights, kept, gram_table.elements.tolist())
        blocks = table("blocks", "F64", n, GROUPS, k, k)
        drawn = np.minimum(gram_table.elements, weights.size)
        gram_table = replace(gram_table, sample=GramSample(blocks, drawn, weights.size))
        block_counts = table("block_counts", "I64", n, GROUPS, BINS + 3)
    scan = Scan(
        gram_table=gram_table,
        series=described.series,
        checkpoints=checkpoints,
        counts=table("counts", "I64", n, BINS + 3),
        random_walk=described.random_walk,
        example_places=table("example_places", "I64", n, EXAMPLES),
        example_values=table("example_values", "F32", n, EXAMPLES, k),
        reference=None
        if sample is None
        else ReferenceSample(sample, table("sample_counts", "I64", n, BINS + 3)),
        logprobs=logprobs,
        rates=described.rate_history(),
        sampled=described.sampled,
        weights=weights,
        block_counts=block_counts,
    )
    if tables:
        raise ValueError(f"it holds an unknown table {next(iter(tables))}")
    drawn_counts = None if scan.reference is None else scan.reference.counts
    check_tables(scan.gram_table, scan.counts, drawn_counts, sampled=scan.sampled is not None)
    if block_counts is not None:
        check_sample(scan.gram_table, block_counts)
    if weights is not None and described.sampled != weights.size:
        raise ValueError("sampled: is not how many weights it holds of a tensor")
    check_examples(scan.gram_table, scan.example_places, scan.example_values)
    if logprobs is not None:
        check_logprobs(logprobs)
    if metadata.get(DIGEST, digest) != digest:
        raise ValueError(f"{DIGEST}: the content is not what was written")
    return scan
