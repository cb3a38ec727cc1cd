"""Xet uploads into local stores, a facility of hf-xet: a folder takes the place of the content server.

A process locks the folder that it opens, so each write token gets a store of its own, and each read token a
copy of the store that holds its file (large files are linked). What a commit names is also kept as an LFS
object, so that clients without Xet read the same bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hubextrap.localhub.lfs import LfsObjects, Pointer, RejectedObject, chunks_of

_SHARD_HEADER = 48  # bytes; records have the same size
_LAST_RECORD = b"\xff" * 32
_HAS_VERIFICATION, _HAS_METADATA = 0x80000000, 0x40000000


@dataclass(frozen=True)
class XetFile:
    """A file in a store: its Xet hash, and the name of the store."""

    hash: str
    store: str


class XetStores:
    """The Xet stores of one repo."""

    def __init__(self, folder: Path) -> None:
        self._stores = folder / "stores"
        self._copies = folder / "copies"
        self._files = folder / "files"

    def new_store(self) -> Path:
        """An empty store for one write token."""
        store = self._stores / secrets.token_hex(8)
        store.mkdir(parents=True)
        return store

    def copy_of(self, store: str) -> Path:
        """A copy of ``store`` for one read token.

        Raises:
            KeyError: there is no such store.
        """
        source = self._stores / store
        if not store.isalnum() or not source.is_dir():
            raise KeyError(store)
        copy = self._copies / secrets.token_hex(8)
        shutil.copytree(source, copy, copy_function=_link_or_copy)
        return copy

    def file(self, sha256: str) -> XetFile | None:
        """Where the file with this sha256 lies; None if it did not come by Xet."""
        note = self._files / f"{sha256}.json"
        return XetFile(**json.loads(note.read_text())) if note.is_file() else None

    def adopt(self, pointer: Pointer, objects: LfsObjects) -> bool:
        """Make an LFS object of a file that lies in a store; False if none holds it.

        Raises:
            RejectedObject: what lies in the store is not what its sha256 says.
        """
        for store in sorted(self._stores.glob("*")):
            for shard in sorted(store.glob("xet/xorbs/shards/*.mdb")):
                for xet_hash, sha256 in _files_of(shard.read_bytes()):
                    if sha256 == pointer.sha256:
                        self._fetch(XetFile(xet_hash, store.name), pointer, objects)
                        return True
        return False

    def _fetch(self, file: XetFile, pointer: Pointer, objects: LfsObjects) -> None:
        from hf_xet import XetFileInfo, XetSession

        copy = self.copy_of(file.store)
        target = copy / "fetched"
        try:
            with XetSession().new_file_download_group(endpoint=f"local://{copy.resolve()}") as group:
                group.start_download_file(XetFileInfo(file.hash, pointer.size), str(target))
            with target.open("rb") as fetched:
                objects.add(chunks_of(fetched), pointer)
        except RuntimeError as error:
            raise RejectedObject(f"cannot read {pointer.sha256} from its Xet store: {error}") from error
        finally:
            shutil.rmtree(copy)
        self._files.mkdir(exist_ok=True)
        (self._files / f"{pointer.sha256}.json").write_text(json.dumps(asdict(file)))


def _link_or_copy(source: str, target: str) -> None:
    """Content is never changed once written, and may be linked; the database is."""
    if source.endswith(".redb"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _files_of(shard: bytes) -> Iterator[tuple[str, str]]:
    """Xet hash and sha256 (both hex) of each file that a shard describes.

    The layout is that of the Xet specification: a header, then for each file a record with its hash, flags
    and the number of its segments, the segments, as many verification records, and one with its sha256.
    """
    at = _SHARD_HEADER
    while shard[at : at + 32] not in (_LAST_RECORD, b""):
        xet_hash = _hash_at(shard, at)
        flags, segments = (int.from_bytes(shard[at + i : at + i + 4], "little") for i in (32, 36))
        at += 48 * (1 + segments * (2 if flags & _HAS_VERIFICATION else 1))
        if flags & _HAS_METADATA:
            yield xet_hash, _hash_at(shard, at)
            at += 48


def _hash_at(shard: bytes, at: int) -> str:
    """A hash is four little-endian words, and is written with the digits of each word in order."""
    return b"".join(shard[at + i : at + i + 8][::-1] for i in range(0, 32, 8)).hex()
