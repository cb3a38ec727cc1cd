"""Sharded safetensors: torch's own files, and such as contradict each other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_runs import Spread, write_sharded

from hubextrap.errors import CorruptFile
from hubextrap.tensors import LocalSource
from hubextrap.tensors.headers import build_header
from hubextrap.tensors.pieces import StoredTensor, cover_problem
from hubextrap.tensors.sharded import read_sharded

Part = tuple[Sequence[int], np.ndarray]  # type: ignore[type-arg]
DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}


def name_of(rank: int, model: int = 1, count: int = 1) -> str:
    return f"shard-{rank:05d}-model-{model:05d}-of-{count:05d}.safetensors"


def write(folder: Path, file: str, parts: Mapping[str, Part], info: Any = None) -> None:
    """A rank's file: each tensor's part, and where in it that begins."""
    stated = {name: {"saved_offsets": list(starts)} for name, (starts, _) in parts.items()}
    metadata = {"DCP_SHARDING_INFO": json.dumps(stated if info is None else info), "format": "pt"}
    header = build_header(
        [(name, DTYPES[str(array.dtype)], array.shape) for name, (_, array) in parts.items()], metadata
    )
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(header + b"".join(array.tobytes() for _, array in parts.values()))


def read(folder: Path) -> list[StoredTensor]:
    return read_sharded(LocalSource(folder), sorted(file.name for file in folder.glob("shard-*")))


def bytes_of(folder: Path, one: StoredTensor) -> bytes:
    from hubextrap.tensors.assembled import arranged

    size = arranged([(one.name, one.parts)]).shards[0].size
    out = np.empty(size, np.uint8)
    one.parts.fill(LocalSource(folder), 0, out)
    return out.tobytes()


ROWS = np.arange(35, dtype=np.float32).reshape(7, 5)


def rows(*bounds: int) -> list[Part]:
    return [((first, 0), ROWS[first:last]) for first, last in pairwise(bounds)]


def ranks(folder: Path, parts: Sequence[Part], name: str = "w") -> None:
    for rank, part in enumerate(parts, 1):
        write(folder, name_of(rank), {name: part})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "spread"),
    [
        (4, Spread()),
        (4, Spread((2, 2))),
        (4, Spread((2, 2), {"b.weight": 1, "c.weight": 0})),
        (2, Spread(placed={"b.weight": [1], "a.weight": [None]})),
    ],
)
def test_what_torch_writes(tmp_path: Path, world: int, spread: Spread) -> None:
    import torch

    draw = torch.Generator().manual_seed(1)
    state = {
        "a.weight": torch.randn(7, 5, generator=draw),  # uneven on 4 and on 2
        "b.weight": torch.randn(8, 6, generator=draw).bfloat16(),
        "c.weight": torch.randn(4, 3, generator=draw),
        "n.weight": torch.randn(3, generator=draw).bfloat16(),  # none of it on the last of 4 ranks
        "ids": torch.arange(6),
    }
    write_sharded(tmp_path, state, world, spread)
    found = read(tmp_path)
    assert [one.name for one in found] == ["a.weight", "b.weight", "c.weight", "ids", "n.weight"]
    for one in found:
        tensor = state[one.name]
        assert one.parts.shape == tuple(tensor.shape)
        assert bytes_of(tmp_path, one) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_uneven_slices_replicas_and_empty_parts(tmp_path: Path) -> None:
    ranks(tmp_path, [*rows(0, 3, 6, 7), rows(0, 3)[0], ((7, 0), ROWS[:0])])
    (one,) = read(tmp_path)
    assert one.parts.shape == (7, 5)
    assert len(one.parts.pieces) == 3
    assert bytes_of(tmp_path, one) == ROWS.tobytes()


def test_the_order_is_that_of_the_whole_models_files_and_of_numbers(tmp_path: Path) -> None:
    part = ((0,), np.zeros(2, np.float32))
    write(tmp_path, name_of(1, 2, 2), {"layers.2": part, "layers.10": part})
    write(tmp_path, name_of(1, 1, 2), {"z": part, "layers.9": part, "layers.11": part})
    assert [one.name for one in read(tmp_path)] == ["layers.9", "layers.11", "z", "layers.2", "layers.10"]


def test_files_that_say_nothing_of_places_are_whole(tmp_path: Path) -> None:
    header = build_header([("w", "F32", (7, 5))], {"format": "pt"})
    (tmp_path / name_of(1)).write_bytes(header + ROWS.tobytes())
    (one,) = read(tmp_path)
    assert bytes_of(tmp_path, one) == ROWS.tobytes()


def one_is_missing(folder: Path) -> None:
    ranks(folder, rows(0, 2, 4, 7))
    (folder / name_of(2)).unlink()


def a_gap(folder: Path) -> None:
    ranks(folder, [*rows(0, 2), *rows(4, 7)])


def an_overlap(folder: Path) -> None:
    ranks(folder, [*rows(0, 4), *rows(3, 7)])


def a_gap_between_columns(folder: Path) -> None:
    ranks(folder, [((0, 0), ROWS[:, :2].copy()), ((0, 3), ROWS[:, 3:].copy())])


def blocks_that_overlap(folder: Path) -> None:
    ranks(folder, [((0, 0), ROWS[:, :3].copy()), ((0, 2), ROWS[:, 2:].copy())])


def another_dtype(folder: Path) -> None:
    ranks(folder, [*rows(0, 4), ((4, 0), ROWS[4:].astype(np.float16))])


def another_number_of_dimensions(folder: Path) -> None:
    ranks(folder, [*rows(0, 4), ((4,), ROWS[4])])


def other_columns(folder: Path) -> None:
    ranks(folder, [*rows(0, 4), ((4, 0), ROWS[4:, :4].copy())])


def two_runs(folder: Path) -> None:
    ranks(folder, rows(0, 7))
    write(folder, name_of(2, 1, 2), {"v": rows(0, 7)[0]})


def a_file_of_the_model_is_missing(folder: Path) -> None:
    write(folder, name_of(1, 1, 3), {"v": rows(0, 7)[0]})
    write(folder, name_of(1, 3, 3), {"w": rows(0, 7)[0]})


def a_file_too_many(folder: Path) -> None:
    write(folder, name_of(1, 1, 1), {"v": rows(0, 7)[0]})
    write(folder, name_of(1, 2, 1), {"w": rows(0, 7)[0]})


def no_place(folder: Path) -> None:
    write(folder, name_of(1), {"w": rows(0, 7)[0]}, {})


def a_place_of_other_dimensions(folder: Path) -> None:
    write(folder, name_of(1), {"w": rows(0, 7)[0]}, {"w": {"saved_offsets": [0]}})


def a_place_before_the_first(folder: Path) -> None:
    write(folder, name_of(1), {"w": rows(0, 7)[0]}, {"w": {"saved_offsets": [-1, 0]}})


def a_place_of_truth(folder: Path) -> None:
    write(folder, name_of(1), {"w": rows(0, 7)[0]}, {"w": {"saved_offsets": [False, 0]}})


def places_that_are_no_object(folder: Path) -> None:
    write(folder, name_of(1), {"w": rows(0, 7)[0]}, ["w"])


def the_last_node_is_missing(folder: Path) -> None:
    ranks(folder, rows(0, 3, 6), "model.embed_tokens.weight")
    (folder / "config.json").write_text('{"text_config": {"vocab_size": 7}}')


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one_is_missing, f"no file {name_of(2)} is there"),
        (a_gap, "elements from [2, 0] on are in none of the 2 files"),
        (an_overlap, "elements from [3, 0] on are in several of the 2 files"),
        (a_gap_between_columns, "elements from [0, 2] on are in none"),
        (blocks_that_overlap, "elements from [0, 2] on are in several"),
        (another_dtype, "its part of tensor 'w' is F16 [3, 5], and with that in"),
        (another_number_of_dimensions, "its part of tensor 'w' is F32 [5]"),
        (other_columns, "elements from [4, 4] on are in none"),
        (two_runs, "are of two runs"),
        (a_file_of_the_model_is_missing, f"no file {name_of(1, 2, 3)} is there"),
        (a_file_too_many, f"{name_of(1, 2, 1)} has a number that none can have"),
        (no_place, "says None of where its part of tensor 'w', [7, 5], begins"),
        (a_place_of_other_dimensions, "says [0] of where"),
        (a_place_before_the_first, "says [-1, 0] of where"),
        (a_place_of_truth, "says [False, 0] of where"),
        (places_that_are_no_object, "says None of where"),
        (the_last_node_is_missing, "6 rows of tensor 'model.embed_tokens.weight', and config.json says"),
    ],
)
def test_files_that_contradict_each_other(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "step")
    with pytest.raises(CorruptFile) as caught:
        read(tmp_path / "step")
    assert said in str(caught.value)
    assert caught.value.file is not None or "two runs" in said


@pytest.mark.parametrize("seed", range(40))
def test_covering_is_what_counting_says(seed: int) -> None:
    rng = random.Random(seed)
    shape = tuple(rng.randrange(1, 6) for _ in range(rng.randrange(1, 4)))
    blocks = []
    counts = np.zeros(shape, int)
    while not counts.all() and len(blocks) < 12:
        at = tuple(int(axis) for axis in np.argwhere(counts == 0)[0])
        extents = tuple(rng.randrange(1, size - first + 1) for first, size in zip(at, shape, strict=True))
        counts[tuple(slice(a, a + n) for a, n in zip(at, extents, strict=True))] += 1
        blocks.append((at, extents))
    rng.shuffle(blocks)
    assert (cover_problem(shape, blocks) is None) == bool((counts == 1).all())
    assert cover_problem(shape, [*blocks, (tuple(size - 1 for size in shape), (1,) * len(shape))]) is not None


def test_covering_by_blocks_in_no_grid_is_refused_within_bounds() -> None:
    blocks = [((k, k), (1, 1)) for k in range(5000)]
    assert "in no grid" in str(cover_problem((5000, 5000), blocks))


def test_covering_of_scalars_and_of_nothing() -> None:
    assert cover_problem((), [((), ())]) is None
    assert "in none" in str(cover_problem((), []))
    assert cover_problem((0, 4), []) is None
    assert "outside of its shape" in str(cover_problem((3,), [((2,), (2,))]))
