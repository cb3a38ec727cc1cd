from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hubextrap.errors import CheckpointError, CorruptFile, UnsupportedCheckpoint
from hubextrap.tensors import LocalSource, build_header, read_layout, read_layouts

Folder = Callable[[Mapping[str, bytes]], Path]
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refusal(folder: Path, kind: type[CheckpointError] = CorruptFile) -> str:
    with pytest.raises(kind) as caught:
        read_layout(LocalSource(folder, "ckpt"))
    assert str(caught.value).startswith("ckpt")
    return str(caught.value)


def with_index(files: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    index = json.loads(files[INDEX])
    changed = change(index["weight_map"])
    index["weight_map"] = index["weight_map"] if changed is None else changed
    return {**files, INDEX: json.dumps(index).encode()}


def test_single_file(folder: Folder, shard: Any) -> None:
    data = shard(["b", "a"])
    path = folder({"model.safetensors": data, "config.json": b"{}"})
    layout = read_layout(LocalSource(path, "ckpt"))
    assert (layout.name, layout.index_file) == ("ckpt", None)
    assert [tensor.name for tensor in layout.shards[0].tensors] == ["b", "a"]
    assert layout.tensors["a"].offset == len(data) - 16


def test_sharded(folder: Folder, sharded: Any) -> None:
    layout = read_layout(LocalSource(folder(sharded([["a", "c"], ["b"]]))))
    assert layout.index_file == INDEX
    assert [shard.file for shard in layout.shards] == [FIRST, SECOND]
    assert {name: tensor.file for name, tensor in layout.tensors.items()} == {
        "a": FIRST,
        "b": SECOND,
        "c": FIRST,
    }


def test_single_file_that_its_index_names(folder: Folder, shard: Any) -> None:
    index = json.dumps({"weight_map": {"a": "model.safetensors"}}).encode()
    layout = read_layout(LocalSource(folder({"model.safetensors": shard(["a"]), INDEX: index})))
    assert layout.index_file == INDEX
    assert list(layout.tensors) == ["a"]


def test_a_header_longer_than_the_first_read(folder: Folder) -> None:
    names = [f"model.layers.{number}.weight" for number in range(4000)]
    header = build_header([(name, "U8", (1,)) for name in names])
    assert len(header) > 200_000
    layout = read_layout(LocalSource(folder({"model.safetensors": header + bytes(4000)})))
    assert list(layout.tensors) == names


def test_many_checkpoints_keep_their_order(folder: Folder, sharded: Any) -> None:
    sources = [
        LocalSource(folder(sharded([["a"], [f"t{number}"]])), f"step {number}") for number in range(12)
    ]
    stages: list[tuple[str, int | None, str]] = []

    class Recorder:
        def stage(self, label: str, total: int | None, unit: str = "B") -> Any:
            from hubextrap.progress import SilentProgress

            stages.append((label, total, unit))
            return SilentProgress().stage(label, total, unit)

        def say(self, line: str) -> None:
            raise AssertionError(line)

    layouts = read_layouts(sources, Recorder())
    assert [layout.name for layout in layouts] == [f"step {number}" for number in range(12)]
    assert all(f"t{number}" in layout.tensors for number, layout in enumerate(layouts))
    assert stages == [("Reading headers", 24, "files")]


def test_all_wrong_checkpoints_are_named_at_once(folder: Folder, shard: Any) -> None:
    good = {"model.safetensors": shard(["a"])}
    cut = {"model.safetensors": shard(["a"])[:-1]}
    sources = [LocalSource(folder(files), f"step {number}") for number, files in enumerate([good, cut, cut])]
    with pytest.raises(CorruptFile) as caught:
        read_layouts(sources)
    lines = str(caught.value).splitlines()
    assert [line.partition("/")[0] for line in lines] == ["step 1", "step 2"]


def test_of_many_that_are_wrong_alike_a_few_are_told(folder: Folder, shard: Any) -> None:
    """A line each of 64 checkpoints would fill a terminal; each kind of fault is told."""
    cut = {"model.safetensors": shard(["a"])[:-1]}
    sources = [LocalSource(folder(cut), f"step_{step}") for step in range(10)]
    sources.append(LocalSource(folder({"model.safetensors": b"short"}), "step_10"))
    with pytest.raises(CorruptFile) as told:
        read_layouts(sources)
    lines = str(told.value).splitlines()
    assert [line.split("/")[0] for line in lines if line.startswith("step")] == [
        "step_0", "step_1", "step_2", "step_10",
    ]  # fmt: skip
    assert "and 7 more messages like this one; the last is of step_9/model.safetensors" in lines


@pytest.mark.parametrize("keep", [0, 7, 8, 40, 95, -1])
def test_truncated_file(folder: Folder, shard: Any, keep: int) -> None:
    message = refusal(folder({"model.safetensors": shard(["a", "b"])[:keep]}))
    assert message.startswith("ckpt/model.safetensors: ")
    assert "download the file again" in message


def test_missing_shard(folder: Folder, sharded: Any) -> None:
    files = sharded([["a"], ["b"]])
    del files[SECOND]
    assert f"{INDEX} names files that are not there: {SECOND}; download" in refusal(folder(files))


def test_missing_index(folder: Folder, sharded: Any) -> None:
    files = sharded([["a"], ["b"]])
    del files[INDEX]
    assert f"has {FIRST} but no {INDEX}" in refusal(folder(files))


def test_tensor_that_the_shard_lacks(folder: Folder, sharded: Any) -> None:
    files = with_index(sharded([["a"], ["b"]]), lambda weight_map: weight_map.update(ghost=FIRST))
    assert f"{INDEX} puts tensor 'ghost' into {FIRST}, which does not hold it" in refusal(folder(files))


def test_tensor_that_the_index_puts_elsewhere(folder: Folder, sharded: Any) -> None:
    files = with_index(sharded([["a", "c"], ["b"]]), lambda weight_map: weight_map.update(c=SECOND))
    assert f"{INDEX} puts tensor 'c' into {SECOND}, which does not hold it" in refusal(folder(files))


def test_tensor_that_the_index_does_not_list(folder: Folder, sharded: Any) -> None:
    files = with_index(sharded([["a", "c"], ["b"]]), lambda weight_map: {"a": FIRST, "b": SECOND})
    assert f"{FIRST} holds tensor 'c', which {INDEX} does not list" in refusal(folder(files))


def test_tensor_in_two_shards(folder: Folder, sharded: Any) -> None:
    assert f"tensor 'a' is in both {FIRST} and {SECOND}" in refusal(folder(sharded([["c", "a"], ["a", "b"]])))


@pytest.mark.parametrize(
    "file",
    [
        *(
            "../x.safetensors",
            "/etc/x.safetensors",
            "sub/x.safetensors",
            "..\\x.safetensors",
            "C:x.safetensors",
        ),
        *(".safetensors", "..", "", "x.bin", "x\0.safetensors", 7, None, ["x.safetensors"]),
    ],
)
def test_shard_names_that_leave_the_folder(folder: Folder, sharded: Any, file: object) -> None:
    files = with_index(sharded([["a"], ["b"]]), lambda weight_map: weight_map.update(b=file))
    message = refusal(folder(files))
    assert f"puts tensor 'b' into {file!r}, which is not a safetensors file of this folder" in message


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' is there twice"),
        (b"[]", "has no weight_map"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": []}', "has no weight_map"),
    ],
)
def test_broken_index(folder: Folder, sharded: Any, index: bytes, message: str) -> None:
    assert message in refusal(folder({**sharded([["a"], ["b"]]), INDEX: index}))


def test_two_models_in_one_folder(folder: Folder, sharded: Any, shard: Any) -> None:
    files = {**sharded([["a"], ["b"]]), "model.safetensors": shard(["a"])}
    message = refusal(folder(files), CheckpointError)
    assert f"has both model.safetensors and {INDEX}, which names {FIRST}, {SECOND}" in message
    assert "transformers loads model.safetensors, other programs what the index names" in message


def test_no_tensors(folder: Folder) -> None:
    assert "hold no tensors" in refusal(folder({"model.safetensors": build_header([])}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin"], "pytorch_model.bin is a pickle"),
        (
            ["pytorch_model-00001-of-00002.bin", "optimizer.pt"],
            "pytorch_model-00001-of-00002.bin is a pickle",
        ),
        (["model.pt"], "model.pt is a pickle"),
        (["consolidated.00.pth"], "consolidated.00.pth is a pickle"),
        (["adapter_model.safetensors", "adapter_config.json"], "merge it into its base first"),
        (["adapter_model.bin", "adapter_config.json"], "merge_and_unload"),
        (
            ["config.json", "optimizer.pt"],
            "only: config.json, optimizer.pt; name the folder that holds the model",
        ),
        (["model.fp16.safetensors"], "only: model.fp16.safetensors"),
        ([], "only: nothing"),
    ],
)
def test_folders_without_safetensors_weights(folder: Folder, files: list[str], message: str) -> None:
    assert message in refusal(folder(dict.fromkeys(files, b"x")), UnsupportedCheckpoint)
