"""Tensors put together from pieces: any blocks, any range, the bytes of the whole tensor."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from hubextrap.tensors import LocalSource
from hubextrap.tensors.assembled import AssembledSource, Assembly, arranged
from hubextrap.tensors.pieces import Pieces, StoredPiece, boxes


def cut(shape: tuple[int, ...], rng: random.Random) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Blocks that cover a shape: cuts along any dimension, of blocks cut before."""
    blocks = [((0,) * len(shape), shape)]
    for _ in range(rng.randrange(6)):
        starts, extents = blocks.pop(rng.randrange(len(blocks)))
        axis = rng.randrange(len(shape)) if shape else 0
        if not shape or extents[axis] < 2:
            blocks.append((starts, extents))
            continue
        at = rng.randrange(1, extents[axis])
        first = (*extents[:axis], at, *extents[axis + 1 :])
        rest = (*extents[:axis], extents[axis] - at, *extents[axis + 1 :])
        second = (*starts[:axis], starts[axis] + at, *starts[axis + 1 :])
        blocks += [(starts, first), (second, rest)]
    return blocks


def stored(folder: Path, array: np.ndarray, blocks: list, rng: random.Random) -> Pieces:  # type: ignore[type-arg]
    """The blocks in three files, in any order, with other bytes between them."""
    files = [bytearray(rng.randbytes(rng.randrange(9))) for _ in range(3)]
    pieces = []
    for starts, extents in rng.sample(blocks, len(blocks)):
        number = rng.randrange(3)
        part = array[tuple(slice(first, first + count) for first, count in zip(starts, extents, strict=True))]
        pieces.append(StoredPiece(f"{number}.pt", len(files[number]), starts, extents))
        files[number] += part.tobytes() + rng.randbytes(rng.randrange(9))
    for number, data in enumerate(files):
        (folder / f"{number}.pt").write_bytes(bytes(data))
    return Pieces("F32" if array.itemsize == 4 else "F16", array.shape, tuple(pieces))


@pytest.mark.parametrize("seed", range(60))
def test_any_range_of_any_blocks(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    shape = tuple(rng.randrange(1, 7) for _ in range(rng.randrange(5)))
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(rng.choice(("float32", "float16")))
    array = np.asarray(numbers)
    parts = stored(tmp_path, array, cut(shape, rng), rng)
    assembly = arranged([("w", parts)], hides=["0.pt"])
    assembly = Assembly.from_json(json.loads(json.dumps(assembly.to_json())))
    source, flat = AssembledSource(LocalSource(tmp_path), assembly), array.tobytes()
    assert "0.pt" not in source.files()
    assert source.files()["model.safetensors"].size == len(flat)
    assert source.origins("model.safetensors") == {"0.pt", *(one.file for one in parts.pieces)}
    for _ in range(20):
        first = rng.randrange(len(flat) + 1)
        last = rng.randrange(first, len(flat) + 1)
        buffer = bytearray(last - first)
        source.read("model.safetensors", first, memoryview(buffer))
        assert buffer == flat[first:last]


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (1, 1, 6), (2, 1, 3, 2)])
def test_boxes_are_the_elements_in_order(shape: tuple[int, ...]) -> None:
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for start in range(numbers.size + 1):
        for stop in range(start, numbers.size + 1):
            found = [
                numbers[tuple(slice(a, a + n) for a, n in zip(starts, extents, strict=True))].ravel()
                for starts, extents in boxes(shape, start, stop)
            ]
            assert np.array_equal(np.concatenate([*found, []]), np.arange(start, stop))
            assert len(found) <= max(1, 2 * len(shape) - 1)
