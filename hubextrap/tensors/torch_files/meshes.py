"""DTensors: which part of a tensor a rank holds, from its mesh of ranks and its placements.

torch.distributed.tensor, docs of DeviceMesh, Shard, Replicate; FSDP with tensor parallelism over the same
dimension: placement_types._StridedShard.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.torch_files.arrays import are_sizes, array_of, corrupt, made_by
from hubextrap.tensors.torch_files.pickles import Made

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hubextrap.tensors.torch_files.archive import Archive
    from hubextrap.tensors.torch_files.arrays import Array, Runs

RANKS = 100_000
"""Most ranks of a mesh."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Ranks in a grid."""

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    """In row-major order."""

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Raises ValueError for a rank that is not in it."""
        place = self.ranks.index(rank)
        result = []
        for extent in reversed(self.shape):
            place, one = divmod(place, extent)
            result.append(one)
        return tuple(reversed(result))


@dataclass(frozen=True, slots=True)
class Placement:
    """What one dimension of a mesh does with a tensor."""

    dim: int | None
    """The dimension that it cuts; None: every rank has all."""
    split_factor: int = 1
    """Parts that the dimension is cut into first, each of which is then cut (_StridedShard)."""


def state_of(value: Made) -> dict[str, Any]:
    """What an object would have been told of itself: its attributes, those in slots too."""
    state = value.state
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    return {key: item for part in parts if type(part) is dict for key, item in part.items()}


def mesh_of(value: object, rank: int, archive: Archive, numbers: Callable[[Array], list[int]]) -> Mesh:
    """The mesh of a DTensor in the file of a rank.

    Args:
        numbers: reads the elements of a small tensor of whole numbers.

    Raises:
        CorruptFile: it is no mesh that holds the rank.
    """
    problem = corrupt(archive.where, archive.file, "", "its mesh of ranks is none")
    if not made_by(value, "DeviceMesh"):
        raise problem
    state = state_of(value)
    if "mesh" in state:  # torch before 2.10
        array = array_of(state["mesh"], archive, "the mesh of ranks")
        shape, ranks = array.shape, numbers(array)
    else:
        ranks = _rank_map(state, archive, numbers)
        axes = _axes(state.get("_layout"))
        if axes is None or rank not in ranks:
            raise problem
        places = _places(axes, ranks.index(rank))
        if len(places) > len(ranks) or not all(0 <= place < len(ranks) for place in places):
            raise problem
        shape = tuple(math.prod(size for size, _ in axis) for axis in axes)
        ranks = [ranks[place] for place in places]
    if rank not in ranks or len(set(ranks)) != len(ranks) or math.prod(shape) != len(ranks):
        raise problem
    return Mesh(shape, tuple(ranks))


def _rank_map(state: dict[str, Any], archive: Archive, numbers: Callable[[Array], list[int]]) -> list[int]:
    known = state.get("_flatten_rank_map")
    if _are_ranks(known):
        return list(known)
    return numbers(array_of(state.get("_rank_map"), archive, "the mesh of ranks"))


def _are_ranks(value: Any) -> TypeGuard[tuple[int, ...]]:
    return (
        type(value) is tuple
        and 0 < len(value) <= RANKS
        and all(type(one) is int and 0 <= one < RANKS for one in value)
    )


def _axes(layout: object) -> list[list[tuple[int, int]]] | None:
    """Sizes and strides of each dimension of a mesh; torch 2.13 calls them axes, before it had two tuples."""
    if not made_by(layout, "_MeshLayout"):
        return None
    state = state_of(layout)
    if "axes" in state:
        parts = [state_of(axis) for axis in state["axes"] or () if type(axis) is Made]
        pairs = [(part.get("shape"), part.get("stride")) for part in parts]
    else:
        shape, stride = _as_tuple(state.get("shape")), _as_tuple(state.get("stride"))
        if len(shape) != len(stride):
            return None
        pairs = list(zip(shape, stride, strict=True))
    axes = []
    for sizes, strides in pairs:
        sizes, strides = _as_tuple(sizes), _as_tuple(strides)
        if not (are_sizes(sizes) and are_sizes(strides) and len(sizes) == len(strides) and all(sizes)):
            return None
        axes.append(list(zip(sizes, strides, strict=True)))
    total = math.prod(size for axis in axes for size, _ in axis)
    return axes if total <= RANKS else None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if type(value) is tuple else (value,)


def _places(axes: list[list[tuple[int, int]]], place: int) -> list[int]:
    """Where the ranks of a mesh lie in the map of all ranks, in row-major order; ``place`` is one's."""
    steps = [step for axis in axes for step in axis]
    first = place - sum(place // stride % size * stride for size, stride in steps if stride)
    return [
        first + sum(index)
        for index in itertools.product(*[range(0, size * stride, stride) for size, stride in steps if stride])
    ]


def placements_of(value: object, archive: Archive, tensor: str) -> list[Placement]:
    """What each dimension of the mesh does with a tensor.

    Raises:
        UnsupportedCheckpoint: partial sums.
        CorruptFile: they are no placements.
    """
    result = []
    for one in value if type(value) in (tuple, list) else [None]:  # type: ignore[attr-defined]
        if made_by(one, "Replicate"):
            result.append(Placement(None))
            continue
        if made_by(one, "Partial", "_Partial", "_MaskPartial"):
            what = f"tensor {shorten(repr(tensor))} is a partial sum on each rank, not a weight"
            raise UnsupportedCheckpoint(
                f"{archive.where}: {what}; save the model's own state dict", file=archive.file, tensor=tensor
            )
        if not made_by(one, "Shard", "_StridedShard"):
            raise corrupt(archive.where, archive.file, tensor, "its placements are none")
        state = state_of(one)
        dim, factor = state.get("dim"), state.get("split_factor", 1)
        if type(dim) is not int or type(factor) is not int or not 0 < factor <= RANKS:
            raise corrupt(archive.where, archive.file, tensor, "its placements are none")
        result.append(Placement(dim, factor))
    return result


def order_of(value: object, count: int) -> tuple[int, ...] | None:
    """In which order a mesh's dimensions cut a tensor, from a DTensor's ``shard_order``; None: it is none."""
    if value is None:
        return tuple(range(count))
    order: list[int] = []
    for entry in value if type(value) is tuple else [None]:
        if not made_by(entry, "ShardOrderEntry") or len(entry.args) != 2 or not are_sizes(entry.args[1]):
            return None
        order += entry.args[1]
    if len(set(order)) != len(order) or not all(dim < count for dim in order):
        return None
    return (*order, *sorted(set(range(count)) - set(order)))


def runs_of(
    shape: tuple[int, ...],
    mesh: Mesh,
    placements: Sequence[Placement],
    coordinate: tuple[int, ...],
    order: tuple[int, ...],
) -> tuple[Runs, ...] | None:
    """Which indices along each dimension the rank at a coordinate holds; None: it cannot be said.

    Shards are cut by torch.chunk: ceil(n / ranks) each, the last ones smaller or empty. A strided one of a
    size that does not divide is not told, for versions of torch differ there.
    """
    runs: list[Runs] = [((0, size),) for size in shape]
    for mesh_dim in order:
        placement, extent, one = placements[mesh_dim], mesh.shape[mesh_dim], coordinate[mesh_dim]
        dim = placement.dim
        if dim is None:
            continue
        dim += len(shape) if dim < 0 else 0
        if not 0 <= dim < len(shape):
            return None
        total = sum(length for _, length in runs[dim])
        if placement.split_factor > 1 and total % (placement.split_factor * extent):
            return None
        parts = [
            _chunk(_chunk(runs[dim], placement.split_factor, part), extent, one)
            for part in range(placement.split_factor)
        ]
        runs[dim] = _joined([run for part in parts for run in part])
    return tuple(runs)


def _chunk(runs: Runs, count: int, which: int) -> Runs:
    """One of the chunks that torch.chunk cuts runs into."""
    total = sum(length for _, length in runs)
    size = -(-total // count)
    first, last = min(total, which * size), min(total, (which + 1) * size)
    result, position = [], 0
    for start, length in runs:
        low, high = max(first, position), min(last, position + length)
        if low < high:
            result.append((start + low - position, high - low))
        position += length
    return tuple(result)


def _joined(runs: list[tuple[int, int]]) -> Runs:
    result: list[tuple[int, int]] = []
    for start, length in runs:
        if result and sum(result[-1]) == start:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((start, length))
    return tuple(result)
