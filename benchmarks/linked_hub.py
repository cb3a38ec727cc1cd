"""A loopback Hub as far away as a real one, whose large files are links to those that it serves."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import Bench
from hubextrap.localhub import Fault, LocalHub
from hubextrap.localhub.lfs import Pointer
from hubextrap.localhub.repository import Change

DELAY = 0.02
"""Seconds that each answer comes later."""
REPO = "me/run"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a Hub and its storage were asked for."""

    calls: int
    """Of the API."""
    resolves: int
    """Requests of ``/resolve/``: with the calls, what the Hub's rate limits count."""
    resolved: frozenset[str]
    """Commits of which something was resolved; of no other, a byte was read."""
    ranges: int
    """Requests to the storage."""
    bytes: int
    """That these brought."""

    @classmethod
    def of(cls, hub: LocalHub) -> Traffic:
        """Since it was last asked."""
        asked = [one for one in hub.requests if one.method in ("GET", "HEAD")]
        hub.requests.clear()
        commits = [found[1] for one in asked if (found := re.search("/resolve/([0-9a-f]{40})/", one.path))]
        ranges = [one.headers.get("Range", "") for one in asked if one.port == hub.cdn_port]
        bounds = [re.fullmatch(r"bytes=(\d+)-(\d+)", text) for text in ranges]
        return cls(
            sum("/api/" in one.path for one in asked),
            len(commits),
            frozenset(commits),
            len(ranges),
            sum(int(one[2]) - int(one[1]) + 1 for one in bounds if one),
        )


@contextmanager
def linked_hub(
    bench: Bench, folders: Iterable[Path], digest: Callable[[Path], str]
) -> Iterator[tuple[LocalHub, dict[str, str], list[str]]]:
    """A Hub with the folders as branches of ``me/run``; the variables with which it is read; their commits.

    Args:
        digest: the sha256 of a large file, or what stands for it.
    """
    with LocalHub(bench.fresh("hub"), tokens={"hf_bench": "me"}, cdn=True) as hub:
        hub.create_repo(REPO)
        commits = [_commit(hub, folder, digest) for folder in folders]
        hub.faults.add(Fault("", delay=DELAY, count=10**9))
        environment = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(bench.fresh("hf"))}
        yield (
            hub,
            environment | dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"),
            commits,
        )
    bench.fresh("hub")
    bench.fresh("hf")


def sha256_of(path: Path) -> str:
    """The hash of a file, kept beside it."""
    kept = path.with_suffix(".sha256")
    if not kept.exists():
        found = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while block := file.read(2**22):
                found.update(block)
        kept.write_text(found.hexdigest())
    return kept.read_text()


def made_up(path: Path) -> str:
    """Something like the hash of a file that is too large to be read."""
    return hashlib.sha256(str(path).encode()).hexdigest()


def _commit(hub: LocalHub, folder: Path, digest: Callable[[Path], str]) -> str:
    repo = hub.store.get("model", REPO)
    changes = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            pointer = Pointer(digest(path), path.stat().st_size)
            stored = repo.objects.path(pointer.sha256)
            stored.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, stored)
            changes.append(Change(path.name, pointer.encode(), pointer=pointer))
        elif path.suffix == ".json":
            changes.append(Change(path.name, path.read_bytes()))
    with hub.store.lock:
        return repo.commit(f"refs/heads/{folder.name}", repo.tree_with(None, changes), None, "Upload", "me")
