"""Quantised weights as the numbers that they stand for, made when a range of them is read.

Two formats whose values follow from their published definitions without a choice:

- FP8 with a scale for each block (``weight_dequant`` in inference/kernel.py of
  https://huggingface.co/deepseek-ai/DeepSeek-V3; ``Fp8Dequantize`` in transformers'
  integrations/finegrained_fp8.py): W = fp8(w)·s, the product rounded once to float32. Blocks at the edges are
  cut off.
- MXFP4 of gpt-oss (OCP Microscaling Formats 1.0, §5.3.3 and §6.3; torch/weights.py of
  https://github.com/openai/gpt-oss; ``convert_moe_packed_tensors`` in transformers' integrations/mxfp4.py):
  W = e2m1·2^(s−127), of two numbers a byte, the lower half first. bfloat16 holds them exactly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

    from hubextrap.tensors.kept import KeepingSource
    from hubextrap.tensors.virtual import Bytes

GROUP = 32
"""Numbers of an MXFP4 block: they share a scale, and take 16 bytes."""
_SMALL_SCALES = 2**18
"""Bytes of a tensor's scales that are read at once and kept, as neighbouring ranges need the same ones."""
_AT_ONCE = 2**18
"""Numbers of MXFP4 that are unpacked at once."""


@dataclass(frozen=True, slots=True)
class Fp8Blocks:
    """A float8 tensor (…, rows, columns), and a scale for each block of its last two dimensions.

    Read as F32. ``offset`` and ``scale_offset`` are the first bytes of both in their files.
    """

    file: str
    offset: int
    shape: tuple[int, ...]
    block: tuple[int, int]
    """Rows and columns that share a scale."""
    scale_file: str
    scale_offset: int
    scale_dtype: str
    """F32, BF16, F16, or F8_E8M0 (U8 holds the same)."""

    dtype: ClassVar[str] = "F32"
    writes: ClassVar[str] = "BF16"

    @property
    def files(self) -> frozenset[str]:
        """Those that hold some of it."""
        return frozenset({self.file, self.scale_file})

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """(…, ⌈rows/b0⌉, ⌈columns/b1⌉)."""
        *leading, rows, columns = self.shape
        return (*leading, -(-rows // self.block[0]), -(-columns // self.block[1]))

    @property
    def packed(self) -> int:
        """Bytes that it takes in the files."""
        return math.prod(self.shape) + self._scale_bytes(math.prod(self.scale_shape))

    @property
    def held(self) -> int:
        """Bytes that reading it keeps."""
        size = self._scale_bytes(math.prod(self.scale_shape))
        return size if size <= _SMALL_SCALES else 0

    def fill(self, source: KeepingSource, start: int, out: Bytes) -> None:
        """Write the elements from ``start`` on, as float32, that ``out`` has room for.

        Raises:
            SourceError: they could not be read.
        """
        count, columns = len(out) // 4, self.shape[-1]
        stored = np.empty(count, np.uint8)
        source.read(self.file, self.offset + start, stored.data)
        bands = list(self._bands(start, start + count))
        scales = self._scales(source, bands[0][2], bands[-1][2] + 1)
        values = np.empty(count, np.float32)
        for first, stop, band in bands:
            part = values[first - start : stop - start]
            np.take(_e4m3(), stored[first - start : stop - start], out=part, mode="clip")
            line = np.repeat(scales[band - bands[0][2]], self.block[1])[:columns]
            _multiply(part, first % columns, line)
        out[:] = values.view(np.uint8)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, once JSON has carried it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """What `to_json` was asked of."""
        place, scale = (stated["file"], stated["offset"]), (stated["scale_file"], stated["scale_offset"])
        rows, columns = stated["block"]
        return cls(*place, tuple(stated["shape"]), (rows, columns), *scale, stated["scale_dtype"])

    def _bands(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """First element, the one after the last, and the row of scales, of runs that share such a row."""
        rows, columns = self.shape[-2:]
        height, per_matrix = self.block[0], self.scale_shape[-2]
        while start < stop:
            matrix, row = divmod(start // columns, rows)
            below = min(rows, (row // height + 1) * height)
            end = min(stop, (matrix * rows + below) * columns)
            yield start, end, matrix * per_matrix + row // height
            start = end

    def _scales(self, source: KeepingSource, first: int, stop: int) -> NDArray[np.float32]:
        """(stop − first, ⌈columns/b1⌉): rows of scales, counted through all matrices."""
        width = self.scale_shape[-1]
        whole = self._scale_bytes(math.prod(self.scale_shape))
        if whole <= _SMALL_SCALES:
            (content,) = source.read_kept((self.scale_file, self.scale_offset, whole))
            content = content[self._scale_bytes(first * width) : self._scale_bytes(stop * width)]
        else:
            content = np.empty(self._scale_bytes((stop - first) * width), np.uint8)
            source.read(self.scale_file, self.scale_offset + self._scale_bytes(first * width), content.data)
        return _as_float32(content, self.scale_dtype).reshape(-1, width)

    def _scale_bytes(self, count: int) -> int:
        return count * DTYPES[self.scale_dtype].itemsize


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Experts (E, columns, rows): packed numbers (E, rows, columns/32, 16), scales (E, rows, columns/32).

    Read as BF16, and transposed as the model that is not quantised has them.
    """

    file: str
    offset: int
    shape: tuple[int, int, int]
    """Of the numbers: (E, columns, rows)."""
    scale_file: str
    scale_offset: int

    dtype: ClassVar[str] = "BF16"
    writes: ClassVar[str] = "BF16"

    @property
    def files(self) -> frozenset[str]:
        """Those that hold some of it."""
        return frozenset({self.file, self.scale_file})

    @property
    def packed(self) -> int:
        """Bytes that it takes in the files."""
        return self.shape[0] * sum(self._expert_bytes)

    @property
    def held(self) -> int:
        """Bytes that reading it keeps: an expert."""
        return sum(self._expert_bytes)

    @property
    def _expert_bytes(self) -> tuple[int, int]:
        """Of an expert's packed numbers and of its scales."""
        groups = self.shape[2] * (self.shape[1] // GROUP)
        return groups * GROUP // 2, groups

    def fill(self, source: KeepingSource, start: int, out: Bytes) -> None:
        """Write the elements from ``start`` on, as bfloat16, that ``out`` has room for.

        A run of them comes from all rows of what is stored, so an expert is read whole, and kept.

        Raises:
            SourceError: they could not be read.
        """
        _, columns, rows = self.shape
        packed_bytes, scale_bytes = self._expert_bytes
        at, stop, per_expert = start, start + len(out) // 2, columns * rows
        while at < stop:
            expert, inner = divmod(at, per_expert)
            end = min(stop, (expert + 1) * per_expert)
            packed, scales = source.read_kept(
                (self.file, self.offset + expert * packed_bytes, packed_bytes),
                (self.scale_file, self.scale_offset + expert * scale_bytes, scale_bytes),
            )
            part = out[2 * (at - start) : 2 * (end - start)]
            _unpack(packed.reshape(rows, -1, GROUP // 2), scales.reshape(rows, -1), inner, part)
            at = end

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, once JSON has carried it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """What `to_json` was asked of."""
        experts, columns, rows = stated["shape"]
        place, scale = (stated["file"], stated["offset"]), (stated["scale_file"], stated["scale_offset"])
        return cls(*place, (experts, columns, rows), *scale)


def _multiply(values: NDArray[np.float32], column: int, line: NDArray[np.float32]) -> None:
    """Multiply a run of a matrix, which begins in ``column``, by the factors of a row, in place."""
    columns = len(line)
    head = min(len(values), -column % columns)
    whole = head + (len(values) - head) // columns * columns
    with np.errstate(all="ignore"):  # what is no number is found where the weights are checked
        values[:head] *= line[column : column + head]
        body = values[head:whole].reshape(-1, columns)
        np.multiply(body, line, out=body)
        values[whole:] *= line[: len(values) - whole]


def _unpack(packed: Bytes, scales: Bytes, start: int, out: Bytes) -> None:
    """Write an expert's numbers (columns, rows) from element ``start`` on as bfloat16.

    Args:
        packed: (rows, columns/32, 16)
        scales: (rows, columns/32)
    """
    rows, count = len(packed), len(out) // 2
    per_group, stop = GROUP * rows, start + count
    step = max(1, _AT_ONCE // per_group)
    for group in range(start // per_group, -(-stop // per_group), step):
        groups = slice(group, min(group + step, packed.shape[1]))
        index = packed[:, groups] | scales[:, groups, None].astype(np.uint16) << 8
        pairs = np.take(_e2m1_pairs(), index, mode="clip").view(np.uint16).reshape(rows, -1)
        numbers = np.ascontiguousarray(pairs.T).reshape(-1)
        base = group * per_group
        first, last = max(start, base), min(stop, base + len(numbers))
        out[2 * (first - start) : 2 * (last - start)] = numbers[first - base : last - base].view(np.uint8)


def _as_float32(content: Bytes, dtype: str) -> NDArray[np.float32]:
    if dtype in ("F8_E8M0", "U8"):
        return _e8m0()[content]
    if dtype == "BF16":
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return content.view({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)


@cache
def _e4m3() -> NDArray[np.float32]:
    """The numbers of F8_E4M3 (https://arxiv.org/abs/2209.05433, table 1), by their bits: no infinity."""
    bits = np.arange(128)
    exponent, mantissa = bits >> 3, bits & 7
    numbers = np.ldexp(np.where(exponent, 8 + mantissa, mantissa), np.maximum(exponent, 1) - 10)
    numbers[127] = np.nan
    return np.concatenate([numbers, -numbers]).astype(np.float32)


@cache
def _e8m0() -> NDArray[np.float32]:
    """The powers of two of F8_E8M0 (OCP Microscaling Formats 1.0, §5.4.1), by their bits; 255 is NaN."""
    numbers = np.ldexp(1.0, np.arange(256) - 127)
    numbers[255] = np.nan
    return numbers.astype(np.float32)


@cache
def _e2m1_pairs() -> NDArray[np.uint32]:
    """(65536,): two bfloat16 numbers, by the scale's 8 bits and then the 8 bits that they are packed in."""
    half = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    with np.errstate(all="ignore"):
        scaled = _e8m0()[:, None] * np.concatenate([half, -half])  # (256, 16), exact
    stored = (scaled.view(np.uint32) >> 16).astype(np.uint16)
    packed = np.arange(256)
    pairs = np.stack([stored[:, packed & 15], stored[:, packed >> 4]], axis=-1)
    return np.ascontiguousarray(pairs).view(np.uint32).reshape(-1)
