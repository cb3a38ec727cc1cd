"""Inner products from factors, held to those of the products written out in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubextrap.adapters import gram
from hubextrap.adapters.gram import centred, elements_at, groups, inner_products


@dataclass(frozen=True)
class Factored:
    scale: float
    left: NDArray[np.floating]
    right: NDArray[np.floating]

    @property
    def whole(self) -> NDArray[np.float64]:
        left, right = self.left.astype(np.float64), self.right.astype(np.float64)
        return np.asarray(self.scale * (left @ right)).reshape(-1)


def factored(
    ranks: Sequence[int], rows: int, columns: int, experts: int = 1, dtype: type = np.float32
) -> list[Factored]:
    generator = np.random.default_rng(len(ranks) + rows)
    return [
        Factored(
            0.5 + k,
            generator.standard_normal((experts, rows, rank)).astype(dtype),
            generator.standard_normal((experts, rank, columns)).astype(dtype),
        )
        for k, rank in enumerate(ranks)
    ]


def products_of(ones: Sequence[Factored]) -> NDArray[np.float64]:
    ranks = [one.right.shape[1] for one in ones]
    return inner_products(lambda k: ones[k], ranks, [one.left.nbytes + one.right.nbytes for one in ones])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([np.float32, np.float64]),
)
def test_they_are_those_of_the_products(
    ranks: list[int], rows: int, columns: int, experts: int, dtype: type
) -> None:
    ones = factored(ranks, rows, columns, experts, dtype)
    whole = np.stack([one.whole for one in ones])
    wanted = whole @ whole.T
    found = products_of(ones)
    sizes = [one.scale * np.linalg.norm(one.left) * np.linalg.norm(one.right) for one in ones]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13 * max(sizes) ** 2)


def test_long_factors_are_multiplied_in_parts_and_many_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = factored([3, 5, 2, 4, 6], 83, 57)
    whole = np.stack([one.whole for one in ones])
    wanted = whole @ whole.T
    monkeypatch.setattr(gram, "LENGTH", 10)
    monkeypatch.setattr(gram, "RANKS", 8)
    assert groups([3, 5, 2, 4, 6], [0] * 5) == [range(2), range(2, 4), range(4, 5)]
    np.testing.assert_allclose(products_of(ones), wanted, rtol=0, atol=1e-12 * wanted.max())


def test_groups_keep_to_ranks_and_bytes() -> None:
    assert groups([], []) == []
    assert groups([512], [0]) == [range(1)]
    assert groups([256, 256], [0, 0]) == [range(2)]
    assert groups([256, 257], [0, 0]) == [range(1), range(1, 2)]
    assert groups([1, 1, 1], [2**25, 2**25, 1]) == [range(2), range(2, 3)]
    assert groups([600, 1], [2**30, 1]) == [range(1), range(1, 2)]


@pytest.mark.slow
def test_no_number_of_blas_threads_changes_a_bit() -> None:
    """The number of threads that OpenBLAS begins with, in processes of their own."""
    code = (
        "import hashlib, numpy as np\n"
        "from types import SimpleNamespace as N\n"
        "from hubextrap.adapters.blas import one_blas_thread\n"
        "from hubextrap.adapters.gram import inner_products\n"
        "r = np.random.default_rng(0)\n"
        "ones = [N(scale=2.0, left=r.standard_normal((1, 900, 16)), right=r.standard_normal((1, 16, 700)))"
        " for _ in range(20)]\n"
        "with one_blas_thread():\n"
        "    found = inner_products(lambda k: ones[k], [16] * 20, [1] * 20)\n"
        "print(hashlib.sha256(found.tobytes()).hexdigest())\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"OPENBLAS_NUM_THREADS": count, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for count in ("1", "2", "5")
    }
    assert len(hashes) == 1


def test_moves_are_counted_from_the_first() -> None:
    ones = factored([3] * 5, 20, 30)
    whole = np.stack([one.whole for one in ones])
    for first in (0, 3):
        moves = whole - whole[first]
        found = centred(products_of(ones), first)
        np.testing.assert_allclose(found, moves @ moves.T, rtol=0, atol=1e-12 * np.abs(found).max())
        np.testing.assert_array_equal(found, found.T)
        assert not found[first].any()


def test_what_rounding_made_of_no_move_can_be_a_gram_matrix() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((6, 6))
    found = centred(1e6 + 1e-10 * (noise + noise.T), 0)
    assert np.linalg.eigvalsh(found)[0] >= -1e-6 * found.max()
    assert found.max() > 0
    assert not found[0].any()
    np.testing.assert_array_equal(found, found.T)
    assert not centred(np.full((4, 4), 3.7), 0).any()


@pytest.mark.parametrize("experts", [1, 3])
def test_single_elements_are_those_of_the_product(experts: int) -> None:
    [one] = factored([4], 11, 7, experts)
    places = np.array([0, 1, 6, 7, 76, *range(77 * experts - 3, 77 * experts)])
    np.testing.assert_allclose(elements_at(one, places), one.whole[places], rtol=1e-12)
    assert elements_at(one, places[:0]).shape == (0,)
