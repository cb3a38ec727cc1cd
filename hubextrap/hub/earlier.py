"""What an earlier prediction left where a push goes, by its hubextrap.json, as long as nobody changed it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from hubextrap.digests import is_sha256, sha256_hex
from hubextrap.errors import CorruptFile, HubExtrapError
from hubextrap.hub.provenance import PROVENANCE_FILE
from hubextrap.hub.provenance_checks import OWN_FILES, read_provenance
from hubextrap.hub.target import refusal
from hubextrap.tensors.interfaces import SMALL_FILE, FileInfo
from hubextrap.tensors.remote import RemoteSource

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hubextrap.hub.provenance import OutputShard
    from hubextrap.hub.target import PushTarget, RemoteState
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.hub_file import HubFile


def left_by_earlier(target: PushTarget, state: RemoteState, ours: Collection[str]) -> dict[str, HubFile]:
    """What of an earlier prediction at the target has no place beside the files ``ours``, by path.

    A file that somebody has changed since is theirs, and one that it does not name was never its own.

    Raises:
        PushError: the Hub does not let them be read.
    """
    record = state.files.get(PROVENANCE_FILE)
    if record is None or state.head is None or record.size > SMALL_FILE:
        return {}
    listed = {path: FileInfo(file.size, file.digest) for path, file in state.files.items()}
    with closing(RemoteSource(target.repo, state.head, "", target.name, listed=listed)) as source:
        try:
            said = read_provenance(source.read_file(PROVENANCE_FILE))
            named = [
                one for one in (*said.shards, *(said.files or ())) if one.file not in {*ours, *OWN_FILES}
            ]
            left = {
                one.file
                for one in named
                if not one.file.startswith(".") and _is_as_named(one, state.files, source)
            }
        except CorruptFile:  # so nobody knows what was its own
            return {}
        except HubExtrapError as error:
            raise refusal(target, f"{PROVENANCE_FILE} of the prediction that is there: {error}") from error
    left |= {PROVENANCE_FILE} - set(ours)
    return {path: state.files[path] for path in sorted(left)}


def _is_as_named(named: OutputShard, there: Mapping[str, HubFile], source: Source) -> bool:
    """Whether the Hub has a file with these bytes; one that it lists no sha256 of is read."""
    file = there.get(named.file)
    if file is None or file.size != named.size or file.digest is None:
        return False
    if is_sha256(file.digest):
        return file.digest == named.sha256
    return file.size <= SMALL_FILE and sha256_hex(source.read_file(named.file)) == named.sha256
