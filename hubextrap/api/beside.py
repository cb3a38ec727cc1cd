"""What goes beside the shards, in the plan's place until the last step writes it there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.api.companions import Companions
from hubextrap.api.starts import gone
from hubextrap.containment import leads_out
from hubextrap.digests import sha256_hex
from hubextrap.hub import PROVENANCE_FILE
from hubextrap.hub.provenance_checks import read_provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.work.places import Place
    from hubextrap.work.plan import WorkPlan

BESIDE = "beside"
"""The folder of a place with what goes beside the shards, in one folder per target."""


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


def _seal(plan: WorkPlan, name: str, content: bytes) -> bytes:
    """The first line of such a file: damage shows, and a file of another plan, target or name."""
    return sha256_hex(f"{plan.digest} {name}\n".encode() + content).encode()
