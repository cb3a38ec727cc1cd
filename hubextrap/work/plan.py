"""A plan that travels: JSON that says all that a worker needs but the bytes of the checkpoints.

It names each checkpoint by its commit, or by path with sizes and times of a local one's files, and holds what
their headers say, the coefficients, where the output goes, and the versions whose arithmetic it counts on.
It states its own sha256, which every record repeats. It holds no secret: a worker logs in by itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__
from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.engine.inputs import shared_files
from hubextrap.errors import CorruptFile, OutputError, ReferenceNotFound
from hubextrap.foreign_data import parse_json
from hubextrap.hub.target import PushTarget
from hubextrap.trajectory.checkpoint import Checkpoint
from hubextrap.work.layouts import layouts_as_json, layouts_from_json, merge_as_json, merge_from_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.engine.inputs import Key
    from hubextrap.engine.plan import MergePlan
    from hubextrap.tensors.interfaces import Source
    from hubextrap.work.places import Place

PLAN_FILE = "plan.json"
FORMAT = 1
LIMIT = 2_000_000_000
"""Longest plan in bytes that is read."""


@dataclass(frozen=True)
class Output:
    """Where the shards of one target go."""

    folder: str | None = None
    """An absolute path that every worker sees."""
    push: PushTarget | None = None
    """Or straight to the Hub."""


@dataclass(frozen=True)
class WorkPlan:
    """What is to be done, cut into units that are numbered from 0 on.

    The first units are the output's shards, each for all targets at once. After them come the input files of
    the Hub that go into several shards: none of their workers reads such a file as a whole, so a unit of its
    own compares it with the hash that the Hub lists, once those shards are made.
    """

    checkpoints: tuple[Checkpoint, ...]
    stamps: tuple[Mapping[str, tuple[int, int]], ...]
    """For each checkpoint, size and time (ns) of a local one's weight files; empty for the Hub's."""
    merge: MergePlan
    outputs: tuple[Output, ...]
    """One per target."""
    compared: tuple[tuple[Key, tuple[str, ...]], ...] = ()
    """The files that have units of their own, with the shards that are made from each."""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """What decides the output's bytes; see `api.fingerprint`."""
    cache: bool = False
    device: str = "cpu"
    allow_non_finite: bool = False
    finish: Mapping[str, Any] = field(default_factory=dict)
    """What whoever does the last step has to know; JSON values."""
    versions: Mapping[str, str] = field(default_factory=lambda: own_versions())
    digest: str = ""
    """Of its JSON; set where it was read or written."""

    kind = "merge"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What messages call each unit."""
        steps = self.merge.steps
        checks = (f"{file} of step {steps[k]}" for (k, file), _ in self.compared)
        return (*(shard.file for shard in self.merge.shards), *checks)

    @property
    def shard_units(self) -> range:
        return range(len(self.merge.shards))

    @property
    def compare_units(self) -> range:
        return range(len(self.merge.shards), self.units)

    @property
    def units(self) -> int:
        return len(self.merge.shards) + len(self.compared)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        sizes = [{one.file: one.size for one in layout.shards} for layout in self.merge.layouts]
        return (
            *(shard.bytes_read for shard in self.merge.shards),
            *(sizes[k][file] for (k, file), _ in self.compared),
        )

    def bytes_of(self, unit: int) -> int:
        """Bytes that a unit reads."""
        return self._sizes[unit]

    def needs(self, unit: int) -> tuple[int, ...]:
        """The units whose records a unit needs: none but for those that compare."""
        if unit in self.shard_units:
            return ()
        number = {shard.file: index for index, shard in enumerate(self.merge.shards)}
        return tuple(number[file] for file in self.compared[unit - len(number)][1])

    def check_units(self, units: Sequence[int]) -> None:
        """Refuse numbers that are no unit's.

        Raises:
            OutputError: names one, and how many there are.
        """
        for unit in units:
            if not 0 <= unit < self.units:
                raise OutputError(f"unit {unit}: the plan has {self.units}, from 0 to {self.units - 1}")

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        return json.dumps(sealed(self._content()), allow_nan=False, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> WorkPlan:
        """The plan that `to_bytes` was asked of.

        Raises:
            CorruptFile: it is no plan, or not as it was written.
            OutputError: it counts on other versions than are here.
        """
        try:
            stated = parse_json(data, where, error=ValueError, limit=LIMIT)
            digest = stated[DIGEST]
            stated = unsealed(stated)
            if stated["format"] != FORMAT or stated["kind"] != cls.kind:
                raise ValueError(f"its format is {stated['format']!r} of {stated['kind']!r}")
            _check_versions(stated["versions"], where)
            plan = cls._from_content(stated, digest)
            for unit in range(plan.units):  # what it says of its units belongs together
                _ = plan.labels[unit], plan.bytes_of(unit), plan.needs(unit)
            return plan
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CorruptFile(
                f"{where}: is no plan of this version of hubextrap ({type(error).__name__}: {error}); make "
                "it again with the command that made it",
                file=where,
            ) from error

    def save(self, place: Place) -> WorkPlan:
        """Write it into its place; returns it with its digest.

        Raises:
            OutputError: it could not be written.
        """
        data = self.to_bytes()
        place.write(PLAN_FILE, data)
        return WorkPlan.from_bytes(data, f"{place.name}/{PLAN_FILE}")

    @classmethod
    def load(cls, place: Place) -> WorkPlan:
        """The plan that lies in a place.

        Raises:
            ReferenceNotFound: none does. HubExtrapError: as `from_bytes`, or it could not be read.
        """
        data = place.read(PLAN_FILE)
        if data is None:
            raise ReferenceNotFound(
                f"{place.name}: holds no {PLAN_FILE}, or this machine does not see it; name a folder that "
                "all machines see under the same path"
            )
        return cls.from_bytes(data, f"{place.name}/{PLAN_FILE}")

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "versions": dict(self.versions),
            "checkpoints": [
                {name: getattr(one, name) for name in ("step", "repo", "revision", "commit", "path")}
                | {"stamps": {file: list(stamp) for file, stamp in stamps.items()}}
                for one, stamps in zip(self.checkpoints, self.stamps, strict=True)
            ],
            "layouts": layouts_as_json(self.merge.layouts),
            "merge": merge_as_json(self.merge),
            "compared": [[k, file, list(shards)] for (k, file), shards in self.compared],
            "outputs": [asdict(one) for one in self.outputs],
            "fingerprint": dict(self.fingerprint),
            "options": {name: getattr(self, name) for name in ("cache", "device", "allow_non_finite")},
            "finish": dict(self.finish),
        }

    @classmethod
    def _from_content(cls, stated: Mapping[str, Any], digest: str) -> WorkPlan:
        checkpoints = stated["checkpoints"]
        known = ("step", "repo", "revision", "commit", "path")
        return cls(
            checkpoints=tuple(Checkpoint(**{name: one[name] for name in known}) for one in checkpoints),
            stamps=tuple(
                {file: (size, time) for file, (size, time) in one["stamps"].items()} for one in checkpoints
            ),
            merge=merge_from_json(stated["merge"], layouts_from_json(stated["layouts"])),
            outputs=tuple(
                Output(one["folder"], None if one["push"] is None else PushTarget(**one["push"]))
                for one in stated["outputs"]
            ),
            compared=tuple(((k, file), tuple(shards)) for k, file, shards in stated["compared"]),
            fingerprint=stated["fingerprint"],
            finish=stated["finish"],
            versions=stated["versions"],
            digest=digest,
            **stated["options"],
        )  # fmt: skip


def own_versions() -> dict[str, str]:
    """The versions of what the output's bytes follow from."""
    return {"hubextrap": __version__, "numba": version("numba")}


def stamps_of(sources: Sequence[Source], merge: MergePlan) -> tuple[dict[str, tuple[int, int]], ...]:
    """`WorkPlan.stamps` of open sources."""
    from hubextrap.tensors.local import LocalSource

    found = []
    for source, layout in zip(sources, merge.layouts, strict=True):
        stamps: dict[str, tuple[int, int]] = {}
        if isinstance(source, LocalSource):
            for shard in layout.shards:
                size, time, *_ = source.stamp(shard.file)
                stamps[shard.file] = size, time
        found.append(stamps)
    return tuple(found)


def files_to_compare(merge: MergePlan, sources: Sequence[Source]) -> tuple[tuple[Key, tuple[str, ...]], ...]:
    """`WorkPlan.compared` of open sources."""
    found = shared_files(merge)
    return tuple(
        (key, files)
        for key, files in sorted(found.items())
        if sources[key[0]].files()[key[1]].digest is not None
    )


def _check_versions(stated: Mapping[str, str], where: str) -> None:
    for name, here in own_versions().items():
        if stated[name] != here:
            raise OutputError(
                f"{where}: was made with {name} {stated[name]}, and here is {name} {here}, whose bytes may "
                f"differ; install {name}=={stated[name]} here, or make the plan again with this one"
            )
