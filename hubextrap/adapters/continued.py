"""Factors that training goes on from: of all that make one product, those nearest to what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.floating]
    Matrices = NDArray[np.float64]

FLATTEST = 1e-3
"""A factor's singular values below this share of its largest say nothing of how large it should be."""
ROUNDING = 1e-14
"""Singular values of a product below this share of its largest are float64 rounding."""


def continued(
    left: Numbers, right: Numbers, old: tuple[Numbers, Numbers], *, keep_left: bool
) -> tuple[Matrices, Matrices]:
    """The product left·right by factors as they were, for each of E matrices.

    The learning rate suits the sizes that the factors have, and a row of one that is made as small as its
    column of the other would hardly ever learn again. So the factor that LoRA begins at random stays as it
    was, but for the product's own row space; the other, which it begins at 0, takes the motion, as it does in
    training. Where the product is that of the old factors, so are the new ones.

    Args:
        left: (E, rows, N).
        right: (E, N, columns).
        old: (E, rows, r) and (E, r, columns); no product has a rank above r.
        keep_left: the left one stays; else the right one.

    Returns:
        float64 (E, rows, r) and (E, r, columns).
    """
    if keep_left:
        turned = (old[1].swapaxes(1, 2), old[0].swapaxes(1, 2))
        mirrored = continued(right.swapaxes(1, 2), left.swapaxes(1, 2), turned, keep_left=False)
        return mirrored[1].swapaxes(1, 2), mirrored[0].swapaxes(1, 2)
    made = [_beside(*one) for one in zip(left, right, old[1], strict=True)]
    return np.stack([one for one, _ in made]), np.stack([one for _, one in made])


def _beside(left: Numbers, right: Numbers, old: Numbers) -> tuple[Matrices, Matrices]:
    """B (rows, r) and A (r, columns) of one product left·right, A near the old one.

    A's part in the product's row space V is M·Vᵀ with M = A·V. Where the product has turned away from A, M is
    nearly singular, and B would be huge; so M's singular values are kept from falling far below A's own. A's
    part outside is left where no column of B meets it: no direction dies for want of energy in the product.
    """
    a = np.asarray(old, np.float64)
    values = np.linalg.svd(a, compute_uv=False)
    basis, _ = np.linalg.qr(np.asarray(right, np.float64).T)
    core, strengths, rows = np.linalg.svd(left @ (right @ basis), full_matrices=False)
    alive = strengths > ROUNDING * strengths.max(initial=0.0)
    rows = rows[alive] @ basis.T
    turned, sizes, axes = np.linalg.svd(a @ rows.T, full_matrices=False)
    least = 0.5 * max(float(values[-1]), FLATTEST * float(values[0])) or 1.0
    sizes = np.maximum(sizes, least)
    new_a = (turned * sizes) @ axes @ rows + a - turned @ (turned.T @ a)
    return ((core[:, alive] * strengths[alive]) @ axes.T / sizes) @ turned.T, new_a
