"""What the sources of predicted adapters share: sums that are tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.engine.kernels import Combiner
from hubextrap.engine.plan import combination
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from hubextrap.adapters.run import AdapterRun, Term
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import TensorInfo
    from hubextrap.tensors.virtual import Bytes

    Rows: TypeAlias = Callable[[str], NDArray[np.float64]]
    """Tensor of the base → (K,), the coefficients of one prediction."""


@dataclass(frozen=True, slots=True)
class StoredTerm:
    """c·W, of a tensor that a file holds."""

    coefficient: float
    source: Source
    info: TensorInfo


def stored_terms(run: AdapterRun, tensor: str, row: NDArray[np.float64]) -> list[StoredTerm]:
    """What Σ c_k·W_k of a tensor that was trained whole consists of; at the base's step it is the base's.

    Args:
        tensor: by the base's name.
        row: (K,)

    Raises:
        HubExtrapError: the base is needed and cannot be had.
    """
    terms = []
    for adapter, source, coefficient in zip(run.adapters, run.sources, row.tolist(), strict=True):
        if coefficient and (adapter is None or source is None):
            terms.append(StoredTerm(coefficient, run.base.source, run.base.layout.tensors[tensor]))
        elif coefficient and adapter is not None and source is not None:
            terms.append(StoredTerm(coefficient, source, adapter.whole[tensor]))
    return terms


def finite_terms(run: AdapterRun, tensor: str, row: NDArray[np.float64]) -> list[Term]:
    """What Σ c_k·s_k·B_k·A_k of a tensor consists of, see `AdapterRun.terms`.

    Raises:
        NonFinite: a checkpoint that takes part holds NaN or infinity.
        SourceError: factors could not be read.
    """
    terms = run.terms(tensor, row.tolist())
    used = (k for k, coefficient in enumerate(row) if coefficient and run.adapters[k] is not None)
    for k, term in zip(used, terms, strict=True):
        if not (np.isfinite(term.left).all() and np.isfinite(term.right).all()):
            raise run.non_finite(k, tensor)
    return terms


def ranks(run: AdapterRun, rows: Rows) -> dict[str, list[int]]:
    """The ranks of the products that a prediction sums up, by the base's name of the tensor."""
    found = {}
    for tensor in run.last.factors:
        used = zip(run.adapters, rows(tensor).tolist(), strict=True)
        found[tensor] = [one.factors[tensor].rank for one, c in used if one is not None and c]
    return found


def factor_sizes(run: AdapterRun, rows: Rows, least: int = 0) -> list[int]:
    """Bytes of each tensor's factors, all that a prediction sums up side by side, in float64.

    Args:
        least: a rank that is taken into account where theirs sum up to less.
    """
    sizes = []
    for tensor, each in ranks(run, rows).items():
        shape = run.last.factors[tensor].shape
        extents = shape[-2:] if len(shape) > 1 else (*shape, 1)
        sizes.append(8 * math.prod(shape[:-2]) * sum(extents) * max(sum(each), least))
    return sizes


def write_sum(terms: Sequence[StoredTerm], start: int, out: Bytes, dtype: str) -> None:
    """Write Σ c·W, summed in float64 and rounded once, of the elements that ``out`` has room for.

    Args:
        terms: of tensors of one shape; coefficients other than 0.
        start: the first element.
        dtype: what ``out`` stores, by safetensors name.

    Raises:
        SourceError: a tensor could not be read.
        ValueError: there are no terms.
    """
    count, inputs = len(out) // DTYPES[dtype].itemsize, []
    for term in terms:
        size = DTYPES[term.info.dtype].itemsize
        stored = np.empty(count * size, np.uint8)
        term.source.read(term.info.file, term.info.offset + start * size, stored.data)
        inputs.append(stored)
    row = combination(np.array([term.coefficient for term in terms]), range(len(terms)))
    if not row.indices:
        raise ValueError("a sum of no terms")
    Combiner(1, 8).combine(inputs, [term.info.dtype for term in terms], [row], [out], dtype, wide=True)
