"""Quantised weights are read as the numbers that transformers reads them as, bit for bit, in any range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hubextrap.tensors.dequantised import Fp8Blocks, Mxfp4
from hubextrap.tensors.kept import KeepingSource
from hubextrap.tensors.local import LocalSource

SCALES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    SCALES["F8_E8M0"] = torch.float8_e8m0fnu


def stored(folder: Path, weight: torch.Tensor, scale: torch.Tensor) -> KeepingSource:
    """Both behind 3 bytes of something else, so that nothing is aligned."""
    for name, tensor in (("w", weight), ("s", scale)):
        (folder / name).write_bytes(
            b"abc" + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return KeepingSource(LocalSource(folder))


def read(parts: Fp8Blocks | Mxfp4, source: KeepingSource, start: int, stop: int) -> NDArray[np.uint8]:
    out = np.full((stop - start) * (4 if parts.dtype == "F32" else 2), 0xA5, np.uint8)
    parts.fill(source, start, out)
    return out


def check_ranges(
    parts: Fp8Blocks | Mxfp4, source: KeepingSource, whole: NDArray[np.uint8], elements: int
) -> None:
    size = len(whole) // elements
    random = np.random.default_rng(1)
    for start, stop in np.sort(random.integers(0, elements + 1, (60, 2))).tolist():
        if start < stop:
            assert np.array_equal(read(parts, source, start, stop), whole[size * start : size * stop])


def scales_of(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if dtype in ("U8", "F8_E8M0"):
        return torch.randint(90, 150, shape, generator=generator).to(torch.uint8).view(SCALES[dtype])
    return (torch.rand(shape, generator=generator) * 1e-2).to(SCALES[dtype])


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((256, 384), (128, 128)),
        ((300, 200), (128, 128)),
        ((5, 7), (2, 3)),
        ((1, 1), (128, 128)),
        ((6, 9), (1, 9)),
        ((6, 9), (6, 9)),
        ((3, 40, 50), (16, 32)),
        ((2, 2, 9, 10), (4, 4)),
    ],
)
def test_fp8_is_the_product_of_number_and_scale(
    shape: tuple[int, ...], block: tuple[int, int], dtype: str, tmp_path: Path
) -> None:
    """As transformers multiplies for a backward pass, whatever the shape: blocks at the edges are cut off."""
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    weight = torch.where(bits & 127 == 127, bits - 1, bits).view(torch.float8_e4m3fn)
    parts = Fp8Blocks("w", 3, shape, block, "s", 3, dtype)
    assert parts.scale_shape == (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    scale = scales_of(dtype, parts.scale_shape, generator)
    source = stored(tmp_path, weight, scale)
    factors = (scale.float() - 127).exp2() if dtype == "U8" else scale.float()
    rows = factors.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    expected = weight.double() * rows.repeat_interleave(block[1], -1)[..., : shape[-1]].double()
    made = read(parts, source, 0, weight.numel())
    assert np.array_equal(made.view(np.float32), expected.float().reshape(-1).numpy())
    if dtype != "U8" and hasattr(finegrained, "_dequantize_fp8_weight"):
        theirs = finegrained._dequantize_fp8_weight(weight, scale, list(block), torch.float32)
        assert np.array_equal(made.view(np.float32), theirs.reshape(-1).numpy())
    check_ranges(parts, source, made, weight.numel())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E8M0", "U8"])
@pytest.mark.parametrize(
    ("shape", "block"), [((256, 384), (128, 128)), ((3, 64, 96), (16, 32)), ((4, 6), (4, 6))]
)
def test_fp8_is_what_transformers_loads(
    shape: tuple[int, ...], block: tuple[int, int], dtype: str, tmp_path: Path
) -> None:
    """``FineGrainedFP8Config(dequantize=True)``; in bfloat16 too, which is rounded once from ours."""
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    one_each = getattr(getattr(finegrained, "Fp8Dequantize", None), "_dequantize_one", None)
    if dtype not in SCALES or one_each is None:
        pytest.skip(f"torch or transformers knows no {dtype}")
    generator = torch.Generator().manual_seed(2)
    parts = Fp8Blocks("w", 3, shape, block, "s", 3, dtype)
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale = scales_of(dtype, parts.scale_shape, generator)
    source = stored(tmp_path, weight, scale)
    made = torch.from_numpy(read(parts, source, 0, weight.numel()).view(np.float32)).reshape(shape)
    loader = finegrained.Fp8Dequantize(None)
    for output in (torch.float32, torch.bfloat16):
        assert torch.equal(loader._dequantize_one(weight, scale, output), made.to(output))


def test_every_float8_number(tmp_path: Path) -> None:
    every = torch.arange(256).to(torch.uint8).reshape(16, 16).view(torch.float8_e4m3fn)
    source = stored(tmp_path, every, torch.ones(1, 1))
    made = read(Fp8Blocks("w", 3, (16, 16), (16, 16), "s", 3, "F32"), source, 0, 256).view(np.float32)
    expected = every.float().reshape(-1).numpy()
    assert np.array_equal(made, expected, equal_nan=True)
    assert np.array_equal(np.signbit(made[:127]), np.signbit(expected[:127]))
    assert np.isnan(made).sum() == 2


def test_every_scale_of_eight_bits(tmp_path: Path) -> None:
    if "F8_E8M0" not in SCALES:
        pytest.skip("torch 2.6 has no float8_e8m0fnu")
    scale = torch.arange(256).to(torch.uint8).reshape(256, 1)
    source = stored(tmp_path, torch.ones(256, 1).to(torch.float8_e4m3fn), scale)
    made = read(Fp8Blocks("w", 3, (256, 1), (1, 1), "s", 3, "F8_E8M0"), source, 0, 256).view(np.float32)
    assert np.array_equal(made, scale.view(SCALES["F8_E8M0"]).float().reshape(-1).numpy(), equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 24, 3), (3, 7, 1), (1, 1, 5), (1, 700, 20)])
def test_mxfp4_is_what_transformers_loads(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """All packed bytes and all scales but NaN, which transformers takes for 2^128; exact, and transposed."""
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(0, 255, shape, generator=generator).to(torch.uint8)
    expected = mxfp4.convert_moe_packed_tensors(blocks, scales)
    experts, rows, groups = shape
    assert tuple(expected.shape) == (experts, 32 * groups, rows)
    parts = Mxfp4("w", 3, (experts, 32 * groups, rows), "s", 3)
    source = stored(tmp_path, blocks, scales)
    made = read(parts, source, 0, expected.numel())
    assert np.array_equal(made.view(np.uint16), expected.contiguous().reshape(-1).view(torch.uint16).numpy())
    check_ranges(parts, source, made, expected.numel())


def test_a_scale_that_is_no_number_makes_none(tmp_path: Path) -> None:
    """Microscaling Formats 1.0, §5.4.1: so that a merge stops there."""
    source = stored(
        tmp_path, torch.zeros(1, 1, 1, 16, dtype=torch.uint8), torch.full((1, 1, 1), 255).to(torch.uint8)
    )
    made = read(Mxfp4("w", 3, (1, 32, 1), "s", 3), source, 0, 32).view(np.uint16)
    assert ((made & 0x7FFF) > 0x7F80).all()


class Counting(LocalSource):
    """How many bytes are read of each file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.count = {"w": 0, "s": 0}

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        self.count[file] += len(buffer)
        super().read(file, offset, buffer)


def test_only_what_is_needed_is_read_and_once(tmp_path: Path) -> None:
    stored(tmp_path, torch.zeros(512, 256, dtype=torch.uint8), torch.ones(4, 2))
    counting = Counting(tmp_path)
    source = KeepingSource(counting)
    for start in range(0, 512 * 256, 1000):
        read(
            Fp8Blocks("w", 3, (512, 256), (128, 128), "s", 3, "F32"),
            source,
            start,
            min(start + 1000, 512 * 256),
        )
    assert counting.count == {"w": 512 * 256, "s": 32}
    packed, scales = torch.zeros(3, 8, 4, 16, dtype=torch.uint8), torch.zeros(3, 8, 4, dtype=torch.uint8)
    stored(tmp_path, packed, scales)
    counting = Counting(tmp_path)
    source = KeepingSource(counting)
    for start in range(1024, 3072, 64):  # the first expert is left out
        read(Mxfp4("w", 3, (3, 128, 8), "s", 3), source, start, start + 64)
    assert counting.count == {"w": 2 * 512, "s": 2 * 32}


def test_json_carries_them() -> None:
    for one in (Fp8Blocks("w", 3, (5, 7), (2, 3), "s", 9, "F32"), Mxfp4("w", 3, (2, 64, 8), "s", 9)):
        assert type(one).from_json(one.to_json()) == one
        assert one.files == {"w", "s"}
