"""One repo of the hub: a bare git repository, its LFS objects, and a JSON file with what neither holds.

Objects belong to one repo: to know the sha256 of a private or gated file is not enough to get at it.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pygit2
from pygit2.enums import AttrCheck, FileMode, SortMode

from hubextrap.foreign_data import parse_json
from hubextrap.localhub.lfs import LfsObjects, Pointer
from hubextrap.localhub.refusal import Refusal
from hubextrap.localhub.xet import XetStores

Kind = Literal["model", "dataset", "space"]
KINDS: tuple[Kind, ...] = ("model", "dataset", "space")
_REF_PART_MAX = 255  # bytes; a file system takes no longer name
_POINTER_MAX = 200  # bytes; a pointer file has about 130


class NoSuchRevision(Refusal):
    """No branch, tag, pull request or commit of that name."""

    def __init__(self, revision: str) -> None:
        super().__init__(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Conflict(Refusal):
    """The ref moved, is there already, or cannot exist beside another one."""

    def __init__(self, message: str) -> None:
        super().__init__(409, message)


class BadCommit(Refusal):
    """What a commit should do cannot be done: a file that is not there, a ref that git cannot hold."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class BadPath(Refusal):
    """A path that leads out of the repo, or that git cannot hold."""

    def __init__(self, path: str) -> None:
        super().__init__(422, f"{path!r} is not a valid path in a repo")


@dataclass
class RepoSettings:
    """What the hub knows of a repo beyond git; ``grants`` maps users to ``read`` or ``write``."""

    kind: Kind
    name: str
    private: bool
    gated: str | bool
    created: str
    grants: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)
    discussions_disabled: bool = False


@dataclass(frozen=True)
class Entry:
    """A file or folder of a commit; ``size`` is that of the content, also for LFS files."""

    path: str
    oid: str
    size: int
    folder: bool = False
    lfs: Pointer | None = None


class HubRepo:
    """A repo as it lies on disk. Cheap to make: one for each request, never shared between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last_tree: tuple[pygit2.Oid, pygit2.Tree] | None = None
        self.objects = LfsObjects(folder / "lfs")
        self.xet = XetStores(folder / "xet")
        self.settings = RepoSettings(
            **parse_json((folder / "hub.json").read_bytes(), str(folder / "hub.json"))
        )
        # A repo that is moved is one folder renamed; the name in its file may be older.
        self.settings.name = f"{folder.parent.name}/{folder.name.removesuffix('.git')}"

    @cached_property
    def git(self) -> pygit2.Repository:
        """Opened when it is needed: whoever sends a range of an object needs none."""
        return pygit2.Repository(str(self.folder))

    @staticmethod
    def wrap(folder: Path, settings: RepoSettings) -> HubRepo:
        """Make a repo of the bare git repository in ``folder``."""
        (folder / "hub.json").write_text(json.dumps(asdict(settings)))
        return HubRepo(folder)

    def save_settings(self) -> None:
        """Write ``settings``; the caller holds the store's lock."""
        fresh = self.folder / "hub.json.new"
        fresh.write_text(json.dumps(asdict(self.settings)))
        fresh.replace(self.folder / "hub.json")

    # Refs

    def ref_of(self, revision: str) -> str | None:
        """The full name of the branch, pull request or tag called ``revision``; None if there is none."""
        full = revision.startswith("refs/")
        names = [revision] if full else [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        return next((name for name in names if _is_ref(name) and name in self.git.references), None)

    def head(self, revision: str) -> pygit2.Commit:
        """The commit that ``revision`` (branch, tag, ``refs/…`` or SHA of 7 or more digits) stands for.

        Raises:
            NoSuchRevision: there is none.
        """
        ref = self.ref_of(revision)
        if ref:
            return self.git.references[ref].peel(pygit2.Commit)
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            try:
                found = self.git[revision]
            except (KeyError, ValueError):
                found = None
            if isinstance(found, pygit2.Commit):
                return found
        raise NoSuchRevision(revision)

    def refs(self, prefix: str) -> list[dict[str, str]]:
        """The refs under ``prefix`` as the refs API lists them, by name."""
        names = [name for name in sorted(self.git.references) if name.startswith(prefix)]
        shas = [str(self.git.references[name].peel(pygit2.Commit).id) for name in names]
        return [
            {"name": name.removeprefix(prefix), "ref": name, "targetCommit": sha}
            for name, sha in zip(names, shas, strict=True)
        ]

    def create_ref(self, ref: str, target: pygit2.Commit) -> None:
        """Create ``ref``.

        Raises:
            Conflict: it exists, or a ref stands where its folder would be or the other way round.
        """
        if not _is_ref(ref):
            raise BadCommit(f"{ref} is not a valid ref name")
        try:
            self.git.create_reference_direct(ref, target.id, False)
        except (pygit2.GitError, ValueError, OSError) as error:
            if ref in self.git.references:
                raise Conflict(f"Reference {ref} already exists") from error
            raise Conflict(f"cannot create {ref}: {error}") from error

    def delete_ref(self, ref: str) -> None:
        """Delete ``ref``. Raises NoSuchRevision where there is none."""
        if not _is_ref(ref) or ref not in self.git.references:
            raise NoSuchRevision(ref.split("/", 2)[2])
        self.git.references.delete(ref)

    # Reading

    def entry(self, commit: pygit2.Commit, path: str) -> Entry | None:
        """The file or folder at ``path``; None if there is none."""
        try:
            check_path(path)
            return self.entry_of(path, self._tree(commit)[path])
        except (KeyError, ValueError, BadPath):
            return None

    def _tree(self, commit: pygit2.Commit) -> pygit2.Tree:
        """The commit's, read once: git reads a long one anew for each path."""
        if self._last_tree is None or self._last_tree[0] != commit.id:
            self._last_tree = commit.id, commit.tree
        return self._last_tree[1]

    def entries(self, commit: pygit2.Commit, path: str = "", recursive: bool = False) -> Iterator[Entry]:
        """What lies under the folder ``path``, each folder before what it holds, in git's order."""
        for below, item in self.named(commit, path, recursive):
            yield self.entry_of(below, item)

    def named(
        self, commit: pygit2.Commit, path: str = "", recursive: bool = False
    ) -> Iterator[tuple[str, pygit2.Object]]:
        """The same by path, with no file read."""
        tree = commit.tree[path] if path else commit.tree
        assert isinstance(tree, pygit2.Tree)
        for item in tree:
            below = f"{path}/{item.name}" if path else str(item.name)
            yield below, item
            if recursive and isinstance(item, pygit2.Tree):
                yield from self.named(commit, below, recursive=True)

    def tracked_by_lfs(self, commit: pygit2.Commit, path: str) -> bool | None:
        """What .gitattributes in ``commit`` say of a file at ``path``; None where they say nothing."""
        flags = AttrCheck.INDEX_ONLY | AttrCheck.NO_SYSTEM | AttrCheck.INCLUDE_COMMIT
        found = self.git.get_attr(path, "filter", flags, commit.id)
        return None if found is None else found == "lfs"

    def content(self, entry: Entry) -> bytes:
        """The blob of ``entry`` as git holds it: for LFS files the pointer."""
        blob = self.git[entry.oid]
        assert isinstance(blob, pygit2.Blob)
        return blob.data

    def history(self, commit: pygit2.Commit) -> Iterator[pygit2.Commit]:
        """``commit`` and all before it, newest first."""
        return iter(self.git.walk(commit.id, SortMode.TOPOLOGICAL))

    def last_changes(self, commit: pygit2.Commit, paths: Iterable[str]) -> dict[str, pygit2.Commit]:
        """For each path, the newest commit up to ``commit`` that changed it."""
        open_paths, found = set(paths), {}
        for older in self.history(commit):
            if not open_paths:
                break
            tree, parent = older.tree, older.parents[0].tree if older.parents else None  # each read once
            for path in list(open_paths):
                if _oid_at(tree, path) != (_oid_at(parent, path) if parent is not None else None):
                    found[path] = older
                    open_paths.discard(path)
        return found

    def entry_of(self, path: str, item: pygit2.Object) -> Entry:
        """What git has at ``path``."""
        if isinstance(item, pygit2.Tree):
            return Entry(path, str(item.id), 0, folder=True)
        assert isinstance(item, pygit2.Blob)
        pointer = Pointer.decode(item.data) if item.size <= _POINTER_MAX else None
        return Entry(path, str(item.id), pointer.size if pointer else item.size, lfs=pointer)

    # Writing

    def tree_with(self, base: pygit2.Commit | None, changes: Iterable[Change]) -> pygit2.Oid:
        """Write the tree that ``changes``, applied in order, make of that of ``base``.

        Raises:
            BadCommit: a path is missing, or is a folder where a file should be or vice versa.
            BadPath: a path is not valid.
        """
        index = pygit2.Index()
        if base:
            index.read_tree(base.tree)
        folders = Counter(above for entry in index for above in _above(entry.path))
        for change in changes:
            check_path(change.path)
            if change.content is None:
                for path in _removed(index, folders, change):
                    index.remove(path)
                    folders.subtract(_above(path))
                continue
            if change.path not in index:
                _check_free(index, folders, change.path)
                folders.update(_above(change.path))
            blob = self.git.create_blob(change.content)
            try:
                index.add(pygit2.IndexEntry(change.path, blob, FileMode.BLOB))
            except (pygit2.GitError, ValueError, OSError) as error:
                raise BadPath(change.path) from error  # git knows more names for .git than we do
        return index.write_tree(self.git)

    def commit(
        self,
        ref: str | None,
        tree: pygit2.Oid,
        parent: pygit2.Commit | None,
        message: str,
        author: str,
        date: datetime | None = None,
    ) -> str:
        """Commit ``tree`` on top of ``parent`` and move ``ref`` (if any) there; returns the SHA.

        Raises:
            Conflict: ``ref`` is no longer at ``parent``.
        """
        when = date or datetime.now(timezone.utc)
        seconds, offset = int(when.timestamp()), int((when.utcoffset() or timedelta()).total_seconds() // 60)
        signature = pygit2.Signature(author, f"{author}@users.noreply.local", seconds, offset)
        parents = [parent.id] if parent else []
        try:
            return str(self.git.create_commit(ref, signature, signature, message, tree, parents))
        except pygit2.GitError as error:
            raise Conflict(f"{ref} has moved: {error}") from error


@dataclass(frozen=True)
class Change:
    """Write ``content`` (a blob; for LFS files that of ``pointer``) at ``path``, or delete what is there."""

    path: str
    content: bytes | None = None
    folder: bool = False
    pointer: Pointer | None = None


def check_path(path: str) -> None:
    """Raise BadPath for what is not a plain relative path."""
    parts = path.rstrip("/").split("/")
    bad = any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    # Like the Hub, a backslash is a letter as any other, except where it makes the whole path a relative one.
    if bad or not _is_plain(path) or re.match(r"(?:\.{0,2}|[A-Za-z]:)\\", path):
        raise BadPath(path)


def _is_plain(text: str) -> bool:
    """Whether git sees the same text: it stops at a NUL, and takes no half of a character."""
    return not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text)


def _is_ref(name: str) -> bool:
    """Whether git can be asked for a ref of this full name."""
    fits = all(len(part.encode()) + len(".lock") <= _REF_PART_MAX for part in name.split("/"))
    return fits and len(name) < 3000 and _is_plain(name) and pygit2.reference_is_valid_name(name)


def iso_date(seconds: float | None = None) -> str:
    """A time since the epoch, or now, as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def settings_for(kind: Kind, name: str, private: bool, gated: str | bool) -> RepoSettings:
    """Those of a repo that is created now; ``gated=True`` means ``auto``."""
    return RepoSettings(kind, name, private, "auto" if gated is True else gated, iso_date())


def _oid_at(tree: pygit2.Tree, path: str) -> pygit2.Oid | None:
    try:
        return tree[path].id
    except KeyError:
        return None


def _removed(index: pygit2.Index, folders: Mapping[str, int], change: Change) -> list[str]:
    """The files that go. As on the Hub, a folder may be deleted like a file too."""
    path = change.path.rstrip("/")
    if path in index and not change.folder:
        return [path]
    if not folders.get(path):
        raise BadCommit(f"cannot delete {'the folder ' if change.folder else ''}{path}: it is not there")
    return [entry.path for entry in index if entry.path.startswith(f"{path}/")]


def _check_free(index: pygit2.Index, folders: Mapping[str, int], path: str) -> None:
    """libgit2 would silently replace a file by a folder and a folder by a file."""
    for above in _above(path):
        if above in index:
            raise BadCommit(f"cannot write {path}: {above} is a file")
    if folders.get(path):
        raise BadCommit(f"cannot write {path}: it is a folder")


def _above(path: str) -> list[str]:
    """The folders that a path lies in."""
    return [path[:place] for place, character in enumerate(path) if character == "/"]
