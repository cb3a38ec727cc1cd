"""What every plan of work is, whatever its kind: units by number, and JSON that states its own sha256."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from hubextrap._version import __version__
from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.errors import CorruptFile, HubExtrapError, OutputError, ReferenceNotFound
from hubextrap.foreign_data import parse_json
from hubextrap.trajectory.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.work.places import Place
    from hubextrap.work.records import Record

PLAN_FILE = "plan.json"
FORMAT = 1
LIMIT = 2_000_000_000
"""Longest plan in bytes that is read."""
_KINDS = {
    "merge": ("hubextrap.work.plan", "WorkPlan"),
    "scan": ("hubextrap.work.scanning", "ScanWork"),
    "eval": ("hubextrap.work.evaluating", "EvalWork"),
}
"""Each is imported when one is read."""

Compared = tuple[tuple[tuple[int, str], tuple[int, ...]], ...]
"""Files, by checkpoint and name, each with the units that read parts of it."""


class Hands(ABC):
    """At work on one plan; what is open stays open from one unit to the next."""

    @abstractmethod
    def do(self, unit: int, records: Mapping[int, Record]) -> dict[str, Any]:
        """Do a unit; returns what goes on record, JSON values.

        Args:
            records: those that the unit needs.

        Raises:
            HubExtrapError: whatever the unit meets.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""


class Work(ABC):
    """What is to be done, cut into units that are numbered from 0 on. Immutable; JSON that holds no secret.

    The last units may each compare an input file with the hash that the Hub lists for it, because several
    units read parts of it and none reads it whole: each needs the records of those units.
    """

    kind: ClassVar[str]
    """What the JSON and the progress call it."""
    compared: Compared = ()
    """The files that have units of their own, with the units that read each."""
    versions: Mapping[str, str]
    """Of what the results follow from."""
    digest: str
    """Of its JSON; set where it was read or written."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """What messages call each unit."""

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def free_units(self) -> range:
        """Those that need no others' records."""
        return range(self.units - len(self.compared))

    @property
    def compare_units(self) -> range:
        """Those that compare a file."""
        return range(self.units - len(self.compared), self.units)

    @abstractmethod
    def bytes_of(self, unit: int) -> int:
        """Bytes that a unit reads."""

    def needs(self, unit: int) -> tuple[int, ...]:
        """The units whose records a unit needs: none but for those that compare."""
        return () if unit in self.free_units else self.compared[unit - len(self.free_units)][1]

    def check_units(self, units: Sequence[int]) -> None:
        """Refuse numbers that are no unit's.

        Raises:
            OutputError: names one, and how many there are.
        """
        for unit in units:
            if not 0 <= unit < self.units:
                raise OutputError(f"unit {unit}: the plan has {self.units}, from 0 to {self.units - 1}")

    def is_there(self, record: Record) -> bool:
        """Whether what a record tells of is there still; it always is where the record itself holds it."""
        return True

    @property
    @abstractmethod
    def peak_memory(self) -> int:
        """Bytes that a process takes for any unit."""

    @property
    def threads(self) -> int:
        """That a unit keeps busy."""
        return 1

    @property
    def gpus(self) -> int:
        """That a unit takes."""
        return 0

    def one_thread(self) -> Self:
        """The plan as a worker with one CPU does it, with the same results."""
        return self

    def needs_folders(self) -> str | None:
        """What of a machine's own files it reads or writes, in words; None where all is on the Hub."""
        return f"what a {self.kind} needs"

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of the output, which every worker has to see under the same path."""
        return ()

    @abstractmethod
    def hands(self, progress: Progress) -> Hands:
        """What does the units in this process."""

    @abstractmethod
    def same_results(self, other: Self) -> bool:
        """Whether the records of another plan of this kind count for this one."""

    @classmethod
    def here(cls) -> dict[str, str]:
        """`versions` of what is installed here."""
        return own_versions()

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """What `_from_content` takes: JSON values."""

    @classmethod
    @abstractmethod
    def _from_content(cls, stated: Mapping[str, Any], digest: str) -> Self:
        """Raises ValueError, KeyError, TypeError, IndexError or AttributeError for what it did not write."""

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        head = {"format": FORMAT, "kind": self.kind, "versions": dict(self.versions)}
        content = sealed(head | self._content())
        try:
            return json.dumps(content, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError as error:
            around = ascii(str(error.object)[max(0, error.start - 60) : error.end + 20])
            raise OutputError(
                f"a name that is not UTF-8, at {around}: a plan that others read cannot hold it; rename the "
                "folder or the file, or choose another --out"
            ) from error

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """The plan that `to_bytes` was asked of.

        Raises:
            CorruptFile: it is no plan, of another kind, or not as it was written.
            OutputError: it counts on other versions than are here.
        """
        found = work_from_bytes(data, where)
        if not isinstance(found, cls):
            raise _no_plan(where, f"it is one of {found.kind!r}")
        return found

    def save(self, place: Place) -> Self:
        """Write it into its place; returns it with its digest.

        Raises:
            OutputError: it could not be written, or a name in it is not UTF-8.
        """
        data = self.to_bytes()
        place.write(PLAN_FILE, data)
        return self.from_bytes(data, f"{place.name}/{PLAN_FILE}")

    @classmethod
    def load(cls, place: Place) -> Self:
        """The plan that lies in a place.

        Raises:
            ReferenceNotFound: none does. HubExtrapError: as `from_bytes`, or it could not be read.
        """
        found = load_work(place)
        if not isinstance(found, cls):
            raise _no_plan(f"{place.name}/{PLAN_FILE}", f"it is one of {found.kind!r}")
        return found


def work_from_bytes(data: bytes, where: str) -> Work:
    """A plan of whatever kind.

    Raises:
        CorruptFile, OutputError: as `Work.from_bytes`.
    """
    try:
        stated = parse_json(data, where, error=ValueError, remedy="it is damaged", limit=LIMIT)
        digest = stated[DIGEST]
        stated = unsealed(stated)
        if stated["format"] != FORMAT or stated["kind"] not in _KINDS:
            raise ValueError(f"its format is {stated['format']!r} of {stated['kind']!r}")
        module, name = _KINDS[stated["kind"]]
        kind: type[Work] = getattr(import_module(module), name)
        _check_versions(stated["versions"], kind.here(), where)
        plan = kind._from_content(stated, digest)
        for unit in range(plan.units):  # what it says of its units belongs together
            _ = plan.bytes_of(unit), [plan.labels[needed] for needed in plan.needs(unit)]
        return plan
    except HubExtrapError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _no_plan(where, f"{type(error).__name__}: {error}") from error


def load_work(place: Place) -> Work:
    """The plan that lies in a place, of whatever kind.

    Raises:
        CorruptFile: it is in a bucket, where others may have put it, and names folders of this machine.
        ReferenceNotFound, HubExtrapError: as `Work.load`.
    """
    where = f"{place.name}/{PLAN_FILE}"
    work = work_from_bytes(_read(place), where)
    if place.anywhere and (local := work.needs_folders()) is not None:
        raise CorruptFile(
            f"{where}: names {local} of whatever machine reads it; a plan in a bucket goes from Hub to Hub. "
            "It is none of hubextrap's: do not work on it",
            file=where,
        )
    return work


def own_versions() -> dict[str, str]:
    """The versions of what a sum of weights follows from."""
    return {"hubextrap": __version__, "numba": version("numba")}


Stamp = tuple[int, int | str | None]
"""Bytes of a file, and by what it is known: a local one's time (ns), what the Hub lists as its hash."""


def checkpoint_as_json(checkpoint: Checkpoint, stamps: Mapping[str, Stamp]) -> dict[str, Any]:
    """What `checkpoint_from_json` takes."""
    return {name: getattr(checkpoint, name) for name in _CHECKPOINT} | {
        "stamps": {file: list(stamp) for file, stamp in stamps.items()}
    }


def checkpoint_from_json(stated: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, Stamp]]:
    """A pinned checkpoint, and the stamps of its files."""
    stamps: dict[str, Stamp] = {file: (size, known) for file, (size, known) in stated["stamps"].items()}
    return Checkpoint(**{name: stated[name] for name in _CHECKPOINT}), stamps


_CHECKPOINT = ("step", "repo", "revision", "commit", "path")


def _read(place: Place) -> bytes:
    data = place.read(PLAN_FILE)
    if data is None and place.anywhere:
        raise ReferenceNotFound(
            f"{place.name}: holds no {PLAN_FILE} that this token may read; its last step may be done, else "
            "check the name and HF_TOKEN"
        )
    if data is None:
        raise ReferenceNotFound(
            f"{place.name}: holds no {PLAN_FILE}. If the output is there, its work is finished. If not, the "
            "name is wrong, or this machine does not see the place under that name"
        )
    return data


def _no_plan(where: str, why: str) -> CorruptFile:
    return CorruptFile(
        f"{where}: is no plan of this version of hubextrap ({why}); make it again with the command that made "
        "it",
        file=where,
    )


def _check_versions(stated: Mapping[str, str], here: Mapping[str, str], where: str) -> None:
    for name, there in stated.items():
        if there != (own := here.get(name)):
            found = f"is {name} {own}, whose results may differ" if own else "is none"
            raise OutputError(
                f"{where}: was made with {name} {there}, and here {found}; install {name}=={there} here, or "
                "make the plan again with what is here"
            )
