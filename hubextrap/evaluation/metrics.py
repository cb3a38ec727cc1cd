"""Figures of one problem that was answered n times: avg@n, pass@k, maj@n. Scores are their means.."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence


def avg_at_n(right: Sequence[bool]) -> float:
    """The share of the samples that is right; its mean over problems is also called mean@n, or pass@1."""
    return sum(right) / len(right)


def pass_at_k(right: Sequence[bool], k: int) -> float:
    """The chance that at least one of k samples is right, without bias from the n ≥ k that were drawn.

    1 − C(n−c, k) / C(n, k) with c right ones, as a product: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: k is not in 1 … n.
    """
    n, wrong = len(right), len(right) - sum(right)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples, and k at least 1; {n} were drawn")
    if wrong < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(wrong + 1, n + 1))


def maj_at_n(answers: Sequence[Hashable | None], right: Sequence[bool]) -> float:
    """Whether the commonest answer is right; the share of right ones where several are commonest.

    Args:
        answers: what makes two samples the same vote; None is no answer and no vote.
        right: of each sample; equal answers are equally right.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    verdict = dict(zip(answers, right, strict=True))
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(verdict[answer] for answer in winners) / len(winners)


def figures_of_samples(answers: Sequence[Hashable | None], right: Sequence[bool]) -> dict[str, float]:
    """Every figure of one problem by the name that tables show, for lm-eval's ``process_results``."""
    n = len(right)
    return (
        {f"avg@{n}": avg_at_n(right)}
        | {f"maj@{n}": maj_at_n(answers, right)}
        | {f"pass@{k}": pass_at_k(right, k) for k in pass_ks(n)}
    )


def pass_ks(n: int) -> tuple[int, ...]:
    """The k of pass@k that are reported for n samples: 4, 16, 64 … below n, and n."""
    ks, k = [], 4
    while k < n:
        ks.append(k)
        k *= 4
    return (*ks, n)


def sample_metrics(n: int) -> list[Mapping[str, object]]:
    """lm-eval's ``metric_list`` for what `figures_of_samples` gives."""
    names = [f"avg@{n}", f"maj@{n}", *(f"pass@{k}" for k in pass_ks(n))]
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]
