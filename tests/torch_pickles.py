"""Pickles and zip files as torch writes them, put together from parts, each of which may be wrong."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from hubextrap.tensors import FileInfo
from hubextrap.tensors.torch_files.pickles import Made, Name, Persistent


class HeldFiles:
    """Files in memory; a name or a byte that is not there is a failure of the test, not an error."""

    name = "run/step_3"

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.held = files
        self.reads: list[tuple[str, int, int]] = []

    def files(self) -> Mapping[str, FileInfo]:
        return {file: FileInfo(len(data)) for file, data in self.held.items()}

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        stop = offset + len(buffer)
        assert 0 <= offset <= stop <= len(self.held[file]), (file, offset, stop)
        self.reads.append((file, offset, len(buffer)))
        buffer[:] = self.held[file][offset:stop]

    def read_file(self, file: str, limit: int = 0) -> bytes:
        self.reads.append((file, 0, len(self.held[file])))
        return self.held[file]

    def close(self) -> None:
        """Nothing is open."""


def pickle_of(value: Any) -> bytes:
    """The pickle that `read_pickle` makes this value of."""
    return b"\x80\x02" + _code(value) + b"."


def _code(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_code, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_code, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_code(key) + _code(item) for key, item in value.items()) + b"u"
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Persistent):
        return _code(value.id) + b"Q"
    assert isinstance(value, Made), value
    state = b"" if value.state is None else _code(value.state) + b"b"
    return _code(value.by) + _code(value.args) + b"R" + state


def zip_of(records: Mapping[str, bytes], folder: str = "archive") -> bytes:
    """A zip file of these records, laid out as torch.save lays it out, a zip64 end included."""
    body, directory = bytearray(), bytearray()
    for inner, data in records.items():
        name, header, crc = f"{folder}/{inner}".encode(), len(body), zlib.crc32(data)
        extra = 4 + -(header + 30 + len(name) + 4) % 64
        fixed = struct.pack("<5H3L2H", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), extra)
        body += b"PK\x03\x04" + fixed + name + b"FB" + struct.pack("<H", extra - 4) + b"Z" * (extra - 4)
        body += data + b"PK\x07\x08" + struct.pack("<3L", crc, len(data), len(data))
        fixed = struct.pack(
            "<6H3L5H2L", 0, 0, 0x808, 0, 0, 0, crc, len(data), len(data), len(name), 0, 0, 0, 0, 0, header
        )
        directory += b"PK\x01\x02" + fixed + name
    first, count = len(body), len(records)
    end64 = first + len(directory)
    body += (
        directory
        + b"PK\x06\x06"
        + struct.pack("<Q2H2L4Q", 44, 0x31E, 45, 0, 0, count, count, len(directory), first)
    )
    body += b"PK\x06\x07" + struct.pack("<LQL", 0, end64, 1)
    return bytes(body + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(directory), first, 0))


def records_in(data: bytes) -> dict[str, bytes]:
    """The records of a zip file by the names in its folder."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


def tensor(key: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, **odd: Any) -> Made:
    """A BF16 tensor in the storage of this key.

    Args:
        odd: ``first``, its first element in the storage; ``numel``, of the storage; ``kind``, its class.
    """
    import math

    numel = odd.get("numel", math.prod(shape))
    kind = odd.get("kind", Name("torch", "BFloat16Storage"))
    storage = Persistent(("storage", kind, key, "cpu", numel))
    lies = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape))) if strides is None else strides
    args: tuple[Any, ...] = (storage, odd.get("first", 0), shape, lies, False, {})
    return Made(Name("torch._utils", "_rebuild_tensor_v2"), args)


def each_value(value: Any, change: Callable[[Any], None]) -> None:
    """Call ``change`` on each value in one that `read_pickle` gave, once."""
    seen: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        change(value)
        if isinstance(value, Made):
            left += [value.args, value.state]
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
