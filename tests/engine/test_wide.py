"""Wide sums: float64 ones, rounded once to whatever the output stores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from hubextrap.engine import plan_merge, run_plan
from hubextrap.engine.kernels import Combiner, check_device
from hubextrap.engine.torch_kernels import TorchCombiner
from hubextrap.engine.units import Combination, MergeUnit
from hubextrap.errors import MethodError
from hubextrap.tensors import LocalSink, LocalSource, read_layout
from hubextrap.tensors.headers import DTYPES
from hubextrap.work.layouts import merge_as_json, merge_from_json

SMALLER = {"F32": (24, -149), "BF16": (8, -133), "F16": (11, -24), "F8_E5M2": (3, -16), "F8_E4M3": (4, -9)}
"""Bits of a number, and the exponent of the least one; the formats' definitions."""
LARGEST = {"F32": 3.4028234663852886e38, "BF16": 3.3895313892515355e38, "F16": 65504.0} | {
    "F8_E5M2": 57344.0,
    "F8_E4M3": 448.0,
}


def as_bytes(values: list[float] | NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.array(values, np.float64).view(np.uint8)


def narrowed(values: list[float], dtype: str, form: Combination | None = None) -> list[float]:
    """What the kernel stores of float64 numbers, as float64 again."""
    data, size = as_bytes(values), DTYPES[dtype].itemsize
    output = np.full(len(values) * size, 7, np.uint8)
    used = form or Combination("copy", (0,), (1.0,))
    Combiner(1, 8, block=64).combine([data], ["F64"], [used], [output], dtype, wide=True)
    stored = torch.from_numpy(output).view(getattr(torch, DTYPES[dtype].torch_name))
    numbers: list[float] = stored.double().tolist()
    return numbers


def nearest(value: float, dtype: str) -> float:
    """The nearest number of a format, ties to even, from its definition and exact fractions alone."""
    if math.isnan(value):
        return value
    bits, least = SMALLER[dtype]
    unit_exponent = max(math.frexp(value)[1] - bits, least) if math.isfinite(value) and value else least
    if math.isfinite(value):
        unit = Fraction(2) ** unit_exponent
        rounded = round(Fraction(value) / unit) * unit  # of Fractions it is exact, ties to even
        if abs(rounded) <= Fraction(LARGEST[dtype]):
            return math.copysign(float(rounded), value)
    return math.nan if dtype == "F8_E4M3" else math.copysign(math.inf, value)


def same(one: list[float], other: list[float]) -> bool:
    """Bit for bit, but for a NaN's."""
    a, b = np.array(one), np.array(other)
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.array_equal(a.view(np.int64)[~nan], b.view(np.int64)[~nan])) and len(a) == len(b)


def hard_numbers(dtype: str) -> list[float]:
    """Ties, and what lies a float64 beside them; denormals, the largest numbers, and what is none."""
    bits, least = SMALLER[dtype]
    found = [0.0, math.inf, math.nan, 5e-324, 1e300, LARGEST[dtype]]
    for exponent in (0, 3, -5, least, least + 1, least + bits - 1, math.frexp(LARGEST[dtype])[1] - bits):
        for mantissa in (1, 2, 3, 2 ** (bits - 1), 2 ** (bits - 1) + 1, 2**bits - 1):
            tie = math.ldexp(mantissa + 0.5, exponent)
            found += [math.ldexp(mantissa, exponent), tie]
            found += [math.nextafter(tie, 0.0), math.nextafter(tie, math.inf), tie * (1 + 2.0**-30)]
            found += [tie * (1 - 2.0**-30), math.ldexp(0.5, exponent) * (1 + 2.0**-40)]
    return found + [-value for value in found]


@pytest.mark.parametrize("dtype", SMALLER)
@pytest.mark.parametrize("form", ["copy", "sum"])
def test_float64_is_rounded_once_to_every_dtype(dtype: str, form: str) -> None:
    values = hard_numbers(dtype)
    used = Combination("copy", (0,), (1.0,)) if form == "copy" else Combination("sum", (0,), (1.0,))
    wanted = [nearest(value + 0.0 if form == "sum" else value, dtype) for value in values]
    if form == "sum":  # it begins at +0
        wanted = [
            0.0 if value == 0 and not original else value
            for value, original in zip(wanted, values, strict=True)
        ]
    assert same(narrowed(values, dtype, used), wanted)


def test_these_numbers_tell_one_rounding_from_two() -> None:
    """A tie of BF16 and a little more: float32 drops that, and the tie goes to the even number."""
    value = 1 + 2.0**-8 + 2.0**-40
    assert narrowed([value], "BF16") == [1 + 2.0**-7]
    assert float(torch.tensor([value], dtype=torch.float64).float().bfloat16()) == 1.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=64), min_size=1, max_size=50), st.sampled_from(list(SMALLER)))
def test_any_float64_is_rounded_once(values: list[float], dtype: str) -> None:
    assert same(narrowed(values, dtype), [nearest(value, dtype) for value in values])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(list(SMALLER)))
def test_a_sum_of_float64_and_smaller_ones_is_the_float64_formula(seed: int, dtype: str) -> None:
    random = np.random.default_rng(seed)
    product = random.normal(size=300) * 10.0 ** random.integers(-6, 2, size=300)
    base = torch.from_numpy(random.normal(size=300)).to(getattr(torch, DTYPES[dtype].torch_name))
    size = DTYPES[dtype].itemsize
    output = np.empty(300 * size, np.uint8)
    Combiner(1, 8, block=128).combine(
        [product.view(np.uint8), base.view(torch.uint8).numpy()],
        ["F64", dtype],
        [Combination("sum", (0, 1), (1.0, 1.0))],
        [output],
        dtype,
        wide=True,
    )
    made = torch.from_numpy(output).view(base.dtype).double().tolist()
    assert same(made, [nearest(value, dtype) for value in product + base.double().numpy()])


def test_without_it_sums_are_taken_in_float32_as_before() -> None:
    """1 − 2^-30 is 1 in float32; in float64 it is not, and 2^-30 is what is left."""
    data = [as_bytes([1.0]), as_bytes([1 - 2.0**-30])]
    results = []
    for wide in (False, True):
        output = np.empty(4, np.uint8)
        Combiner(1, 8).combine(
            data, ["F64"] * 2, [Combination("sum", (0, 1), (1.0, -1.0))], [output], "F32", wide=wide
        )
        results.append(float(output.view(np.float32)[0]))
    assert results == [0.0, 2.0**-30]


def test_there_has_to_be_room_for_float64() -> None:
    with pytest.raises(ValueError, match="no memory for 1 sums of float64"):
        Combiner(1, 2, block=1024).combine(
            [as_bytes([1.0])],
            ["F64"],
            [Combination("copy", (0,), (1.0,))],
            [np.empty(4, np.uint8)],
            "F32",
            wide=True,
        )


@pytest.fixture
def sources(tmp_path: Path) -> list[LocalSource]:
    """A product that one float32 cannot hold, stored as F64, and a base in BF16."""
    values = torch.tensor([2.0**-8 + 2.0**-40, 0.5, -(2.0**-9) - 2.0**-40] * 500, dtype=torch.float64)
    for name, tensor in {"product": values, "base": torch.ones(1500).bfloat16()}.items():
        (tmp_path / name).mkdir()
        save_file({"weight": tensor, "same": torch.ones(3)}, tmp_path / name / "model.safetensors")
    return [LocalSource(tmp_path / name) for name in ("product", "base")]


def test_a_wide_plan_rounds_once_in_this_process_and_where_json_took_it(
    sources: list[LocalSource], tmp_path: Path
) -> None:
    layouts = [read_layout(source) for source in sources]
    rows = {"weight": np.array([[1.0, 1.0]]), "same": np.array([[0.0, 1.0]])}
    plan = plan_merge([1, 0], layouts, rows.__getitem__, wide=True)
    assert plan.accumulator_itemsize == 8
    narrow = plan_merge([1, 0], layouts, rows.__getitem__)
    assert (narrow.accumulator_itemsize, narrow.wide) == (4, False)
    assert "wide" not in merge_as_json(narrow), "plans that are not wide keep their digest"
    carried = merge_from_json(json.loads(json.dumps(merge_as_json(plan))), layouts)
    assert carried.wide
    made = []
    for number, one in enumerate((plan, carried, narrow)):
        (tmp_path / str(number)).mkdir()
        run_plan(one, sources, [LocalSink(tmp_path / str(number))])
        made.append(load_file(tmp_path / str(number) / "model.safetensors")["weight"][:3].tolist())
    once = [1 + 2.0**-7, 1.5, 1 - 2.0**-8]
    assert made[:2] == [once, once]
    assert made[2] != once, "in float32 the 2^-40 is lost, and ties go to the even one"
    for unit in plan.units(plan.shards[0]):
        assert MergeUnit.from_json(json.loads(json.dumps(unit.to_json()))) == unit
        assert all(form.wide for form in unit.forms)
        old = unit.to_json()
        old["forms"] = [{"dtype": one["dtype"], "combinations": one["combinations"]} for one in old["forms"]]
        forms = tuple(replace(form, wide=False) for form in unit.forms)
        assert MergeUnit.from_json(json.loads(json.dumps(old))) == replace(unit, forms=forms)


def test_no_device_makes_wide_sums() -> None:
    check_device("cpu", wide=True)
    with pytest.raises(MethodError, match="device cuda: sums of adapters"):
        check_device("cuda", wide=True)
    with pytest.raises(ValueError, match="no wide sums"):
        TorchCombiner(1).combine([], [], [], [], "F32", wide=True)
