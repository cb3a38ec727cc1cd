"""LoRA in training: jumps in the product B·A, whose factors by themselves lie on no line that means anything.

W = W₀ + s·B·A is not linear in A and B together, so Σ c_k·W_k is W₀ + s·Σ c_k·B_k·A_k. That sum has a rank of
up to K·r; it is cut to the adapter's own r by its singular values, and written back as two factors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from hubextrap.adapters.continued import continued
from hubextrap.adapters.recompress import MOST_LOST, recompressed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.regrounding.history import Decision
    from hubextrap.regrounding.ring import SnapshotRing


@dataclass(frozen=True, slots=True)
class FactorPair:
    """Both trained factors of one tensor, by their parameters' names."""

    name: str
    """Of the base's tensor."""
    a: str
    """(experts·rank, columns)."""
    b: str
    """(rows, rank·experts): the experts of one row lie side by side, as peft has them."""
    rank: int
    scaling: float
    experts: int = 1
    embedding: bool = False
    """Whether A, not B, begins at 0."""

    def factors(self, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(E, rows, rank) and (E, rank, columns), views of B and A in whatever shape."""
        left = b.reshape(-1, self.rank, self.experts).permute(2, 0, 1)
        return left, a.reshape(self.experts, self.rank, -1)

    def read(self, ring: SnapshotRing, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of one snapshot, on the CPU in their own dtype."""
        return self.factors(ring.read(step, self.b), ring.read(step, self.a))


@dataclass(frozen=True, slots=True)
class Cut:
    """What the products of a jump lost when they were cut to their rank."""

    lost: float
    """Share of Σ‖s·Σ c_k·B_k·A_k‖² over all products."""
    most: float
    """The largest share that a single one lost."""
    name: str
    """Whose."""

    def in_words(self) -> str:
        return (
            f"cutting the products to the adapter's rank lost {self.lost:.2%} of their energy, most of "
            f"{self.name}: {self.most:.2%}"
        )


def moving(names: Collection[str], pairs: Sequence[FactorPair]) -> list[tuple[str, FactorPair | None]]:
    """What a rule is fitted to: products, then every other tensor, by name."""
    parts = {part for pair in pairs for part in (pair.a, pair.b)}
    return [*((pair.name, pair) for pair in pairs), *((name, None) for name in names if name not in parts)]


def product_gram(
    ring: SnapshotRing, steps: Sequence[int], pair: FactorPair, device: torch.device
) -> NDArray[np.float64]:
    """(K, K): ⟨W_i − W_0, W_j − W_0⟩ of a product over K snapshots, in float64, from its factors alone.

    With b_i = B_i − B_0 and a_i alike, B_i·A_i − B_0·A_0 = b_i·A_0 + B_0·a_i + b_i·a_i: nothing large is
    subtracted from anything large. ⟨b·a, b'·a'⟩ = Σ (bᵀb')∘(a·a'ᵀ).
    """
    count = len(steps)
    lefts, rights = (torch.stack(parts) for parts in zip(*(pair.read(ring, k) for k in steps), strict=True))
    inner = torch.zeros((count,) * 4, dtype=torch.float64, device=device)
    for expert in range(pair.experts):
        b, a = (part[:, expert].to(device, torch.float64) for part in (lefts, rights))
        b[1:] -= b[0].clone()
        a[1:] -= a[0].clone()
        outer = (torch.einsum("iak,jal->ikjl", b, b), torch.einsum("ika,jla->ikjl", a, a))
        inner += torch.einsum("ikjl,mknl->ijmn", *outer)  # ⟨b_i·a_m, b_j·a_n⟩
    number = np.arange(count)
    left, right = np.stack([number, 0 * number, number]), np.stack([0 * number, number, number])
    terms = inner.cpu().numpy()[
        left[:, None, :, None], left[None, :, None, :], right[:, None, :, None], right[None, :, None, :]
    ]
    gram = pair.scaling**2 * terms.sum(axis=(0, 1))
    gram[0], gram[:, 0] = 0.0, 0.0
    return np.asarray(gram)


def jumped(
    ring: SnapshotRing, steps: Sequence[int], row: Sequence[float], pair: FactorPair
) -> tuple[torch.Tensor, torch.Tensor, float, float] | None:
    """B and A of Σ c_k·B_k·A_k cut to the rank, flat, in float64; its energy, and what share of it was lost.

    None where the factors never moved.
    """
    snapshots = [pair.read(ring, step) for step in steps]
    last = snapshots[-1]
    if all(torch.equal(b, last[0]) and torch.equal(a, last[1]) for b, a in snapshots):
        return None
    terms = [
        (coefficient, b.double().numpy(), a.double().numpy())
        for coefficient, (b, a) in zip(row, snapshots, strict=True)
        if coefficient != 0.0
    ]
    left, right, lost = recompressed(terms, pair.rank)
    kept = float(np.sum((left.swapaxes(1, 2) @ left) * (right @ right.swapaxes(1, 2))))
    old = last[0].double().numpy(), last[1].double().numpy()
    b, a = map(torch.from_numpy, continued(left, right, old, keep_left=pair.embedding))
    energy = pair.scaling**2 * kept / (1.0 - lost) if lost < 1.0 else 0.0
    return b.permute(1, 2, 0).reshape(-1), a.reshape(-1), energy, lost


def cut_of(found: Mapping[str, tuple[float, float]]) -> Cut | None:
    """All products' together.

    Args:
        found: the energy of each, and the share of it that was lost.
    """
    total = sum(energy for energy, _ in found.values())
    if total == 0.0:
        return None
    name = max(found, key=lambda name: found[name][1])
    return Cut(sum(energy * lost for energy, lost in found.values()) / total, found[name][1], name)


def with_cut(decision: Decision, cut: Cut | None) -> Decision:
    """The decision to jump, with what LoRA's rank cost it."""
    if cut is None:
        return decision
    reason = decision.reason if cut.lost <= MOST_LOST else f"{decision.reason}; {cut.in_words()}"
    return replace(decision, reason=reason, lost_energy=cut.lost)
