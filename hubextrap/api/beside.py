"""What the last step finds in the place beside plan and records: companions of the shards, and targets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hubextrap.api.companions import Companions
from hubextrap.claims import sealed, unsealed
from hubextrap.containment import leads_out
from hubextrap.digests import sha256_hex
from hubextrap.errors import CorruptFile, OutputError
from hubextrap.foreign_data import parse_json
from hubextrap.hub import PROVENANCE_FILE
from hubextrap.hub.provenance_checks import read_provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.hub.target import RemoteState
    from hubextrap.work.places import Place
    from hubextrap.work.plan import WorkPlan

BESIDE = "beside"
"""The folder of a place with what goes beside the shards, in one folder per target."""
STARTS = "starts.json"
"""The file of a place that says how each target was when the work was handed out, the last time."""


def write_beside(place: Place, plan: WorkPlan, beside: Sequence[Companions]) -> None:
    """Put what goes beside the shards into the place.

    Raises:
        OutputError: it could not be written.
    """
    for number, one in enumerate(beside):
        for file, content in one.files.items():
            name = f"{BESIDE}/{number}/{file}"
            place.write(name, _seal(plan, name, content) + b"\n" + content)


def read_beside(place: Place, plan: WorkPlan, number: int, files: Sequence[str]) -> Companions:
    """What `write_beside` wrote for one target.

    Raises:
        OutputError: a file is not there as it was written. HubExtrapError: the provenance is none.
    """
    found = {}
    for file in files:
        name = f"{BESIDE}/{number}/{file}"
        stated, _, content = (place.read(name) or b"").partition(b"\n")
        if leads_out(file) or stated != _seal(plan, name, content):
            raise gone(place, name)
        found[file] = content
    return Companions(read_provenance(found[PROVENANCE_FILE], f"{place.name}/{PROVENANCE_FILE}"), found)


def write_starts(place: Place, states: Sequence[RemoteState], before: Sequence[Any]) -> None:
    """Note how the targets are now, so that what somebody puts there from now on is not overwritten.

    Args:
        before: what `read_starts` said of an earlier time. A pull request that was opened since may be the
            one that this work is to open, by a last step that was killed then.

    Raises:
        OutputError: it could not be written.
    """
    requests = [sorted(map(list, one.pull_requests)) for one in states]
    if len(before) == len(states):
        requests = [one[2] for one in before]
    stated = [[one.head, one.has_branch, of] for one, of in zip(states, requests, strict=True)]
    place.write(STARTS, json.dumps(sealed({"starts": stated})).encode() + b"\n")


def earlier_starts(place: Place) -> list[Any]:
    """`read_starts`, of a place that may hold anything, or nothing."""
    try:
        return read_starts(place)
    except (OutputError, CorruptFile):
        return []


def read_starts(place: Place) -> list[Any]:
    """What `write_starts` wrote: head, whether there is a branch, and pull requests, of each target."""
    if not (data := place.read(STARTS)):
        raise gone(place, STARTS)
    where = f"{place.name}/{STARTS}"
    try:
        starts: list[Any] = unsealed(parse_json(data, where, error=ValueError, remedy="it is damaged"))[
            "starts"
        ]
        for head, has_branch, requests in starts:
            if not (isinstance(head, str | None) and type(has_branch) is bool):
                raise ValueError("a target has no commit")
            if not all(isinstance(ref, str) and isinstance(commit, str) for ref, commit in requests):
                raise ValueError("a pull request has no commit")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(
            f"{where}: does not say how the targets were ({error}); submit the recipe again, which goes on "
            "from the shards that are there",
            file=where,
        ) from error
    return starts


def _seal(plan: WorkPlan, name: str, content: bytes) -> bytes:
    """The first line of such a file: damage shows, and a file of another plan, target or name."""
    return sha256_hex(f"{plan.digest} {name}\n".encode() + content).encode()


def gone(place: Place, file: str) -> OutputError:
    """Of a file that is not in the place as it was written."""
    return OutputError(
        f"{place.name}: {file} is gone or not as it was written; submit the recipe again, which goes on from "
        "the shards that are there"
    )
