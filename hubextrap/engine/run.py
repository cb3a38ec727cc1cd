"""A plan carried out: jobs in file order, several under way, their results handed over one after the other.

While one worker's bytes are hashed and written, the others read and combine; a shard is finished (forced to
disk, or uploaded) while the next one is made. The sinks see each file's bytes once, in offset order, so what
comes out does not depend on the number of workers, the memory or the source.
"""

from __future__ import annotations

import contextlib
import queue
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from hubextrap.engine.executors import Executor, SerialExecutor, ThreadExecutor, Turns
from hubextrap.engine.inputs import InputHashes, check_blamed, file_uses
from hubextrap.engine.kernels import check_device
from hubextrap.engine.resuming import check_inputs, resumed
from hubextrap.engine.worker import Worker
from hubextrap.errors import NonFinite
from hubextrap.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.engine.jobs import Job
    from hubextrap.engine.plan import MergePlan, TensorPlan
    from hubextrap.engine.worker import JobResult, NonFiniteCount
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
    executor: Executor | None = None,
    readers: int = 0,
    device: str = "cpu",
    allow_non_finite: bool = False,
) -> list[MergeOutput]:
    """Make the outputs of all targets in one pass over the inputs.

    On any error every file that was not finished is dropped; finished ones stay with the sink.

    Args:
        sources: one a checkpoint, in step order.
        sinks: one a target.
        journals: one a target, where the sinks record what is finished; a shard that all of them have already
            is not made again.
        executor: threads of this process by default, as many as planned.
        readers: threads that read a job's ranges at the same time, for sources where waiting dominates (a
            Hub); 0 reads them one after the other in the worker.
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
    if executor is None:
        executor = ThreadExecutor(plan.workers) if plan.workers > 1 else SerialExecutor()
    progress = progress or SilentProgress()
    check_inputs(plan, sources, journals, progress)
    if kept := sum(len(journal.finished) for journal in journals):
        progress.say(f"resuming: {kept} of {len(plan.shards) * len(journals)} shards are there")
    there = [journal.finished for journal in journals]
    todo = [shard for shard in plan.shards if not there or not all(shard.file in have for have in there)]
    with (
        one_torch_thread(),
        progress.stage("merge", sum(shard.bytes_read for shard in todo)) as stage,
        ThreadPoolExecutor(readers or 1, thread_name_prefix="hubextrap-read") as pool,
        contextlib.ExitStack() as resources,
    ):
        check_device(device)
        identical = [plan.same_layout] * plan.targets
        for target, journal in enumerate(journals):
            identical[target] &= journal.identical
        done = (
            {}
            if not there
            else {shard.file: journals[0].inputs[shard.file] for shard in plan.shards if shard not in todo}
        )
        compared, begun = resumed(plan, done)
        hashes = resources.enter_context(
            closing(InputHashes(plan, sources, file_uses(plan), compared=compared, begun=begun))
        )
        handover = _Handover(plan, sources, hashes, sinks, journals, identical, allow_non_finite)
        workers: queue.LifoQueue[Worker] = queue.LifoQueue()
        for _ in range(executor.workers):
            workers.put(
                Worker(
                    plan,
                    sources,
                    identical,
                    check_finite=not allow_non_finite,
                    device=device,
                    readers=pool if readers else None,
                    advance=stage.advance,
                )
            )

        def work(numbered: tuple[int, Job]) -> None:
            number, job = numbered
            worker = workers.get()
            try:
                handover.take(number, job, worker.do(job))
            except BaseException as error:
                handover.fail(error)
                raise
            finally:
                workers.put(worker)

        try:
            for _ in executor.map(work, enumerate(job for shard in todo for job in plan.jobs(shard))):
                pass
            made = handover.close()
            hashes.finish()
        except BaseException as error:
            handover.fail(error)
            handover.abort()
            raise
    finished = [have | new for have, new in zip(there or [{}] * plan.targets, made, strict=True)]
    return [
        MergeOutput(tuple(have[shard.file] for shard in plan.shards), same)
        for have, same in zip(finished, identical, strict=True)
    ]


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """The workers are the parallelism; torch's own threads would only get in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(slots=True)
class _Tally:
    """Non-finite elements of the tensor that is being handed over."""

    outputs: int = 0
    inputs: Counter[int] = field(default_factory=Counter)


class _Handover:
    """Takes results in the order of their jobs, whoever made them, and passes them to the sinks."""

    def __init__(
        self,
        plan: MergePlan,
        sources: Sequence[Source],
        hashes: InputHashes,
        sinks: Sequence[Sink],
        journals: Sequence[Journal],
        identical: list[bool],
        allow_non_finite: bool,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._hashes = hashes
        self._sinks = sinks
        self._journals = journals
        self._identical = identical
        self._allow_non_finite = allow_non_finite
        self._turns = Turns()
        self._writers: list[ShardWriter] = []
        self._tallies: dict[tuple[str, int], _Tally] = {}
        self._finished: list[dict[str, FinishedShard]] = [{} for _ in sinks]
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="hubextrap-finish")
        self._finishing: Future[None] | None = None

    def take(self, number: int, job: Job, result: JobResult) -> None:
        """Wait until all earlier jobs were taken, then write this one's bytes."""
        self._turns.wait(number)
        self._hashes.take(job, result.memory)
        self._write(job, result)
        self._turns.done()

    def fail(self, error: BaseException) -> None:
        """Wake everybody who waits; the first error is the one that counts."""
        self._turns.fail(error)

    def close(self) -> list[dict[str, FinishedShard]]:
        """Wait for the last shard; the shards that were finished for each target, by file."""
        if self._finishing is not None:
            self._finishing.result()
        self._finisher.shutdown()
        return self._finished

    def abort(self) -> None:
        """Drop every file that is not finished. No job may be under way any more."""
        self._finisher.shutdown(cancel_futures=True)
        for writer in self._writers:
            writer.abort()

    def _write(self, job: Job, result: JobResult) -> None:
        if job.starts_shard:
            if self._finishing is not None:  # at most two shards are on their way
                self._finishing.result()
            self._writers = []
            for sink in self._sinks:
                self._writers.append(sink.open(job.shard.file, job.shard.size))
            for writer in self._writers:
                writer.write(0, memoryview(job.shard.header))
        self._check_finite(job, result.non_finite)
        for writer, output in zip(self._writers, result.outputs, strict=True):
            if job.size:
                writer.write(job.offset, output)
        if job.ends_shard:
            made_from = self._hashes.end_shard(job.shard.file)
            for journal in self._journals:
                journal.inputs[job.shard.file] = made_from
            writers, self._writers = self._writers, []
            self._finishing = self._finisher.submit(self._finish, writers)

    def _finish(self, writers: Sequence[ShardWriter]) -> None:
        # Before any shard is recorded: a difference found so far must not be lost with the shard it is in.
        for journal, same in zip(self._journals, self._identical, strict=False):
            journal.identical = same
        try:
            for shards, writer in zip(self._finished, writers, strict=True):
                shard = writer.finish()
                shards[shard.file] = shard
        except BaseException:
            for writer in writers:
                writer.abort()
            raise

    def _check_finite(self, job: Job, found: Sequence[NonFiniteCount]) -> None:
        """Count until a tensor ends, so that the error can say how many there are."""
        for count in found:
            tally = self._tallies.setdefault((count.tensor, count.target), _Tally())
            tally.outputs += count.outputs
            tally.inputs.update(count.inputs)
        if self._tallies:
            for piece in job.pieces:
                for target in range(self._plan.targets):
                    if piece.ends_tensor and (piece.tensor.name, target) in self._tallies:
                        raise self._non_finite(piece.tensor, target)

    def _non_finite(self, tensor: TensorPlan, target: int) -> NonFinite:
        tally = self._tallies[tensor.name, target]
        check_blamed(tensor, self._sources, {k for k, count in tally.inputs.items() if count} or None)
        output = f" in output {target + 1} of {self._plan.targets}" if self._plan.targets > 1 else ""
        causes = [
            f"step {self._plan.steps[k]} ({self._plan.names[k]}) has {count:,} itself"
            for k, count in sorted(tally.inputs.items())
            if count
        ]
        remedy = (
            f"{', '.join(causes)}: leave that checkpoint out"
            if causes
            else f"{tensor.dtype} cannot hold them: take a nearer target, more damping or a wider out_dtype"
        )
        return NonFinite(
            f"{tensor.name}: {tally.outputs:,} of {tensor.elements:,} results are NaN or infinite{output}; "
            f"{remedy}, or allow them (--allow-non-finite)"
        )
