"""Xet uploads into local stores, a facility of hf-xet: a folder takes the place of the content server.

A process locks the folder that it opens, so each write token gets a store of its own, and each read token a
copy of one store that holds the files of its commit (large files are linked). What a commit names is kept as
an LFS object too, so that clients without Xet read the same bytes, and what came by LFS is put into a store.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hubextrap.foreign_data import parse_json
from hubextrap.localhub.lfs import LfsObjects, Pointer, RejectedObject, chunks_of

_SHARD_HEADER = 48  # bytes; records have the same size
_LAST_RECORD = b"\xff" * 32
_HAS_VERIFICATION, _HAS_METADATA = 0x80000000, 0x40000000
EMPTY = "0" * 64
"""The Xet hash of no bytes, which no store holds."""


@dataclass(frozen=True)
class XetFile:
    """A file in a store: its Xet hash, and the name of the store."""

    hash: str
    store: str


class XetStores:
    """The Xet stores of one repo."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stores = folder / "stores"
        self._copies = folder / "copies"
        self._files = folder / "files"

    def new_store(self) -> Path:
        """An empty store for one write token."""
        store = self._stores / secrets.token_hex(8)
        store.mkdir(parents=True)
        return store

    def copy_of(self, store: str) -> Path:
        """A copy of ``store`` for one read token. Raises KeyError where there is no such store."""
        source = self._stores / store
        if not store.isalnum() or not source.is_dir():
            raise KeyError(store)
        copy = self._copies / secrets.token_hex(8)
        shutil.copytree(source, copy, copy_function=_link_or_copy)
        return copy

    def file(self, sha256: str) -> XetFile | None:
        """Where the file with this sha256 lies; None if it did not come by Xet."""
        note = self._files / f"{sha256}.json"
        return XetFile(**parse_json(note.read_bytes(), str(note))) if note.is_file() else None

    def copy_all(self, source: XetStores) -> None:
        """Take over the stores of another repo."""
        for name in ("stores", "files"):
            if (source._folder / name).is_dir():
                shutil.copytree(source._folder / name, self._folder / name, copy_function=_link_or_copy)

    def keep(self, pointers: Iterable[Pointer], objects: LfsObjects) -> None:
        """Put LFS objects into a store too, so that they can be read by Xet."""
        missing = [pointer for pointer in pointers if self.file(pointer.sha256) is None]
        if missing:
            self._upload(missing, objects)

    def store_of(self, pointers: Iterable[Pointer], objects: LfsObjects) -> str:
        """The name of one store that holds all of ``pointers`` that came by Xet; made if there is none yet.

        Raises:
            KeyError: none of them did.
        """
        files = {pointer: self.file(pointer.sha256) for pointer in pointers}
        stores = {file.store for file in files.values() if file}
        if not stores:
            raise KeyError("no file came by Xet")
        if len(stores) == 1:
            return stores.pop()
        return self._upload([pointer for pointer, file in files.items() if file], objects)

    def _upload(self, pointers: list[Pointer], objects: LfsObjects) -> str:
        from hf_xet import XetSession

        store = self.new_store()
        with XetSession().new_upload_commit(endpoint=f"local://{store.resolve()}") as commit:
            uploads = [
                (pointer.sha256, commit.start_upload_file(str(objects.path(pointer.sha256))))
                for pointer in pointers
            ]
        for sha256, upload in uploads:
            self._note(sha256, XetFile(upload.result().xet_info.hash, store.name))
        return store.name

    def adopt(self, pointers: Iterable[Pointer], objects: LfsObjects) -> None:
        """Make LFS objects of those of ``pointers`` that lie in a store.

        Raises:
            RejectedObject: what lies in a store is not what its sha256 says.
        """
        wanted = {pointer.sha256: pointer for pointer in pointers}
        for store in sorted(self._stores.glob("*")) if wanted else ():
            found = []
            for xet_hash, _, sha256 in _files_in(store):
                if sha256 in wanted:
                    found.append((XetFile(xet_hash, store.name), wanted.pop(sha256)))
            if found:
                self._fetch(store.name, found, objects)

    def _fetch(self, store: str, files: list[tuple[XetFile, Pointer]], objects: LfsObjects) -> None:
        with self._fetched(store, {file.hash: pointer.size for file, pointer in files}) as folder:
            for file, pointer in files:
                with (folder / file.hash).open("rb") as fetched:
                    objects.add(chunks_of(fetched), pointer)
        for file, pointer in files:
            self._note(pointer.sha256, file)

    @contextmanager
    def _fetched(self, store: str, files: Mapping[str, int]) -> Iterator[Path]:
        """A folder with files of a store, each named by its Xet hash; ``files`` has the sizes in bytes.

        Raises:
            RejectedObject: they cannot be read.
        """
        from hf_xet import XetFileInfo, XetSession

        copy = self.copy_of(store)
        try:
            with XetSession().new_file_download_group(endpoint=f"local://{copy.resolve()}") as group:
                for xet_hash, size in files.items():
                    group.start_download_file(XetFileInfo(xet_hash, size), str(copy / xet_hash))
            yield copy
        except RuntimeError as error:
            raise RejectedObject(f"cannot read files from their Xet store: {error}") from error
        finally:
            shutil.rmtree(copy)

    def take(self, hashes: Iterable[str], folder: Path) -> None:
        """Put those files that lie in a store, whichever it is, into ``folder`` under their Xet hashes.

        Raises:
            RejectedObject: one cannot be read from its store.
        """
        wanted = {xet_hash for xet_hash in hashes if not (folder / xet_hash).is_file()}
        folder.mkdir(parents=True, exist_ok=True)
        newest_first = sorted(self._stores.glob("*"), key=lambda store: store.stat().st_mtime, reverse=True)
        for store in newest_first:
            found = {name: size for name, size, _ in _files_in(store) if name in wanted} if wanted else {}
            if found:
                with self._fetched(store.name, found) as fetched:
                    for xet_hash in found:
                        (fetched / xet_hash).rename(folder / xet_hash)
            wanted -= found.keys()

    def store_with(self, files: Iterable[Path]) -> str:
        """The name of a new store that holds these files."""
        from hf_xet import SKIP_SHA256, XetSession

        store = self.new_store()
        with XetSession().new_upload_commit(endpoint=f"local://{store.resolve()}") as commit:
            for file in files:
                commit.start_upload_file(str(file), sha256=SKIP_SHA256)
        return store.name

    def _note(self, sha256: str, file: XetFile) -> None:
        self._files.mkdir(parents=True, exist_ok=True)
        (self._files / f"{sha256}.json").write_text(json.dumps(asdict(file)))


def _link_or_copy(source: str, target: str) -> None:
    """Content is never changed once written, and may be linked; the database is."""
    if source.endswith(".redb"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _files_in(store: Path) -> Iterator[tuple[str, int, str | None]]:
    """As ``_files_of``, of all that a store holds."""
    for shard in store.glob("xet/xorbs/shards/*.mdb"):
        yield from _files_of(shard.read_bytes())


def _files_of(shard: bytes) -> Iterator[tuple[str, int, str | None]]:
    """Xet hash, size in bytes and sha256 (if it is stated; hex) of each file that a shard describes.

    The layout is that of the Xet specification: a header, then for each file a record with its hash, flags
    and the number of its segments, the segments, as many verification records, and one with its sha256.
    """
    at = _SHARD_HEADER
    while shard[at : at + 32] not in (_LAST_RECORD, b""):
        xet_hash = _hash_at(shard, at)
        flags, segments = _word_at(shard, at + 32), _word_at(shard, at + 36)
        size = sum(_word_at(shard, at + 48 * segment + 36) for segment in range(1, segments + 1))
        at += 48 * (1 + segments * (2 if flags & _HAS_VERIFICATION else 1))
        if flags & _HAS_METADATA:
            yield xet_hash, size, _hash_at(shard, at)
            at += 48
        else:
            yield xet_hash, size, None


def _word_at(shard: bytes, at: int) -> int:
    return int.from_bytes(shard[at : at + 4], "little")


def _hash_at(shard: bytes, at: int) -> str:
    """A hash is four little-endian words, and is written with the digits of each word in order."""
    return b"".join(shard[at + i : at + i + 8][::-1] for i in range(0, 32, 8)).hex()
