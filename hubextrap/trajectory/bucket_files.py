"""What lies in a bucket of the Hub, and how it is pinned without commits.

A bucket has no history: what is pinned are the hashes that it lists for the files directly in a checkpoint's
folder. What stands for them is 40 hexadecimal digits, as a commit's SHA has, and takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.digests import sha256_of_json
from hubextrap.hub_access import hub_api
from hubextrap.trajectory.hub_file import HubFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    """What stands for files of one folder by their names, sizes and hashes: 40 hexadecimal digits."""
    listed = {file.path.rpartition("/")[2]: [file.size, file.digest] for file in files if not file.is_folder}
    return sha256_of_json(listed)[:40]
