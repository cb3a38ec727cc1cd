"""Sums of products of factors as one product: exact, or cut to a rank as the best one of that rank."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController, threadpool_info

from hubextrap.adapters.blas import controls
from hubextrap.adapters.recompress import Term, recompressed


def some_terms(seed: int, experts: int, rows: int, columns: int, ranks: list[int]) -> list[Term]:
    random = np.random.default_rng(seed)
    return [
        (
            float(random.normal()),
            random.normal(size=(experts, rows, rank)).astype(np.float32),
            random.normal(size=(experts, rank, columns)).astype(np.float32),
        )
        for rank in ranks
    ]


def formed(terms: list[Term]) -> NDArray[np.float64]:
    """The sum itself."""
    total: NDArray[np.float64] = sum(w * a.astype(np.float64) @ b.astype(np.float64) for w, a, b in terms)  # type: ignore[assignment]
    return total


shapes = st.tuples(
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 2**31), st.integers(1, 30))
def test_a_cut_is_the_best_of_its_rank_and_says_what_it_loses(
    shape: tuple[int, int, int, list[int]], seed: int, rank: int
) -> None:
    """Eckart and Young: no matrix of that rank is nearer than the truncated decomposition; numpy's, here."""
    terms = some_terms(seed, *shape)
    wanted, (left, right, lost) = formed(terms), recompressed(terms, rank)
    experts, rows, columns, _ = shape
    assert left.shape == (experts, rows, rank)
    assert right.shape == (experts, rank, columns)
    values = np.linalg.svd(wanted, compute_uv=False)
    share = np.sum(values[:, rank:] ** 2) / np.sum(values**2)
    assert abs(lost - share) < 1e-12
    missed = np.sum((wanted - left @ right) ** 2) / np.sum(wanted**2)
    assert abs(missed - share) < 1e-12
    assert np.allclose(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=2), rtol=1e-6, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_side_by_side_nothing_is_lost(shape: tuple[int, int, int, list[int]], seed: int) -> None:
    terms = some_terms(seed, *shape)
    left, right, lost = recompressed(terms, None)
    assert lost == 0
    assert left.shape[2] == right.shape[1] == sum(shape[3])
    assert np.allclose(left @ right, formed(terms), rtol=1e-12, atol=1e-12)
    first = shape[3][0]
    sizes = np.linalg.norm(left[:, :, :first]), np.linalg.norm(right[:, :first])
    assert 0.49 < sizes[0] / sizes[1] < 2.01
    assert np.array_equal(np.frexp(right[:, :first])[0], np.frexp(terms[0][2])[0]), (
        "a power of 2, no rounding"
    )


def test_what_a_product_has_no_rank_for_is_zeros() -> None:
    terms = some_terms(1, 1, 20, 30, [2])
    terms += [(-weight / 2, left, right) for weight, left, right in terms]  # of the same two directions
    left, right, lost = recompressed(terms, 5)
    assert lost < 1e-30
    assert not left[:, :, 2:].any()
    assert not right[:, 2:].any()
    assert np.allclose(left @ right, formed(terms))


def test_of_nothing_comes_nothing() -> None:
    nothing: Term = (2.0, np.zeros((1, 4, 2), np.float32), np.ones((1, 2, 3), np.float32))
    for rank in (3, None):
        left, right, lost = recompressed([nothing], rank)
        assert not (left @ right).any()
        assert lost == 0
        assert np.isfinite(left).all()
        assert np.isfinite(right).all()
    with pytest.raises(ValueError, match="concatenate"):
        recompressed([], 2)


def test_factors_do_not_depend_on_how_their_sum_came_about() -> None:
    """Signs of singular vectors are free: one is chosen."""
    terms = some_terms(4, 1, 30, 20, [2, 3])
    turned = [(weight, -left, -right) for weight, left, right in reversed(terms)]
    for one, other in zip(recompressed(terms, 4)[:2], recompressed(turned, 4)[:2], strict=True):
        assert np.allclose(one, other, rtol=1e-9, atol=1e-9)


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """BLAS has two, set by the thread that sets limits: threadpoolctl lets no other do it."""
    limits = controls().submit(ThreadpoolController().limit, limits=2, user_api="blas").result()
    yield
    controls().submit(limits.restore_original_limits).result()


@pytest.mark.usefixtures("two_threads")
def test_it_has_blas_to_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at the same time: the last one that ends gives back what there was before the first."""
    seen: list[set[int]] = []
    together = Barrier(4)
    qr = np.linalg.qr

    def watched(matrix: NDArray[np.float64]) -> Any:
        together.wait(10)
        seen.append(blas_threads())
        return qr(matrix)

    monkeypatch.setattr(np.linalg, "qr", watched)
    terms = some_terms(0, 1, 300, 200, [8, 8])
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: recompressed(terms, 8)[0].tobytes(), range(4)))
    assert seen == [{1}] * 8
    assert blas_threads() == {2}
    assert len(set(made)) == 1


def test_sums_beyond_float64() -> None:
    huge = np.full((1, 3, 2), 1e200), np.full((1, 2, 4), 1e200)
    with pytest.raises(np.linalg.LinAlgError):
        recompressed([(1.0, *huge)], 2)
    left, right, lost = recompressed([(0.5, *huge)], None)
    assert (left.max(), right.max(), lost) == (5e199, 1e200, 0.0)
