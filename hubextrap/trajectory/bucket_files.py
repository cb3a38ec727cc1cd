"""What lies in a bucket of the Hub, and how it is pinned without commits.

A bucket has no history: what is pinned are the hashes that it lists for the files of a checkpoint, directly
in its folder and in its inner folders. What stands for them is 40 hexadecimal digits, as a commit's SHA has,
and takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.containment import shown
from hubextrap.digests import sha256_of_json
from hubextrap.hub_access import hub_api
from hubextrap.trajectory.hub_file import HubFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_REMEMBERED, _NAMED = 10_000, 3
_listed: dict[str, dict[str, list[object]]] = {}
"""What the pins stand for that this process made, so that a message can say what changed."""

BUCKETS = "buckets/"
"""What a bucket's name begins with where a repo's may stand: ``buckets/owner/name`` is none of a repo."""


def is_bucket(repo: str | None) -> bool:
    """Whether this names a bucket, and no repo."""
    return repo is not None and repo.startswith(BUCKETS)


def bucket_id(repo: str) -> str:
    """A bucket's name as the Hub's client takes it: ``owner/name``."""
    return repo.removeprefix(BUCKETS)


def bucket_tree(repo: str, folder: str, *, recursive: bool) -> Iterator[HubFile]:
    """Files and folders in a folder of a bucket, as the Hub says it; errors are the client's.

    The digest of a file is its Xet hash; of one without, its size and time.
    """
    start = f"{folder}/" if folder else ""
    for entry in hub_api().list_bucket_tree(bucket_id(repo), prefix=folder or None, recursive=recursive):
        if not entry.path.startswith(start):  # a name that only begins like the folder's
            continue
        if entry.type == "file":
            digest = entry.xet_hash or f"{entry.size} bytes of {entry.mtime}"
            yield HubFile(entry.path, entry.size, entry.mtime or entry.uploaded_at, digest)
        else:
            yield HubFile(entry.path, 0, is_folder=True)


def pin_of_files(files: Iterable[HubFile]) -> str:
    """What stands for a checkpoint's files by their paths from its folder, sizes and hashes: 40 hexadecimal
    digits."""
    listed = _by_name(files)
    pin = sha256_of_json(listed)[:40]
    if len(_listed) < _REMEMBERED:
        _listed.setdefault(pin, listed)
    return pin


def changed_since(pin: str, files: Iterable[HubFile]) -> str:
    """Which files of a checkpoint are not as its pin has them, as far as this process made it; the first
    few."""
    before, now = _listed.get(pin), _by_name(files)
    if before is None:  # another process pinned it
        return "a file in it was written to, added or removed"
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    what = {
        name: "removed" if name not in now else "written to" if name in before else "added"
        for name in changed
    }
    more = f", and {len(what) - _NAMED} more" if len(what) > _NAMED else ""
    return ", ".join(f"{shown(name)} was {how}" for name, how in list(what.items())[:_NAMED]) + more


def _by_name(files: Iterable[HubFile]) -> dict[str, list[object]]:
    return {file.path: [file.size, file.digest] for file in files if not file.is_folder}
