"""A checkpoint in a bucket of the Hub, read by byte ranges as one in a repo is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from hubextrap.errors import SourceError
from hubextrap.hub_access import hub_api
from hubextrap.tensors.remote import RemoteSource, list_folder
from hubextrap.trajectory.bucket_files import bucket_id, is_bucket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.tensors.interfaces import FileInfo

_XET = re.compile("[0-9a-f]{64}")


class BucketSource(RemoteSource):
    """The files of one folder of a bucket, as they are while they have the hashes that were listed.

    A bucket keeps no earlier content, so the hash that each answer states is compared: what was written to
    since it was pinned is an error. The hashes are Xet's, which nothing here computes from bytes.
    """

    def files(self) -> Mapping[str, FileInfo]:
        with self._lock:
            if self._listing is None:
                listed = list_folder(self._repo, self._commit, self._path, self.name)
                self._hashes = {file: info.digest or "" for file, info in listed.items()}
                self._listing = {file: replace(info, digest=None) for file, info in listed.items()}
            return self._listing

    def check_unchanged(self) -> None:
        """Compare all that was listed with what lies there now.

        Raises:
            SourceError: a file was written to, added or removed; names it.
            HubExtrapError: the folder is gone, or cannot be listed.
        """
        before = {file: (info.size, self._hashes[file]) for file, info in self.files().items()}
        now = list_folder(self._repo, self._commit, self._path, self.name)
        for file, (size, digest) in before.items():  # the pin is of the folder, and not of those in it
            found = now.get(file)
            if found is None or (found.size, found.digest or "") != (size, digest):
                raise self._differs(file, "Xet hash", digest, None if found is None else found.digest)

    def _address(self, file: str) -> str:
        path = f"{self._path}/{file}" if self._path else file
        return f"{hub_api().endpoint}/buckets/{bucket_id(self._repo)}/resolve/{quote(path, safe='')}"

    def _xet_hash(self, file: str) -> str | None:
        listed = self._hashes[file]
        return listed if _XET.fullmatch(listed) else None

    def _differs(self, file: str, what: str, expected: object, found: object) -> SourceError:
        return SourceError(
            f"{self.name}/{file}: was written to since this command pinned it ({what} {expected} was listed, "
            f"{found} is there now); wait until nothing writes to it, then run the same command again",
            file=file,
            repo=self._repo,
        )


def hub_source(
    repo: str, commit: str, path: str, name: str, listed: dict[str, FileInfo] | None = None
) -> RemoteSource:
    """What reads a folder of a repo or of a bucket.

    Args:
        listed: what lies in a repo's folder, where that is known.
    """
    if is_bucket(repo):
        return BucketSource(repo, commit, path, name)
    return RemoteSource(repo, commit, path, name, listed=listed)
