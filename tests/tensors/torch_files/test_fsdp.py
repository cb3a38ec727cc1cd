"""FSDP shards that torch wrote on gloo, read in place: each tensor is the whole one, byte for byte."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch_pickles import HeldFiles, each_value, pickle_of, records_in, tensor, zip_of
from torch_runs import Spread, write_fsdp, write_fsdp1
from torch_states import EMBEDDING, EXPERTS, PROJECTION, check_state

from hubextrap.errors import CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.pieces import StoredTensor
from hubextrap.tensors.torch_files import read_fsdp
from hubextrap.tensors.torch_files.pickles import Made, Name, read_pickle

if TYPE_CHECKING:
    from torch_states import State

ONE, TWO = "model_world_size_1_rank_0.pt", "model_world_size_2_rank_{}.pt"


def read(folder: Path) -> tuple[list[StoredTensor], LocalSource]:
    source = LocalSource(str(folder), "run/step_3")
    return read_fsdp(source, sorted(source.files())), source


SPREADS = {
    "one rank": (1, Spread()),
    "three, the last rows uneven": (3, Spread()),
    "four, some with no rows": (4, Spread()),
    "replicas": (4, Spread(mesh=(2, 2))),
    "each part for itself": (4, Spread(mesh=(2, 2), apart=True)),
    "tensor parallel": (4, Spread(mesh=(2, 2), parallel={PROJECTION: 1, EXPERTS: 2})),
    "both over the rows": (4, Spread(mesh=(2, 2), parallel={PROJECTION: 0, EXPERTS: 0})),
    "columns, uneven": (4, Spread(placed={EMBEDDING: (1,), EXPERTS: (-1,)})),
    "twice over one dimension": (
        4,
        Spread(mesh=(2, 2), placed={EMBEDDING: (0, 0), EXPERTS: (2, 2), PROJECTION: (0, 1)}),
    ),
    "replica of shards": (
        4,
        Spread(mesh=(2, 2), placed={EMBEDDING: (None, None), EXPERTS: (2, None)}),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPREADS)
def test_what_torch_wrote_is_read_whole(kind: str, state: State, tmp_path: Path) -> None:
    world, spread = SPREADS[kind]
    write_fsdp(tmp_path, state, world, spread)
    tensors, source = read(tmp_path)
    check_state(tensors, source, state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device_mesh", [False, True])
def test_what_fsdp1_wrote_is_read_whole(device_mesh: bool, state: State, tmp_path: Path) -> None:
    same = {name: one.bfloat16() if one.is_floating_point() else one for name, one in state.items()}
    write_fsdp1(tmp_path, same, 2, device_mesh=device_mesh)
    tensors, source = read(tmp_path)
    check_state(tensors, source, same)


@pytest.mark.slow
def test_a_strided_shard_that_does_not_divide_is_refused(state: State, tmp_path: Path) -> None:
    write_fsdp(tmp_path, state, 4, Spread(mesh=(2, 2), parallel={EMBEDDING: 0}))
    with pytest.raises(
        UnsupportedCheckpoint, match="sharded unevenly in a way that is not read; save the whole"
    ):
        read(tmp_path)


def plain(tmp_path: Path, state: dict[str, Any]) -> tuple[list[StoredTensor], LocalSource]:
    """What is read of a state dict that one rank saved."""
    import torch

    torch.save(state, tmp_path / ONE)
    return read(tmp_path)


def test_views_parameters_and_every_dtype(tmp_path: Path) -> None:
    import torch

    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    kinds = [torch.float64, torch.float16, torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool]
    kinds += [torch.complex64, torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2]
    state = {
        "view": base[2:5],
        "columns": base[:, 3:7],
        "every other": base[::2],
        "transposed": base.T,
        "repeated": base[:1].expand(3, 10),
        "parameter": torch.nn.Parameter(base[1:]),
        "empty": torch.zeros(0, 4),
        "scalar": base[3, 4],
        **{str(kind): torch.arange(7).to(kind) for kind in kinds},
    }
    tensors, source = plain(tmp_path, {**state, "version": 3, "layer._extra_state": None})
    check_state(tensors, source, state)
    assert [one.name for one in tensors] == list(state)


def test_what_lies_in_too_many_stretches_or_in_no_dtype_is_refused(tmp_path: Path) -> None:
    import torch

    with pytest.raises(
        UnsupportedCheckpoint, match=r"'t' does not lie row by row.*save it with \.contiguous\(\)"
    ):
        plain(tmp_path, {"t": torch.zeros(300, 300).T})
    with pytest.raises(UnsupportedCheckpoint, match=r"'c' is torch.complex128, which is not combined"):
        plain(tmp_path, {"c": torch.nn.Parameter(torch.zeros(1, dtype=torch.complex128))})
    with pytest.raises(UnsupportedCheckpoint, match="negative view"):
        plain(tmp_path, {"n": torch.zeros(2, dtype=torch.complex64).conj()})
    with pytest.raises(UnsupportedCheckpoint, match="its entry 'model' is no tensor"):
        plain(tmp_path, {"model": {"a": torch.zeros(1)}})


def test_a_file_of_old_torch_is_refused_with_what_to_do(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / ONE, _use_new_zipfile_serialization=False)
    with pytest.raises(
        UnsupportedCheckpoint, match=r"old form.*torch\.load\(FILE, weights_only=True\), FILE\)"
    ):
        read(tmp_path)
    again = torch.load(tmp_path / ONE, weights_only=True)
    torch.save(again, tmp_path / ONE)
    check_state(*read(tmp_path), {"a": torch.zeros(3)})


def test_two_ranks(fsdp_files: dict[str, bytes], state: State) -> None:
    source = HeldFiles(fsdp_files)
    check_state(read_fsdp(source, sorted(fsdp_files)), source, state)


def test_few_bytes_are_read(fsdp_files: dict[str, bytes]) -> None:
    source = HeldFiles(fsdp_files)
    read_fsdp(source, sorted(fsdp_files))
    for rank in (0, 1):  # torch 2.6 has the numbers of its ranks in a storage
        small = [size for file, _, size in source.reads if file == TWO.format(rank) and size <= 64]
        assert len([one for one in source.reads if one[0] == TWO.format(rank)]) - len(small) == 2
        assert len(small) < 2


def test_one_pickle_is_taken_apart_at_a_time(
    fsdp_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And checkpoints of many tensors one by one: what comes of a pickle is many times its text."""
    from hubextrap.tensors.torch_files import fsdp

    at_work, pickles, checkpoints = [0, 0], list[int](), list[int]()

    def counted(which: int, seen: list[int], work: Any) -> Any:
        def run(*given: Any) -> Any:
            at_work[which] += 1
            seen.append(at_work[which])
            time.sleep(0.01)  # long enough for others to begin
            found = work(*given)
            at_work[which] -= 1
            return found

        return run

    monkeypatch.setattr(fsdp, "read_pickle", counted(0, pickles, fsdp.read_pickle))
    monkeypatch.setattr(fsdp, "_joined", counted(1, checkpoints, fsdp._joined))
    monkeypatch.setattr(fsdp, "MANY", 0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_fsdp(HeldFiles(fsdp_files), list(fsdp_files)), range(4)))
    assert (set(pickles), set(checkpoints)) == ({1}, {1})
    assert all(one == found[0] for one in found)


def test_missing_ranks_are_named(fsdp_files: dict[str, bytes]) -> None:
    for gone, kept in ((0, 1), (1, 0)):
        source = HeldFiles({f"actor/{TWO.format(kept)}": fsdp_files[TWO.format(kept)]})
        with pytest.raises(
            CorruptFile, match=rf"run/step_3: actor/model_world_size_2_rank_{gone}.pt is missing"
        ):
            read_fsdp(source, list(source.held))
    with pytest.raises(
        CorruptFile, match="holds the files of runs on 1, 2 ranks; keep those of one run only"
    ):
        read_fsdp(HeldFiles(fsdp_files | {ONE: b""}), [*fsdp_files, ONE])


def test_ranks_of_two_checkpoints_are_refused(fsdp_files: dict[str, bytes], tmp_path: Path) -> None:
    import torch

    first, second = TWO.format(0), TWO.format(1)
    for odd in ({"a": torch.zeros(2)}, {"model.scale": torch.zeros(2)}):
        torch.save(odd, tmp_path / second)
        mixed = {first: fsdp_files[first], second: (tmp_path / second).read_bytes()}
        with pytest.raises(
            CorruptFile, match=r"do not hold the same tensors, e.g. .*copy all ranks' files of one"
        ):
            read_fsdp(HeldFiles(mixed), list(mixed))
    with pytest.raises(CorruptFile, match=r"rank 1 holds another part than its placements say|contradict"):
        read_fsdp(HeldFiles({first: fsdp_files[first], second: fsdp_files[first]}), [first, second])


def _changed(fsdp_files: dict[str, bytes], change: Any) -> HeldFiles:
    """The two ranks' files with pickles that ``change`` went over, value by value."""
    from torch.distributed import device_mesh

    if not hasattr(device_mesh, "_FlatLayout"):
        pytest.skip("the installed torch writes other pickles; those of its own are read above")
    files = {}
    for file, data in fsdp_files.items():
        records = records_in(data)
        value = read_pickle(records["data.pkl"], file, file)
        each_value(value, change)
        files[file] = zip_of(records | {"data.pkl": pickle_of(value)})
    return HeldFiles(files)


def _as_torch_2_6(value: Any) -> None:
    """torch 2.6 had the mesh as a tensor; 2.9 had a layout of two tuples."""
    if isinstance(value, Made) and value.by.name == "DeviceMesh":
        old = {"device_type": "cpu", "mesh": value.state["_rank_map"], "_mesh_dim_names": ("fsdp",)}
        value.state = {**old, "_flatten_mesh_list": (0, 1), "_dim_group_infos": [("", [0, 1], "0")]}


def _as_torch_2_4(value: Any) -> None:
    _as_torch_2_6(value)
    if isinstance(value, Made):
        module = value.by.module.replace("tensor._dtensor_spec", "_tensor.placement_types")
        module = module.replace("distributed.tensor.placement", "distributed._tensor.placement")
        value.by = Name(module, value.by.name)
        if value.by.name == "DTensorSpec":
            del value.state["shard_order"]


def _as_torch_2_9(value: Any) -> None:
    if isinstance(value, Made) and value.by.name == "DeviceMesh":
        value.state["_layout"].state = {"shape": 2, "stride": 1}
        del value.state["_flatten_rank_map"]


@pytest.mark.parametrize("change", [lambda value: None, _as_torch_2_4, _as_torch_2_6, _as_torch_2_9])
def test_meshes_of_other_versions(change: Any, fsdp_files: dict[str, bytes], state: State) -> None:
    source = _changed(fsdp_files, change)
    check_state(read_fsdp(source, sorted(fsdp_files)), source, state)


def _set(name: str, **states: Any) -> Any:
    def change(value: Any) -> None:
        if isinstance(value, Made) and value.by.name == name:
            value.state = {**value.state, **states}

    return change


PARTIAL = (Made(Name("torch.distributed.tensor.placement_types", "Partial"), ()),)
WRONG = {
    "another dimension": (_set("Shard", dim=1), "holds another part|is sharded"),
    "no such dimension": (_set("Shard", dim=7), "not read"),
    "no dimension": (_set("Shard", dim="0"), "its placements are none"),
    "a partial sum": (_set("DTensorSpec", placements=PARTIAL), "is a partial sum on each rank"),
    "no placements": (_set("DTensorSpec", placements=3), "its placements are none"),
    "too few": (_set("DTensorSpec", placements=()), "its placements are none"),
    "no mesh": (_set("DTensorSpec", mesh=None), "mesh of ranks is none"),
    "no order": (_set("DTensorSpec", shard_order=(3,)), "its placements are none"),
    "other ranks": (_set("DeviceMesh", _flatten_rank_map=(4, 5)), "mesh of ranks is none"),
    "ranks twice": (_set("DeviceMesh", _flatten_rank_map=(0, 0)), "mesh of ranks is none"),
    "more ranks": (_set("DeviceMesh", _flatten_rank_map=(0, 1, 2)), ""),
    "no layout": (_set("DeviceMesh", _layout=None), "mesh of ranks is none"),
    "a stride beyond": (_set("_FlatLayout", stride=(7,)), "mesh of ranks is none"),
    "no stride": (_set("_FlatLayout", stride=(0,)), "mesh of ranks is none"),
    "too large": (_set("_FlatLayout", shape=(2**40,)), "mesh of ranks is none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused(name: str, fsdp_files: dict[str, bytes]) -> None:
    change, expected = WRONG[name]
    source = _changed(fsdp_files, change)
    if expected:
        with pytest.raises(HubExtrapError, match=expected):
            read_fsdp(source, sorted(fsdp_files))
    else:
        read_fsdp(source, sorted(fsdp_files))


ODD_TENSORS = {
    "beyond its storage": (tensor("0", (3, 4), first=1, numel=12), "reaches beyond its storage"),
    "before it": (tensor("0", (3, 4), first=-1, numel=12), "another size than it says"),
    "strides beyond": (tensor("0", (3, 4), (2**40, 1)), "reaches beyond its storage"),
    "negative strides": (tensor("0", (3, 4), (-4, 1)), "its shape is none"),
    "vast": (tensor("0", (2**40, 2**40)), "another size|its shape is none"),
    "negative": (tensor("0", (-3, -4)), "its shape is none"),
    "many dimensions": (tensor("0", (1,) * 100), "its shape is none"),
    "no such storage": (tensor("7", (3, 4)), "no record 'data/7'"),
    "outside": (tensor("../../x", (3, 4)), "no record"),
    "another size": (tensor("0", (3, 3)), "another size than it says"),
    "no storage": (tensor("0", (3, 4), kind=Name("torch", "Size")), "its storage is a torch.Size"),
}


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_tensors_do_not_reach_beyond_their_bytes(name: str) -> None:
    value, expected = ODD_TENSORS[name]
    records = {"data.pkl": pickle_of({"w": value}), "data/0": bytes(24), "version": b"3\n"}
    source = HeldFiles({ONE: zip_of(records)})
    with pytest.raises(HubExtrapError, match=expected):
        read_fsdp(source, [ONE])
    records["data.pkl"] = pickle_of({"w": tensor("0", (3, 4))})
    (sound,) = read_fsdp(HeldFiles({ONE: zip_of(records)}), [ONE])
    assert math.prod(sound.parts.shape) == 12


def test_big_endian_numbers_are_refused() -> None:
    records = {"data.pkl": pickle_of({"w": tensor("0", (3, 4))}), "byteorder": b"big", "data/0": bytes(24)}
    with pytest.raises(UnsupportedCheckpoint, match="big-endian"):
        read_fsdp(HeldFiles({ONE: zip_of(records)}), [ONE])
