"""Rules whose coefficients depend on the weights: scan, then fit; and what to expect of a prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from glob import escape
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.api.outlook import Outlook, outlooks_of
from hubextrap.methods import Rule, assign_rules
from hubextrap.statistics import tensors_at_once

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.statistics import GramTable
    from hubextrap.tensors.layout import CheckpointLayout


@dataclass(frozen=True, slots=True)
class FittedRules:
    """Every rule with its coefficients, (targets, checkpoints); one per tensor where weights decide."""

    rules: tuple[tuple[Rule, NDArray[np.float64]], ...]
    by_tensor: dict[str, NDArray[np.float64]]
    outlooks: tuple[Outlook, ...]
    """One per target; of unknown errors where nothing was scanned."""
    pending: bool
    """Whether coefficients stand in for some that follow from the weights, which were not read."""


def fit_rules(
    recipe: Recipe,
    run: Run,
    layouts: Sequence[CheckpointLayout],
    table: GramTable | None,
) -> FittedRules:
    """The coefficients of every tensor.

    Args:
        recipe: `Run.settled`.
        table: of the weights; None where it is not needed, or not known yet.

    Raises:
        MethodError: a method cannot serve these steps or weights, or ``max_expected_error`` is exceeded.
        RecipeError: a rule takes no tensor.
    """
    steps, targets = run.times, run.target_times(recipe)
    rules = recipe.rules
    lacking = (name for one in layouts for name in one.tensors if name not in layouts[-1].tensors)
    assigned = assign_rules(rules, layouts[-1].predicted, lacking)
    fitted: list[tuple[Rule, NDArray[np.float64]]] = []
    by_tensor: dict[str, NDArray[np.float64]] = {}
    place = {} if table is None else {name: row for row, name in enumerate(table.tensors)}
    taken: dict[int, list[str]] = {id(rule): [] for rule in rules}
    for name, rule in assigned.items():
        taken[id(rule)].append(name)
    for rule in rules:
        names = taken[id(rule)]
        if not rule.needs_gram_matrix:
            rows = rule.coefficients(steps, targets)
            fitted.append((rule, rows))
            by_tensor |= dict.fromkeys(names, rows)
        elif table is None:
            rows = np.full((len(targets), len(steps)), 1.0 / len(steps))
            fitted.append((rule, rows))
            by_tensor |= {name: rows.copy() for name in names}  # as many as there will be
        else:
            for name, rows in _fit_tensors(rule, names, steps, targets, table, place).items():
                fitted.append((replace(rule, match=(escape(name),)), rows))
                by_tensor[name] = rows
    dtypes = {info.dtype for layout in layouts for info in layout.tensors.values()}
    outlooks = outlooks_of(recipe, run, table, dtypes)
    return FittedRules(tuple(fitted), by_tensor, outlooks, recipe.needs_scan and table is None)


def stacked(several: Sequence[FittedRules]) -> FittedRules:
    """The targets of several recipes one after the other, for one pass over the weights."""
    if len(several) == 1:
        return several[0]
    stacks: dict[tuple[int, ...], NDArray[np.float64]] = {}  # tensors that share rows go on sharing them
    by_tensor: dict[str, NDArray[np.float64]] = {}
    for name in several[0].by_tensor:
        rows = [fitted.by_tensor[name] for fitted in several]
        key = tuple(map(id, rows))
        if key not in stacks:
            stacks[key] = np.concatenate(rows)
        by_tensor[name] = stacks[key]
    return FittedRules(
        tuple(rule for fitted in several for rule in fitted.rules),
        by_tensor,
        tuple(outlook for fitted in several for outlook in fitted.outlooks),
        any(fitted.pending for fitted in several),
    )


def _fit_tensors(
    rule: Rule,
    names: Sequence[str],
    steps: Sequence[float],
    targets: Sequence[float],
    table: GramTable,
    place: Mapping[str, int],
) -> dict[str, NDArray[np.float64]]:
    """Args: place: of a tensor in the table, by name."""
    result = np.zeros((len(names), len(targets), len(steps)))
    result[..., -1] = 1.0  # those without floats were not scanned, and are only copied
    scanned = [index for index, name in enumerate(names) if name in place]
    at_once = tensors_at_once(steps, targets)
    for start in range(0, len(scanned), at_once):
        chunk = scanned[start : start + at_once]
        grams = table.gram[[place[names[index]] for index in chunk]]
        result[chunk] = rule.coefficients(steps, targets, grams)
    return dict(zip(names, result, strict=True))
