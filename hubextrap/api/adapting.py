"""The outputs of a run of adapters: another adapter, or the model with it merged in, by the same engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.adapters.fitting import check_tied
from hubextrap.adapters.predicted import PredictedSource, exact_rank
from hubextrap.adapters.product import ProductSource
from hubextrap.engine.plan import plan_merge
from hubextrap.recipe.outputs import EXACT, OutputSection
from hubextrap.trajectory.checkpoint import ADAPTER, MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hubextrap.adapters.run import AdapterRun
    from hubextrap.engine.budget import Budget
    from hubextrap.engine.plan import MergePlan
    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout


def section_of(recipe: Recipe) -> OutputSection:
    """What the recipe says of an adapter run's output, or the defaults."""
    return recipe.output or OutputSection()


def plan_adapter_outputs(
    recipes: Sequence[Recipe],
    adapters: AdapterRun,
    rows_for: Callable[[str], NDArray[np.float64]],
    budget: Budget,
    *,
    cache: bool,
) -> tuple[MergePlan, tuple[Source, ...]]:
    """The plan of T predictions, the targets of all recipes, and the sources that it reads.

    Args:
        recipes: settled ones, which differ in parameters alone.
        rows_for: tensor of the base → float64 (T, K).
        budget: what the pass may take, before what the sources take themselves.
        cache: whether the base is downloaded first.

    Raises:
        HubExtrapError: the base is needed and cannot be had; as `plan_merge`.
    """
    section, out_dtype = section_of(recipes[0]), recipes[0].out_dtype
    targets = tuple(step for each in recipes for step in each.target_steps)
    by_target = [partial(_row, rows_for, index) for index in range(len(targets))]
    if section.as_ == "adapter":
        exact = section.rank == EXACT
        rank = section.rank if isinstance(section.rank, int) else adapters.largest_rank
        # one plan has tensors of one shape, also where a coefficient of some target alone is 0
        widest = max(exact_rank(adapters, rows) for rows in by_target) if exact else 1
        predicted = [
            PredictedSource(
                adapters, rows, None if exact else rank, out_dtype=out_dtype, step=step, at_least=widest
            )
            for rows, step in zip(by_target, targets, strict=True)
        ]
        budget = replace(budget, reserve=budget.reserve + sum(one.memory for one in predicted))
        each = np.eye(len(targets))
        layouts = [one.layout for one in predicted]
        plan = plan_merge(targets, layouts, lambda name: each, budget=budget)
        return _as_read(plan, adapters), tuple(predicted)
    base, adapters = adapters.base, adapters.beside_base
    if base.tied:
        check_tied(adapters.last, base.layout)
    products = [
        ProductSource(adapters, rows, base.layout, step=step)
        for rows, step in zip(by_target, targets, strict=True)
    ]
    budget = replace(
        budget,
        remote=base.checkpoint.repo is not None and not cache,
        reserve=budget.reserve + sum(one.memory for one in products),
    )
    plan = plan_merge(
        (*targets, 0),
        [*(one.layout for one in products), base.layout],
        _onto_base(adapters, len(targets)),
        out_dtype=out_dtype,
        tied=base.tied,
        wide=True,
        budget=budget,
    )
    return _as_read(plan, adapters, base.layout), (*products, base.source)


def _as_read(plan: MergePlan, adapters: AdapterRun, *others: CheckpointLayout) -> MergePlan:
    """The plan with the bytes that are read of files; none of its outputs is like what it is made of."""
    layouts = (*(one.layout for one in adapters.adapters if one is not None), *others)
    read = sum(shard.size for layout in layouts for shard in layout.shards)
    return replace(plan, total_bytes_read=read, same_layout=False)


def _row(rows_for: Callable[[str], NDArray[np.float64]], target: int, name: str) -> NDArray[np.float64]:
    row: NDArray[np.float64] = rows_for(name)[target]
    return row


def _onto_base(adapters: AdapterRun, targets: int) -> Callable[[str], NDArray[np.float64]]:
    """Rows over T products and the base: what has factors is added to the base's, what was trained whole
    takes its place, and all else is the base's."""
    base = np.zeros((targets, targets + 1))
    base[:, -1] = 1.0
    whole = np.eye(targets, targets + 1)
    added = base + whole

    def rows(name: str) -> NDArray[np.float64]:
        if name in adapters.last.factors:
            return added
        return whole if name in adapters.last.whole else base

    return rows


def output_kind(recipe: Recipe, run: Run) -> str:
    """What a run's predictions are, as `Checkpoint.kind` has it."""
    adapter = run.trajectory.of_adapters and section_of(recipe).as_ == "adapter"
    return ADAPTER if adapter else MODEL
