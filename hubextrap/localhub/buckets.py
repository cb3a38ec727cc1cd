"""Buckets: files by path without a history, each by the Xet hash of its content."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubextrap.foreign_data import parse_json
from hubextrap.localhub.repository import BadPath, check_path, iso_date
from hubextrap.localhub.store import Store, check_name
from hubextrap.localhub.xet import EMPTY, XetStores

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BucketEntry:
    """A file of a bucket; times are in milliseconds since the epoch."""

    hash: str
    size: int
    mtime: int
    uploaded: int


class Bucket:
    """One bucket: a JSON file with all its paths, the contents by Xet hash, and the stores they came in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{folder.parent.name}/{folder.name}"
        self.xet = XetStores(folder / "xet")
        self._contents = folder / "contents"

    def about(self) -> dict[str, Any]:
        """What was said when it was made: ``private`` and ``created``."""
        return self._json("bucket.json")

    def entries(self) -> dict[str, BucketEntry]:
        """Every file by its path."""
        return {path: BucketEntry(**entry) for path, entry in self._json("entries.json").items()}

    def content(self, entry: BucketEntry) -> bytes | Path:
        """The bytes of a file, or the file that holds them."""
        return b"" if entry.hash == EMPTY else self._contents / entry.hash

    def change(
        self, added: Mapping[str, tuple[str, int]], deleted: Iterable[str], now: int
    ) -> dict[str, str]:
        """Add and delete files, all at the same moment, and say what is wrong with those that were left out.

        Args:
            added: Xet hash and time of change of each new file by its path.
            deleted: paths; one that is not there stays so.
            now: milliseconds since the epoch.
        """
        failed = {}
        for path, (xet_hash, _) in added.items():
            if not _HASH.fullmatch(xet_hash):
                failed[path] = "its xetHash is none"
        self.xet.take((xet for p, (xet, _) in added.items() if p not in failed), self._contents)
        entries = self.entries()
        for path in deleted:
            entries.pop(path, None)
        for path, (xet_hash, mtime) in added.items():
            content = self._contents / xet_hash
            if path not in failed and xet_hash != EMPTY and not content.is_file():
                failed[path] = f"the file {xet_hash} was never uploaded"
            if path not in failed:
                size = 0 if xet_hash == EMPTY else content.stat().st_size
                entries[path] = BucketEntry(xet_hash, size, mtime, now)
        self._save("entries.json", {path: asdict(entry) for path, entry in entries.items()})
        return failed

    def readable_store(self) -> Path:
        """A copy of a store with all files of the bucket, for one read token. The store's lock is held."""
        wanted = sorted({entry.hash for entry in self.entries().values()} - {EMPTY})
        note = self.folder / "readable.json"
        there = self._json(note.name) if note.is_file() else {}
        if there.get("hashes") != wanted:
            store = self.xet.store_with(self._contents / xet_hash for xet_hash in wanted)
            there = {"store": store, "hashes": wanted}
            self._save(note.name, there)
        return self.xet.copy_of(there["store"])

    def _json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        found: dict[str, Any] = parse_json(file.read_bytes(), str(file))
        return found

    def _save(self, name: str, value: Mapping[str, Any]) -> None:
        fresh = self.folder / f"{name}.new"
        fresh.write_text(json.dumps(value))
        fresh.replace(self.folder / name)


class Buckets:
    """All buckets of a hub. Whoever changes one holds the store's lock."""

    def __init__(self, store: Store) -> None:
        self._root = store.root / "buckets"

    def create(self, name: str, *, private: bool) -> None:
        """Make an empty bucket.

        Raises:
            FileExistsError: it exists.
            ValueError: the name is not valid.
        """
        check_name(name)
        self._root.mkdir(mode=0o700, exist_ok=True)
        folder = self._root / name
        (folder / "contents").mkdir(parents=True)
        bucket = Bucket(folder)
        bucket._save("entries.json", {})
        bucket._save("bucket.json", {"private": private, "created": iso_date()})

    def get(self, name: str) -> Bucket:
        """The bucket of that name. Raises KeyError where there is none."""
        try:
            check_name(name)
        except ValueError:
            raise KeyError(name) from None
        folder = self._root / name
        if not (folder / "bucket.json").is_file() or folder.is_symlink() or folder.parent.is_symlink():
            raise KeyError(name)
        return Bucket(folder)

    def of(self, namespace: str) -> Iterator[Bucket]:
        """Every bucket of a user, by name."""
        for folder in sorted(self._root.glob("*/*")):
            if folder.parent.name == namespace and (folder / "bucket.json").is_file():
                yield Bucket(folder)

    def delete(self, bucket: Bucket) -> None:
        """Delete it with all that it holds."""
        shutil.rmtree(bucket.folder)


def check_file(path: str) -> str | None:
    """What is wrong with the path of a file in a bucket, if anything."""
    try:
        check_path(path)
    except BadPath as error:
        return error.message
    return "it ends in a slash" if path.endswith("/") else None
