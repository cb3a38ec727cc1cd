"""A scan that was given instead of being made: whether it is of these checkpoints, and the part that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import CheckpointMismatch, RecipeError
from hubextrap.statistics.table import GramTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hubextrap.clocks import Clock
    from hubextrap.recipe import Recipe
    from hubextrap.scans.scan import Scan
    from hubextrap.trajectory.checkpoint import Checkpoint


def check_same_checkpoints(
    scan: Scan, name: str, checkpoints: Sequence[Checkpoint], fingerprints: Sequence[str]
) -> None:
    """Refuse a scan of other checkpoints, or one that holds others between them.

    Args:
        name: what messages call the scan.
        fingerprints: what stands for the bytes of each checkpoint.

    Raises:
        CheckpointMismatch: names the step.
    """
    pins, steps = dict(scan.pins), tuple(checkpoint.step for checkpoint in checkpoints)
    for checkpoint, fingerprint in zip(checkpoints, fingerprints, strict=True):
        if checkpoint.step not in pins:
            what = f"holds no step {checkpoint.step}, which the recipe observes"
        elif not scan.holds(checkpoint.step, fingerprint, checkpoint.digest):
            since = ", or of these before they were written to" if checkpoint.repo is None else ""
            what = f"holds step {checkpoint.step} of other files than {checkpoint.name}{since}"
        else:
            continue
        raise _mismatch(name, what, checkpoint.step)
    if scan.steps[: len(steps)] != steps:
        step = min(set(scan.steps) - set(steps))
        raise _mismatch(name, f"holds step {step} among those that the recipe observes without it", step)


def part_of_scan(
    scan: Scan, name: str, sizes: Mapping[str, int], steps: tuple[int, ...], clock: Clock
) -> GramTable:
    """The rows and columns that a scan of just these checkpoints would have.

    Of whole models they are the same to the last bit, as each is a sum of moves from the first checkpoint on;
    of adapters to rounding, as one product of the stacked factors gives all of them.

    Args:
        sizes: the elements of each tensor that is wanted.
        steps: of the first checkpoints.

    Raises:
        CheckpointMismatch: it holds a tensor otherwise, or not at all.
    """
    table = scan.gram_table
    place = {tensor: row for row, tensor in enumerate(table.tensors)}
    for tensor, elements in sizes.items():
        if tensor not in place or table.elements[place[tensor]] != elements:
            raise _mismatch(name, f"does not hold tensor {tensor} as the checkpoints do", tensor=tensor)
    rows = [place[tensor] for tensor in sizes]
    count = len(steps)
    gram = np.ascontiguousarray(table.gram[rows, :count, :count])
    sample = table.sample and table.sample.of(np.array(rows, np.int64), count)
    return GramTable(steps, tuple(sizes), table.elements[rows], gram, clock, sample)


def _mismatch(name: str, what: str, step: int | None = None, tensor: str | None = None) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{name}: {what}; give a scan of this recipe: hubextrap scan RECIPE --out FILE",
        file=name,
        step=step,
        tensor=tensor,
    )


def check_counts(scan: Scan, name: str, recipes: Iterable[Recipe]) -> None:
    """Of weights, a scan says what error to expect; of logits, nothing but the coefficients. What is fitted
    is fitted to what the recipe says: all weights, or a sample of one size.

    Raises:
        RecipeError: nothing follows from it, or something else than the recipe asks for.
    """
    recipes = tuple(recipes)
    if not any(recipe.space == "weights" or recipe.needs_scan for recipe in recipes):
        raise RecipeError(
            f"--scan: {name} has no effect with space: logits and a method that does not need what a scan "
            "knows; leave it out"
        )
    for recipe in recipes:
        if recipe.needs_scan and recipe.fit_sample != sample_of(scan):
            raise RecipeError(_other_weights(name, sample_of(scan), recipe.fit_sample))


def sample_of(scan: Scan) -> int | None:
    """How many weights of each tensor its Gram matrices are estimates from; None: they are exact."""
    return None if scan.weights is None else scan.weights.size


def _other_weights(name: str, there: int | None, asked: int | None) -> str:
    """That a scan is of other weights than a recipe's coefficients are to follow from; each way out."""
    holds = "all weights say" if there is None else f"a sample of {there:,} weights per tensor says"
    wants = "all weights" if asked is None else f"a sample of {asked:,} weights per tensor"
    write = "leave fit out" if there is None else f"write fit: {{sample: {there}}}"
    again = "--exact" if asked is None else f"--sample {asked}"
    return (
        f"--scan: {name} holds what {holds}, and the recipe's coefficients follow from {wants}; {write} "
        f"under its parameters, or scan again: hubextrap scan RECIPE {again} --out FILE"
    )
