"""A merge carried out: what its workers made goes to the sinks, each file's bytes once, in offset order.

A shard is finished (forced to disk, or uploaded) while the next one is made.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from hubextrap.engine.inputs import InputHashes, check_blamed, file_uses
from hubextrap.engine.kernels import check_device
from hubextrap.engine.resuming import check_inputs, made_from, resumed
from hubextrap.engine.stream import Inputs, stream
from hubextrap.engine.worker import MergeWorker
from hubextrap.errors import NonFinite
from hubextrap.progress import Progress, SilentProgress
from hubextrap.tensors.interfaces import ShardInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterator, Sequence

    from hubextrap.engine.inputs import Digests, Key
    from hubextrap.engine.plan import MergePlan, ShardPlan
    from hubextrap.engine.stream import UnitBuffer
    from hubextrap.engine.units import Form, MergeUnit, Piece
    from hubextrap.engine.worker import MergeResult, NonFiniteCount
    from hubextrap.tensors.interfaces import FinishedShard, ShardWriter, Sink, Source
    from hubextrap.tensors.journal import Journal


@dataclass(frozen=True, slots=True)
class MergeOutput:
    """What one target's sink holds afterwards."""

    shards: tuple[FinishedShard, ...]
    identical_to_last: bool
    """Every byte is the last checkpoint's: nothing was predicted."""


def run_plan(
    plan: MergePlan,
    sources: Sequence[Source],
    sinks: Sequence[Sink],
    *,
    journals: Sequence[Journal] = (),
    progress: Progress | None = None,
    device: str = "cpu",
    allow_non_finite: bool = False,
) -> list[MergeOutput]:
    """Make the outputs of all targets in one pass over the inputs.

    On any error every file that was not finished is dropped; finished ones stay with the sink.

    Args:
        sources: one per checkpoint, in step order.
        sinks: one per target.
        journals: one per target, where the sinks record what is finished; a shard that all of them have
            already is not made again.
        device: ``cpu`` or a CUDA device; the bytes are the same.

    Raises:
        NonFinite: a result is NaN or infinite; names the tensor and counts them.
        CheckpointMismatch: tied copies or integer tensors turned out to differ.
        SourceError, OutputError: reading or writing failed.
        MethodError: as `kernels.check_device`.
    """
    if len(sources) != len(plan.steps) or len(sinks) != plan.targets:
        raise ValueError(
            f"{len(sources)} sources and {len(sinks)} sinks for {len(plan.steps)} and {plan.targets}"
        )
    progress = progress or SilentProgress()
    check_inputs(plan, sources, journals, progress)
    if kept := sum(len(journal.finished) for journal in journals):
        progress.say(f"resuming: {kept} of {len(plan.shards) * len(journals)} shards are there")
    check_device(device, wide=plan.wide)
    there = [journal.finished for journal in journals] or [{}] * plan.targets
    done = {one.file for one in plan.shards if all(one.file in have for have in there)}
    compared, begun = resumed(plan, {file: journals[0].inputs[file] for file in done})
    uses = file_uses(tensor for shard in plan.shards for tensor in shard.tensors)
    inputs = Inputs(plan.steps, tuple(sources))
    with closing(InputHashes(sources, plan.layouts, uses, compared=compared, begun=begun)) as hashes:
        merge = _Merge(plan, inputs, hashes, sinks, journals, done, device, not allow_non_finite)
        made = _carried_out(merge, progress)
    finished = [have | new for have, new in zip(there, made, strict=True)]
    return [
        MergeOutput(tuple(have[shard.file] for shard in plan.shards), same)
        for have, same in zip(finished, merge.identical, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """One shard of every target, and what it was made from."""

    shards: tuple[FinishedShard, ...]
    """One per target."""
    identical: tuple[bool, ...]
    """Whether its bytes are the last checkpoint's, for each target."""
    inputs: ShardInputs
    left: dict[Key, dict[int, bytes]]
    """Hashes of what was read of the files that go into other shards too, by offset: see `read_again`."""


class _NoJournal:
    """What a shard that is made by itself leaves: its caller keeps the record."""

    def __init__(self) -> None:
        self.finished: dict[str, FinishedShard] = {}
        self.inputs: dict[str, ShardInputs] = {}
        self.identical = True


def run_shard(
    plan: MergePlan,
    sources: Sequence[Source],
    sinks: Sequence[Sink],
    file: str,
    *,
    shared: Collection[Key],
    progress: Progress | None = None,
    device: str = "cpu",
    allow_non_finite: bool = False,
) -> ShardOutput:
    """Make one shard of all targets: the bytes that `run_plan` makes of it.

    Files that go into this shard alone are compared with the Hub's hashes, as `run_plan` does.

    Args:
        file: the shard's name.
        shared: the plan's `inputs.shared_files`.

    Raises:
        HubExtrapError: as `run_plan`.
    """
    progress = progress or SilentProgress()
    check_device(device, wide=plan.wide)
    uses = file_uses(next(one for one in plan.shards if one.file == file).tensors)
    inputs = Inputs(plan.steps, tuple(sources))
    journals, others = [_NoJournal() for _ in sinks], {one.file for one in plan.shards} - {file}
    with closing(InputHashes(sources, plan.layouts, uses, elsewhere=shared)) as hashes:
        merge = _Merge(plan, inputs, hashes, sinks, journals, others, device, not allow_non_finite)
        made = _carried_out(merge, progress)
        return ShardOutput(
            tuple(one[file] for one in made), tuple(merge.identical), journals[0].inputs[file], hashes.left()
        )


def _carried_out(merge: _Merge, progress: Progress) -> list[dict[str, FinishedShard]]:
    """What `_Merge.close` returns; on any error every file that was not finished is dropped."""
    try:
        stream(merge.inputs, merge, merge.hashes, merge.plan.buffers, progress)
        return merge.close()
    except BaseException:
        merge.abort()
        raise


@dataclass
class _Merge:
    """The consumer: passes what workers make of the plan's units to the sinks."""

    title = "merge"

    plan: MergePlan
    inputs: Inputs
    hashes: InputHashes
    sinks: Sequence[Sink]
    journals: Sequence[Journal | _NoJournal]
    done: Container[str]
    device: str
    finite: bool
    """Refuse results that are not."""

    def __post_init__(self) -> None:
        todo = [shard for shard in self.plan.shards if shard.file not in self.done]
        self.bytes_read = sum(shard.bytes_read for shard in todo)
        self.bytes_taken = sum(shard.bytes_taken for shard in todo)
        self.identical = [self.plan.same_layout] * self.plan.targets
        for target, journal in enumerate(self.journals):
            self.identical[target] &= journal.identical
        self._shards = {shard.file: shard for shard in todo}
        self._read_for: dict[str, list[Key]] = {}
        for key, made in made_from(todo).items():
            for file in made:
                self._read_for.setdefault(file, []).append(key)
        self._digests = [xxh3_128() for _ in self.inputs.sources]
        self._writers: list[ShardWriter] = []
        self._non_finite: dict[tuple[str, int], list[NonFiniteCount]] = {}
        self._finished: list[dict[str, FinishedShard]] = [{} for _ in self.sinks]
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="hubextrap-finish")
        self._finishing: Future[None] | None = None

    def units(self) -> Iterator[MergeUnit]:
        """Those of the shards that are not done."""
        for shard in self._shards.values():
            yield from self.plan.units(shard)

    def worker(self, buffer: UnitBuffer) -> Callable[[MergeUnit], MergeResult]:
        return MergeWorker(
            buffer,
            self.plan.targets,
            self.plan.accumulator_itemsize,
            check_finite=self.finite,
            device=self.device,
        )

    def take(self, unit: MergeUnit, result: MergeResult, digests: Digests) -> None:
        """Write the unit's bytes."""
        if unit.begins_file:
            self._open(self._shards[unit.file])
        for of_checkpoint in digests.values():
            for k, digest in of_checkpoint.items():
                self._digests[k].update(digest)
        for target, same in enumerate(result.identical):
            self.identical[target] &= same
        self._check_finite(unit, result.non_finite)
        for writer, output in zip(self._writers, result.outputs, strict=True):
            if unit.size:
                writer.write(unit.offset, output)
        if unit.ends_file:
            self._end(unit.file)

    def close(self) -> list[dict[str, FinishedShard]]:
        """Wait for the last shard; the shards that were finished for each target, by file."""
        if self._finishing is not None:
            self._finishing.result()
        self._finisher.shutdown()
        return self._finished

    def abort(self) -> None:
        """Drop every file that is not finished. No unit may be under way any more."""
        self._finisher.shutdown(cancel_futures=True)
        for writer in self._writers:
            writer.abort()

    def _open(self, shard: ShardPlan) -> None:
        if self._finishing is not None:  # at most two shards are on their way
            self._finishing.result()
        self._writers = []
        for sink in self.sinks:
            self._writers.append(sink.open(shard.file, shard.size))
        for writer in self._writers:
            writer.write(0, memoryview(shard.header))

    def _end(self, file: str) -> None:
        waiting = any(map(self.hashes.is_waiting, self._read_for.get(file, ())))
        inputs = ShardInputs(tuple(digest.hexdigest() for digest in self._digests), not waiting)
        self._digests = [xxh3_128() for _ in self._digests]
        for journal in self.journals:
            journal.inputs[file] = inputs
        # They stay at hand until this has ended: what stops a merge before it begins has to drop them.
        self._finishing = self._finisher.submit(self._finish, self._writers)

    def _finish(self, writers: Sequence[ShardWriter]) -> None:
        # Before any shard is recorded: a difference found so far must not be lost with the shard it is in.
        for journal, same in zip(self.journals, self.identical, strict=False):
            journal.identical = same
        try:
            for shards, writer in zip(self._finished, writers, strict=True):
                shard = writer.finish()
                shards[shard.file] = shard
        except BaseException:
            for writer in writers:
                writer.abort()
            raise

    def _check_finite(self, unit: MergeUnit, found: Sequence[NonFiniteCount]) -> None:
        """Collect until a tensor ends, so that the error can say how many there are."""
        for count in found:
            self._non_finite.setdefault((count.tensor, count.target), []).append(count)
        if self._non_finite:
            for piece, form in zip(unit.pieces, unit.forms, strict=True):
                for target in range(len(unit.outputs)):
                    if piece.ends_tensor and (piece.tensor, target) in self._non_finite:
                        raise self._refusal(unit, piece, form, target)

    def _refusal(self, unit: MergeUnit, piece: Piece, form: Form, target: int) -> NonFinite:
        found = self._non_finite[piece.tensor, target]
        inputs = sum((Counter(count.inputs) for count in found), Counter[int]())
        blamed, results = sorted(inputs), sum(count.outputs for count in found)
        check_blamed(unit, piece, self.inputs.sources, blamed or None)
        output = f" in output {target + 1} of {self.plan.targets}" if self.plan.targets > 1 else ""
        causes = [f"{self.inputs.called(k)} has {inputs[k]:,} itself" for k in blamed]
        remedy = (
            f"{', '.join(causes)}: leave that checkpoint out"
            if causes
            else f"{form.dtype} cannot hold them: take a nearer target, more damping or a wider out_dtype"
        )
        return NonFinite(
            f"{piece.tensor}: {results:,} of {piece.elements:,} results are NaN or infinite{output}; "
            f"{remedy}, or allow them (--allow-non-finite of merge and run)",
            tensor=piece.tensor,
            step=self.inputs.steps[blamed[0]] if len(blamed) == 1 else None,
        )
