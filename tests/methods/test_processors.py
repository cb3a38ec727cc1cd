"""The same coefficients on every processor: BLAS, numpy and libm choose their kernels by its features."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from hubextrap.methods import coefficients, on_grid
from hubextrap.methods.lines import GRID

KERNELS = [
    {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"},
    {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
]
"""What other processors would choose; a name that numpy does not know has no effect."""

PROGRAM = """
import hashlib, math
import numpy as np
from hubextrap.methods import coefficients

def gram_matrix(rng, count, noise):
    steps = np.linspace(0.0, 1.0, count)[:, None]
    weights = steps * rng.integers(-999, 1000, 257) / 1000
    weights += noise * rng.integers(-999, 1000, (count, 257)) / 1000
    weights -= weights[0]
    return np.array([[math.fsum((a * b).tolist()) for b in weights] for a in weights])  # right in every digit

raw, found = hashlib.sha256(), []
for count in (5, 9, 17):
    rng = np.random.default_rng(count)
    steps = [0, *np.cumsum(rng.integers(8, 14, count - 1)).tolist()]
    for noise in (0.02, 0.4):
        gram = gram_matrix(rng, count, noise)
        values, vectors = np.linalg.eigh(gram)
        raw.update(values.tobytes() + vectors.tobytes())
        for method, parameters, damping in (
            ("low_rank", {}, 1.0), ("low_rank", {"rank": 2}, 1.0), ("low_rank", {}, "auto"),
            ("calibrated", {}, 1.0), ("calibrated", {}, "auto"), ("least_squares", {}, "auto"),
            ("two_point", {"base_step": "auto"}, 1.0), ("two_point", {}, "auto"),
            ("least_squares", {}, 1.0), ("least_squares", {"through_last": True}, 1.0), ("ema", {}, 1.0),
        ):
            row = coefficients(method, steps, steps[-1] * 1.4, parameters, damping=damping, gram_matrix=gram)
            found.append(f"{method} {parameters} {damping}: {[c.hex() for c in row.tolist()]}")
print(raw.hexdigest())
print("\\n".join(found))
"""


def under(environment: dict[str, str]) -> tuple[str, list[str]]:
    """A digest of eigenvectors as they come, and the coefficients, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    raw, *found = done.stdout.splitlines()
    return raw, found


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the kernels that are named are x86's")
def test_coefficients_do_not_depend_on_the_kernels() -> None:
    raw, found = under({})
    assert len(found) == 66
    digests = {raw}
    for environment in KERNELS:
        other, rows = under(environment)
        digests.add(other)
        assert rows == found, environment
    assert len(digests) > 1, "the kernels agree to the last digit, so this shows nothing"


def test_coefficients_lie_on_the_grid_and_sum_to_one_exactly() -> None:
    rng = np.random.default_rng(0)
    weights = np.linspace(0, 1, 9)[:, None] * rng.normal(size=500) + 0.1 * rng.normal(size=(9, 500))
    weights -= weights[0]
    steps = list(range(0, 90, 10))
    for method in ("low_rank", "calibrated"):
        row = coefficients(method, steps, 160, gram_matrix=weights @ weights.T)
        assert row.sum() == 1.0
        assert (row / GRID == np.rint(row / GRID)).all()
        assert np.count_nonzero(row) > 2


def test_the_grid_moves_a_prediction_by_less_than_its_error_by_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a grid step a checkpoint: 1e-5 of the predicted motion, where errors are tenths of it."""
    rng = np.random.default_rng(1)
    weights = np.linspace(0, 1, 16)[:, None] * rng.normal(size=2000) + 0.05 * rng.normal(size=(16, 2000))
    weights -= weights[0]
    steps, gram = list(range(0, 160, 10)), weights @ weights.T
    for method in ("low_rank", "calibrated"):
        fine = coefficients(method, steps, 220, gram_matrix=gram)
        monkeypatch.setattr("hubextrap.methods.checking.on_grid", lambda values: values)
        exact = coefficients(method, steps, 220, gram_matrix=gram)
        monkeypatch.undo()
        assert 0 < np.abs(fine - exact).max() <= GRID * len(steps)
        motion = np.linalg.norm(exact @ weights - weights[-1])
        assert np.linalg.norm((fine - exact) @ weights) < 1e-5 * motion


def test_closed_forms_are_not_rounded() -> None:
    row = coefficients("two_point", [0, 30], 40)
    assert row.tolist() == [1 - 4 / 3, 4 / 3]
    assert (on_grid(row) != row).all()
