"""Everything the hub keeps on disk: repos by kind and name, and one lock for every change."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from hubextrap.localhub.repository import HubRepo, Kind, Settings

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
        self.root = root
        self.lock = threading.RLock()

    def create(self, settings: Settings) -> HubRepo:
        """Create the repo.

        Raises:
            FileExistsError: it exists.
            ValueError: the name is not valid.
        """
        check_name(settings.name)
        folder = self._folder(settings.kind, settings.name)
        with self.lock:
            if folder.exists():
                raise FileExistsError(settings.name)
            return HubRepo.create(folder, settings)

    def get(self, kind: Kind, name: str) -> HubRepo:
        """The repo.

        Raises:
            KeyError: there is none.
        """
        try:
            check_name(name)
        except ValueError:
            raise KeyError(name) from None
        folder = self._folder(kind, name)
        if not (folder / "hub.json").is_file():
            raise KeyError(name)
        return HubRepo(folder)

    def delete(self, repo: HubRepo) -> None:
        """Delete the repo with all that it holds."""
        with self.lock:
            shutil.rmtree(repo.folder)

    def all(self, kind: Kind) -> Iterator[HubRepo]:
        """Every repo of ``kind``, by name."""
        for folder in sorted((self.root / f"{kind}s").glob("*/*.git")):
            if (folder / "hub.json").is_file():
                yield HubRepo(folder)

    def _folder(self, kind: Kind, name: str) -> Path:
        return self.root / f"{kind}s" / f"{name}.git"
