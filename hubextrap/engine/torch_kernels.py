"""The arithmetic of `kernels` in torch: for CUDA devices, and for tensors that are torch's already.

Block by block over reused scratch memory, with the bits of `kernels`, which says what is computed. Nothing
that runs on the CPU alone imports this.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hubextrap.engine.units import Combination, Made
from hubextrap.errors import MethodError
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

BLOCK = 2**18
"""Elements that are combined at once: long enough that calling torch costs little."""
ACCUMULATORS = (torch.float32, torch.float64)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
E4M3_ROUNDS_TO_LARGEST = 464.0
"""Half-way from 448, the largest float8_e4m3fn, to the 480 that it lacks; a tie goes to the even 448."""


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype for a safetensors name."""
    dtype = getattr(torch, DTYPES[name].torch_name)
    assert isinstance(dtype, torch.dtype)
    return dtype


class TorchCombiner:
    """The scratch memory of one worker, and the combinations over it. Not thread-safe.

    Args:
        targets: how many outputs there are at most.
        itemsize: bytes of the widest accumulation: 8 if some output is F64, else 4.
        device: where the arithmetic runs.
        block: elements that are combined at once.
    """

    def __init__(self, targets: int, itemsize: int = 4, device: str = "cpu", block: int = BLOCK) -> None:
        self._block = block
        self._scratch = [
            torch.empty(block * itemsize, dtype=torch.uint8, device=device) for _ in range(targets + 2)
        ]
        self._zeros = {dtype: torch.zeros((), dtype=dtype, device=device) for dtype in ACCUMULATORS}
        self._staging = None if device == "cpu" else torch.empty(8 * block, dtype=torch.uint8, device=device)

    def combine(
        self,
        inputs: Sequence[Bytes],
        dtypes: Sequence[str],
        combinations: Sequence[Combination],
        outputs: Sequence[Bytes],
        dtype: str,
        *,
        last: int | None = None,
        wide: bool = False,
    ) -> list[Made]:
        """As `kernels.Combiner.combine`, which alone sums in float64 what is stored in less."""
        if wide:
            raise ValueError("torch rounds float64 to smaller floats twice: no wide sums here")
        stored = [
            torch.from_numpy(data).view(torch_dtype(name)) for data, name in zip(inputs, dtypes, strict=True)
        ]
        results = [torch.from_numpy(data).view(torch_dtype(dtype)) for data in outputs]
        self.combine_tensors(stored, combinations, results)
        made = []
        for data, result in zip(outputs, results, strict=True):
            identical = last is not None and dtypes[last] == dtype and bool((data == inputs[last]).all())
            made.append(Made(count_non_finite(result), identical))
        return made

    def combine_tensors(
        self,
        inputs: Sequence[torch.Tensor],
        combinations: Sequence[Combination],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """Write combination t of the inputs to ``outputs[t]``.

        Args:
            inputs: 1-D tensors of n elements, of any floating-point dtype, on the CPU or on the device.
            combinations: one per output; ``indices`` are positions in ``inputs``.
            outputs: 1-D tensors of n elements, all of one dtype, likewise.
        """
        pending = []
        for combination, output in zip(combinations, outputs, strict=True):
            source = inputs[combination.indices[0]]
            if combination.kind == "copy" and source.dtype == output.dtype:
                output.copy_(source)
            else:
                pending.append((combination, output))
        if not pending:
            return
        for start in range(0, outputs[0].numel(), self._block):
            self._combine_block(inputs, pending, slice(start, start + self._block))

    def _combine_block(
        self,
        inputs: Sequence[torch.Tensor],
        pending: Sequence[tuple[Combination, torch.Tensor]],
        block: slice,
    ) -> None:
        first = pending[0][1][block]
        accumulator = torch.float64 if first.dtype == torch.float64 else torch.float32
        zero, size = self._zeros[accumulator], first.numel() * accumulator.itemsize
        value, difference, *sums = (scratch[:size].view(accumulator) for scratch in self._scratch)
        for k, tensor in enumerate(inputs):
            uses = [
                (combination, sums[t], combination.indices.index(k))
                for t, (combination, _) in enumerate(pending)
                if k in combination.indices
            ]
            if not uses:
                continue
            raw = self._to_device(tensor[block])
            starts = [(c, total) for c, total, position in uses if position == 0 and c.kind != "sum"]
            for _, total in starts:
                total.copy_(raw)
            if len(starts) == len(uses):
                continue
            value.copy_(raw)
            for combination, total, position in uses:
                weight = combination.weights[position]
                if combination.kind == "sum":
                    # alpha is rounded once to the accumulator's dtype, as mergekit's weights are
                    torch.add(total if position else zero, value, alpha=weight, out=total)
                elif position == 1:
                    torch.sub(value, total, out=difference)
                    total.add_(difference.mul_(weight))
                    total.add_(0.0)  # mergekit sums the deltas from +0, so it never returns −0 here
        for (_, output), total in zip(pending, sums, strict=False):
            self._from_device(total, output[block])

    def _to_device(self, block: torch.Tensor) -> torch.Tensor:
        if self._staging is None:
            return block
        staged = self._staging[: block.numel() * block.itemsize].view(block.dtype)
        return staged.copy_(block, non_blocking=True)

    def _from_device(self, total: torch.Tensor, output: torch.Tensor) -> None:
        if self._staging is None:
            round_to(output, total)
        else:
            staged = self._staging[: output.numel() * output.itemsize].view(output.dtype)
            output.copy_(round_to(staged, total))


def round_to(output: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Round ``total``, which may be changed, into ``output``; what it is too large for becomes non-finite.

    Every dtype that has an infinity gets it from torch, and FNUZ types get NaN. float8_e4m3fn has NaN alone,
    and torch's casts give 448 instead of it (or NaN, by version and device), so it is set here.
    """
    if output.dtype == torch.float8_e4m3fn:
        too_large = (total > E4M3_ROUNDS_TO_LARGEST) | (total < -E4M3_ROUNDS_TO_LARGEST)
        total.masked_fill_(too_large, math.nan)
    return output.copy_(total)


def count_non_finite(tensor: torch.Tensor, block: int = BLOCK) -> int:
    """How many elements are NaN or infinite; one sum over them unless there are any.

    A float16 sum is taken in float32, as it would overflow by itself; a false alarm costs only a count.
    """
    count = 0
    for part in torch.split(tensor, block):
        if part.dtype in FLOAT8:
            part = part.to(torch.float32)
        wide = torch.float32 if part.dtype == torch.float16 else None
        numbers = torch.view_as_real(part) if part.is_complex() else part
        if not math.isfinite(torch.sum(numbers, dtype=wide).item()):
            count += part.numel() - int(torch.isfinite(part).sum().item())
    return count


def check_device(device: str, combine: Callable[..., list[Made]]) -> None:
    """Refuse a device that cannot make a merge's bytes.

    Args:
        device: one that torch knows and finds.
        combine: the CPU's, of two targets: that of a `kernels.Combiner`.

    Raises:
        MethodError: it is no CUDA device, or gives other bytes than this CPU.
    """
    if torch.device(device).type != "cuda":
        raise MethodError(f"device {device}: weights are combined on the CPU or on a CUDA device; write cpu")
    try:
        same = device_gives_cpu_bytes(device, combine)
    except RuntimeError as error:  # its memory is full, or its driver is not for this torch
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MethodError(f"device {device}: cannot be used ({reason}); choose cpu") from error
    if not same:
        raise MethodError(f"device {device} rounds differently from this CPU; run on the CPU instead")


def device_gives_cpu_bytes(device: str, combine: Callable[..., list[Made]]) -> bool:
    """Whether combinations give the same bits on ``device`` as from ``combine``, tried on 64 K elements."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2**16, generator=generator).numpy().view("uint8") for _ in range(3)]
    combinations = [
        Combination("sum", (0, 1, 2), (-0.3, -0.15, 1.45)),
        Combination("line", (0, 2), (-0.43, 1.43)),
    ]
    for dtype in ("BF16", "F32"):
        results = []
        for each in (combine, TorchCombiner(2, device=device).combine):
            outputs = [torch.empty(2**16 * DTYPES[dtype].itemsize, dtype=torch.uint8) for _ in combinations]
            each(inputs, ["F32"] * 3, combinations, [one.numpy() for one in outputs], dtype)
            results.append(outputs)
        if not all(torch.equal(one, other) for one, other in zip(*results, strict=True)):
            return False
    return True


def pinned(size: int) -> Bytes:
    """Memory that a CUDA device copies from directly."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
