"""Who was given the units of a plan while nobody waits: what lies in its place of that."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hubextrap.claims import sealed, unsealed
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.work.places import Place

SUBMITTED_FILE = "submitted.json"


@dataclass(frozen=True)
class Submitted:
    """Units that a queue has."""

    executor: str
    """``slurm`` or ``jobs``."""
    ids: tuple[str, ...]
    """Of the queue's jobs, the last step's included."""
    watch: str
    """A command line that shows how far they are."""
    cancel: str
    """A command line that stops them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the executor needs to submit what was lost again; JSON values."""
    rounds: int = 0
    """How often what was lost was submitted again."""

    @property
    def label(self) -> str:
        """What messages call it."""
        who = {"slurm": "Slurm", "jobs": "HF Jobs"}.get(self.executor, self.executor)
        return f"{who} ({', '.join(self.ids[:3])})"

    def save(self, place: Place) -> None:
        """Write it into the plan's place."""
        place.write(SUBMITTED_FILE, json.dumps(sealed(asdict(self))).encode() + b"\n")


def submitted_to(place: Place) -> Submitted | None:
    """Who has the units of the place's plan; None where nobody has, or it is not as it was written."""
    data = place.read(SUBMITTED_FILE)
    if data is None:
        return None
    try:
        stated = unsealed(parse_json(data, SUBMITTED_FILE, error=ValueError))
        return Submitted(**{**stated, "ids": tuple(stated["ids"])})
    except (ValueError, KeyError, TypeError):
        return None
