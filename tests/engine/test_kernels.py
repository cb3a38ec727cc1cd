from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubextrap.engine import kernels
from hubextrap.engine.kernels import Combiner, count_non_finite, same_bytes, widen
from hubextrap.engine.plan import combination
from hubextrap.engine.units import Combination, Made
from hubextrap.tensors.headers import DTYPES

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
INPUTS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


NAMES = {getattr(torch, DTYPES[name].torch_name): name for name in DTYPES if name != "F8_E8M0"}
"""Without that of scales, which torch 2.6 has not got."""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.itemsize])


def raw(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The tensor's own memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def make(
    combiner: Combiner,
    inputs: list[torch.Tensor],
    used: list[Combination],
    outputs: list[torch.Tensor],
    last: int | None = None,
) -> list[Made]:
    names = [NAMES[tensor.dtype] for tensor in inputs]
    dtype = NAMES[outputs[0].dtype]
    return combiner.combine(
        [raw(one) for one in inputs], names, used, [raw(o) for o in outputs], dtype, last=last
    )


def combine(
    inputs: list[torch.Tensor], coefficients: list[float], dtype: torch.dtype, block: int = 64
) -> torch.Tensor:
    output = torch.full((inputs[0].numel(),), 7.0).to(dtype)
    used = combination(np.array(coefficients), range(len(inputs)))
    make(Combiner(1, 8, block=block), inputs, [used], [output])
    return output


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return combine([values], [1.0], dtype)


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
    make(Combiner(5, block=128), inputs, [combination(row, range(4)) for row in rows], outputs)
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
        assert count_non_finite(raw(result), NAMES[dtype]) == len(too_large)


def test_float8_e4m3fn_is_rounded_as_its_table_says() -> None:
    table = e4m3fn_table()
    assert table[-1] == 448.0
    ends = (table[1:] + table[:-1]) / 2
    values = np.concatenate([table, np.nextafter(ends, 0), np.nextafter(ends, 1e3), ends]).astype(np.float32)
    output = rounded(torch.from_numpy(values), torch.float8_e4m3fn)
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
    assert count_non_finite(raw(tensor), NAMES[dtype]) == 0
    bits = tensor.view(-1, 1).view(torch.uint8)  # torch 2.6 picks no single float8 numbers
    bits[[0, 63, 64, 999]] = torch.tensor([value]).to(dtype).view(-1, 1).view(torch.uint8)
    assert count_non_finite(raw(tensor), NAMES[dtype]) == 4


def test_large_finite_values_are_no_false_alarm() -> None:
    for tensor in (
        torch.full((100,), 60000.0).half(),
        torch.full((100,), 3e38),
        torch.full((100,), 3e38).bfloat16(),
    ):
        assert count_non_finite(raw(tensor), NAMES[tensor.dtype]) == 0


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 9), st.integers(-1, 39))
def test_same_bytes_at_any_offset(count: int, one: int, other: int, change: int) -> None:
    memory = np.arange(64, dtype=np.uint8)
    a, b = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    a[one : one + count], b[other : other + count] = memory[:count], memory[:count]
    differs = 0 <= change < count
    if differs:
        b[other + change] += 1
    assert same_bytes(a[one : one + count], b[other : other + count]) is (not differs)
    assert not same_bytes(a[one : one + count], b[other : other + count + 6]), "of another length"
    assert not same_bytes(b[other : other + count + 6], a[one : one + count])


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of a dtype of 8 or 16 bits; of a larger one those, what lies between, and neighbours."""
    if dtype.itemsize < 4:
        return torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int32).to(BITS[dtype.itemsize]).view(dtype)
    exact = [every_pattern(small).double().numpy() for small in INPUTS[2:]]
    sorted_ones = [np.unique(numbers[np.isfinite(numbers)]) for numbers in exact]
    between = [(numbers[1:] + numbers[:-1]) / 2 for numbers in sorted_ones]
    too_large = np.array([464, 480, 61440, 65520, 65536, 3.3961775e38, 3.4028236e38, 1e300, math.inf])
    single = np.array([0, 1, 2**22, 2**23 - 1, 2**23, 0x7F800001, 0x7FC00000, 0xFFFFFFFF], np.uint32)
    singles = torch.from_numpy(single.view(np.float32)).double().numpy()
    numbers = np.concatenate([*exact, *between, too_large, -too_large, singles])
    wide = torch.from_numpy(numbers).to(dtype).numpy()
    kind = wide.dtype.type
    return torch.from_numpy(
        np.concatenate([wide, np.nextafter(wide, kind(np.inf)), np.nextafter(wide, kind(-np.inf))])
    )


def torchs_cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By way of the accumulator; a float8_e4m3fn overflows to NaN, where torch's versions differ."""
    wide = values.to(torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype == torch.float8_e4m3fn:
        wide = torch.where(wide.abs() > 464, math.nan, wide)
    return wide.to(dtype)


def assert_same_numbers(one: torch.Tensor, other: torch.Tensor) -> None:
    """The same bits, but for those of a NaN."""
    nan = one.double().isnan()
    assert torch.equal(nan, other.double().isnan())
    assert torch.equal(bits(one)[~nan], bits(other)[~nan])


@pytest.mark.parametrize("out", INPUTS)
@pytest.mark.parametrize("dtype", INPUTS)
def test_every_number_is_cast_as_torch_does(dtype: torch.dtype, out: torch.dtype) -> None:
    values = every_pattern(dtype)
    if dtype == out:  # for what is cast, and not copied
        results = torch.empty_like(values)
        make(Combiner(1, 8), [values], [Combination("sum", (0,), (1.0,))], [results])
        expected = torchs_cast(values, torch.float64 if out == torch.float64 else torch.float32)
        expected = torchs_cast(expected + 0.0, out)  # a sum begins with +0
    else:
        results, expected = rounded(values, out), torchs_cast(values, out)
    assert_same_numbers(results, expected)
    assert count_non_finite(raw(results), NAMES[out]) == int((~expected.double().isfinite()).sum())


@pytest.mark.parametrize("dtype", INPUTS)
def test_every_number_is_widened_as_torch_does(dtype: torch.dtype) -> None:
    values = every_pattern(dtype)
    wide = np.empty(values.numel(), np.float32)
    widen(raw(values), NAMES[dtype], wide)
    assert_same_numbers(torch.from_numpy(wide), values.float())
    if dtype.itemsize < 4:
        assert torch.equal(bits(torch.from_numpy(wide)), bits(values.float())), "every NaN's payload too"


def test_nan_keeps_what_torchs_casts_keep() -> None:
    payloads = torch.tensor([0x7FC00000, -0x400000, 0x7F800001, -0x6DCBAA, 0x7FFFFFFF], dtype=torch.int32)
    for dtype, said in {
        torch.bfloat16: [0xFFFF] * 5,
        torch.float16: [0x7E00, 0xFE00, 0x7E00, 0xFE91, 0x7FFF],
        torch.float8_e4m3fn: [0x7F, 0xFF, 0x7F, 0xFF, 0x7F],
        torch.float8_e5m2: [0x7F, 0xFF, 0x7F, 0xFF, 0x7F],
    }.items():
        made = bits(rounded(payloads.view(torch.float32), dtype)).int() & (2 ** (8 * dtype.itemsize) - 1)
        assert made.tolist() == said, dtype


def torchs_chain(inputs: list[torch.Tensor], used: Combination, dtype: torch.dtype) -> torch.Tensor:
    """The combination in torch, one operation after the other, over whole tensors."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = [inputs[k].to(wide) for k in used.indices]
    if used.kind == "copy":
        return values[0] if inputs[used.indices[0]].dtype != dtype else inputs[used.indices[0]]
    if used.kind == "line":
        base, last = values
        return base + (last - base) * used.weights[1] + 0.0
    total = torch.zeros(len(values[0]), dtype=wide)
    for value, weight in zip(values, used.weights, strict=True):
        total = torch.add(total, value, alpha=weight)
    return total


@st.composite
def many_forms(
    draw: st.DrawFn,
) -> tuple[list[torch.Tensor], list[Combination], torch.dtype, int, int | None]:
    """Inputs, combinations, the output's dtype, the block, and the last checkpoint's place."""
    count, block = draw(st.integers(1, 20)), draw(st.sampled_from([1, 16, 33, 64]))
    size = max(1, draw(st.integers(0, 3)) * block + draw(st.integers(-1, 1)))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    inputs = []
    for _ in range(count):
        dtype = draw(st.sampled_from(INPUTS))
        if draw(st.booleans()):
            numbers = random.normal(size=size) * 10.0 ** random.integers(-9, 5, size=size)
            inputs.append(torch.from_numpy(numbers).to(dtype))
        else:  # any bits: NaN, infinities, denormals, zeros of both signs
            some = random.integers(0, 256, size=size * dtype.itemsize, dtype=np.uint8)
            inputs.append(torch.from_numpy(some).view(dtype))
    used = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["copy", "sum", "sum", "line"] if count > 1 else ["copy", "sum"]))
        terms = {"copy": 1, "line": 2}.get(kind) or draw(st.integers(1, count))
        indices = tuple(sorted(random.choice(count, terms, replace=False).tolist()))
        weights = (1.0,) if kind == "copy" else tuple(random.normal(size=terms).tolist())
        used.append(Combination(kind, indices, weights))
    return inputs, used, draw(st.sampled_from(INPUTS)), block, draw(st.sampled_from([None, count - 1]))


@settings(max_examples=300, deadline=None)
@given(many_forms())
def test_every_form_has_the_bits_of_torchs_chain(
    given_ones: tuple[list[torch.Tensor], list[Combination], torch.dtype, int, int | None],
) -> None:
    inputs, used, dtype, block, last = given_ones
    outputs = [torch.zeros(len(inputs[0])).to(dtype) for _ in used]
    made = make(Combiner(len(used), max(4, dtype.itemsize), block=block), inputs, used, outputs, last)
    for one, combined, output in zip(made, used, outputs, strict=True):
        total = torchs_chain(inputs, combined, dtype)
        expected = total if total.dtype == dtype else torchs_cast(total, dtype)
        assert_same_numbers(output, expected)
        assert one.non_finite == int((~expected.double().isfinite()).sum())
        as_last = last is not None and inputs[last].dtype == dtype
        assert one.identical is (as_last and bool((raw(output) == raw(inputs[-1])).all()))
        if combined.kind == "copy" and inputs[combined.indices[0]].dtype == dtype:
            assert torch.equal(bits(output), bits(expected)), "whatever a NaN's payload"


@pytest.mark.parametrize("size", [0, 1, kernels.BLOCK - 1, kernels.BLOCK, kernels.BLOCK + 1, 2**16 + 5])
def test_counts_and_sameness_over_blocks_as_merges_use_them(size: int) -> None:
    last = torch.full((size,), 0.75).bfloat16()
    outputs = [torch.zeros(size).bfloat16() for _ in range(3)]
    used = [
        Combination("line", (0, 1), (-1.0, 2.0)),
        Combination("copy", (1,), (1.0,)),
        Combination("sum", (0,), (0.5,)),
    ]
    made = make(Combiner(3), [last, last], used, outputs, last=1)
    assert made == [Made(0, True), Made(0, True), Made(0, size == 0)]
    if size:
        base = last.clone()
        base[-1] = math.inf
        made = make(Combiner(3), [base, last], used, outputs, last=1)
        assert made == [Made(1, False), Made(0, True), Made(1, False)]
        assert torch.equal(bits(outputs[0][:-1]), bits(last[:-1]))


def test_numbers_of_another_dtype_are_not_the_last_checkpoints() -> None:
    zeros, output = torch.zeros(9), torch.ones(9).bfloat16()
    assert make(Combiner(1), [zeros], [Combination("sum", (0,), (1.0,))], [output], last=0) == [
        Made(0, False)
    ]
    assert not output.any()


@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("dtype", INPUTS)
def test_numbers_may_lie_at_any_address(dtype: torch.dtype, offset: int) -> None:
    values = torch.linspace(-3, 3, 77).to(dtype)
    used = [Combination("sum", (0, 1), (0.25, -1.5))]
    expected, memory = torch.zeros_like(values), np.zeros(77 * dtype.itemsize + offset, np.uint8)
    make(Combiner(1, 8), [values, values], used, [expected])
    stored, made = memory.copy()[offset:], memory[offset:]
    stored[:] = raw(values)
    Combiner(1, 8).combine([stored, raw(values)], [NAMES[dtype]] * 2, used, [made], NAMES[dtype])
    assert (made == raw(expected)).all()


def test_compiled_loops_get_no_memory_but_what_there_is() -> None:
    data, used = np.zeros(8, np.uint8), [Combination("sum", (0,), (0.5,))]
    for inputs, outputs, name in (
        ([data[:6]], [data.copy()], "BF16"),
        ([data], [data[:6].copy()], "BF16"),
        ([np.zeros(16, np.uint8)[::2]], [data.copy()], "BF16"),
        ([data], [data.copy()], "F64"),  # without room for a sum in float64
    ):
        with pytest.raises(ValueError, match=r"bytes where|no memory"):
            Combiner(1).combine(inputs, [name], used, outputs, name)
    with pytest.raises(ValueError, match="no memory"):
        Combiner(1).combine([data], ["BF16"], used * 2, [data.copy(), data.copy()], "BF16")


def test_several_workers_at_once() -> None:
    """Each with a combiner of its own, none holding the GIL."""
    inputs = [hard_values(50_000, seed=k).bfloat16() for k in range(3)]
    used = [Combination("sum", (0, 1, 2), (0.3, -0.6, 1.3))]

    def work(_: int) -> torch.Tensor:
        output = torch.empty_like(inputs[0])
        make(Combiner(1), inputs, used, [output])
        return output

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(16)))
    assert all(torch.equal(bits(result), bits(results[0])) for result in results)
