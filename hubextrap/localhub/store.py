"""Everything the hub keeps on disk: repos by kind and name, and one lock for every change."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pygit2

from hubextrap.foreign_data import parse_json
from hubextrap.localhub.repository import HubRepo, Kind, RepoSettings

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


def check_name(name: str) -> None:
    """Refuse what is not ``owner/name`` by the Hub's rules, which also keep it inside the store's folder.

    Raises:
        ValueError: it is not.
    """
    owner, slash, repo = name.partition("/")
    bad = not slash or not all(_PART.fullmatch(part) for part in (owner, repo))
    if bad or "--" in name or ".." in name or repo.endswith((".git", ".ipynb")):
        raise ValueError(f"{name!r} is not a repo name: owner/name of letters, digits, '-', '_' and '.'")


class Store:
    """The folder of the hub. Whoever changes a repo holds ``lock``; reading needs none."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.lock = threading.RLock()

    def create(self, settings: RepoSettings) -> HubRepo:
        """Create the repo.

        Raises:
            FileExistsError: it exists, perhaps in other letter case; the error holds its name.
            ValueError: the name is not valid.
        """
        with self.lock:
            folder = self._free_folder(settings.kind, settings.name)
            pygit2.init_repository(str(folder), bare=True, initial_head="main")
            repo = HubRepo.wrap(folder, settings)
            self._forget_moves_from(settings.kind, settings.name)
            return repo

    def get(self, kind: Kind, name: str) -> HubRepo:
        """The repo of exactly this name. Raises KeyError where there is none."""
        try:
            check_name(name)
        except ValueError:
            raise KeyError(name) from None
        folder = self._folder(kind, name)
        if not _is_own(folder):
            raise KeyError(name)
        return HubRepo(folder)

    def find(self, kind: Kind, name: str) -> HubRepo:
        """The repo that has this name, has it in other letter case, or once had it. Raises KeyError."""
        try:
            return self.get(kind, name)
        except KeyError:
            found = self._spelled(kind, name) or self._moves().get(_key(kind, name))
            if found is None:
                raise
            return self.get(kind, found)

    def move(self, repo: HubRepo, name: str) -> None:
        """Rename ``repo``; it is found by its old name until another one takes that.

        Raises:
            FileExistsError: there is a repo called ``name``; the error holds its name.
            ValueError: ``name`` is not valid.
        """
        kind, old = repo.settings.kind, repo.settings.name
        with self.lock:
            check_name(name)
            taken = self._taken(kind, name)
            if taken and (taken != old or name == old):
                raise FileExistsError(taken)
            folder = self._folder(kind, name)
            folder.parent.mkdir(exist_ok=True)
            repo.folder.rename(folder)
            moves = {key: name if value == old else value for key, value in self._moves().items()}
            moves[_key(kind, old)] = name
            moves.pop(_key(kind, name), None)
            self._save_moves(moves)

    def copy(self, repo: HubRepo, settings: RepoSettings) -> HubRepo:
        """A new repo with the branches, tags and objects of ``repo``, and no discussions.

        Raises:
            FileExistsError: there is a repo of that name; the error holds its name.
            ValueError: the name is not valid.
        """
        with self.lock:
            folder = self._free_folder(settings.kind, settings.name)
            fresh = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            for name in ("HEAD", "config", "packed-refs"):
                if (repo.folder / name).is_file():
                    shutil.copyfile(repo.folder / name, fresh / name)
            for name in ("objects", "refs"):
                shutil.copytree(repo.folder / name, fresh / name)
            copy = HubRepo.wrap(fresh, settings)
            copy.objects.link_all(repo.objects)
            copy.xet.copy_all(repo.xet)
            for ref in [ref for ref in copy.git.references if ref.startswith("refs/pr/")]:
                copy.git.references.delete(ref)
            fresh.rename(folder)
            self._forget_moves_from(settings.kind, settings.name)
            return HubRepo(folder)

    def delete(self, repo: HubRepo) -> None:
        """Delete the repo with all that it holds."""
        with self.lock:
            shutil.rmtree(repo.folder)

    def all(self, kind: Kind) -> Iterator[HubRepo]:
        """Every repo of ``kind``, by name."""
        for folder in sorted((self.root / f"{kind}s").glob("*/*.git")):
            if _is_own(folder):
                yield HubRepo(folder)

    def _folder(self, kind: Kind, name: str) -> Path:
        return self.root / f"{kind}s" / f"{name}.git"

    def _free_folder(self, kind: Kind, name: str) -> Path:
        check_name(name)
        taken = self._taken(kind, name)
        if taken:
            raise FileExistsError(taken)
        # Private repos are private on this machine too.
        (self.root / f"{kind}s").mkdir(mode=0o700, exist_ok=True)
        return self._folder(kind, name)

    def _taken(self, kind: Kind, name: str) -> str | None:
        return name if self._folder(kind, name).exists() else self._spelled(kind, name)

    def _spelled(self, kind: Kind, name: str) -> str | None:
        """The name of the repo that differs from ``name`` in letter case alone."""
        wanted = f"{name}.git".lower()
        for folder in (self.root / f"{kind}s").glob("*/*.git"):
            if f"{folder.parent.name}/{folder.name}".lower() == wanted:
                return f"{folder.parent.name}/{folder.name.removesuffix('.git')}"
        return None

    def _moves(self) -> dict[str, str]:
        """Today's name of each repo by every name that it once had."""
        file = self.root / "moves.json"
        moves: dict[str, str] = parse_json(file.read_bytes(), str(file)) if file.is_file() else {}
        return moves

    def _forget_moves_from(self, kind: Kind, name: str) -> None:
        moves = self._moves()
        if moves.pop(_key(kind, name), None):
            self._save_moves(moves)

    def _save_moves(self, moves: dict[str, str]) -> None:
        fresh = self.root / "moves.json.new"
        fresh.write_text(json.dumps(moves, indent=1))
        fresh.replace(self.root / "moves.json")


def _is_own(folder: Path) -> bool:
    """Whether this is a repo of the store, with all its files in it: links and alternates lead elsewhere."""
    inside = (folder / name for name in ("hub.json", "lfs", "objects"))
    return (
        (folder / "hub.json").is_file()
        and not any(part.is_symlink() for part in (folder, *folder.parents[:2], *inside))
        and not (folder / "objects" / "info" / "alternates").exists()
    )


def _key(kind: Kind, name: str) -> str:
    return f"{kind}s/{name}".lower()
