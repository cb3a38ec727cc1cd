"""How the targets of a push were when its work was handed out, noted in the plan's place at each submit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hubextrap.claims import sealed, unsealed
from hubextrap.errors import CorruptFile, OutputError
from hubextrap.foreign_data import parse_json
from hubextrap.hub.push_errors import push_errors
from hubextrap.hub.target import RemoteState, refusal, remote_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.hub import PushTarget
    from hubextrap.work.places import Place

STARTS = "starts.json"
"""The file of a place that says how each target was when the work was handed out, the last time."""


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


def start_of(target: PushTarget, stated: Sequence[Any]) -> RemoteState:
    """The target as it was then, so that what somebody has put there since is not overwritten."""
    from huggingface_hub.errors import RevisionNotFoundError

    head, has_branch, pull_requests = stated
    with push_errors(target.name):
        try:
            files = remote_files(target.repo, head) if head else {}
        except RevisionNotFoundError as error:
            raise refusal(
                target,
                f"commit {head}, which was there when the work was handed out, is gone: somebody made the "
                "repo or its history anew; look at it, then submit the recipe again",
            ) from error
    requests = frozenset((ref, commit) for ref, commit in pull_requests)
    return RemoteState(True, head, has_branch, files, requests)


def gone(place: Place, file: str) -> OutputError:
    """The error for a file of a place that was there."""
    return OutputError(
        f"{place.name}: {file} is gone or not as it was written; submit the recipe again, which goes on from "
        "the shards that are there"
    )
