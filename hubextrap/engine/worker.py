"""One job from bytes to bytes: read, check, combine. Any number of workers do this at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from hubextrap.engine.kernels import Combiner, count_non_finite, same_bytes, torch_dtype
from hubextrap.errors import CheckpointMismatch, SourceError
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor as Pool

    from hubextrap.engine.jobs import Job, Piece, Read
    from hubextrap.engine.plan import MergePlan
    from hubextrap.tensors.interfaces import Source


@dataclass(frozen=True, slots=True)
class NonFiniteCount:
    """NaN or infinite elements of one piece."""

    tensor: str
    target: int
    outputs: int
    inputs: dict[int, int] = field(default_factory=dict)
    """checkpoint → how many of them it had itself."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a worker made of a job; the memory is the worker's and is used again by its next job."""

    outputs: tuple[memoryview, ...]
    """The job's bytes, one a target."""
    non_finite: tuple[NonFiniteCount, ...]


class Worker:
    """A buffer and scratch memory, used for one job after the other. Not thread-safe.

    Args:
        identical: a flag a target, set to False at the first byte that differs from the last checkpoint.
        readers: a pool that reads a job's ranges at the same time; None reads one after the other.
    """

    def __init__(
        self,
        plan: MergePlan,
        sources: Sequence[Source],
        identical: list[bool],
        *,
        check_finite: bool,
        device: str = "cpu",
        readers: Pool | None = None,
        advance: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._identical = identical
        self._check_finite = check_finite
        self._readers = readers
        self._advance = advance
        self._buffer = torch.empty(plan.job_bytes, dtype=torch.uint8, pin_memory=device != "cpu")
        self._memory: memoryview = self._buffer.numpy().data
        self._combiner = Combiner(plan.targets, plan.accumulator_itemsize, device)

    def do(self, job: Job) -> JobResult:
        """Read what the job needs and fill its outputs.

        Raises:
            SourceError: bytes that could not be read.
            CheckpointMismatch: tied copies or integer tensors that differ.
        """
        if self._readers is None:
            for read in job.reads:
                self._read(job, read)
        else:
            list(self._readers.map(lambda read: self._read(job, read), job.reads))
        non_finite: list[NonFiniteCount] = []
        written = 0
        for piece in job.pieces:
            non_finite += self._make(piece, [place + written for place in job.outputs])
            written += piece.count * piece.tensor.itemsize
        return JobResult(
            tuple(self._memory[place : place + job.size] for place in job.outputs), tuple(non_finite)
        )

    def _read(self, job: Job, read: Read) -> None:
        view = self._memory[read.position : read.position + read.size]
        try:
            self._sources[read.checkpoint].read(read.file, read.offset, view)
        except SourceError as error:
            step, first = self._plan.steps[read.checkpoint], job.pieces[0].tensor.name
            raise SourceError(f"{error} (step {step}, from tensor {first} on)") from error
        self._advance(read.size)

    def _make(self, piece: Piece, places: Sequence[int]) -> list[NonFiniteCount]:
        tensor = piece.tensor
        stored = [
            self._bytes(place, piece.count, info.dtype)
            for place, info in zip(piece.inputs, tensor.inputs, strict=True)
        ]
        outputs = [self._bytes(place, piece.count, tensor.dtype) for place in places]
        for (i, twin), place in zip(tensor.twins, piece.twins, strict=True):
            if not same_bytes(stored[i], self._bytes(place, piece.count, twin.dtype)):
                raise self._untied(piece, i, twin.name)
        if not tensor.combinations:
            self._copy_equal(piece, stored, outputs)
            return []
        inputs = [
            part.view(torch_dtype(info.dtype)) for part, info in zip(stored, tensor.inputs, strict=True)
        ]
        results = [part.view(torch_dtype(tensor.dtype)) for part in outputs]
        self._combiner.combine(inputs, tensor.combinations, results)
        has_last = tensor.checkpoints[-1] == len(self._plan.steps) - 1
        for target, output in enumerate(outputs):
            if self._identical[target] and not (has_last and same_bytes(output, stored[-1])):
                self._identical[target] = False
        return self._non_finite(piece, inputs, results) if self._check_finite else []

    def _copy_equal(
        self, piece: Piece, stored: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        for i, part in enumerate(stored[:-1]):
            if not same_bytes(part, stored[-1]):
                step, last = self._plan.steps[piece.tensor.checkpoints[i]], self._plan.steps[-1]
                raise CheckpointMismatch(
                    f"{piece.tensor.name} is {piece.tensor.dtype}, which is copied and never combined, but "
                    f"step {step} ({self._name(piece, i)}) and step {last} differ; give it the method "
                    "persistence by a rule to take the last checkpoint's"
                )
        for output in outputs:
            output.copy_(stored[-1])

    def _non_finite(
        self, piece: Piece, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
    ) -> list[NonFiniteCount]:
        found = []
        for target, result in enumerate(results):
            count = count_non_finite(result)
            if count:
                used = piece.tensor.combinations[target].indices
                causes = {piece.tensor.checkpoints[i]: count_non_finite(inputs[i]) for i in used}
                found.append(NonFiniteCount(piece.tensor.name, target, count, causes))
        return found

    def _untied(self, piece: Piece, i: int, twin: str) -> CheckpointMismatch:
        step, name = self._plan.steps[piece.tensor.checkpoints[i]], piece.tensor.inputs[i].name
        return CheckpointMismatch(
            f"step {step} ({self._name(piece, i)}): config.json says that the word embeddings are tied, but "
            f"{twin} differs from {name}; set tie_word_embeddings to false in the last checkpoint's "
            "config.json, or leave this checkpoint out"
        )

    def _name(self, piece: Piece, i: int) -> str:
        return self._plan.names[piece.tensor.checkpoints[i]]

    def _bytes(self, place: int, count: int, dtype: str) -> torch.Tensor:
        return self._buffer[place : place + count * DTYPES[dtype].itemsize]
