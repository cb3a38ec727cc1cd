"""Checkpoints in pieces, written by torch's own FSDP and DCP: processes that talk over gloo, as trainers do.

Each write forks its ranks off one server that imported torch once, so that a write costs tenths of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    State = Path | Mapping[str, torch.Tensor]

_PRELOADED = (
    "torch",
    "torch._decomp.decompositions_for_rng",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "safetensors.torch",
)
_PATIENCE = 120.0
"""Seconds that a write may take."""


class Spread(NamedTuple):
    """How tensors lie on the ranks."""

    mesh: tuple[int, ...] = ()
    """Ranks along each dimension of the mesh; where it is empty, all ranks along one. Two are replicas and
    shards (HSDP), or shards and tensor parallelism where ``parallel`` names a tensor."""
    parallel: Mapping[str, int] = {}
    """The dimension in which tensor parallelism cuts these tensors first."""
    placed: Mapping[str, Sequence[int | None]] = {}
    """Tensors that `distribute_tensor` places in place of FSDP: the dimension that each dimension of the mesh
    cuts, None for a replica."""
    apart: bool = False
    """Whether each part of the first dimension of the mesh has the model for itself: FSDP then knows the
    mesh of its part only."""
    dtype: str = ""
    """The torch dtype that floating-point tensors are cast to, if not their own."""


def write_fsdp(folder: Path, state: State, world: int, spread: Spread = Spread()) -> None:
    """``model_world_size_W_rank_R.pt`` as verl and SkyRL leave them.

    Args:
        state: the full tensors by name, or a safetensors file. Those that are not floating-point are buffers,
            whole on every rank.
    """
    _on_ranks(world, _write_fsdp, folder, state, spread)


def write_fsdp1(folder: Path, state: State, world: int, *, device_mesh: bool) -> None:
    """The same by FSDP1 with ``SHARDED_STATE_DICT``: ShardedTensors, or DTensors with a device mesh."""
    _on_ranks(world, _write_fsdp1, folder, state, device_mesh)


def write_dcp(
    folder: Path,
    state: State,
    world: int,
    prefix: str = "model",
    spread: Spread = Spread(),
    beside: Mapping[str, Any] | None = None,
) -> None:
    """``.metadata`` and ``*.distcp``.

    Args:
        prefix: the key that the model lies under; empty: its tensors are at the top, as torchtitan has them.
        beside: what else is saved, by its key.
    """
    _on_ranks(world, _write_dcp, folder, state, prefix, spread, dict(beside or {}))


def write_sharded(folder: Path, state: State, world: int, spread: Spread = Spread()) -> None:
    """``shard-*-model-*-of-*.safetensors`` by torch's HuggingFaceStorageWriter."""
    _on_ranks(world, _write_sharded, folder, state, spread)


def _on_ranks(world: int, job: Callable[..., None], folder: Path, state: State, *rest: Any) -> None:
    """Run ``job`` on all ranks of a group over gloo.

    Raises:
        AssertionError: one failed; with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    scratch = Path(tempfile.mkdtemp(prefix="torch-ranks-"))
    try:
        if not isinstance(state, Path):
            from safetensors.torch import save_file

            save_file(
                {name: tensor.contiguous().clone() for name, tensor in state.items()}, scratch / "state"
            )
            (scratch / "order").write_text("\n".join(state))  # which the file does not keep
            state = scratch / "state"
        given = (scratch, job, folder, state, *rest)
        ranks = [context.Process(target=_rank, args=(rank, world, *given)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_PATIENCE)
            if process.exitcode is None:
                process.kill()
        problems = [file.read_text() for file in sorted(scratch.glob("problem-*"))]
        assert not problems, problems[0]
        assert all(process.exitcode == 0 for process in ranks), [process.exitcode for process in ranks]
    finally:
        shutil.rmtree(scratch)


def _rank(rank: int, world: int, scratch: Path, job: Callable[..., None], *given: Any) -> None:
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    try:
        dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=world)
        job(*given)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (scratch / f"problem-{rank}").write_text(traceback.format_exc())
        raise


def _write_fsdp(folder: Path, state: Path, spread: Spread) -> None:
    import torch

    torch.save(_in_pieces(state, spread), folder / _fsdp_name())


def _fsdp_name() -> str:
    import torch.distributed as dist

    return f"model_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt"


def _write_fsdp1(folder: Path, state: Path, device_mesh: bool) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    tensors = _read(state)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if device_mesh else None
    model = FullyShardedDataParallel(
        _module_of(tensors), device_mesh=mesh, use_orig_params=True, device_id=torch.device("cpu")
    )
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        torch.save(model.state_dict(), folder / _fsdp_name())


def _write_dcp(folder: Path, state: Path, prefix: str, spread: Spread, beside: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors = _in_pieces(state, spread)
    save({prefix: tensors, **beside} if prefix else tensors | beside, checkpoint_id=folder)


def _write_sharded(folder: Path, state: Path, spread: Spread) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    save(_in_pieces(state, spread), storage_writer=writer)


def _read(state: Path, dtype: str = "") -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(state)
    if (order := state.with_name("order")).exists():
        tensors = {name: tensors[name] for name in order.read_text().split("\n")}
    if dtype:
        cast = getattr(torch, dtype)
        tensors = {name: one.to(cast) if one.is_floating_point() else one for name, one in tensors.items()}
    return tensors


def _in_pieces(state: Path, spread: Spread) -> dict[str, Any]:
    """What a trainer's ``model.state_dict()`` is on this rank, in the order of the names."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    tensors = _read(state, spread.dtype)
    shape = spread.mesh or (dist.get_world_size(),)
    names = ("fsdp", "tp") if spread.parallel else ("ddp", "fsdp")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    pieces: dict[str, Any] = {}
    for name, dims in spread.placed.items():
        placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
        pieces[name] = distribute_tensor(tensors[name], mesh, placements)
    model = _module_of({name: one for name, one in tensors.items() if name not in pieces})
    if spread.parallel:
        for name, parameter in list(model.named_parameters()):
            dim = spread.parallel.get(name)
            placement = Replicate() if dim is None else Shard(dim)
            _register(model, name, distribute_tensor(parameter.data, mesh["tp"], [placement]))
    fully_shard(model, mesh=mesh["fsdp"] if spread.parallel or spread.apart else mesh)
    pieces |= model.state_dict()
    assert any(isinstance(one, DTensor) for one in pieces.values())
    return {name: pieces[name] for name in tensors}


def _module_of(tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """A module whose state dict these tensors are: parameters where they are floating-point, else buffers."""
    import torch

    model = torch.nn.Module()
    for name, tensor in tensors.items():
        _register(model, name, tensor)
    return model


def _register(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    import torch

    *path, last = name.split(".")
    for part in path:
        if part not in model._modules:
            model.add_module(part, torch.nn.Module())
        model = model._modules[part]  # type: ignore[assignment]
    if tensor.is_floating_point():
        setattr(model, last, torch.nn.Parameter(tensor, requires_grad=True))
    else:
        model.register_buffer(last, tensor)
