"""One unit of a merge from bytes to bytes: check, combine. Any number of workers do this at the same time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.engine.inputs import check_blamed
from hubextrap.engine.kernels import Combiner, count_non_finite, same_bytes
from hubextrap.engine.units import Made
from hubextrap.errors import CheckpointMismatch
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.engine.stream import UnitBuffer
    from hubextrap.engine.torch_kernels import TorchCombiner
    from hubextrap.engine.units import Form, MergeUnit, Piece

    Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class NonFiniteCount:
    """NaN or infinite elements of one piece."""

    tensor: str
    target: int
    outputs: int
    inputs: dict[int, int]
    """checkpoint → how many of them it had itself."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a worker made of a unit; the memory is the worker's and is used again for its next one."""

    outputs: tuple[memoryview, ...]
    """The unit's bytes, one for each target."""
    identical: tuple[bool, ...]
    """Whether they are the last checkpoint's, for each target."""
    non_finite: tuple[NonFiniteCount, ...]


class MergeWorker:
    """A `Combiner` beside a buffer, used for one unit after the other. Not thread-safe.

    Args:
        targets: how many outputs each unit has.
        accumulator_itemsize: bytes of the widest sum: the plan's.
        check_finite: tell of NaN and infinity in what is made.
        device: where the arithmetic runs, one that `kernels.check_device` has passed.
    """

    def __init__(
        self,
        buffer: UnitBuffer,
        targets: int,
        accumulator_itemsize: int,
        *,
        check_finite: bool = True,
        device: str = "cpu",
    ) -> None:
        self._buffer = buffer
        self._check_finite = check_finite
        self._combiner: Combiner | TorchCombiner
        if device == "cpu":
            self._combiner = Combiner(targets, accumulator_itemsize)
        else:
            from hubextrap.engine.torch_kernels import TorchCombiner, pinned

            self._combiner = TorchCombiner(targets, accumulator_itemsize, device)
            buffer.use(pinned(buffer.array.nbytes))

    def __call__(self, unit: MergeUnit) -> MergeResult:
        """Fill the outputs of the unit that the buffer holds.

        Raises:
            CheckpointMismatch: tied copies that differ, or integer tensors of more than one number.
        """
        non_finite: list[NonFiniteCount] = []
        identical = [True] * len(unit.outputs)
        written = 0
        for piece, form in zip(unit.pieces, unit.forms, strict=True):
            stored = self._buffer.stored(unit, piece)
            outputs = [
                self._buffer.bytes_of(place + written, piece.count, form.dtype) for place in unit.outputs
            ]
            if form.combinations:
                made = self._combine(piece, form, stored, outputs)
            else:
                made = self._copy_equal(unit, piece, stored, outputs)
            for target, one in enumerate(made):
                identical[target] &= one.identical
                if one.non_finite and self._check_finite:
                    non_finite.append(_non_finite(piece, form, stored, target, one.non_finite))
            written += piece.count * DTYPES[form.dtype].itemsize
        return MergeResult(
            tuple(self._buffer.memory[place : place + unit.size] for place in unit.outputs),
            tuple(identical),
            tuple(non_finite),
        )

    def _combine(
        self, piece: Piece, form: Form, stored: Sequence[Bytes], outputs: Sequence[Bytes]
    ) -> Sequence[Made]:
        has_last = piece.checkpoints[-1] == len(self._buffer.inputs.steps) - 1
        return self._combiner.combine(
            stored,
            piece.dtypes,
            form.combinations,
            outputs,
            form.dtype,
            last=len(stored) - 1 if has_last else None,
            wide=form.wide,
        )

    def _copy_equal(
        self, unit: MergeUnit, piece: Piece, stored: Sequence[Bytes], outputs: Sequence[Bytes]
    ) -> Sequence[Made]:
        # one integer packs no weights: it counts batches or steps, and the last checkpoint's is the latest
        counts = piece.elements == 1 and piece.dtypes[-1].startswith(("I", "U"))
        for k, dtype, part in zip(piece.checkpoints, piece.dtypes, stored[:-1], strict=False):
            if not counts and not same_bytes(part, stored[-1]):
                inputs = self._buffer.inputs
                check_blamed(unit, piece, inputs.sources)
                raise CheckpointMismatch(
                    f"{piece.tensor} is {dtype}, which is copied and never combined, but "
                    f"{inputs.called(k)} and step {inputs.steps[-1]} differ; to take the last checkpoint's, "
                    "give it a rule with the method persistence; if it holds packed weights, dequantise all "
                    "checkpoints instead",
                    tensor=piece.tensor,
                    step=inputs.steps[k],
                )
        for output in outputs:
            output[:] = stored[-1]
        # integers are finite, and a complex number or a float8 that is only copied need not be
        return [Made(count_non_finite(stored[-1], piece.dtypes[-1]), identical=True)] * len(outputs)


def _non_finite(piece: Piece, form: Form, stored: Sequence[Bytes], target: int, count: int) -> NonFiniteCount:
    used = form.combinations[target].indices if form.combinations else range(len(stored))
    causes = {piece.checkpoints[i]: count_non_finite(stored[i], piece.dtypes[i]) for i in used}
    return NonFiniteCount(piece.tensor, target, count, causes)
