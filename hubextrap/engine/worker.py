"""One job from bytes to bytes: read, check, combine. Any number of workers do this at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from hubextrap.engine.inputs import check_blamed
from hubextrap.engine.kernels import Combiner, count_non_finite, same_bytes, torch_dtype
from hubextrap.engine.reading import JobBuffer
from hubextrap.errors import CheckpointMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor as Pool

    from hubextrap.engine.jobs import Job, Piece
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
    memory: memoryview
    """What was read, at the places that the job's pieces name."""
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
        self._buffer = JobBuffer(
            plan, sources, plan.job_bytes, readers=readers, advance=advance, pin_memory=device != "cpu"
        )
        self._combiner = Combiner(plan.targets, plan.accumulator_itemsize, device)

    def do(self, job: Job) -> JobResult:
        """Read what the job needs and fill its outputs.

        Raises:
            SourceError: bytes that could not be read.
            CheckpointMismatch: tied copies or integer tensors that differ.
        """
        self._buffer.fill(job)
        non_finite: list[NonFiniteCount] = []
        written = 0
        for piece in job.pieces:
            non_finite += self._make(piece, [place + written for place in job.outputs])
            written += piece.count * piece.tensor.itemsize
        return JobResult(
            tuple(self._buffer.memory[place : place + job.size] for place in job.outputs),
            self._buffer.memory,
            tuple(non_finite),
        )

    def _make(self, piece: Piece, places: Sequence[int]) -> list[NonFiniteCount]:
        tensor = piece.tensor
        stored = self._buffer.inputs(piece)
        outputs = [self._buffer.bytes_of(place, piece.count, tensor.dtype) for place in places]
        inputs = [
            part.view(torch_dtype(info.dtype)) for part, info in zip(stored, tensor.inputs, strict=True)
        ]
        results = [part.view(torch_dtype(tensor.dtype)) for part in outputs]
        if not tensor.combinations:
            self._copy_equal(piece, stored, outputs)
            return self._non_finite(piece, inputs, results) if self._check_finite else []
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
                check_blamed(piece.tensor, self._sources)
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
        combinations = piece.tensor.combinations
        for target, result in enumerate(results):
            whole = not (result.is_floating_point() or result.is_complex())
            if not whole and (count := count_non_finite(result)):
                used = combinations[target].indices if combinations else range(len(inputs))
                causes = {piece.tensor.checkpoints[i]: count_non_finite(inputs[i]) for i in used}
                found.append(NonFiniteCount(piece.tensor.name, target, count, causes))
        return found

    def _name(self, piece: Piece, i: int) -> str:
        return self._plan.names[piece.tensor.checkpoints[i]]
