"""Units that read tensors of checkpoints: open sources, and the comparison of files for all kinds of work."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hubextrap.engine.inputs import read_again
from hubextrap.errors import CorruptFile, SourceError
from hubextrap.tensors import open_source
from hubextrap.tensors.assembled import beneath, in_forms
from hubextrap.tensors.bucket import hub_source
from hubextrap.tensors.interfaces import FileInfo
from hubextrap.work.kinds import Hands

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.engine.inputs import Key
    from hubextrap.progress import Progress
    from hubextrap.tensors.assembled import Forms
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.work.kinds import Stamp, Work
    from hubextrap.work.records import Record


class StatedCheckpoint(NamedTuple):
    """A checkpoint as a plan of work has it read."""

    checkpoint: Checkpoint
    """Whatever its weights are: it is opened as it is stored."""
    stamps: Mapping[str, Stamp]
    """Of its weight files when the plan was made."""
    forms: Forms


def read_in(
    checkpoints: Sequence[Checkpoint], stamps: Sequence[Mapping[str, Stamp]], forms: Sequence[Forms]
) -> tuple[StatedCheckpoint, ...]:
    """Those of a plan; no ``forms`` at all where every checkpoint is read as it is stored."""
    every = forms or [()] * len(checkpoints)
    stored = (replace(one, weights="") for one in checkpoints)
    return tuple(map(StatedCheckpoint, stored, stamps, every))


class ReadingHands(Hands):
    """Units that read tensors of checkpoints; those that compare a file with the Hub's hash are done here."""

    def __init__(
        self,
        plan: Work,
        checkpoints: Sequence[StatedCheckpoint],
        layouts: Sequence[CheckpointLayout],
        progress: Progress,
        *,
        cache: bool,
    ) -> None:
        """
        Args:
            layouts: those of the checkpoints.
            cache: download what is on the Hub first.
        """
        self._work = plan
        self._checkpoints = checkpoints
        self._layouts = layouts
        self._progress = progress
        self._cache = cache
        self._resources = ExitStack()
        self._sources: tuple[Source, ...] | None = None

    @property
    def shared(self) -> list[Key]:
        """The files that units of their own compare."""
        return [key for key, _ in self._work.compared]

    @property
    def sources(self) -> tuple[Source, ...]:
        """One per checkpoint.

        Raises:
            SourceError: one cannot be opened, or was written to since the plan was made.
        """
        if self._sources is None:
            opened = []
            for checkpoint, stamps, forms in self._checkpoints:
                stored = self._resources.enter_context(closing(self._source(checkpoint, stamps)))
                check_unmoved(stored, stamps, checkpoint.step)
                opened.append(in_forms(stored, forms))
            self._sources = tuple(opened)
        return self._sources

    def _source(self, checkpoint: Checkpoint, stamps: Mapping[str, Stamp]) -> Source:
        """The stored files; the Hub is not asked again what the plan says of a commit's."""
        if checkpoint.repo is None or checkpoint.commit is None or self._cache or not stamps:
            return open_source(checkpoint, cache=self._cache)
        listed = {
            file: FileInfo(size, known if isinstance(known, str) else None)
            for file, (size, known) in stamps.items()
        }
        return hub_source(checkpoint.repo, checkpoint.commit, checkpoint.path, checkpoint.name, listed)

    def do(self, unit: int, records: Mapping[int, Record]) -> dict[str, Any]:
        if unit in self._work.free_units:
            return self.make(unit)
        (k, file), _ = self._work.compared[unit - len(self._work.free_units)]
        digests: dict[int, bytes] = {}
        for record in records.values():
            digests |= _left_of(record, k, file, self._work.labels)
        info = next(one for one in self._layouts[k].shards if one.file == file)
        with self._progress.stage(f"compare {file}", info.size) as stage:
            read_again(self.sources[k], info, digests)
            stage.advance(info.size)
        return {"compared": [k, file]}

    @abstractmethod
    def make(self, unit: int) -> dict[str, Any]:
        """Do a unit that needs no others' records; what it has read of `shared` files is under ``left``."""

    def close(self) -> None:
        self._resources.close()


def left_as_json(left: Mapping[Key, Mapping[int, bytes]]) -> list[Any]:
    """The hashes of what a unit has read of shared files, as `ReadingHands` takes them from its record."""
    return [
        [k, file, offset, digest.hex()]
        for (k, file), digests in left.items()
        for offset, digest in digests.items()
    ]


def _left_of(record: Record, k: int, file: str, labels: Sequence[str]) -> dict[int, bytes]:
    try:
        return {
            offset: bytes.fromhex(digest)
            for of, name, offset, digest in record.content["left"]
            if (of, name) == (k, file)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            f"the record of unit {record.unit} ({labels[record.unit]}) does not say what was read of {file} "
            f"({error}); remove it, and the unit is done again"
        ) from error


def check_unmoved(source: Source, stamps: Mapping[str, Stamp], step: int | None) -> None:
    """Refuse a local checkpoint that was written to since the plan was made.

    Raises:
        SourceError: names the file.
    """
    from hubextrap.tensors.local import LocalSource

    source, _ = beneath(source, ())
    if not isinstance(source, LocalSource):
        return
    for file, (size, time) in stamps.items():
        if source.stamp(file)[:2] != (size, time):
            raise SourceError(
                f"{source.name}/{file}: changed since the plan was made; run the command that made the plan "
                "again",
                file=file,
                step=step,
            )
