"""The trainable parameters as this rank holds them, and the arithmetic on them: Gram matrices and jumps.

Linear combinations are element by element, so a rank works on its own part of a sharded parameter and nothing
is gathered; only inner products, K·K numbers per tensor, are summed over the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hubextrap.engine.torch_kernels import count_non_finite, round_to
from hubextrap.errors import MethodError, NonFinite
from hubextrap.regrounding.products import Cut, FactorPair, cut_of, jumped, moving, product_gram
from hubextrap.regrounding.ring import SnapshotRing

if TYPE_CHECKING:
    from numpy.typing import NDArray

Value = TypeVar("Value")

CHUNK = 2**20
"""Elements that are combined at a time: some megabytes for each snapshot, whatever the tensor's size."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def local_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """This rank's part of every trainable parameter, by its name; they share the parameters' memory.

    A tied parameter comes once, under its first name. DTensors (FSDP2, tensor parallel) and the flat
    parameters of FSDP1 give the local shard, everything else the whole tensor.
    """
    with torch.no_grad():
        return {
            name: _local(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        }


def shares(model: nn.Module) -> dict[str, float]:
    """By name, what this rank's sums weigh in the sum over all ranks: 1 / the ranks that hold the same part.

    Raises:
        MethodError: FSDP1 with a strategy that both shards and replicates.
    """
    world = world_size()
    fsdp1 = fsdp1_strategies(model)
    if fsdp1 - {"FULL_SHARD", "SHARD_GRAD_OP"}:
        raise MethodError(
            f"FSDP1 with {', '.join(sorted(fsdp1))}: use FULL_SHARD or SHARD_GRAD_OP, or FSDP2 "
            "(fsdp_version: 2)"
        )
    result = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shards = world if fsdp1 else 1
            if is_dtensor(parameter):
                sharded: Any = parameter
                sizes = zip(sharded.device_mesh.shape, sharded.placements, strict=True)
                shards = math.prod(size for size, placement in sizes if placement.is_shard())
            result[name] = shards / world
    return result


def fsdp1_strategies(model: nn.Module) -> set[str]:
    """Names of the strategies of FSDP1's modules in the model."""
    if not dist.is_available():
        return set()
    from torch.distributed.fsdp import FullyShardedDataParallel

    return {
        module.sharding_strategy.name
        for module in model.modules()
        if isinstance(module, FullyShardedDataParallel)
    }


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 gathered: a forward without backward leaves the root's parameters whole, and stale."""
    if world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gram_matrices(
    ring: SnapshotRing,
    steps: Sequence[int],
    weights: Mapping[str, float],
    tensors: Mapping[str, torch.Tensor],
    pairs: Sequence[FactorPair] = (),
) -> NDArray[np.float64]:
    """(N, K, K): ⟨W_i − W_0, W_j − W_0⟩ of each whole tensor over K snapshots, in float64.

    Args:
        weights: `shares`; the sums of all ranks are added with them.
        tensors: `local_tensors`; each is computed where its parameter lies.
        pairs: LoRA's factors, whose products count instead of them: N and its order are those of `moving`.

    Raises:
        NonFinite: a snapshot holds NaN or infinity; all ranks raise.
    """
    units = moving(ring.layouts, pairs)
    result = np.zeros((len(units), len(steps), len(steps)))
    for row, (name, pair) in enumerate(units):
        part = name if pair is None else pair.a
        device = tensors[part].device
        if device.type == "mps":  # it has no float64
            device = torch.device("cpu")
        found = _gram(ring, steps, name, device) if pair is None else product_gram(ring, steps, pair, device)
        result[row] = found * weights[part]
    result = _summed(result, next(iter(tensors.values())).device)
    for (name, _), gram in zip(units, result, strict=True):
        if not np.isfinite(gram).all():
            raise NonFinite(
                f"tensor {name} holds NaN or infinity at one of steps {', '.join(map(str, steps))} of the "
                "re-grounded run: training has diverged; resume from an earlier checkpoint with smaller "
                "steps",
                tensor=name,
            )
    return result


def _gram(ring: SnapshotRing, steps: Sequence[int], name: str, device: torch.device) -> NDArray[np.float64]:
    """(K, K): of this rank's part of one tensor."""
    elements = ring.layouts[name].elements
    result = np.zeros((len(steps), len(steps)))
    for start in range(0, elements, CHUNK):
        stop = min(start + CHUNK, elements)
        parts = [ring.read(step, name, start, stop).to(device, torch.float64) for step in steps]
        deltas = torch.stack(parts) - parts[0]
        result += (deltas @ deltas.T).cpu().numpy()
    return result


def jump_to(
    ring: SnapshotRing,
    steps: Sequence[int],
    coefficients: Mapping[str, Sequence[float]],
    tensors: Mapping[str, torch.Tensor],
    pairs: Sequence[FactorPair] = (),
) -> Cut | None:
    """Put Σ c_k·W_k into the model: as it is into ordinary tensors, into LoRA's products by their factors.

    Args:
        coefficients: K per tensor or product; those under ``*`` for all that are not named.

    Returns:
        What the products lost by their rank; None without any that moved.

    Raises:
        NonFinite: as `move_to` does.
    """
    ordinary = {name: tensors[name] for name, pair in moving(ring.layouts, pairs) if pair is None}
    if ordinary:
        move_to(ring, steps, coefficients, ordinary)
    if not pairs:
        return None
    try:
        # the factors of one product are not unique, so that one rank's are everybody's
        cut = from_rank_zero(lambda: _move_products(ring, steps, coefficients, tensors, pairs))
    except NonFinite:
        restore(ring, steps[-1], tensors)
        raise
    if world_size() > 1:
        for pair in pairs:
            for name in (pair.b, pair.a):
                dist.broadcast(tensors[name], src=0)
    return cut


def _move_products(
    ring: SnapshotRing,
    steps: Sequence[int],
    coefficients: Mapping[str, Sequence[float]],
    tensors: Mapping[str, torch.Tensor],
    pairs: Sequence[FactorPair],
) -> Cut | None:
    found: dict[str, tuple[float, float]] = {}
    for pair in pairs:
        row = coefficients.get(pair.name, coefficients.get("*", ()))
        factors = jumped(ring, steps, row, pair)
        if factors is None:
            continue
        b, a, energy, lost = factors
        found[pair.name] = (energy, lost)
        for name, total in ((pair.b, b), (pair.a, a)):
            tensor = tensors[name]
            with torch.no_grad():
                tensor.copy_(total.view(tensor.shape))
            if count_non_finite(tensor.reshape(-1)):
                raise _left_range(name)
    return cut_of(found)


def move_to(
    ring: SnapshotRing,
    steps: Sequence[int],
    coefficients: Mapping[str, Sequence[float]],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put Σ c_k·W_k into every tensor, in place, summed in float32 (float64 for float64) and rounded once.

    It is computed as W_last + Σ c_k·(W_k − W_last), so that what never moved stays as it is, to the bit.

    Args:
        coefficients: K per tensor; those under ``*`` for every tensor that is not named.

    Raises:
        NonFinite: the sum overflows a tensor's dtype; every tensor of every rank is back where it was.
    """
    overflowed: list[str] = []
    for name, tensor in tensors.items():
        row = coefficients.get(name, coefficients.get("*", ()))
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        for start in range(0, tensor.numel(), CHUNK):
            stop = min(start + CHUNK, tensor.numel())
            last = ring.read(steps[-1], name, start, stop).to(tensor.device, wide)
            total = last.clone()
            for step, coefficient in zip(steps[:-1], row[:-1], strict=True):
                if coefficient != 0.0:
                    total += coefficient * (ring.read(step, name, start, stop).to(last) - last)
            round_to(flat[start:stop], total)
        if count_non_finite(flat):
            overflowed.append(name)
        with torch.no_grad():
            tensor.copy_(flat.view(tensor.shape))
    device = next(iter(tensors.values())).device
    if _summed(np.array([len(overflowed)], dtype=np.float64), device)[0] > 0:
        restore(ring, steps[-1], tensors)
        raise _left_range(overflowed[0] if overflowed else None)


def _left_range(name: str | None) -> NonFinite:
    return NonFinite(
        f"tensor {name or 'of another rank'}: the jump leaves the range of its dtype; choose a smaller n, or "
        "train in float32 or bfloat16",
        tensor=name,
    )


def restore(ring: SnapshotRing, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put a snapshot back, to the bit."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(ring.read(step, name).view(tensor.shape))


def reset_moments(optimizer: Any) -> None:
    """Set the optimizer's state back to its beginning, in place: moments and step counts to 0.

    Raises:
        MethodError: a state that 0 does not begin, such as 8-bit moments.
    """
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                if not value.is_floating_point():
                    raise MethodError(
                        f"moments='reset': the optimizer keeps {key} as {value.dtype}, which cannot "
                        "be reset; use moments='keep', or an optimizer with float moments"
                    )
                with torch.no_grad():
                    value.zero_()
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                state[key] = type(value)(0)


def forget_moments(optimizer: Any, model: nn.Module, pairs: Sequence[FactorPair]) -> None:
    """Let go of what the optimizer keeps of LoRA's factors; it begins anew at their next step.

    Every optimizer of torch, bitsandbytes and their like makes its state when there is none.
    """
    factors = {name for pair in pairs for name in (pair.a, pair.b)}
    for name, parameter in model.named_parameters():
        if name in factors:
            optimizer.state.pop(parameter, None)


def from_rank_zero(compute: Callable[[], Value]) -> Value:
    """What rank 0 computes, on every rank; an error there is raised everywhere."""
    if world_size() == 1:
        return compute()
    answer: list[Any] = [None]
    if rank() == 0:
        try:
            answer = [compute()]
        except Exception as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]  # type: ignore[no-any-return]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def _summed(values: NDArray[np.float64], device: torch.device) -> NDArray[np.float64]:
    if world_size() == 1:
        return values
    total = torch.from_numpy(values).to(device)
    dist.all_reduce(total)
    return np.asarray(total.cpu().numpy(), dtype=np.float64)


def _local(parameter: Any) -> torch.Tensor:
    local: torch.Tensor = parameter.to_local() if is_dtensor(parameter) else parameter.detach()
    return local


def is_dtensor(parameter: torch.Tensor) -> bool:
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)
