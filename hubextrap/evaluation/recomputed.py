"""Whether a prediction is the sum of some checkpoints that its hubextrap.json states, in one tensor."""

from __future__ import annotations

from contextlib import ExitStack, closing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import HubExtrapError
from hubextrap.tensors import open_source, read_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.hub import Provenance
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import TensorInfo
    from hubextrap.trajectory import Checkpoint

_LARGEST = 16 * 2**20
"""Bytes of the tensor that is added up again."""
_ROUNDING = {"F32": 2.0**-23, "BF16": 2.0**-8, "F16": 2.0**-11}
"""How far a stored number may be from the sum, in units of the sum."""
_ACCUMULATED = 1e-6
"""The same of the sum in float32, in units of the terms."""
_SUBNORMAL = 1e-7


def odd_tensor(prediction: Checkpoint, inputs: Sequence[Checkpoint], made_from: Provenance) -> str | None:
    """The name of a tensor that is not the inputs' sum; None where it is, or where none can be added up.

    Args:
        inputs: all of them, in the order of ``made_from.inputs``.
    """
    with ExitStack() as stack:
        try:
            sources = [stack.enter_context(closing(open_source(one))) for one in (prediction, *inputs)]
            tables = [read_layout(source).tensors for source in sources]
        except HubExtrapError:
            return None  # whoever loads the model will say what is wrong with it
        name = _chosen(tables)
        rule = next((one for one in made_from.coefficients if name and fnmatchcase(name, one.match)), None)
        if name is None or rule is None or set(rule.coefficients) != set(made_from.steps):
            return None
        predicted, *terms = (
            _values(source, table[name]) for source, table in zip(sources, tables, strict=True)
        )
        weights = [rule.coefficients[step] for step in made_from.steps]
        terms = [weight * term for weight, term in zip(weights, terms, strict=True)]
        total, size = sum(terms, np.zeros(1)), sum(map(np.abs, terms), np.zeros(1))
        allowed = _ROUNDING[tables[0][name].dtype] * np.abs(total) + _ACCUMULATED * size + _SUBNORMAL
        as_stated = (np.abs(predicted - total) <= allowed) | ~np.isfinite(total)
        return None if bool(np.all(as_stated)) else name


def _chosen(tables: Sequence[dict[str, TensorInfo]]) -> str | None:
    """The largest tensor that is small enough, of the same shape everywhere."""
    fitting = [
        (info.nbytes, name)
        for name, info in tables[0].items()
        if all(
            (other := table.get(name)) is not None
            and other.dtype in _ROUNDING
            and other.shape == info.shape
            and other.nbytes <= _LARGEST
            for table in tables
        )
    ]
    return max(fitting)[1] if fitting else None


def _values(source: Source, info: TensorInfo) -> NDArray[np.float64]:
    raw = bytearray(info.nbytes)
    source.read(info.file, info.offset, memoryview(raw))
    if info.dtype == "BF16":
        bits = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64)
    return np.frombuffer(raw, "<f4" if info.dtype == "F32" else "<f2").astype(np.float64)
