"""Has anything changed where a run lies? Asked again and again, and cheaply.

On the Hub one conditional request tells: the server says 304 to who has the listing already. Which listing it
is depends on the layout in which the run was found. In a folder the names, sizes and times of files tell.
What was seen is a small JSON value. A caller keeps it on disk once it is through with what a change brought;
then none is lost, and at worst one is looked into twice.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

from hubextrap._version import __version__
from hubextrap.digests import sha256_of_json
from hubextrap.errors import ReferenceNotFound, TrajectoryError
from hubextrap.foreign_data import parse_json
from hubextrap.hub_access import hub_api, hub_errors, reason
from hubextrap.hub_client import ANSWER_LIMIT, MOST_PAGES, TooLongAWait, asked_wait
from hubextrap.patience import is_passing, retried, wait_asked_by
from hubextrap.progress import SilentProgress
from hubextrap.trajectory.bucket_files import bucket_id
from hubextrap.trajectory.hub_layouts import siblings_of
from hubextrap.trajectory.local_layout import statuses_under
from hubextrap.trajectory.search import search_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hubextrap.progress import Progress
    from hubextrap.trajectory.reference import Reference

Seen = dict[str, Any]
"""What was seen of a place, as JSON: ``place`` names it, and the rest is the place's own business."""

EVERY, LONGEST = 60.0, 960.0
"""Seconds between two looks: at first, and what that grows to while nothing changes."""
LONGEST_ASKED = 86_400.0
"""Seconds that a server may have a poll wait; one that asks for more is none to poll."""
MOST_FILES = 200_000
"""Of a local folder that is polled."""

_COMMIT = re.compile("[0-9a-f]{40}")
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,200}"')
_ON_SUCCESS = ("ratelimit", "retry-after")
"""Headers by which an answer that is no error asks for a pause; RateLimit-Reset alone says only when a count
begins anew."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a place found."""

    seen: Seen
    changed: bool
    asked: float = 0.0
    """Seconds that the server asks to be let alone."""


class Place(Protocol):
    """Where a run lies, and what is looked at there."""

    name: str
    """What messages call it."""

    def look(self, seen: Seen | None) -> Look:
        """Look once; anything is a change where nothing was seen before. Raises the Hub's client's errors."""


def place_of_run(
    reference: str, layout: str | None = None, *, pattern: str | None = None, apart: Iterable[Path] = ()
) -> Place:
    """What is to be looked at for a run.

    Args:
        layout: that of its series (``Series.layout``); None where it has no checkpoint yet.
        pattern: with which it is looked for.
        apart: folders below a local run that do not belong to it, such as one that is written to at each
            change.

    Raises:
        ReferenceNotFound: the reference leads nowhere on this disk, or names no place.
        TrajectoryError: it names a commit, which never changes.
    """
    search = search_of(reference, pattern)
    where = search.reference
    if where.folder is not None:
        return FolderPlace(where.folder, tuple(str(folder.resolve()) for folder in apart))
    if where.in_bucket:
        folder = f"/{quote(where.path, safe='')}" if where.path else ""
        path = f"buckets/{bucket_id(where.repo)}/tree{folder}?recursive=true"
        return HubPlace(path, reference, _files)
    if where.revision is not None and _COMMIT.fullmatch(where.revision):
        raise TrajectoryError(
            f"{reference}: a commit never changes, so there is nothing to wait for; name a branch, or leave "
            f"out @{where.revision}",
            repo=where.repo,
        )
    if layout == "repos":
        owner, _, stem = siblings_of(search)
        asked = urlencode({"author": owner, "search": stem, "expand": "sha"})
        return HubPlace(f"models?{asked}", reference, _repos)
    with_requests = "?include_prs=1" if (where.revision or "").startswith("refs/") else ""
    picked = _head_of(where) if layout in ("subfolders", "commits") or where.revision is not None else _refs
    return HubPlace(f"models/{where.repo}/refs{with_requests}", reference, picked)


class HubPlace:
    """A listing of the Hub's API, page by page, each asked for only if it changed."""

    def __init__(self, path: str, name: str, picked: Callable[[Any], Any]) -> None:
        """
        Args:
            path: of the first page, behind ``/api/``.
            picked: takes from a page's JSON what counts, so that nothing else is a change.
        """
        self.name = name
        self._path = path
        self._picked = picked

    def look(self, seen: Seen | None) -> Look:
        address: str | None = f"{hub_api().endpoint}/api/{self._path}"
        known = _pages_in(seen, self._path, address or "")
        pages: list[dict[str, str | None]] = []
        asked = 0.0
        while address is not None:
            if len(pages) == MOST_PAGES:
                raise TrajectoryError(f"{self.name}: the Hub lists page after page without end")
            page, wanted = self._page(address, known.get(address))
            asked = max(asked, wanted)
            pages.append(page)
            address = page["next"]
        found: Seen = {"place": self._path, "pages": pages}
        before = [page["hash"] for page in known.values()]
        return Look(found, before != [page["hash"] for page in pages], asked)

    def _page(self, address: str, known: dict[str, str | None] | None) -> tuple[dict[str, str | None], float]:
        """A page as it is kept, and the seconds that its answer asks for."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = build_hf_headers(library_name="hubextrap", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        if known is not None and known["etag"]:
            headers["If-None-Match"] = known["etag"]
        answer = get_session().get(address, headers=headers, follow_redirects=True)
        said = {name: value for name, value in answer.headers.items() if name.lower() in _ON_SUCCESS}
        if answer.status_code == 304 and known is not None:
            return known, asked_wait(said) or 0.0
        hf_raise_for_status(answer)
        # a gateway's page in place of the Hub's answer passes, as a lost connection does
        value = parse_json(answer.content, "the Hub's list", error=ConnectionError, limit=ANSWER_LIMIT)
        tag = answer.headers.get("ETag", "")
        page = {
            "address": address,
            "etag": tag if _TAG.fullmatch(tag) else None,
            "hash": sha256_of_json(self._picked(value)),
            "next": answer.links.get("next", {}).get("url"),
        }
        return page, asked_wait(said) or 0.0


class FolderPlace:
    """The files below a local folder by their names, sizes and times."""

    def __init__(self, folder: Path, apart: tuple[str, ...] = ()) -> None:
        self.name = str(folder)
        self._folder = folder
        self._apart = apart

    def look(self, seen: Seen | None) -> Look:
        """
        Raises:
            ReferenceNotFound: the folder is not there any more.
            TrajectoryError: it holds more than ``MOST_FILES`` files.
        """
        if not self._folder.is_dir():
            raise ReferenceNotFound(f"{self.name}: no such folder any more", file=self.name)
        found = []
        for path, status in statuses_under(self._folder, self._apart):
            found.append((path, status.st_size, status.st_mtime_ns))
            if len(found) > MOST_FILES:
                raise TrajectoryError(
                    f"{self.name}: more than {MOST_FILES:,} files lie in it; name the folder that holds the "
                    "checkpoints of the run alone",
                    file=self.name,
                )
        now = {"place": self.name, "hash": sha256_of_json(sorted(found))}
        return Look(now, now != seen)


class Poller:
    """Looks at a place at a polite pace, and waits until something changed. Not thread-safe.

    The interval doubles while nothing changes, and begins anew when something did. A server that asks for a
    pause gets it. What passes (a network that is down, a server that is overloaded) is told of once and
    waited out; anything else is an error.

    Attributes:
        seen: what the last look saw; None before the first one.
    """

    def __init__(
        self,
        place: Place,
        seen: Any = None,
        *,
        every: float = EVERY,
        longest: float = LONGEST,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            seen: what an earlier poller saw, e.g. before the program was started again. Something else, or of
                another place, counts as nothing.
            every: seconds between two looks at first.
            longest: seconds that this grows to.
            stop: ends a wait at once when it is set, by another thread or a signal's handler.
        """
        self.seen: Seen | None = seen if isinstance(seen, dict) else None
        self._place = place
        self._every, self._longest = every, max(every, longest)
        self._stop = stop or threading.Event()
        self._progress = progress or SilentProgress()
        self._interval = every
        self._next = 0.0
        self._in_trouble = False

    def look(self) -> bool:
        """Look once, and a few times more where that fails and may pass: whether anything changed.

        Raises:
            ReferenceNotFound, AccessDenied: the place is gone, or not open to this token.
            TrajectoryError: the Hub cannot be reached, or does something else.
        """
        with hub_errors(self._place.name, TrajectoryError):
            found = retried(lambda: self._place.look(self.seen))
        return self._take(found)

    def wait(self) -> bool:
        """Look until something changed, the first time when the next look is due.

        Returns:
            Whether something changed; False where ``stop`` was set.

        Raises:
            ReferenceNotFound, AccessDenied: the place is gone, or not open to this token.
            TrajectoryError: the Hub does something that will not pass.
        """
        while not self._stop.wait(max(0.0, self._next - time.monotonic())):
            found = self._look_or_trouble()
            if isinstance(found, _Trouble):
                self._pause(found.asked)
                if not self._in_trouble:
                    self._progress.warn(f"{self._place.name}: {found.said}; trying again until it answers")
                self._in_trouble = True
                continue
            if self._in_trouble:
                self._progress.say(f"{self._place.name}: answers again")
            self._in_trouble = False
            if self._take(found):
                return True
        return False

    def _look_or_trouble(self) -> Look | _Trouble:
        with hub_errors(self._place.name, TrajectoryError):
            try:
                return self._place.look(self.seen)
            except TooLongAWait as error:
                if error.seconds > LONGEST_ASKED:
                    raise
                return _Trouble(f"the server asks to wait {error.seconds:.0f} s", error.seconds)
            except Exception as error:
                if not is_passing(error):
                    raise
                return _Trouble(reason(error), wait_asked_by(error) or 0.0)

    def _take(self, found: Look) -> bool:
        if found.changed:
            self._interval = self._every
        self.seen = found.seen
        self._pause(min(found.asked, LONGEST_ASKED), grow=not found.changed)
        return found.changed

    def _pause(self, asked: float, *, grow: bool = True) -> None:
        """Put off the next look by the interval, or by what the server asks for, and double the interval."""
        self._next = time.monotonic() + max(self._interval, asked)
        if grow:
            self._interval = min(self._longest, 2 * self._interval)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What went wrong, and may be gone at the next look."""

    said: str
    asked: float


def _pages_in(seen: Seen | None, path: str, first: str) -> dict[str, dict[str, str | None]]:
    """The pages that were seen, in order, by their addresses; none unless all are what is written here."""
    if seen is None or seen.get("place") != path or not isinstance(seen.get("pages"), list):
        return {}
    pages: dict[str, dict[str, str | None]] = {}
    expected: str | None = first
    for page in seen["pages"]:
        if not isinstance(page, dict) or set(page) != {"address", "etag", "hash", "next"}:
            return {}
        if not all(value is None or isinstance(value, str) for value in page.values()):
            return {}
        address = page["address"]
        if address is None or address != expected or address in pages:
            return {}
        pages[address] = page
        expected = page["next"]
    return pages if expected is None else {}


def _refs(listed: Any) -> Any:
    """The commits of branches and tags, by their names."""
    return {kind: sorted(_commits(listed, kind).items()) for kind in ("branches", "tags")}


def _head_of(where: Reference) -> Callable[[Any], Any]:
    """Picks the commit of the revision that a reference names."""
    revision = where.revision or "main"

    def picked(listed: Any) -> Any:
        for kind, start in (("branches", ""), ("tags", ""), ("pullRequests", "refs/pr/")):
            named = _commits(listed, kind)
            if (commit := named.get(revision) or named.get(revision.removeprefix(start))) is not None:
                return commit
        raise ReferenceNotFound(
            f"{where.text}: no branch or tag {revision!r} in {where.repo} any more", repo=where.repo
        )

    return picked


def _commits(listed: Any, kind: str) -> dict[str, str]:
    return {str(ref["name"]): str(ref["targetCommit"]) for ref in listed.get(kind) or ()}


def _repos(listed: Any) -> Any:
    """The heads of repos, by their names, in whatever order they are listed."""
    return sorted((str(repo["id"]), str(repo.get("sha"))) for repo in listed)


def _files(listed: Any) -> Any:
    """The files of a bucket by what they are pinned by."""
    return [
        [one["path"], one["size"], one.get("xetHash"), one.get("mtime")] for one in listed if "size" in one
    ]
