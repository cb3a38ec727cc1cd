from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubextrap.engine.kernels import (
    Combiner,
    check_device,
    count_non_finite,
    device_gives_cpu_bytes,
    round_to,
    same_bytes,
)
from hubextrap.engine.plan import combination
from hubextrap.engine.units import Combination
from hubextrap.errors import MethodError

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
INPUTS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.itemsize])


def combine(
    inputs: list[torch.Tensor], coefficients: list[float], dtype: torch.dtype, block: int = 64
) -> torch.Tensor:
    output = torch.full((inputs[0].numel(),), 7.0).to(dtype)
    used = combination(np.array(coefficients), range(len(inputs)))
    Combiner(1, 8, block=block).combine(inputs, [used], [output])
    return output


def hard_values(count: int, seed: int) -> torch.Tensor:
    """Weights over many magnitudes, denormals and zeros of both signs included."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-45, 6, (count,), generator=generator).double()
    values = (torch.randn(count, generator=generator, dtype=torch.float64) * 10**exponents).float()
    values[::17] = 0.0
    values[::19] = -0.0
    return values


def test_form_follows_the_coefficients() -> None:
    assert combination(np.array([0.0, 0.0, 1.0]), range(3)) == Combination("copy", (2,), (1.0,))
    assert combination(np.array([-0.4, 0.0, 1.4]), range(3)) == Combination("line", (0, 2), (-0.4, 1.4))
    assert combination(np.array([-0.4, 0.0, 1.5]), range(3)).kind == "sum"
    assert combination(np.array([0.0, 0.9, 0.0]), range(3)) == Combination("sum", (1,), (0.9,))
    assert combination(np.array([0.2, 0.3, 0.0, 0.5]), (0, 1, 3)) == Combination(
        "sum", (0, 1, 2), (0.2, 0.3, 0.5)
    )


def test_literal_line() -> None:
    base, last = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([2.0, 2.0, -1.0])
    assert combine([base, last], [-0.5, 1.5], torch.float32).tolist() == [2.5, 2.0, 0.0]


def test_a_weight_that_did_not_move_stays() -> None:
    weights = hard_values(5000, seed=3)
    moved = combine([weights, weights], [1 - 3.7, 3.7], torch.float32)
    assert torch.equal(moved, weights)
    assert not torch.signbit(moved[weights == 0]).any(), "mergekit's task_arithmetic makes −0 a +0 too"


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [1.43, 5.0, 0.25, -0.7, 1e-3])
def test_line_has_the_bits_of_mergekits_task_arithmetic(alpha: float, out: torch.dtype) -> None:
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

    method = GeneralizedTaskArithmeticMerge(
        consensus_method=None,
        sparsification_method=None,
        default_normalize=False,
        default_rescale=False,
        method_name="task_arithmetic",
        method_pretty_name=None,
        method_reference_url=None,
    )
    base, last = hard_values(3001, seed=1), hard_values(3001, seed=2)
    expected = reference(method, [base, last], out, base=0, weight=[None, alpha])
    assert torch.equal(bits(combine([base, last], [1 - alpha, alpha], out)), bits(expected))


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 4, 8, 16, 32, 64])
def test_sum_has_the_bits_of_mergekits_linear(count: int, out: torch.dtype) -> None:
    from mergekit.merge_methods.linear import linear_merge

    inputs = [hard_values(2003, seed=k) for k in range(count)]
    coefficients = np.random.default_rng(count).normal(size=count).tolist()
    expected = reference(linear_merge, inputs, out, weight=coefficients, normalize=False)
    assert torch.equal(bits(combine(inputs, coefficients, out)), bits(expected))


def reference(method, inputs, out, *, base=None, weight, **shared):  # type: ignore[no-untyped-def]
    """mergekit's own code on one group of tensors."""
    from mergekit.merge_methods.base import PerInputValues, TensorEntry, TensorGroup

    entries = tuple(TensorEntry(id=k, tensor=t, is_base=k == base) for k, t in enumerate(inputs))
    values = PerInputValues({k: value for k, value in enumerate(weight) if value is not None})
    (result,) = method([TensorGroup(entries)], parameters={"weight": values, **shared}, out_dtype=out)
    return result


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[float], torch.dtype]:
    """Inputs of mixed dtypes, coefficients and an output dtype."""
    count = draw(st.integers(1, 16))
    size = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([1e-6, 0.02, 1.0, 50.0]))
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(
            draw(st.sampled_from(INPUTS))
        )
        for _ in range(count)
    ]
    coefficients = draw(st.lists(st.floats(-4, 4, width=64), min_size=count, max_size=count))
    if draw(st.booleans()):
        coefficients[-1] = 1.0 - sum(coefficients[:-1])
    if not any(coefficients):
        coefficients[-1] = 1.0
    out = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    return inputs, coefficients, out


@settings(max_examples=300, deadline=None)
@given(problems())
def test_result_is_a_float64_formula_rounded_once(
    problem: tuple[list[torch.Tensor], list[float], torch.dtype],
) -> None:
    """It lies between the roundings of the float64 value ∓ the error bound of the module's docstring."""
    inputs, coefficients, out = problem
    accumulator = torch.float64 if out == torch.float64 else torch.float32
    wide = [tensor.to(accumulator).double().numpy() for tensor in inputs]
    exact = np.array(
        [math.fsum(c * w[i] for c, w in zip(coefficients, wide, strict=True)) for i in range(wide[0].size)]
    )
    used = combination(np.array(coefficients), range(len(inputs)))
    u = 2.0**-53 if out == torch.float64 else 2.0**-24
    terms = len(used.indices)
    gamma = (terms + 2) * u / (1 - (terms + 2) * u)
    if used.kind == "copy":
        size = np.zeros_like(exact)
    elif used.kind == "line":
        base, last = (np.abs(wide[i]) for i in used.indices)
        size = gamma * (base + abs(used.weights[1]) * (base + last)) + 2.0**-149
    else:
        size = (
            gamma * sum(abs(c) * np.abs(w) for c, w in zip(coefficients, wide, strict=True))
            + terms * 2.0**-149
        )
    size = size + np.abs(exact) * 2.0**-50  # of the float64 formula itself
    result = combine(inputs, coefficients, out, block=16).double().numpy()
    low, high = (torch.from_numpy(exact + side * size).to(out).double().numpy() for side in (-1, 1))
    assert ((low <= result) & (result <= high)).all()


@pytest.mark.parametrize("dtype", INPUTS)
def test_copy_keeps_every_bit(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(8)
    weights = every.view(dtype)  # NaN payloads, infinities and −0 among them
    other = torch.zeros(weights.numel())
    assert torch.equal(bits(combine([other, weights], [0.0, 1.0], dtype)), bits(weights))


@pytest.mark.parametrize("dtype", INPUTS)
def test_every_float_dtype_goes_in_and_out(dtype: torch.dtype) -> None:
    inputs = [torch.tensor([1.0, -2.0, 0.5]).to(dtype) for _ in range(3)]
    assert combine(inputs, [1.0, -1.0, 2.0], dtype).double().tolist() == [2.0, -4.0, 1.0]


def test_several_targets_from_one_read() -> None:
    inputs = [hard_values(300, seed=k).bfloat16() for k in range(4)]
    rows = np.array(
        [[0.1, 0.2, 0.3, 0.4], [0, -0.5, 0, 1.5], [0, 0, 0, 1], [0, -1.5, 0, 2.5], [0, 0, 0, 0.5]]
    )
    outputs = [torch.empty(300, dtype=torch.bfloat16) for _ in rows]
    Combiner(5, block=128).combine(inputs, [combination(row, range(4)) for row in rows], outputs)
    for row, output in zip(rows, outputs, strict=True):
        assert torch.equal(bits(output), bits(combine(inputs, row.tolist(), torch.bfloat16)))


def e4m3fn_table() -> NDArray[np.float64]:
    """The finite numbers from 0 up, read off the format's definition: 4 bits of exponent, 3 of mantissa."""
    numbers = [
        (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent in range(16)
        for mantissa in range(8)
    ]
    return np.array(numbers[:-1])  # all ones is NaN, and there is no infinity


def largest_and_limit(dtype: torch.dtype) -> tuple[float, float, bool]:
    """The largest number, half-way to what would follow, and whether that still fits (ties to even)."""
    exponent_bits, mantissa_bits, top = {
        torch.float16: (5, 10, 30),
        torch.bfloat16: (8, 7, 254),
        torch.float8_e5m2: (5, 2, 30),
    }.get(dtype, (4, 3, 15))
    mantissa = 2**mantissa_bits - (2 if dtype == torch.float8_e4m3fn else 1)
    step = 2.0 ** (top - (2 ** (exponent_bits - 1) - 1) - mantissa_bits)
    largest = step * (2**mantissa_bits + mantissa)
    return largest, largest + step / 2, mantissa % 2 == 0


@pytest.mark.parametrize("source", [torch.float64, torch.float32])
@pytest.mark.parametrize("dtype", INPUTS[2:])
@pytest.mark.parametrize("form", ["sum", "line", "copy"])
def test_what_a_dtype_does_not_hold_is_never_clipped(
    dtype: torch.dtype, source: torch.dtype, form: str
) -> None:
    largest, limit, limit_fits = largest_and_limit(dtype)
    assert largest == torch.finfo(dtype).max
    below, above = np.nextafter(np.float32(limit), np.float32([0, np.inf]))
    fits = [1.0, largest, below] + [limit] * limit_fits
    too_large = [above, math.inf, math.nan] + [limit] * (not limit_fits)
    too_large += [1e9, 3e38] * (dtype != torch.bfloat16)
    for sign in (1, -1):
        values = sign * torch.tensor(fits + too_large, dtype=torch.float64).to(source)
        row = {"sum": [1.0, -2.0, 2.0], "line": [-1.0, 2.0, 0.0], "copy": [0.0, 1.0, 0.0]}[form]
        result = combine([values] * 3, row, dtype)
        assert result[: len(fits)].double().tolist() == [sign, *[sign * largest] * (len(fits) - 1)]
        assert not result[len(fits) :].float().isfinite().any()
        assert count_non_finite(result) == len(too_large)


def test_float8_e4m3fn_is_rounded_as_its_table_says() -> None:
    table = e4m3fn_table()
    assert table[-1] == 448.0
    ends = (table[1:] + table[:-1]) / 2
    values = np.concatenate([table, np.nextafter(ends, 0), np.nextafter(ends, 1e3), ends]).astype(np.float32)
    output = torch.empty(len(values)).to(torch.float8_e4m3fn)
    round_to(output, torch.from_numpy(values.copy()))
    nearest = [
        min(table, key=lambda number: (abs(number - v), round(number / spacing(v)) % 2)) for v in values
    ]
    assert output.float().tolist() == nearest
    assert output.view(torch.uint8)[: len(table)].tolist() == list(range(127))


def spacing(value: float) -> float:
    """Between neighbours of float8_e4m3fn near ``value``."""
    return 2.0 ** (max(math.frexp(value)[1] - 1, -6) - 3)


@pytest.mark.parametrize(
    "dtype",
    [*INPUTS[:4], torch.float8_e5m2, torch.complex64, torch.float8_e5m2fnuz, torch.float8_e4m3fnuz],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_counts_what_is_not_finite(dtype: torch.dtype, value: float) -> None:
    tensor = torch.ones(1000).to(dtype)
    assert count_non_finite(tensor, block=64) == 0
    bits = tensor.view(-1, 1).view(torch.uint8)  # torch 2.6 picks no single float8 numbers
    bits[[0, 63, 64, 999]] = torch.tensor([value]).to(dtype).view(-1, 1).view(torch.uint8)
    assert count_non_finite(tensor, block=64) == 4


def test_large_finite_values_are_no_false_alarm() -> None:
    assert count_non_finite(torch.full((100,), 60000.0).half()) == 0
    assert count_non_finite(torch.full((100,), 3e38)) == 0
    assert count_non_finite(torch.full((100,), 3e38).bfloat16()) == 0


@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 9), st.integers(-1, 39))
def test_same_bytes_at_any_offset(count: int, one: int, other: int, change: int) -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    a, b = torch.zeros(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)
    a[one : one + count], b[other : other + count] = memory[:count], memory[:count]
    differs = 0 <= change < count
    if differs:
        b[other + change] += 1
    assert same_bytes(a[one : one + count], b[other : other + count]) is (not differs)
    assert not same_bytes(a[one : one + count], b[other : other + count + 6]), "of another length"
    assert not same_bytes(b[other : other + count + 6], a[one : one + count])


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("nonsense", "there is no such device; choose cpu"),
        ("meta", "holds no numbers; choose cpu"),
        ("cpu:0", "combined on the CPU or on a CUDA device; write cpu"),
        pytest.param(
            "cuda",
            "there is no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_devices_that_cannot_be_used(device: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        check_device(device)


@pytest.mark.parametrize("dtype", INPUTS)
@pytest.mark.parametrize("out", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_what_goes_through_a_devices_memory_has_the_same_bits(dtype: torch.dtype, out: torch.dtype) -> None:
    """``cpu:0`` is this processor, and is staged like a GPU."""
    inputs = [(20 * torch.randn(700, generator=torch.Generator().manual_seed(k))).to(dtype) for k in range(3)]
    rows = ([0.3, -0.6, 1.3], [-0.5, 0.0, 1.5], [0.0, 1.0, 0.0])
    used = [combination(np.array(row), range(3)) for row in rows]
    results = []
    for device in ("cpu", "cpu:0"):
        outputs = [torch.zeros(700, dtype=out) for _ in used]
        Combiner(3, itemsize=out.itemsize if out.itemsize > 4 else 4, device=device, block=256).combine(
            inputs, used, outputs
        )
        results.append([bits(output) for output in outputs])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_cpu_is_like_itself() -> None:
    check_device("cpu")
    assert device_gives_cpu_bytes("cpu") is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_bits() -> None:
    assert device_gives_cpu_bytes("cuda")
    for dtype in INPUTS[1:]:
        inputs = [torch.randn(3000).to(dtype) for _ in range(5)]
        coefficients = [0.3, -0.6, 0.1, -0.4, 1.6]
        output = torch.empty(3000, dtype=torch.bfloat16)
        used = combination(np.array(coefficients), range(5))
        Combiner(1, device="cuda", block=1024).combine(inputs, [used], [output])
        assert torch.equal(bits(output), bits(combine(inputs, coefficients, torch.bfloat16)))
