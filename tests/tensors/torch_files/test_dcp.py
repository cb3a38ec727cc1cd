"""Distributed checkpoints that torch wrote on gloo, read in place; and metadata that lie."""

from __future__ import annotations

import warnings
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch_pickles import HeldFiles, each_value, pickle_of
from torch_runs import Spread, write_dcp
from torch_states import EMBEDDING, EXPERTS, PROJECTION, beside, check_state

from hubextrap.errors import CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.torch_files import read_dcp
from hubextrap.tensors.torch_files.pickles import Made, read_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_states import State

    from hubextrap.tensors.pieces import StoredTensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
"""What torch says to one process that saves by itself."""


def read(folder: Path) -> tuple[list[StoredTensor], LocalSource]:
    source = LocalSource(str(folder), "run/step_3")
    return read_dcp(source, sorted(source.files())), source


SPREADS = {
    "three, the last rows uneven": (3, Spread()),
    "four, some with no rows": (4, Spread()),
    "replicas": (4, Spread(mesh=(2, 2))),
    "tensor parallel": (4, Spread(mesh=(2, 2), parallel={PROJECTION: 1, EXPERTS: 2})),
    "columns, uneven": (3, Spread(placed={EMBEDDING: (1,), EXPERTS: (1,)})),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize("prefix", ["model", ""])
def test_what_torch_wrote_is_read_whole(kind: str, prefix: str, state: State, tmp_path: Path) -> None:
    world, spread = SPREADS[kind]
    write_dcp(tmp_path, state, world, prefix, spread, beside(state))
    check_state(*read(tmp_path), state)


@pytest.mark.slow
def test_a_strided_shard_is_refused_or_right(state: State, tmp_path: Path) -> None:
    spread = Spread(mesh=(2, 2), parallel={PROJECTION: 0, EXPERTS: 0})
    try:
        write_dcp(tmp_path, state, 4, "model", spread)
    except AssertionError as error:
        pytest.skip(f"this torch does not save it: {str(error)[-200:]}")
    check_state(*read(tmp_path), state)


def save_alone(state: dict[str, Any], checkpoint_id: Path) -> None:
    """As one process saves; torch 2.6 sees by itself that it is alone, later ones are told."""
    from torch.distributed.checkpoint.state_dict_saver import save

    alone: dict[str, Any] = {"no_dist": True} if "no_dist" in signature(save).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.6 uses what it calls deprecated itself
        save(state, checkpoint_id=checkpoint_id, **alone)


def test_a_transposed_tensor_is_read_as_it_is(tmp_path: Path) -> None:
    import torch

    state = {"a": torch.arange(12.0).reshape(3, 4).T, "b": torch.arange(12.0)[3:7]}
    save_alone({"model": dict(state)}, checkpoint_id=tmp_path)
    check_state(*read(tmp_path), state)


def test_two_ranks(dcp_files: dict[str, bytes], state: State) -> None:
    source = HeldFiles(dcp_files)
    check_state(read_dcp(source, sorted(dcp_files)), source, state)


def test_few_reads_serve_many_parts(dcp_files: dict[str, bytes]) -> None:
    source = HeldFiles({f"pytorch_model_fsdp_0/{name}": data for name, data in dcp_files.items()})
    read_dcp(source, sorted(source.held))
    assert len(source.reads) == len(dcp_files)


def test_a_missing_file_is_named(dcp_files: dict[str, bytes]) -> None:
    gone = "__1_0.distcp"
    source = HeldFiles({name: data for name, data in dcp_files.items() if name != gone})
    with pytest.raises(
        CorruptFile, match=r"a part of it lies in '__1_0\.distcp', which is no file of the folder"
    ):
        read_dcp(source, sorted(source.held))
    with pytest.raises(CorruptFile, match=r"\.metadata is missing, without which nobody knows what"):
        read_dcp(HeldFiles({gone: dcp_files[gone]}), [gone])


def test_a_file_cut_short_is_refused(dcp_files: dict[str, bytes]) -> None:
    cut = dcp_files | {"__1_0.distcp": dcp_files["__1_0.distcp"][:2_000]}
    with pytest.raises(CorruptFile, match=r"lies beyond the end of __1_0\.distcp"):
        read_dcp(HeldFiles(cut), sorted(cut))
    swapped = dcp_files | {"__0_0.distcp": dcp_files["__1_0.distcp"] + bytes(10_000)}
    with pytest.raises(HubExtrapError, match="run/step_3/__0_0"):
        read_dcp(HeldFiles(swapped), sorted(swapped))


def _changed(dcp_files: dict[str, bytes], change: Callable[[Any], None]) -> HeldFiles:
    root = read_pickle(dcp_files[".metadata"], "x", "x")
    each_value(root, change)
    return HeldFiles(dcp_files | {".metadata": pickle_of(root)})


def _set(name: str, **states: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        if isinstance(value, Made) and value.by.name == name and isinstance(value.state, dict):
            value.state = {**value.state, **states}

    return change


LIES = {
    "nothing": (lambda value: None, None),
    "outside": (_set("_StorageInfo", relative_path="../../etc/passwd"), "which is no file of the folder"),
    "an absolute path": (_set("_StorageInfo", relative_path="/etc/passwd"), "which is no file of the folder"),
    "a backslash": (_set("_StorageInfo", relative_path="..\\x"), "which is no file of the folder"),
    "the folder": (_set("_StorageInfo", relative_path=""), "which is no file of the folder"),
    "no path": (_set("_StorageInfo", relative_path=3), "stored nowhere"),
    "the metadata": (
        _set("_StorageInfo", relative_path=".metadata", offset=0, length=500),
        "does not end as a zip file",
    ),
    "before the file": (_set("_StorageInfo", offset=-1), "lies beyond the end"),
    "nothing long": (_set("_StorageInfo", length=0), "lies beyond the end"),
    "vast": (_set("_StorageInfo", length=2**60), "lies beyond the end"),
    "one byte off": (_set("_StorageInfo", offset=1), "does not end as a zip file|beyond the end"),
    "compressed": (_set("_StorageInfo", transform_descriptors=["zstd"]), "is compressed or encrypted"),
    "another size": (_set("TensorStorageMetadata", size=(5, 5)), "has no place|do not cover it"),
    "vast sizes": (_set("TensorStorageMetadata", size=(2**40, 2**40)), "its metadata are none"),
    "no chunks": (_set("TensorStorageMetadata", chunks=[]), "do not cover it"),
    "chunks of text": (_set("TensorStorageMetadata", chunks=["a"]), "has no place"),
    "no properties": (_set("TensorStorageMetadata", properties=None), "its dtype is none"),
    "moved": (_set("ChunkStorageMetadata", offsets=(1, 0)), "stored nowhere|has no place"),
    "larger": (_set("ChunkStorageMetadata", sizes=(9, 9)), "is not what the metadata says|has no place"),
    "no places": (_set("Metadata", storage_data=None), "lists no tensors"),
    "no entries": (_set("Metadata", state_dict_metadata={}), "holds no tensors of a model"),
    "empty places": (_set("Metadata", storage_data={}), "stored nowhere"),
}


@pytest.mark.parametrize("name", LIES)
def test_metadata_that_lie(name: str, dcp_files: dict[str, bytes], state: State) -> None:
    change, expected = LIES[name]
    source = _changed(dcp_files, change)
    if expected is None:
        check_state(read_dcp(source, sorted(source.held)), source, state)
        return
    with pytest.raises(HubExtrapError, match=expected):
        read_dcp(source, sorted(source.held))


def test_other_pickles_are_no_metadata(dcp_files: dict[str, bytes]) -> None:
    with pytest.raises(CorruptFile, match="holds no metadata of a distributed checkpoint"):
        read_dcp(HeldFiles(dcp_files | {".metadata": pickle_of({"a": 1})}), sorted(dcp_files))


@pytest.mark.parametrize("above", [("model",), ("app", "model"), ("state", "app", "model")])
def test_the_model_is_found_below_other_keys(above: tuple[str, ...], state: State, tmp_path: Path) -> None:
    nested: Any = dict(state)
    for key in reversed(above):
        nested = {key: nested, "optimizers": {"state.w.exp_avg": next(iter(state.values()))}}
    save_alone(nested, checkpoint_id=tmp_path)
    check_state(*read(tmp_path), state)


def test_two_models_and_none_are_refused(state: State, tmp_path: Path) -> None:
    save_alone({"actor": {"model": state}, "critic": {"model": state}}, checkpoint_id=tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match=r"several models \(actor\.model, critic\.model\)"):
        read(tmp_path)
    save_alone({"optim": dict(state)}, checkpoint_id=tmp_path / "o")
    with pytest.raises(
        UnsupportedCheckpoint, match="no tensors of a model, only of an optimizer or a trainer"
    ):
        read(tmp_path / "o")


def test_megatron_is_recognised_by_its_names(tmp_path: Path) -> None:
    import torch

    names = ("decoder.layers.self_attention.linear_qkv.weight", "embedding.word_embeddings.weight")
    save_alone({name: torch.zeros(2) for name in names}, checkpoint_id=tmp_path)
    with pytest.raises(
        UnsupportedCheckpoint, match=r"Megatron's tensors.*convert_torch_dist_to_hf\.py.*megatron"
    ):
        read(tmp_path)


def test_no_pickle_of_the_metadata_runs(dcp_files: dict[str, bytes], tmp_path: Path) -> None:
    import os
    import pickle

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/made",)

    for data in (pickle.dumps(Hostile()), pickle.dumps({"planner_data": Hostile()})):
        with pytest.raises(UnsupportedCheckpoint, match=r"posix\.system.*never executed"):
            read_dcp(HeldFiles(dcp_files | {".metadata": data}), sorted(dcp_files))
    assert not list(tmp_path.iterdir())
