"""The header of a safetensors file: read with every claim checked, and written.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian N, N bytes of JSON, the data.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from hubextrap.digests import sha256_hex
from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import parse_json, shorten
from hubextrap.tensors.layout import ShardInfo, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEADER_LIMIT = 100_000_000
"""Longest JSON in bytes; the safetensors library refuses longer ones too."""

ELEMENT_LIMIT = 2**63
"""Shapes whose running product reaches this are refused before big numbers cost time."""


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type."""

    itemsize: int
    """Bytes of an element."""
    torch_name: str
    """``getattr(torch, torch_name)`` is the same type."""


DTYPES: dict[str, Dtype] = {
    "F64": Dtype(8, "float64"),
    "F32": Dtype(4, "float32"),
    "F16": Dtype(2, "float16"),
    "BF16": Dtype(2, "bfloat16"),
    "F8_E4M3": Dtype(1, "float8_e4m3fn"),
    "F8_E4M3FNUZ": Dtype(1, "float8_e4m3fnuz"),
    "F8_E5M2": Dtype(1, "float8_e5m2"),
    "F8_E5M2FNUZ": Dtype(1, "float8_e5m2fnuz"),
    "F8_E8M0": Dtype(1, "float8_e8m0fnu"),
    "C64": Dtype(8, "complex64"),
    "I64": Dtype(8, "int64"),
    "I32": Dtype(4, "int32"),
    "I16": Dtype(2, "int16"),
    "I8": Dtype(1, "int8"),
    "U64": Dtype(8, "uint64"),
    "U32": Dtype(4, "uint32"),
    "U16": Dtype(2, "uint16"),
    "U8": Dtype(1, "uint8"),
    "BOOL": Dtype(1, "bool"),
}
"""By safetensors name."""

_QUANTISED = ("F4", "F6_E2M3", "F6_E3M2")
"""The library's types of quantised weights of less than a byte, for which torch has no arithmetic."""


def header_end(start: bytes, file_size: int, where: str) -> int:
    """First byte after the header, from the first 8 bytes of the file; ``where`` names the file in errors.

    Raises:
        CorruptFile: the file is too short for the header it announces, or that is longer than 100 MB.
    """
    if file_size < 8 or len(start) < 8:
        raise _corrupt(where, f"has {file_size} bytes, too few for a safetensors file")
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT:
        raise _corrupt(where, f"announces a header of {length:,} bytes, more than the format allows")
    if 8 + length > file_size:
        what = f"is cut short: its header takes {8 + length:,} bytes, the file has {file_size:,}"
        raise _corrupt(where, what)
    return 8 + length


def parse_header(data: bytes, file_size: int, file: str, checkpoint: str = "") -> ShardInfo:
    """The layout of one safetensors file.

    Args:
        data: the file's first bytes, at least up to ``header_end``; more does no harm.
        file_size: bytes of the whole file.
        file: path in the checkpoint's folder.
        checkpoint: what messages call the checkpoint.

    Raises:
        CorruptFile: anything in it that the format does not allow, with the file and the tensor.
        UnsupportedCheckpoint: a type that only quantised weights have.
    """
    where = f"{checkpoint}/{file}" if checkpoint else file
    header, end = header_object(data, file_size, where), header_end(data, file_size, where)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(where, "its __metadata__ does not map text to text")
    tensors = sorted(
        (_tensor(name, entry, end, file, where) for name, entry in header.items()),
        key=lambda tensor: (tensor.offset, tensor.nbytes),
    )
    _check_contiguous(tensors, end, file_size, where)
    return ShardInfo(file, file_size, tuple(tensors), metadata, sha256_hex(data[:end]))


def build_header(
    tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The first bytes of a file whose data follow in the order given: length, JSON, padding to 8 bytes.

    Args:
        tensors: name, safetensors dtype and shape of each.
        metadata: sorted by key, so that equal inputs give equal bytes.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for name, dtype, shape in tensors:
        nbytes = DTYPES[dtype].itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header_object(data: bytes, file_size: int, where: str) -> dict[str, Any]:
    """The JSON object in a header, whatever it says of the tensors; ``data`` as `parse_header` takes it.

    Raises:
        CorruptFile: it is cut short, or is no JSON object.
    """
    end = header_end(data, file_size, where)
    if len(data) < end:
        raise _corrupt(where, f"only {len(data):,} of the header's {end:,} bytes are there")
    text = data[8:end]
    if not text.startswith(b"{"):
        raise _corrupt(where, "its header is not a JSON object")
    header = parse_json(text, f"{where}: its header", file=where, limit=HEADER_LIMIT, parse_int=_whole_number)
    assert isinstance(header, dict)
    return header


def _whole_number(text: str) -> int:
    if len(text) > 20:  # 2**64 has 20 digits; long ones would cost quadratic time
        raise ValueError(f"the number {shorten(text)} is too large")
    if text == "-0":  # the library reads it as a fraction
        raise ValueError("-0 is not a whole number")
    return int(text)


def _tensor(name: str, entry: object, data_start: int, file: str, where: str) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _corrupt(where, "its entry is not a JSON object", name)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype in _QUANTISED:
        raise UnsupportedCheckpoint(
            f"{where}: tensor {shorten(repr(name))} is {dtype}, in which quantised weights are stored: "
            "they cannot be combined; use the checkpoints from before quantisation, or "
            "dequantise all of them into new folders first and use those",
            file=where,
            tensor=name,
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CorruptFile(
            f"{where}: tensor {shorten(repr(name))}: dtype {shorten(repr(dtype))} is not one of "
            f"{', '.join(DTYPES)}; convert the checkpoint to one of these, or download the file again if it "
            "should have one",
            file=where,
            tensor=name,
        )
    if not _are_sizes(shape):
        raise _corrupt(where, f"shape {shorten(repr(shape))} is not a list of sizes", name)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(where, f"data_offsets {shorten(repr(offsets))} are not a first and a last byte", name)
    elements = 1
    for extent in shape:
        elements *= extent
        if elements >= ELEMENT_LIMIT:
            raise _corrupt(where, f"shape {shorten(repr(shape))} is too large", name)
    first, last = offsets
    if last - first != elements * DTYPES[dtype].itemsize:
        taken = f"{dtype} {shorten(repr(shape))} takes {elements * DTYPES[dtype].itemsize:,} bytes"
        raise _corrupt(where, f"{taken}, its data_offsets give it {last - first:,}", name)
    return TensorInfo(name, dtype, tuple(shape), file, data_start + first, last - first)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < ELEMENT_LIMIT for number in value
    )


def _check_contiguous(tensors: list[TensorInfo], data_start: int, file_size: int, where: str) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            place = f"is at byte {tensor.offset:,} and {what}, which ends at {position:,}"
            raise _corrupt(where, place, tensor.name)
        position += tensor.nbytes
    if position > file_size:
        what = f"is cut short: its header describes {position:,} bytes, the file has {file_size:,}"
        raise _corrupt(where, what)
    if position < file_size:
        raise _corrupt(
            where, f"{file_size - position:,} bytes follow the last tensor that its header describes"
        )


def _corrupt(where: str, what: str, tensor: str | None = None) -> CorruptFile:
    said = what if tensor is None else f"tensor {shorten(repr(tensor))}: {what}"
    return CorruptFile(f"{where}: {said}; download the file again", file=where, tensor=tensor)
