"""A predicted adapter as a checkpoint: peft's own files, whose factors are made when they are read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.adapters.continued import continued
from hubextrap.adapters.names import peft_name
from hubextrap.adapters.reading import read_pair
from hubextrap.adapters.recompress import recompressed
from hubextrap.adapters.virtual import (
    factor_sizes,
    finite_terms,
    ranks,
    stored_terms,
    write_sum,
)
from hubextrap.engine.kernels import Combiner
from hubextrap.engine.plan import output_dtype
from hubextrap.engine.units import Combination
from hubextrap.errors import NonFinite
from hubextrap.tensors.headers import DTYPES, build_header, parse_header
from hubextrap.tensors.kept import Kept
from hubextrap.tensors.layout import CheckpointLayout
from hubextrap.tensors.virtual import VirtualSource
from hubextrap.trajectory.weights import ADAPTER_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.adapters.factors import Factors
    from hubextrap.adapters.run import AdapterRun
    from hubextrap.adapters.virtual import Rows
    from hubextrap.tensors.layout import ShardInfo, TensorInfo

_KEPT = 64 * 2**20
"""Bytes of finished factors that are kept: those of one module are read one after the other."""
_OF_STARTS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config")
"""Fields that say how the factors of a new adapter begin."""


class PredictedSource(VirtualSource):
    """The adapter of one prediction. Every module has the same rank, and its product is not scaled.

    Args:
        rows: tensor of the base → float64 (K,), the coefficients.
        rank: None for one at which nothing is cut, all factors side by side.
        at_least: the rank of one at which nothing is cut, if its own is lower: that of others made with it.
        continues: made for training to go on from: ranks, scalings and configuration are those of the last
            checkpoint, and its factors are what the new ones are near; see `adapters.continued`.
        out_dtype: what all is stored as, by torch's name; None for what the last adapter stores.
        step: the target's.

    Attributes:
        rank: of every module.
        config: the content of its adapter_config.json.
        memory: bytes that it takes beside the engine's buffers.

    Raises:
        RecipeError: an ``out_dtype`` that is none.
    """

    def __init__(
        self,
        run: AdapterRun,
        rows: Rows,
        rank: int | None,
        *,
        out_dtype: str | None = None,
        step: int,
        continues: bool = False,
        at_least: int = 1,
    ) -> None:
        self._run, self._rows, self._exact, self._continues = run, rows, rank is None, continues
        self.rank = rank or max(exact_rank(run, rows), at_least)
        content = run.last.config.content
        self.config = _as_json(content if continues else predicted_config(content, self.rank))
        dtype = output_dtype(out_dtype)
        shapes = [
            shaped
            for factors in run.last.factors.values()
            for shaped in stored_shapes(factors, self._rank_of(factors))
        ]
        shapes += [(info, info.shape) for info in run.last.whole.values()]
        stored = [(peft_name(info.name), dtype or info.dtype, shape) for info, shape in shapes]
        header = build_header(stored, {"format": "pt"})
        name = f"the predicted adapter of step {step}"
        layout = CheckpointLayout(name, (_shard(header, stored),), None)
        super().__init__(name, layout, {ADAPTER_FILE: header}, {CONFIG_FILE: self.config})
        self._whole = {peft_name(info.name): tensor for tensor, info in run.last.whole.items()}
        self._module = {
            peft_name(info.name): tensor
            for tensor, one in run.last.factors.items()
            for info in (one.a, one.b)
        }
        self._lost: dict[str, float] = {}
        self._factors = Kept(self._made, lambda made: sum(map(len, made.values())), _KEPT)
        # what is stacked, its decomposition, and what comes of that
        made = sum(info.nbytes for info in self.layout.tensors.values())
        self.memory = min(_KEPT, made) + 6 * max(factor_sizes(run, rows, self.rank), default=0)

    def fill(self, info: TensorInfo, start: int, out: NDArray[np.uint8]) -> None:
        if (tensor := self._whole.get(info.name)) is not None:
            write_sum(stored_terms(self._run, tensor, self._rows(tensor)), start, out, info.dtype)
        else:
            first = start * DTYPES[info.dtype].itemsize
            out[:] = self._factors(self._module[info.name])[info.name][first : first + len(out)]

    def _rank_of(self, factors: Factors) -> int:
        return factors.rank if self._continues else self.rank

    def _scaling_of(self, factors: Factors) -> float:
        """What a loader of the predicted adapter multiplies a product by; one by 0 is never anything."""
        return factors.scaling or 1.0 if self._continues else 1.0

    def _old(self, factors: Factors) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        source = self._run.sources[-1]
        assert source is not None  # the last checkpoint is an adapter
        return read_pair(source, factors)

    @property
    def lost(self) -> Mapping[str, float]:
        """Which share of each product's ‖ΔW‖² (Frobenius) the cut to the rank loses, by the base's names.

        Where it is not known yet, factors are read and decomposed for it.

        Raises:
            SourceError: factors could not be read.
        """
        products = [name for name, one in self._run.last.factors.items() if one.layout != "column"]
        for tensor in products:
            if tensor not in self._lost:
                self._factors(tensor)
        return {tensor: self._lost[tensor] for tensor in products}

    def _made(self, tensor: str) -> dict[str, NDArray[np.uint8]]:
        """The bytes of both factors of a module, by their names in the file."""
        factors, terms = self._run.last.factors[tensor], finite_terms(self._run, tensor, self._rows(tensor))
        if factors.layout == "column":
            bias = np.zeros((*factors.shape, 1))
            for scale, column, one in terms:
                bias += scale * (column[0].astype(np.float64) * one[0])
            bias = bias / self._scaling_of(factors)
            return self._as_bytes([(factors.a.name, bias)])
        experts, rows, columns = _extents(factors)
        rank = self._rank_of(factors)
        try:
            left, right, lost = (
                recompressed(terms, None if self._exact else rank)
                if terms
                else (np.zeros((experts, rows, 0)), np.zeros((experts, 0, columns)), 0.0)
            )
        except np.linalg.LinAlgError as error:
            what = f"{tensor}: its changes are so large that their sum exceeds float64"
            raise NonFinite(f"{what}; leave out the checkpoints in which it is", tensor=tensor) from error
        if self._continues:
            left = left / self._scaling_of(factors)
            left, right = continued(left, right, self._old(factors), keep_left=_begins_left(factors))
        missing = rank - left.shape[2]
        left = np.pad(left, ((0, 0), (0, 0), (0, missing)))
        right = np.pad(right, ((0, 0), (0, missing), (0, 0)))
        self._lost[tensor] = lost
        pair = as_stored(factors, left, right)
        return self._as_bytes(list(zip((factors.a.name, factors.b.name), pair, strict=True)))

    def _as_bytes(self, made: list[tuple[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.uint8]]:
        """The bytes of factors, by their names in the predicted file, from those in the last checkpoint's."""
        stored = self.layout.tensors
        return {peft_name(name): _rounded(one, stored[peft_name(name)]) for name, one in made}


def exact_rank(run: AdapterRun, rows: Rows) -> int:
    """The rank at which nothing is cut of a prediction: the ranks that take part added up, at least 1."""
    return max((sum(each) for each in ranks(run, rows).values() if each), default=1)


def _begins_left(factors: Factors) -> bool:
    """Whether the left one of two factors is the one that peft begins at random: A, or B of an embedding."""
    turned = factors.layout in ("transposed", "experts")
    return turned != (".lora_embedding_" in factors.a.name)


def stored_shapes(factors: Factors, rank: int) -> list[tuple[TensorInfo, tuple[int, ...]]]:
    """What peft stores of a pair of factors, and in which shape at a rank."""
    if factors.layout == "column":
        return [(factors.a, factors.a.shape)]
    experts, rows, columns = _extents(factors)
    if factors.layout in ("transposed", "experts"):
        rows, columns = columns, rows
    return [(factors.a, (experts * rank, columns)), (factors.b, (rows, experts * rank))]


def as_stored(
    factors: Factors, left: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A (E·r, in) and B (out, r·E) as peft stores them: what `reading.read_pair` undoes.

    Args:
        left: (E, rows, r).
        right: (E, r, columns).
    """
    if factors.layout in ("transposed", "experts"):
        left, right = right.transpose(0, 2, 1), left.transpose(0, 2, 1)
    experts, out, rank = left.shape
    return right.reshape(experts * rank, -1), left.transpose(1, 2, 0).reshape(out, rank * experts)


def predicted_config(content: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """What adapter_config.json says of a predicted adapter, from what the last checkpoint's says."""
    changed = {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return {field: value for field, value in content.items() if field not in _OF_STARTS} | changed


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _extents(factors: Factors) -> tuple[int, int, int]:
    """Experts, rows and columns of a tensor of the base."""
    *experts, rows, columns = factors.shape
    return math.prod(experts), rows, columns


def _shard(header: bytes, stored: Sequence[tuple[str, str, Sequence[int]]]) -> ShardInfo:
    size = len(header) + sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in stored)
    return replace(parse_header(header, size, ADAPTER_FILE), header_sha256="")


def _rounded(numbers: NDArray[np.float64], info: TensorInfo) -> NDArray[np.uint8]:
    """The bytes of numbers as a tensor stores them, rounded once.

    Raises:
        NonFinite: some are too large for its dtype.
    """
    dtype = info.dtype
    wide = np.ascontiguousarray(numbers, np.float64).reshape(-1).view(np.uint8)
    out = np.empty(numbers.size * DTYPES[dtype].itemsize, np.uint8)
    [made] = Combiner(1, 8).combine(
        [wide], ["F64"], [Combination("copy", (0,), (1.0,))], [out], dtype, wide=True
    )
    if made.non_finite:
        what = f"{info.name}: {made.non_finite:,} of {numbers.size:,} numbers are too large for {dtype}"
        raise NonFinite(f"{what}; give a wider out_dtype, e.g. float32", tensor=info.name)
    return out
