"""A checkpoint on the Hub, read by byte ranges: no model byte touches the disk.

What the Hub counts against its rate limits are calls of its API and requests of ``/resolve/`` addresses: 500
and 3,000 in five minutes for one without a token (https://huggingface.co/docs/hub/rate-limits). A source
makes one API call for its folder's listing, and resolves each file once, however many ranges are read of it;
those go to the storage, which is not counted. So a sample of 30 checkpoints of six shards each costs the Hub
30 calls and some 250 requests, a twelfth of what it allows.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.containment import name_problem
from hubextrap.errors import ReferenceNotFound, SourceError
from hubextrap.hub_access import hub_errors
from hubextrap.hub_client import http_libraries, origin, stoppable
from hubextrap.patience import Attempts, Patience, is_passing, wait_asked_by
from hubextrap.tensors.hashing import check_data
from hubextrap.tensors.interfaces import (
    PUSHED_FOLDER,
    SMALL_FILE,
    STATE_FILE,
    TEMPLATE_FOLDER,
    FileInfo,
    check_range,
    readable,
)
from hubextrap.tensors.transfer import Part, Refused, Target, fetch
from hubextrap.trajectory.hub_file import HubFile
from hubextrap.trajectory.hub_files import check_pin, list_entries
from hubextrap.trajectory.weights import inner_folders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PART = 8 * 2**20
"""Bytes of one request: larger reads are split into parts of this size that run side by side."""

IN_FLIGHT = 8
"""Requests of parts at the same time, of all remote sources in this process together."""

SMALL = 2**20
"""Bytes of a read that is made at once, in the thread that asks for it: handing it over to another thread and
back would take as long as the request itself takes the processor."""

SMALL_IN_FLIGHT = 32
"""Small reads at the same time, of all remote sources together: waiting dominates them, so more of them are
on their way than of large ones. (With 20 ms of delay, 8 bring 355 a second, 16 bring 640, 32 bring 810, and
from there on the processor is busy.)"""

RESOLVE_TIMEOUT = 20.0
"""Seconds for the Hub to answer where a file lies."""


class RemoteSource:
    """The files of one folder of a repo at a pinned commit. Thread-safe.

    Every file is resolved once and its (signed) address kept until the server refuses it. Only the Hub sees
    the token; the storage that it redirects to does not.
    """

    def __init__(
        self,
        repo: str,
        commit: str,
        path: str = "",
        name: str | None = None,
        patience: Patience | None = None,
        listed: dict[str, FileInfo] | None = None,
    ) -> None:
        self.name = name or f"{repo}@{commit[:12]}" + (f":{path}" if path else "")
        self._repo = repo
        self._commit = commit
        self._path = path.strip("/")
        self._patience = patience or Patience()
        self._lock = threading.Lock()
        self._listing = listed
        self._hashes: dict[str, str] = {}
        """Xet's, by file, where those are compared."""
        self._targets: dict[str, Target] = {}
        self._resolving: dict[str, threading.Lock] = {}
        self._reads: set[threading.Event] = set()
        self._closed = False

    def files(self) -> Mapping[str, FileInfo]:
        with self._lock:
            if self._listing is None:
                self._listing = list_folder(self._repo, self._commit, self._path, self.name)
            return self._listing

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        view = buffer.cast("B")
        info = self._known(file)
        check_range(info.size, offset, len(view), self.name, file)
        stop = threading.Event()
        with self._lock:
            if self._closed:
                raise SourceError(f"{self.name}: the source is closed")
            self._reads.add(stop)
        parts = [
            Part(offset + start, view[start : start + PART], stop) for start in range(0, len(view), PART)
        ]
        try:
            if len(parts) == 1 and len(view) <= SMALL:
                with _small_reads, suppress(_Stopped):
                    self._read_part(file, parts[0])
            else:
                self._read_side_by_side(file, parts)
        finally:
            with self._lock:
                self._reads.discard(stop)
        if any(part.rest for part in parts):
            raise SourceError(f"{self.name}/{file}: the source was closed while it was read", file=file)

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        buffer = bytearray(self._known(file, limit).size)
        self.read(file, 0, memoryview(buffer))
        data = bytes(buffer)
        check_data(self, file, data)
        return data

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for stop in self._reads:
                stop.set()
            self._targets.clear()

    def _known(self, file: str, limit: int | None = None) -> FileInfo:
        return readable(self.files().get(file), self.name, file, limit)

    def _read_side_by_side(self, file: str, parts: Sequence[Part]) -> None:
        """Fill the parts of one read, whose ``stop`` they share; the first error ends it."""

        def fill(part: Part) -> None:
            try:
                self._read_part(file, part)
            except BaseException:
                part.stop.set()  # or this thread begins another part before the one that waits wakes up
                raise

        futures = [_pool.submit(fill, part) for part in parts]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Nothing may write into the caller's buffer after this returns, whatever happened.
            for part in parts:
                part.stop.set()
            for future in futures:
                future.cancel()
            wait(futures)
        for future in futures:
            if not future.cancelled() and (error := future.exception()) and not isinstance(error, _Stopped):
                raise error

    def _read_part(self, file: str, part: Part) -> None:
        """Fill ``part``, trying again as long as the retry policy allows."""
        where = f"{self.name}/{file}"
        first, last = part.offset, part.offset + len(part.buffer) - 1
        attempts = Attempts(self._patience)
        with hub_errors(where), stoppable(part.stop):
            while part.rest and not part.stop.is_set():
                asked, cause, stale = None, "", False
                target: Target | None = None
                failure: Exception
                received = part.received
                try:
                    target = self._target(file)
                    fetch(target, part)
                    continue
                except Refused as error:
                    failure = error
                    asked, cause, stale = error.asked_wait, str(error), error.stale
                    with self._lock:
                        if stale and self._targets.get(file) is target:
                            self._targets.pop(file, None)
                except Exception as error:
                    if not is_passing(error):
                        raise
                    failure, asked = error, wait_asked_by(error)
                    cause = str(error).strip().partition("\n")[0] or type(error).__name__
                seconds = attempts.wait(asked)
                if seconds is None:
                    hint = f"; the server asked to wait {asked:.0f} s" if asked else ""
                    raise SourceError(
                        f"{where}: bytes {first}-{last} could not be read in {attempts.failed} attempts over "
                        f"{attempts.elapsed:.0f} s: {cause}{hint}; check the network, then "
                        "run the same command again",
                        file=where,
                    ) from failure
                # An address that expired or a connection that brought something is worth an attempt at once.
                if part.received == received and not (stale and attempts.failed == 1):
                    part.stop.wait(seconds)
        if part.rest:
            raise _Stopped

    def _target(self, file: str) -> Target:
        """Where the file's bytes lie; asks the Hub unless it is known."""
        with self._lock:
            lock = self._resolving.setdefault(file, threading.Lock())
        with lock:
            target = self._targets.get(file)
            if target is None:
                target = self._targets[file] = self._resolve(file)
            return target

    def _resolve(self, file: str) -> Target:
        from urllib.parse import urljoin

        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        info = self.files()[file]
        url, xet_hash = self._address(file), self._xet_hash(file)
        metadata = get_hf_file_metadata(
            url, timeout=RESOLVE_TIMEOUT, library_name="hubextrap", library_version=__version__
        )
        etag = metadata.etag or ""  # a mirror's may be a hash of another kind
        xet_file = metadata.xet_file_data
        for what, found, expected in (
            ("commit", metadata.commit_hash, self._commit),
            ("size", metadata.size, info.size),
            ("hash", etag if len(etag) == len(info.digest or "") else None, info.digest),
            ("Xet hash", xet_file.file_hash if xet_file and xet_hash else None, xet_hash),
        ):
            if found is not None and found != expected:
                raise self._differs(file, what, expected, found)
        location = urljoin(url, metadata.location)
        at_hub = origin(location) == origin(url)
        headers = build_hf_headers(
            token=None if at_hub else False, library_name="hubextrap", library_version=__version__
        )
        http, _ = http_libraries()
        return Target(http.URL(location), headers, at_hub, info.size, xet_hash)

    def _address(self, file: str) -> str:
        """Where the Hub is asked for a file."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self._repo, file, subfolder=self._path or None, revision=self._commit)

    def _xet_hash(self, file: str) -> str | None:
        """The Xet hash that every answer has to have; None where the address itself pins the content."""
        return None

    def _differs(self, file: str, what: str, expected: object, found: object) -> SourceError:
        return SourceError(
            f"{self.name}/{file}: the Hub lists it with {what} {expected} but serves {what} {found}; "
            "try again later",
            file=file,
        )


class _Stopped(Exception):
    """A part was given up because another one failed or the source was closed."""


def list_folder(repo: str, commit: str, path: str, name: str) -> dict[str, FileInfo]:
    """The files of a folder of a repo as ``Source.files`` has them; messages call the folder ``name``.

    Raises:
        HubExtrapError: as ``hub_errors``.
    """
    listing, folders = _listed(repo, commit, path, name)
    for inner in inner_folders(listing):
        if inner in folders:
            inside, _ = _listed(repo, commit, f"{path}/{inner}".lstrip("/"), name)
            listing |= {f"{inner}/{file}": info for file, info in inside.items()}
    files = (HubFile(file, info.size, digest=info.digest) for file, info in listing.items())
    check_pin(repo, commit, files, name, SourceError)
    if TEMPLATE_FOLDER in folders:
        inside, _ = _listed(repo, commit, f"{path}/{TEMPLATE_FOLDER}".lstrip("/"), name)
        listing |= {f"{TEMPLATE_FOLDER}/{file}": info for file, info in inside.items()}
    if PUSHED_FOLDER in folders and STATE_FILE not in listing:
        inside, _ = _listed(repo, commit, f"{path}/{PUSHED_FOLDER}".lstrip("/"), name)
        if STATE_FILE in inside:
            listing[f"{PUSHED_FOLDER}/{STATE_FILE}"] = inside[STATE_FILE]
    return listing


def _listed(repo: str, commit: str, path: str, name: str) -> tuple[dict[str, FileInfo], set[str]]:
    """The files directly in a folder of a repo by name, and the names of its subfolders."""
    prefix = f"{path}/" if path else ""
    entries = list_entries(repo, commit, path, name, SourceError)
    if entries is None:
        raise ReferenceNotFound(f"{name}: no such folder on the Hub")
    listing, folders = {}, set()
    for entry in entries:
        file = entry.path.removeprefix(prefix)
        if not entry.path.startswith(prefix) or "/" in file or not file:
            continue
        if entry.is_folder:
            folders.add(file)
        else:
            listing[file] = FileInfo(entry.size, entry.digest, name_problem(file))
    return listing, folders


def _make_pool() -> None:
    """The threads that request parts, started when they are needed; how many they are bounds the requests in
    flight. A forked child has none of its parent's threads, nor what they have taken."""
    global _pool, _small_reads
    _pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="hubextrap-range")
    _small_reads = threading.BoundedSemaphore(SMALL_IN_FLIGHT)


_pool: ThreadPoolExecutor
_small_reads: threading.BoundedSemaphore
_make_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_pool)
