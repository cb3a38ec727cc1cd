"""Sources whose tensors are made when they are read, whatever range is asked for."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.interfaces import SMALL_FILE, FileInfo, Source, check_range, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

    Bytes: TypeAlias = NDArray[np.uint8]


class VirtualSource(Source):
    """A checkpoint of safetensors files that lie nowhere. Thread-safe.

    Args:
        layout: of those files; ranges of them may be read in any order and any number of times.
        headers: the bytes before the first tensor, by file.
        beside: the other files, by their names.
    """

    def __init__(
        self,
        name: str,
        layout: CheckpointLayout,
        headers: Mapping[str, bytes] | None = None,
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        self.name = name
        self.layout = layout
        self._headers, self._beside = dict(headers or {}), dict(beside or {})
        sizes = {shard.file: shard.size for shard in layout.shards}
        sizes |= {file: len(data) for file, data in self._beside.items()}
        self._files = {file: FileInfo(size) for file, size in sizes.items()}
        self._stored = {
            shard.file: tuple(tensor for tensor in shard.tensors if tensor.nbytes) for shard in layout.shards
        }

    def files(self) -> Mapping[str, FileInfo]:
        return self._files

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        size = readable(self._files.get(file), self.name, file).size
        check_range(size, offset, len(buffer), self.name, file)
        if file in self._beside:
            buffer[:] = self._beside[file][offset : offset + len(buffer)]
            return
        fill_range(self, self._stored[file], offset, buffer, self._headers.get(file, b""))

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        content = bytearray(readable(self._files.get(file), self.name, file, limit).size)
        self.read(file, 0, memoryview(content))
        return bytes(content)

    def close(self) -> None:
        """Nothing is open here: what the tensors are made from is somebody else's."""

    def fill(self, info: TensorInfo, start: int, out: Bytes) -> None:
        """Write the elements of a tensor from ``start`` on that ``out`` has room for.

        Raises:
            SourceError: what they are made from could not be read, or they are not to be had here.
        """
        raise NotImplementedError


class Filler(Protocol):
    """What makes the elements of tensors."""

    def fill(self, info: TensorInfo, start: int, out: Bytes) -> None:
        """As `VirtualSource.fill`."""


def fill_range(
    filler: Filler, stored: Sequence[TensorInfo], offset: int, buffer: memoryview, header: bytes = b""
) -> None:
    """Write the bytes of a virtual file from ``offset`` on.

    Args:
        stored: the file's tensors that hold bytes, in offset order.
        header: the bytes before the first tensor.
    """
    view = np.frombuffer(buffer, np.uint8)
    part = header[offset : offset + len(view)]
    view[: len(part)] = np.frombuffer(part, np.uint8)
    for info, first, out in ranges_in(stored, offset, view):
        fill_bytes(filler, info, first, out)


def ranges_in(
    stored: Sequence[TensorInfo], offset: int, view: Bytes
) -> Iterator[tuple[TensorInfo, int, Bytes]]:
    """The parts of tensors that bytes of a file from ``offset`` on are: tensor, first byte in it, its place.

    Args:
        stored: as `fill_range` takes them.
        view: where the bytes go.
    """
    stop = offset + len(view)
    number = max(0, bisect_right(stored, offset, key=attrgetter("offset")) - 1)
    for info in stored[number:]:
        if info.offset >= stop:
            break
        first, last = max(offset, info.offset), min(stop, info.offset + info.nbytes)
        if first < last:
            yield info, first - info.offset, view[first - offset : last - offset]


def fill_bytes(filler: Filler, info: TensorInfo, offset: int, out: Bytes) -> None:
    """Write the bytes of a tensor from ``offset`` on that ``out`` has room for."""
    size = DTYPES[info.dtype].itemsize
    start, stop = offset // size, -(-(offset + len(out)) // size)
    if (stop - start) * size == len(out):
        filler.fill(info, start, out)
    else:  # a range that begins or ends within an element
        whole = np.empty((stop - start) * size, np.uint8)
        filler.fill(info, start, whole)
        out[:] = whole[offset - start * size :][: len(out)]
