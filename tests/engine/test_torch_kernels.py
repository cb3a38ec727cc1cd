"""torch's kernels, for CUDA devices: the bits and the findings of the compiled ones."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from hubextrap.engine.comparison import FLOATS
from hubextrap.engine.kernels import Combiner, check_device
from hubextrap.engine.plan import combination
from hubextrap.engine.torch_kernels import (
    TorchCombiner,
    count_non_finite,
    device_gives_cpu_bytes,
    torch_dtype,
)
from hubextrap.engine.units import Made
from hubextrap.errors import MethodError
from hubextrap.tensors import DTYPES

ROWS = ([0.3, -0.6, 1.3], [-0.5, 0.0, 1.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
FORMS = [combination(np.array(row), range(3)) for row in ROWS]


def numbers(dtype: str, count: int, seed: int) -> np.ndarray:
    """The bytes of numbers of many sizes, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    values = 20 * torch.randn(count, generator=generator, dtype=torch.float64)
    values[::7] *= 1e-9
    values[::5] = torch.linspace(-600, 600, len(values[::5]))  # around the largest float8_e4m3fn
    values[[1, 2, count - 1]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    made: np.ndarray = values.to(torch_dtype(dtype)).view(torch.uint8).numpy()
    return made


def combined(
    combiner: Any, dtypes: list[str], dtype: str, last: int | None, count: int = 700
) -> tuple[list[bytes], list[Made]]:
    inputs = [numbers(one, count, seed) for seed, one in enumerate(dtypes)]
    outputs = [np.full(count * DTYPES[dtype].itemsize, 7, np.uint8) for _ in FORMS]
    made = combiner.combine(inputs, dtypes, FORMS, outputs, dtype, last=last)
    return [without_payloads(output, dtype) for output in outputs], made


def without_payloads(output: np.ndarray, dtype: str) -> bytes:
    """The bytes, with one NaN for all: torch's casts give several, by its version and by a number's place."""
    nan = torch.from_numpy(output).view(torch_dtype(dtype)).double().isnan().numpy()
    output.reshape(len(nan), -1)[nan] = 0xFF
    return output.tobytes()


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_they_are_the_compiled_ones(dtype: str, out: str, device: str) -> None:
    """``cpu:0`` is this processor too, and is staged like a GPU."""
    for dtypes, last in (([dtype] * 3, 2), (["F32", "BF16", dtype], 2), ([dtype] * 3, None)):
        compiled = combined(Combiner(4, 8), dtypes, out, last)
        assert combined(TorchCombiner(4, 8, device, block=256), dtypes, out, last) == compiled
        assert [one.identical for one in compiled[1]] == [False] * 3 + [last is not None and out == dtype]
        assert compiled[1][2].non_finite >= 1, "float8_e4m3fn has no infinity, and torch makes 448 of it"


def test_whoever_rounds_otherwise_is_found_out() -> None:
    assert device_gives_cpu_bytes("cpu", Combiner(2).combine) is True

    def unfused(inputs: Any, dtypes: Any, combinations: Any, outputs: Any, dtype: str) -> Any:
        """Sums that are rounded twice, as of a processor that has no fused multiply-add."""
        for form, output in zip(combinations, outputs, strict=True):
            used = zip(form.indices, form.weights, strict=True)
            parts = [np.float32(weight) * inputs[i].view(np.float32) for i, weight in used]
            total = torch.from_numpy(sum(parts, start=np.zeros_like(parts[0])))
            output[:] = total.to(torch_dtype(dtype)).view(torch.uint8).numpy()

    assert device_gives_cpu_bytes("cpu", unfused) is False


@pytest.mark.parametrize(
    "dtype", [name for name in DTYPES if name[0] in "FBC" and name not in ("BOOL", "F8_E8M0")]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_counts_what_is_not_finite_in_tensors(dtype: str, value: float) -> None:
    tensor = torch.ones(1000).to(torch_dtype(dtype))
    assert count_non_finite(tensor, block=64) == 0
    bits = tensor.view(-1, 1).view(torch.uint8)  # torch 2.6 picks no single float8 numbers
    one = math.nan if dtype == "F8_E4M3" else value  # which has no infinity
    bits[[0, 63, 64, 999]] = torch.tensor([one]).to(torch_dtype(dtype)).view(-1, 1).view(torch.uint8)
    assert count_non_finite(tensor, block=64) == 4


def test_large_finite_tensors_are_no_false_alarm() -> None:
    assert count_non_finite(torch.full((100,), 60000.0).half()) == 0
    assert count_non_finite(torch.full((100,), 3e38)) == 0
    assert count_non_finite(torch.full((100,), 3e38).bfloat16()) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_bits() -> None:
    check_device("cuda")
    for dtype in FLOATS[1:]:
        for out in ("F32", "BF16", "F16"):
            compiled = combined(Combiner(4), [dtype] * 3, out, 2, count=3000)
            assert (
                combined(TorchCombiner(4, device="cuda", block=1024), [dtype] * 3, out, 2, 3000) == compiled
            )


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


def test_the_cpu_is_not_asked() -> None:
    program = "import sys; from hubextrap.engine.kernels import check_device; check_device('cpu')"
    subprocess.run([sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules"], check=True)
