"""A place in a bucket of the Hub, for workers that share no folder.

Records go to a bucket rather than into commits on a pull request's branch, because the Hub refuses more than
128 commits an hour to a repo ("You have exceeded the rate limit for repository commits (128 per hour)", seen
in https://github.com/huggingface/huggingface_hub/issues/2587 and its like), and a large model has more shards
than that. A change of a bucket is no commit. It has no history either, so what is removed is gone.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from hubextrap._version import __version__
from hubextrap.errors import AccessDenied, OutputError, SourceError
from hubextrap.hub.uploading import without_client_bars
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.patience import retried

_NAME = re.compile(r"hf://buckets/([\w.-]+/[\w.-]+)/([^/\x00-\x1f][^\x00-\x1f]*)", re.ASCII)
LIMIT = 2**28
"""Bytes of a file that is read."""
_REFUSED = ("(401 ", "(403 ", "(404 ")
_ROUNDS = 3  # of a removal: a worker may write while files are removed


class BucketPlace:
    """A folder in a bucket, ``hf://buckets/OWNER/NAME/PATH``; the first write makes it, private.

    One that is there and public is not written to: a plan names repos and tensors that may be private.
    """

    anywhere = True

    def __init__(self, name: str) -> None:
        """
        Raises:
            SourceError: the name is none of a folder in a bucket.
        """
        found = _NAME.fullmatch(name.rstrip("/"))
        if found is None or {"", ".", ".."} & set(found[2].split("/")):
            raise SourceError(f"{name[:200]!r} is not the name of a place: hf://buckets/OWNER/NAME/PATH")
        self.name = name.rstrip("/")
        self.bucket, self._path = found[1], found[2]
        self._made = False

    def read(self, file: str) -> bytes | None:
        with hub_errors(f"{self.name}/{file}", SourceError):
            return retried(lambda: self._get(file))

    def write(self, file: str, content: bytes) -> None:
        with hub_errors(f"{self.name}/{file}", OutputError), without_client_bars():
            self._make()
            try:  # the client itself tries each of its requests several times
                hub_api().batch_bucket_files(self.bucket, add=[(content, f"{self._path}/{file}")])
            except OSError as error:  # hf-xet's, which takes every answer for one of the network
                if any(status in str(error) for status in _REFUSED):
                    raise AccessDenied(f"{self.bucket}: the token may not write to this bucket") from error
                raise

    def names(self, folder: str) -> frozenset[str]:
        with hub_errors(f"{self.name}/{folder}", SourceError):
            found = self._listed(f"{self._path}/{folder}", recursive=False)
        start = f"{self._path}/{folder}/"
        inside = [path[len(start) :] for path in found if path.startswith(start)]
        return frozenset(name for name in inside if "/" not in name)

    def remove(self) -> None:
        with hub_errors(self.name, OutputError):
            for _ in range(_ROUNDS):
                if not (found := self._listed(self._path, recursive=True)):
                    return
                hub_api().batch_bucket_files(self.bucket, delete=found)

    def _get(self, file: str) -> bytes | None:
        """The file in one request: what the client has for downloads by Xet takes four, and a folder."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        path = quote(f"{self._path}/{file}", safe="")
        headers = build_hf_headers(library_name="hubextrap", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        address = f"{hub_api().endpoint}/buckets/{self.bucket}/resolve/{path}"
        with get_session().stream("GET", address, headers=headers, follow_redirects=True) as answer:
            if answer.status_code == 404:
                return None
            hf_raise_for_status(answer)
            data = bytearray()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > LIMIT:
                    raise SourceError(f"{self.name}/{file}: has more than {LIMIT} bytes; it is none of ours")
            return bytes(data)

    def _make(self) -> None:
        """Make the bucket if it is not there; once, as an upload to none fails without saying why."""
        if not self._made:
            retried(lambda: hub_api().create_bucket(self.bucket, private=True, exist_ok=True))
            if not retried(lambda: hub_api().bucket_info(self.bucket)).private:
                raise OutputError(
                    f"{self.bucket}: this bucket is public, and a plan names what may be private; make it "
                    "private in its settings, or name another one with --bucket"
                )
            self._made = True

    def _listed(self, folder: str, *, recursive: bool) -> list[str]:
        """The paths of the files in a folder; none where there is no such folder, or no such bucket."""
        from huggingface_hub.errors import BucketNotFoundError, EntryNotFoundError

        try:
            entries = hub_api().list_bucket_tree(self.bucket, prefix=folder, recursive=recursive)
            found = [entry.path for entry in entries if entry.type == "file"]
        except EntryNotFoundError:
            return []
        except BucketNotFoundError as error:
            if error.response.status_code == 404:
                return []
            raise
        return [path for path in found if path.startswith(f"{folder}/")]
