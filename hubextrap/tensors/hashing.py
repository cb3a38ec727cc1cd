"""Hashes of a source's files: the sha256 of one, and whether one is what the Hub lists."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from hubextrap.digests import hash_like, hasher_like, is_sha256
from hubextrap.errors import CorruptFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hubextrap.tensors.interfaces import Source

_READ_SIZE = 16 * 2**20
"""Bytes of one of the two buffers; a remote source splits them into requests that run side by side."""


def sha256_of(source: Source, file: str, advance: Callable[[int], None]) -> str:
    """sha256 of the bytes of ``file`` as they are, in hex.

    Args:
        advance: told of the bytes as they are hashed.

    Raises:
        SourceError: they could not be read.
    """
    digest = hashlib.sha256()
    for view in blocks_of(source, file):
        digest.update(view)
        advance(len(view))
    return digest.hexdigest()


def check_file(source: Source, file: str) -> None:
    """Read a whole file and compare it with the hash that the Hub lists, if it lists one.

    Raises:
        CorruptFile: it holds other bytes.
        SourceError: they could not be read.
    """
    info = source.files()[file]
    if info.digest is not None:
        found = hasher_like(info.digest, info.size)
        for view in blocks_of(source, file):
            found.update(view)
        if found.hexdigest() != info.digest:
            raise corrupt(source, file, found.hexdigest())


def check_data(source: Source, file: str, data: bytes) -> None:
    """The same for a file that was read already.

    Raises:
        CorruptFile: ``data`` is not what the Hub lists.
    """
    digest = source.files()[file].digest
    if digest is not None and (found := hash_like(digest, data)) != digest:
        raise corrupt(source, file, found)


def corrupt(source: Source, file: str, found: str) -> CorruptFile:
    """The error for a file whose bytes have the hash ``found`` and not the one that the Hub lists."""
    info = source.files()[file]
    kind = "sha256" if is_sha256(info.digest or "") else "git blob id"
    what = f"{source.name}/{file}: its bytes have {kind} {found}, the Hub lists {info.digest}"
    again = "run the same command again. If they differ again"
    if info.cached is not None:
        again = (
            f"remove {info.cached} from the Hub cache, then run the same command again: it is downloaded "
            "anew. If that one differs too"
        )
    return CorruptFile(
        f"{what}; {again}, the Hub's storage is damaged: have the file uploaded again, or leave this "
        "checkpoint out",
        file=file,
    )


def blocks_of(source: Source, file: str, block: int | None = None) -> Iterator[memoryview]:
    """The file's bytes in order; the next block is read in a second thread while one is looked at."""
    size, block = source.files()[file].size, block or _READ_SIZE
    buffers = [memoryview(bytearray(min(size, block))) for _ in range(2)]

    def read(number: int) -> memoryview:
        view = buffers[number % 2][: size - number * block]
        source.read(file, number * block, view)
        return view

    with ThreadPoolExecutor(1, thread_name_prefix="hubextrap-hash") as pool:
        blocks = -(-size // block)
        ahead: Future[memoryview] | None = pool.submit(read, 0) if blocks else None
        for number in range(1, blocks + 1):
            assert ahead is not None
            view = ahead.result()
            ahead = pool.submit(read, number) if number < blocks else None
            yield view
