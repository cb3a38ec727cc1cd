"""A worker's buffer: filled with what a job reads, and looked at as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hubextrap.engine.inputs import check_blamed
from hubextrap.engine.kernels import same_bytes
from hubextrap.errors import CheckpointMismatch, SourceError
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor as Pool

    from hubextrap.engine.jobs import Job, Piece, Read
    from hubextrap.engine.plan import MergePlan
    from hubextrap.tensors.interfaces import Source


class JobBuffer:
    """Memory that is used for one job after the other. Not thread-safe.

    Args:
        sources: one a checkpoint, in step order.
        size: bytes.
        readers: a pool that reads a job's ranges at the same time; None reads one after the other.
        advance: told of the bytes as they are read.
    """

    def __init__(
        self,
        plan: MergePlan,
        sources: Sequence[Source],
        size: int,
        *,
        readers: Pool | None = None,
        advance: Callable[[int], None],
        pin_memory: bool = False,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._readers = readers
        self._advance = advance
        self.tensor = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
        self.memory: memoryview = self.tensor.numpy().data

    def fill(self, job: Job) -> None:
        """Read all that the job needs.

        Raises:
            SourceError: bytes that could not be read.
        """
        if self._readers is None:
            for read in job.reads:
                self._read(job, read)
        else:
            list(self._readers.map(lambda read: self._read(job, read), job.reads))

    def inputs(self, piece: Piece) -> list[torch.Tensor]:
        """The bytes of each input of the piece.

        Raises:
            CheckpointMismatch: a tied copy holds other bytes.
        """
        stored = [
            self.bytes_of(place, piece.count, info.dtype)
            for place, info in zip(piece.inputs, piece.tensor.inputs, strict=True)
        ]
        for (i, twin), place in zip(piece.tensor.twins, piece.twins, strict=True):
            if not same_bytes(stored[i], self.bytes_of(place, piece.count, twin.dtype)):
                raise self._untied(piece, i, twin.name)
        return stored

    def bytes_of(self, place: int, count: int, dtype: str) -> torch.Tensor:
        """``count`` elements of ``dtype`` (safetensors name) from ``place`` on, as uint8."""
        return self.tensor[place : place + count * DTYPES[dtype].itemsize]

    def _read(self, job: Job, read: Read) -> None:
        view = self.memory[read.position : read.position + read.size]
        try:
            self._sources[read.checkpoint].read(read.file, read.offset, view)
        except SourceError as error:
            step, first = self._plan.steps[read.checkpoint], job.pieces[0].tensor.name
            raise SourceError(f"{error} (step {step}, from tensor {first} on)") from error
        self._advance(read.size)

    def _untied(self, piece: Piece, i: int, twin: str) -> CheckpointMismatch:
        checkpoint, name = piece.tensor.checkpoints[i], piece.tensor.inputs[i].name
        check_blamed(piece.tensor, self._sources, [checkpoint])
        return CheckpointMismatch(
            f"step {self._plan.steps[checkpoint]} ({self._plan.names[checkpoint]}): config.json says that "
            f"the word embeddings are tied, but {twin} differs from {name}; set tie_word_embeddings to false "
            "in the last checkpoint's config.json, or leave this checkpoint out"
        )
