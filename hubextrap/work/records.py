"""What is on record of a plan's units outside every process: the end of each, or why it failed.

Records lie in the plan's place, one small file per unit, each whole or not there and each stating its own
sha256. A unit may be done twice: what is made is the same, so the second record takes the place of the first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubextrap import errors
from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.errors import CorruptFile, HubExtrapError
from hubextrap.foreign_data import parse_json
from hubextrap.foreign_text import own_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hubextrap.work.places import Place

DONE, FAILED = "done", "failed"
LIMIT = 100_000_000
"""Longest record in bytes that is read: a scan's holds a Gram matrix for each of its tensors."""
_NAME = re.compile(r"(?:0|[1-9][0-9]{0,17})\.json")


@dataclass(frozen=True, slots=True)
class Record:
    """The end of one unit."""

    unit: int
    plan: str
    """The plan's digest."""
    content: Mapping[str, Any]
    """JSON values, as the kind of unit has them: see `work.merging.ShardRecord` for one."""

    def to_bytes(self) -> bytes:
        """One line of JSON with its own sha256.

        Raises:
            ValueError: the content is nothing that `from_bytes` takes: NaN, half a character.
        """
        stated = {"unit": self.unit, "plan": self.plan, "content": dict(self.content)}
        return json.dumps(sealed(stated), allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Record:
        """What `to_bytes` wrote.

        Raises:
            CorruptFile: it is no record.
        """
        try:
            stated = _unsealed(data, where)
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
        """The units of this plan that are not done, and why is on record: another attempt meets it too."""
        return frozenset(
            unit
            for unit in _numbers(self.place.names(FAILED))
            if self.get(unit) is None and self.failure(unit) is not None
        )

    def get(self, unit: int) -> Record | None:
        """The record of a unit; None where there is none of this plan, or none as it was written."""
        file = f"{DONE}/{unit}.json"
        data = self.place.read(file)
        if data is None:
            return None
        try:
            record = Record.from_bytes(data, f"{self.place.name}/{file}")
        except CorruptFile:
            return None
        return record if (record.unit, record.plan) == (unit, self._plan) else None

    def found(self, units: Collection[int] | None = None) -> dict[int, Record]:
        """The records of all units, or of some, that are there as `get` has them."""
        done = sorted(self.done() if units is None else self.done().intersection(units))
        return {unit: record for unit in done if (record := self.get(unit)) is not None}

    def put(self, record: Record) -> None:
        """Note that a unit is done; all see it when this returns.

        Raises:
            OutputError: it could not be written.
        """
        self.place.write(f"{DONE}/{record.unit}.json", record.to_bytes())

    def strike(self, unit: int) -> None:
        """Have a unit count as not done.

        Raises:
            OutputError: it could not be written.
        """
        self.place.write(f"{DONE}/{unit}.json", b"")

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
            stated = _unsealed(data, file)
            return error_from_json(stated["error"]) if stated["plan"] == self._plan else None
        except (ValueError, KeyError, TypeError):
            return None


_ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys(("file", "tensor", "repo", "extra"), str),
    **dict.fromkeys(("step", "line"), int),
}


def error_as_json(error: HubExtrapError) -> dict[str, Any]:
    """An error as it travels between processes: no pickle."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if vars(errors).get(kind.__name__) is kind)
    stated: dict[str, Any] = {"kind": next(kinds), "message": str(error)}
    for name, kind in _ATTRIBUTES.items():
        if (value := getattr(error, name, None)) is not None:
            stated[name] = kind(value)
    if error.parts:
        stated["parts"] = [error_as_json(part) for part in error.parts]
    return stated


def error_from_json(stated: Mapping[str, Any]) -> HubExtrapError:
    """The error that `error_as_json` was given; of an unknown kind, a plain `HubExtrapError`.

    Raises:
        KeyError: it states no message. ValueError, TypeError: it is nothing that `error_as_json` makes.
    """
    kind = vars(errors).get(stated["kind"])
    if not (isinstance(kind, type) and issubclass(kind, HubExtrapError)):
        kind = HubExtrapError
    given = {name: stated[name] for name in _ATTRIBUTES if name in stated}
    if not all(type(value) is _ATTRIBUTES[name] for name, value in given.items()):
        raise ValueError("no error of ours")
    error: HubExtrapError = kind(own_lines(*str(stated["message"]).split("\n")), **given)
    error.parts = tuple(map(error_from_json, stated.get("parts", ())))
    return error


def _unsealed(data: bytes, where: str) -> dict[str, Any]:
    """The content of a file that states its own sha256; ValueError where it does not, or another."""
    stated = parse_json(data, where, error=ValueError, remedy="it is damaged", limit=LIMIT)
    if not isinstance(stated, dict) or DIGEST not in stated:
        raise ValueError("it states no sha256 of itself")
    content: dict[str, Any] = unsealed(stated)
    return content


def _numbers(names: frozenset[str]) -> frozenset[int]:
    return frozenset(int(name.removesuffix(".json")) for name in names if _NAME.fullmatch(name))
