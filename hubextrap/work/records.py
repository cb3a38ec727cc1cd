"""What is on record of a plan's units outside every process: the end of each, or why it failed.

Records lie in the plan's place, one small file per unit, each whole or not there and each stating its own
sha256. A unit may be done twice: what is made is the same, so the second record takes the place of the first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hubextrap import errors
from hubextrap.claims import sealed, unsealed
from hubextrap.errors import CorruptFile, HubExtrapError
from hubextrap.foreign_data import parse_json
from hubextrap.tensors.interfaces import FinishedShard, ShardInputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.work.places import Place

DONE, FAILED = "done", "failed"
LIMIT = 100_000_000
"""Longest record in bytes that is read: a scan's holds a Gram matrix for each of its tensors."""


@dataclass(frozen=True, slots=True)
class Record:
    """The end of one unit."""

    unit: int
    plan: str
    """The plan's digest."""
    content: Mapping[str, Any]
    """JSON values, as the kind of unit has them: see `work.merging.ShardRecord` for one."""

    def to_bytes(self) -> bytes:
        return json.dumps(sealed(asdict(self)), allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Record:
        """What `to_bytes` wrote.

        Raises:
            CorruptFile: it is no record.
        """
        try:
            stated = unsealed(parse_json(data, where, error=ValueError, limit=LIMIT))
            unit, plan, content = stated["unit"], stated["plan"], stated["content"]
            if not (type(unit) is int and isinstance(plan, str) and isinstance(content, dict)):
                raise ValueError("no record of a unit")
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(
                f"{where}: is no record of a unit ({error}); remove it, and the unit is done again",
                file=where,
            ) from error
        return cls(unit, plan, content)


class Records:
    """The records of one plan in its place."""

    def __init__(self, place: Place, plan: str) -> None:
        """
        Args:
            plan: its digest; records of another plan count as none.
        """
        self.place = place
        self._plan = plan

    def done(self) -> frozenset[int]:
        """The units that have a record, whatever it says."""
        return _numbers(self.place.names(DONE))

    def failed(self) -> frozenset[int]:
        """The units of which the last attempt failed for a reason that another attempt meets too."""
        return _numbers(self.place.names(FAILED)) - self.done()

    def get(self, unit: int) -> Record | None:
        """The record of a unit; None where there is none, it is of another plan, or not as it was written."""
        file = f"{DONE}/{unit}.json"
        data = self.place.read(file)
        if data is None:
            return None
        try:
            record = Record.from_bytes(data, f"{self.place.name}/{file}")
        except CorruptFile:
            return None
        return record if (record.unit, record.plan) == (unit, self._plan) else None

    def put(self, record: Record) -> None:
        """Note that a unit is done; all see it when this returns.

        Raises:
            OutputError: it could not be written.
        """
        self.place.write(f"{DONE}/{record.unit}.json", record.to_bytes())

    def fail(self, unit: int, error: HubExtrapError) -> None:
        """Note why a unit cannot be done."""
        data = json.dumps(sealed({"plan": self._plan, "error": error_as_json(error)})).encode() + b"\n"
        self.place.write(f"{FAILED}/{unit}.json", data)

    def failure(self, unit: int) -> HubExtrapError | None:
        """Why a unit cannot be done, if that is on record for this plan."""
        file = f"{FAILED}/{unit}.json"
        data = self.place.read(file)
        if data is None:
            return None
        try:
            stated = unsealed(parse_json(data, file, error=ValueError))
            return error_from_json(stated["error"]) if stated["plan"] == self._plan else None
        except (ValueError, KeyError, TypeError):
            return None


_ATTRIBUTES = ("file", "tensor", "step", "repo")


def error_as_json(error: HubExtrapError) -> dict[str, Any]:
    """An error as it travels between processes: no pickle."""
    return {"kind": type(error).__name__, "message": str(error)} | {
        name: getattr(error, name) for name in _ATTRIBUTES if getattr(error, name) is not None
    }


def error_from_json(stated: Mapping[str, Any]) -> HubExtrapError:
    """The error that `error_as_json` was given; of an unknown kind, a plain `HubExtrapError`.

    Raises:
        KeyError: it states no message.
    """
    from hubextrap.foreign_text import own_lines

    kind = getattr(errors, str(stated.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, HubExtrapError)):
        kind = HubExtrapError
    given = {name: stated[name] for name in _ATTRIBUTES if name in stated}
    message = own_lines(*str(stated["message"]).split("\n"))
    return kind(message, **given)


def _numbers(names: frozenset[str]) -> frozenset[int]:
    return frozenset(
        int(name.removesuffix(".json"))
        for name in names
        if name.endswith(".json") and name[:-5].isascii() and name[:-5].isdigit()
    )


def shard_as_json(shard: FinishedShard, inputs: ShardInputs) -> dict[str, Any]:
    """What is on record of one target's shard."""
    return {**asdict(shard), "inputs": list(inputs.digests), "compared": inputs.compared}
