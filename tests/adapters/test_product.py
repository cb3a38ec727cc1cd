"""What a prediction adds to the base: the float64 formula, whatever ranges, threads and memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_runs import changes, write_adapter_run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opened_adapters import open_adapters
from safetensors.torch import load_file, save_file

from hubextrap.adapters.product import PRODUCT_FILE, ProductSource, write_product
from hubextrap.adapters.run import AdapterRun
from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.errors import CheckpointMismatch, NonFinite, SourceError
from hubextrap.tensors import LocalSink

STEPS = (0, 10, 20, 40)
PART = np.array([-0.7123456789012, 0.4321098765432, -0.5192837465019])
ROW = np.array([*PART, 1 - PART.sum()])
"""Without round figures, whose sums would be ties in bfloat16 that float64's own error tips."""


def rows(name: str) -> NDArray[np.float64]:
    return ROW


def in_order(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left·right to the last bit: exact products and sums of each k, rounded once, in extended precision."""
    total = np.zeros((left.shape[0], left.shape[1], right.shape[2]))
    for k in range(left.shape[2]):
        # 64 bits of mantissa hold a product of two floats of 24 bits and most sums with it
        term = left[:, :, k, None].astype(np.longdouble) * right[:, k, None, :].astype(np.longdouble)
        total = (total.astype(np.longdouble) + term).astype(np.float64)
    return total


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 9), st.integers(0, 11)),
    st.integers(0, 2**31),
    st.data(),
)
def test_every_range_holds_the_same_elements(
    shape: tuple[int, int, int, int], seed: int, data: st.DataObject
) -> None:
    experts, height, width, inner = shape
    random = np.random.default_rng(seed)
    # few bits, so that the long double of `in_order` is exact
    left = random.integers(-(2**20), 2**20, (experts, height, inner)) / 2.0**18
    right = random.integers(-(2**20), 2**20, (experts, inner, width)) / 2.0**15
    wanted = in_order(left, right).reshape(-1)
    start = data.draw(st.integers(0, wanted.size))
    stop = data.draw(st.integers(start, wanted.size))
    memory = np.full(8 * (stop - start) + 24, 7, np.uint8)
    place = data.draw(st.integers(0, 16))
    write_product(left, right, start, memory[place : place + 8 * (stop - start)])
    assert memory[place : place + 8 * (stop - start)].tobytes() == wanted[start:stop].tobytes()
    assert set(memory[:place].tolist()) | set(memory[place + 8 * (stop - start) :].tolist()) == {7}


def test_wide_products_are_the_fused_sums_too() -> None:
    """More columns than are made at once, and rows left over from fours."""
    random = np.random.default_rng(3)
    left, right = random.normal(size=(1, 7, 13)), random.normal(size=(1, 13, 700))
    made = np.empty(8 * 7 * 700, np.uint8)
    write_product(left, right, 0, made)
    result = made.view(np.float64).reshape(1, 7, 700)
    assert np.allclose(result, left @ right, rtol=0, atol=1e-13)
    one = np.empty(8, np.uint8)
    for place in random.integers(0, 4900, 200):
        write_product(left, right, int(place), one)
        assert one.view(np.float64)[0] == result.reshape(-1)[place]


def test_factors_that_do_not_fit_are_refused() -> None:
    left, right = np.ones((1, 3, 2)), np.ones((1, 2, 4))
    for bad in ((left, np.ones((1, 3, 4)), 0, 8), (left, right, 12, 8), (left, right, -1, 8)):
        with pytest.raises(ValueError, match="elements"):
            write_product(bad[0], bad[1], bad[2], np.empty(bad[3], np.uint8))
    with pytest.raises(ValueError, match="one piece"):
        write_product(left.transpose(0, 2, 1), np.ones((1, 3, 4)), 0, np.empty(8, np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    return write_adapter_run(
        root, STEPS[1:], modules_to_save=["lm_head"], rank={10: 2, 20: 3, 40: 4}, base_dtype="bfloat16"
    )


@pytest.fixture
def run(folder: Path) -> AdapterRun:
    return open_adapters(folder, STEPS)


def formula(folder: Path, run: AdapterRun) -> dict[str, Any]:
    """Σ c_k·W_k in float64, from what peft itself merges."""
    base = {name: one.double() for name, one in load_file(folder / "base" / "model.safetensors").items()}
    wanted = dict(base)
    for step, coefficient in zip(STEPS[1:], ROW[1:], strict=True):
        for name, change in changes(folder, step).items():
            wanted[name] = wanted[name] + coefficient * change
    assert set(run.layouts[-1].tensors) == {
        name for name in base if not torch.equal(base[name], wanted[name])
    }
    return wanted


def onto_base(run: AdapterRun) -> Callable[[str], NDArray[np.float64]]:
    def row(name: str) -> NDArray[np.float64]:
        if name in run.last.factors:
            return np.array([[1.0, 1.0]])
        return np.array([[1.0, 0.0]]) if name in run.last.whole else np.array([[0.0, 1.0]])

    return row


def write_merged(run: AdapterRun, folder: Path, out_dtype: str | None, **budget: Any) -> bytes:
    """The predicted model, by the engine; its file's bytes."""
    folder.mkdir()
    source = ProductSource(run, rows, run.base.layout, step=80)
    plan = plan_merge(
        (80, 0),
        (source.layout, run.base.layout),
        onto_base(run),
        out_dtype=out_dtype,
        wide=True,
        budget=Budget(**budget),
    )
    run_plan(plan, (source, run.base.source), [LocalSink(folder)])
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("out_dtype", [None, "float32", "float16"])
def test_the_merged_model_is_the_float64_formula_rounded_once(
    folder: Path, run: AdapterRun, tmp_path: Path, out_dtype: str | None
) -> None:
    write_merged(run, tmp_path / "out", out_dtype)
    made = load_file(tmp_path / "out" / "model.safetensors")
    for name, wanted in formula(folder, run).items():
        assert made[name].dtype == getattr(torch, out_dtype or "bfloat16")
        # float64's own error may tip a tie once in 10^9 numbers; none of these
        once = once_rounded(wanted, made[name].dtype)
        assert torch.equal(made[name], once), name


def once_rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """torch rounds float64 to float32 first: here the nearer of the neighbours is taken."""
    near = values.to(dtype)
    steps = torch.tensor([-1, 0, 1]).view(3, *[1] * values.dim())
    width = {torch.float32: torch.int32}.get(dtype, torch.int16)
    some = (near.view(width) + steps.to(width)).view(dtype)
    best = (some.double() - values).abs().nan_to_num(float("inf")).argmin(dim=0, keepdim=True)
    return torch.gather(some, 0, best)[0]


def test_bytes_do_not_depend_on_memory_or_workers(run: AdapterRun, tmp_path: Path) -> None:
    every = {
        write_merged(run, tmp_path / f"{workers}-{size}", "float32", workers=workers, read_size=size)
        for workers, size in ((1, None), (3, 700), (2, 9000))
    }
    assert len(every) == 1


def test_threads_and_odd_ranges_read_the_same(run: AdapterRun) -> None:
    source = ProductSource(run, rows, run.base.layout, step=80)
    wanted = {
        name: read(source, info.offset, info.nbytes)
        for name, info in source.layout.tensors.items()
        if info.dtype == "F64"
    }
    fresh = ProductSource(run, rows, run.base.layout, step=80)
    random = np.random.default_rng(0)
    jobs = []
    for name, info in source.layout.tensors.items():
        for _ in range(20 * (info.dtype == "F64")):
            first, last = np.sort(random.integers(0, info.nbytes + 1, 2)).tolist()
            jobs.append((name, info.offset + first, last - first, wanted[name][first:last]))
    random.shuffle(jobs)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: read(fresh, job[1], job[2]) == job[3], jobs))
    assert len(found) > 50
    assert all(found)


def read(source: ProductSource, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    source.read(PRODUCT_FILE, offset, memoryview(buffer))
    return bytes(buffer)


def test_a_range_may_span_tensors_and_what_no_adapter_changes_is_not_here(run: AdapterRun) -> None:
    source = ProductSource(run, rows, run.base.layout, step=80)
    infos = list(source.layout.tensors.values())
    pairs = [(a, b) for a, b in pairwise(infos) if a.dtype == b.dtype == "F64"]
    for one, other in pairs[:1]:
        both = read(source, one.offset, one.nbytes + other.nbytes)
        assert both == read(source, one.offset, one.nbytes) + read(source, other.offset, other.nbytes)
    norm = source.layout.tensors["model.norm.weight"]
    assert norm.dtype == "BF16"
    with pytest.raises(SourceError, match=r"no adapter changes model\.norm\.weight"):
        read(source, norm.offset, norm.nbytes)
    with pytest.raises(SourceError, match="asked for, but it has"):
        read(source, source.files()[PRODUCT_FILE].size - 4, 8)
    with pytest.raises(SourceError, match=r"no file 'config\.json'"):
        source.read_file("config.json")


def test_of_no_terms_comes_nothing(run: AdapterRun) -> None:
    at_start = np.array([1.0, 0, 0, 0])
    source = ProductSource(run, lambda name: at_start, run.base.layout, step=0)
    for name in run.last.factors:
        info = source.layout.tensors[name]
        assert not any(read(source, info.offset, info.nbytes))
    (whole,) = (source.layout.tensors[name] for name in run.last.whole)
    base = run.base.layout.tensors[whole.name]
    stored = bytearray(base.nbytes)
    run.base.source.read(base.file, base.offset, memoryview(stored))
    numbers = torch.frombuffer(stored, dtype=torch.bfloat16).double()
    assert read(source, whole.offset, whole.nbytes) == numbers.numpy().tobytes()


def test_a_base_of_another_shape_is_refused_by_the_plan(
    folder: Path, run: AdapterRun, tmp_path: Path
) -> None:
    other = open_adapters(write_adapter_run(tmp_path, [10], model={"intermediate_size": 48}), [0, 10])
    source = ProductSource(run, rows, other.base.layout, step=80)
    with pytest.raises(CheckpointMismatch, match=r"down_proj\.weight has shape"):
        plan_merge((80, 0), (source.layout, other.base.layout), onto_base(run), wide=True)


def test_peft_says_the_same_of_every_layout_of_factors(tmp_path: Path) -> None:
    for number, (architecture, lora) in enumerate(LAYOUTS):
        folder = write_adapter_run(tmp_path / str(number), [10, 20], architecture=architecture, **lora)
        run = open_adapters(folder, [0, 10, 20])
        row = np.array([0.2, -0.5, 1.3])
        source = ProductSource(run, lambda name, row=row: row, run.base.layout, step=30)  # type: ignore[misc]
        one, two = changes(folder, 10), changes(folder, 20)
        assert set(one) == set(run.last.factors) == set(run.layouts[-1].tensors), architecture
        for name in run.layouts[-1].tensors:
            info = source.layout.tensors[name]
            made = np.frombuffer(read(source, info.offset, info.nbytes)).reshape(info.shape)
            assert np.allclose(made, -0.5 * one[name] + 1.3 * two[name], rtol=1e-7, atol=1e-9), name


LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"fan_in_fan_out": True}),
    (
        "llama",
        {"target_modules": ["embed_tokens", "up_proj"], "rank_pattern": {"up_proj": 2}, "use_rslora": True},
    ),
]


def test_the_real_run_is_its_formula(rlvr: Path, tmp_path: Path) -> None:
    """rlvr-F, against Σ c·s·B·A of its files, added to its base and rounded once."""
    root, steps = rlvr / "rlvr-F", (0, 100, 200)
    run = open_adapters(root, steps)
    row = np.array([0.0, -1.0, 2.0])
    source = ProductSource(run, lambda name: row, run.base.layout, step=300)
    plan = plan_merge((300, 0), (source.layout, run.base.layout), onto_base(run), wide=True)
    run_plan(plan, (source, run.base.source), [LocalSink(tmp_path)])
    made, base = load_file(tmp_path / "model.safetensors"), load_file(root / "base" / "model.safetensors")
    files = [load_file(root / f"step_{step}" / "adapter_model.safetensors") for step in steps[1:]]
    for name, stored in base.items():
        wanted = stored.double()
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for coefficient, file in zip(row[1:], files, strict=True):
            if f"{module}.lora_A.weight" in file:
                a, b = (file[f"{module}.lora_{one}.weight"].double() for one in "AB")
                wanted = wanted + coefficient * 16 / 8 * b @ a
        assert torch.equal(made[name], wanted.float()), name
        assert torch.equal(made[name], stored) == (name not in run.layouts[-1].tensors)


def test_a_factor_that_is_not_finite_is_refused_by_its_step(tmp_path: Path) -> None:
    root = write_adapter_run(tmp_path, [10, 20, 40])
    file = root / "step_20" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    tensors[name][0, 0] = float("inf")
    save_file(tensors, file)
    run = open_adapters(root, STEPS)
    source = ProductSource(run, rows, run.base.layout, step=60)
    info = source.layout.tensors["model.layers.0.self_attn.q_proj.weight"]
    out = np.empty(info.nbytes, np.uint8)
    with pytest.raises(NonFinite, match=r"step 20 \(.*\) holds NaN or infinity; leave that checkpoint out"):
        source.read(PRODUCT_FILE, info.offset, out.data)
    ProductSource(run, lambda name: ROW * [1, 1, 0, 1], run.base.layout, step=60).read(
        PRODUCT_FILE, info.offset, out.data
    )
