"""The sha256 of a file of a source: read ahead in a second thread while it is hashed."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubextrap.tensors.interfaces import Source

_BLOCK = 16 * 2**20
"""Bytes of one of the two buffers; a remote source splits them into requests that run side by side."""


def sha256_of(source: Source, file: str, advance: Callable[[int], None]) -> str:
    """sha256 of the bytes of ``file`` as they are, in hex.

    Args:
        advance: told of the bytes as they are hashed.

    Raises:
        SourceError: they could not be read.
    """
    size = source.files()[file].size
    digest = hashlib.sha256()
    buffers = [memoryview(bytearray(min(size, _BLOCK))) for _ in range(2)]

    def read(number: int) -> memoryview:
        view = buffers[number % 2][: size - number * _BLOCK]
        source.read(file, number * _BLOCK, view)
        return view

    with ThreadPoolExecutor(1, thread_name_prefix="hubextrap-hash") as pool:
        blocks = -(-size // _BLOCK)
        ahead: Future[memoryview] | None = pool.submit(read, 0) if blocks else None
        for number in range(1, blocks + 1):
            assert ahead is not None
            view = ahead.result()
            ahead = pool.submit(read, number) if number < blocks else None
            digest.update(view)
            advance(len(view))
    return digest.hexdigest()
