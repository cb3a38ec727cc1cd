"""Units done in this process: whoever else does them too, and however often, their bytes are the same."""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.engine.inputs import read_again
from hubextrap.errors import HubExtrapError, OutputError, SourceError
from hubextrap.hub.sink import HubSink
from hubextrap.patience import is_passing
from hubextrap.progress import SilentProgress
from hubextrap.tensors import LocalSink, open_source
from hubextrap.work.records import Record, Records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.engine.run import ShardOutput
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Sink, Source
    from hubextrap.work.places import Place
    from hubextrap.work.plan import Output, WorkPlan


def do_units(
    plan: WorkPlan, units: Sequence[int], place: Place | None = None, progress: Progress | None = None
) -> Iterator[Record]:
    """Do units one after the other; yields the record of each once it is in the place.

    What is on record there is not done again. An error that another attempt would meet too is put on record.

    Args:
        place: where records lie; None for those who keep them themselves, with units that `needs` no others'.

    Raises:
        OutputError: a number is no unit's.
        HubExtrapError: whatever a unit raises; `may_pass` says whether another attempt may go well.
    """
    plan.check_units(units)
    with Worker(plan, progress) as worker:
        for unit in units:
            yield worker.do(unit, place)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may go well: of a network or a Hub that was away, not of a wrong checkpoint."""
    from huggingface_hub.errors import HfHubHTTPError

    seen: BaseException | None = error
    while seen is not None:
        if is_passing(seen):
            return True
        if isinstance(seen, HfHubHTTPError):  # an answer: what caused it is the HTTP library's view of it
            return False
        seen = seen.__cause__
    return False


class Worker:
    """A process at work on a plan: its sources stay open from one unit to the next. A context manager."""

    def __init__(self, plan: WorkPlan, progress: Progress | None = None) -> None:
        self.plan = plan
        self._progress = progress or SilentProgress()
        self._resources = ExitStack()
        self._sources: tuple[Source, ...] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def do(
        self, unit: int, place: Place | None = None, records: Mapping[int, Record] | None = None
    ) -> Record:
        """Do one unit, unless it is on record in the place, and put it on record there.

        Args:
            records: those that the unit needs, instead of the place's.

        Raises:
            HubExtrapError: as `do_units`.
        """
        kept = None if place is None else Records(place, self.plan.digest)
        if kept is not None and (known := kept.get(unit)) is not None:
            return known
        try:
            if unit in self.plan.shard_units:
                content = self._make(unit)
            else:
                given = records if records is not None else _needed(self.plan, unit, kept)
                content = self._compare(unit, given)
        except HubExtrapError as error:
            if kept is not None and not may_pass(error):
                kept.fail(unit, error)
            raise
        record = Record(unit, self.plan.digest, content)
        if kept is not None:
            kept.put(record)
        return record

    def _open(self) -> tuple[Source, ...]:
        if self._sources is None:
            opened = []
            for checkpoint, stamps in zip(self.plan.checkpoints, self.plan.stamps, strict=True):
                source = self._resources.enter_context(
                    closing(open_source(checkpoint, cache=self.plan.cache))
                )
                _check_unmoved(source, stamps, checkpoint.step)
                opened.append(source)
            self._sources = tuple(opened)
        return self._sources

    def _make(self, unit: int) -> dict[str, Any]:
        from hubextrap.engine.run import run_shard  # imports numba

        plan, sources = self.plan, self._open()
        with ExitStack() as stack:
            sinks = [self._sink(output, stack) for output in plan.outputs]
            made = run_shard(
                plan.merge,
                sources,
                sinks,
                plan.merge.shards[unit].file,
                shared=[key for key, _ in plan.compared],
                progress=self._progress,
                device=plan.device,
                allow_non_finite=plan.allow_non_finite,
            )
            ways = [_way(sink) for sink in sinks]
        return _shard_content(made, ways)

    def _sink(self, output: Output, stack: ExitStack) -> Sink:
        if output.push is not None:
            return stack.enter_context(HubSink(output.push, commits=False, progress=self._progress))
        folder = Path(output.folder or "")
        if not folder.is_dir():
            raise OutputError(
                f"{folder}: is not there on this machine ({os.uname().nodename}); an output folder has to "
                "lie where every worker sees it under the same path, or push straight to the Hub",
                file=folder,
            )
        return LocalSink(folder, among_others=True)

    def _compare(self, unit: int, records: Mapping[int, Record]) -> dict[str, Any]:
        key, _ = self.plan.compared[unit - len(self.plan.shard_units)]
        digests: dict[int, bytes] = {}
        for record in records.values():
            for k, file, offset, digest in record.content["left"]:
                if (k, file) == key:
                    digests[offset] = bytes.fromhex(digest)
        k, file = key
        info = next(one for one in self.plan.merge.layouts[k].shards if one.file == file)
        with self._progress.stage(f"compare {file}", info.size) as stage:
            read_again(self._open()[k], info, digests)
            stage.advance(info.size)
        return {"compared": [k, file]}


def _needed(plan: WorkPlan, unit: int, kept: Records | None) -> dict[int, Record]:
    found = {}
    for needed in plan.needs(unit):
        record = None if kept is None else kept.get(needed)
        if record is None:
            raise OutputError(
                f"{plan.labels[unit]}: is compared once {plan.labels[needed]} is made, and that is not on "
                f"record; do unit {needed} first"
            )
        found[needed] = record
    return found


def _check_unmoved(source: Source, stamps: Mapping[str, tuple[int, int]], step: int) -> None:
    """Refuse a local checkpoint that was written to since the plan was made."""
    from hubextrap.tensors.local import LocalSource

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


def _way(sink: Sink) -> dict[str, str]:
    """How a shard reached the Hub, where it did: the small files that go in the commit are held in full."""
    if not isinstance(sink, HubSink):
        return {}
    return {file: b64encode(content).decode() for file, content in sink.uploaded().items()}


def _shard_content(made: ShardOutput, small: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What is on record of a shard, as `work.finishing` reads it."""
    return {
        "shards": [
            {**asdict(shard), "identical": same, "small": held.get(shard.file)}
            for shard, same, held in zip(made.shards, made.identical, small, strict=True)
        ],
        "inputs": list(made.inputs.digests),
        "compared": made.inputs.compared,
        "left": [
            [k, file, offset, digest.hex()]
            for (k, file), digests in made.left.items()
            for offset, digest in digests.items()
        ],
    }
