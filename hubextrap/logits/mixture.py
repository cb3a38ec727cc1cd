"""What is mixed: checkpoints and their coefficients. Knows nothing of torch."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from hubextrap.adapters.base import Bases
from hubextrap.errors import MethodError, RecipeError
from hubextrap.opening import Run
from hubextrap.trajectory import UNKNOWN_STEP, path_in_run
from hubextrap.trajectory.checkpoint import BASE, MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory import Checkpoint

_WHY = "reading {}: the coefficients follow from the weights"


@dataclass(frozen=True, slots=True)
class Mixture:
    """logits = Σ coefficients[k] · logits of checkpoints[k]; the coefficients sum to 1 and none is 0."""

    checkpoints: tuple[Checkpoint, ...]
    """Pinned, the last observed one last, where it takes part."""
    coefficients: tuple[float, ...]
    target_step: int | None = None
    base_model: Checkpoint | None = None
    """The base of those that are adapters."""

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Checkpoint],
        coefficients: Sequence[float],
        target_step: int | None = None,
        *,
        bases: Bases | None = None,
    ) -> Mixture:
        """The mixture without what has the coefficient 0, so that it is never loaded.

        Args:
            bases: what is known of the bases of adapters.

        Raises:
            MethodError: not one coefficient per checkpoint, or their sum is not 1.
            CheckpointMismatch: the adapters have different bases.
            HubExtrapError: the base of an adapter cannot be had.
        """
        if len(checkpoints) != len(coefficients):
            counts = f"{len(checkpoints)} checkpoints and {len(coefficients)} coefficients"
            raise MethodError(f"{counts}; give one per checkpoint")
        check_sum(coefficients)
        used = [pair for pair in zip(checkpoints, coefficients, strict=True) if pair[1] != 0.0]
        taking_part, base_model = [pair[0] for pair in used], None
        if any(one.kind != MODEL for one in taking_part):
            bases = bases or Bases()
            bases.find(checkpoints)
            base_model = bases.common()
            taking_part = [base_model if one.kind == BASE else one for one in taking_part]
        return cls(tuple(taking_part), tuple(float(pair[1]) for pair in used), target_step, base_model)

    @property
    def name(self) -> str:
        """In one line and without a path, e.g. ``logits -0.5 × step 0, 1.5 × step 200``."""
        return "logits " + ", ".join(
            f"{coefficient:.4g} × "
            + (f"step {one.step}" if one.step != UNKNOWN_STEP else PurePath(one.name).name)
            for one, coefficient in zip(self.checkpoints, self.coefficients, strict=True)
        )

    @property
    def pinned_name(self) -> str:
        """The same in full: exact coefficients and commits, a local folder by its place in its run."""
        mixed = ", ".join(
            f"{coefficient!r} × {_pinned(one)}"
            for one, coefficient in zip(self.checkpoints, self.coefficients, strict=True)
        )
        return mixed if self.base_model is None else f"{mixed}, adapters of {_pinned(self.base_model)}"


def _pinned(one: Checkpoint) -> str:
    return f"{one.name} ({one.commit})" if one.repo is not None else path_in_run(one)


def check_sum(coefficients: Sequence[float]) -> None:
    """Refuse coefficients that would scale the logits, and with them the temperature.

    Raises:
        MethodError: there are none, or their sum is not 1 beyond rounding.
    """
    total = math.fsum(coefficients)
    if not abs(total - 1.0) <= 1e-6 * max([1.0, *map(abs, coefficients)]):
        raise MethodError(
            f"the coefficients {', '.join(f'{value:g}' for value in coefficients)} sum to {total:g}, not 1; "
            "another sum would change the temperature"
        )


def recipe_mixture(
    recipe: Recipe,
    *,
    target_step: int | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
) -> Mixture:
    """What a recipe mixes for one of its target steps; its ``space`` is not asked.

    A method that reads the Gram matrix of each tensor gets that of the whole model, as logits have one set of
    coefficients; every checkpoint, or a sample of it, is then read once, unless the run was opened with a
    scan.

    Args:
        target_step: one of the recipe's; may be left out where it has just one.
        run: the recipe's, where it is open.

    Raises:
        RecipeError: the recipe has rules by tensor, no such target step, or several and none is chosen.
        MethodError: the method cannot serve these steps.
        TrajectoryError: the checkpoints cannot be found, pinned or put in order.
        HubExtrapError: see `hubextrap.engine.scan.scan_trajectory`, where the weights have to be read.
    """
    if recipe.parameters.tensors:
        raise RecipeError(
            "parameters.tensors: logits are mixed whole, with one set of coefficients; remove the rules"
        )
    (rule,) = recipe.rules
    with ExitStack() as stack:
        run = run or stack.enter_context(Run.of(recipe, progress=progress))
        recipe = run.settled(recipe)
        target = chosen_target(recipe, target_step)
        run.check_scan_counts([recipe])
        time = run.target_times(recipe)[recipe.target_steps.index(target)]
        rule.check(run.times, [time])
        gram_matrix = None
        if rule.needs_gram_matrix:
            sample = recipe.fit_sample
            why = _WHY.format("every checkpoint once" if sample is None else "a sample of every checkpoint")
            gram_matrix = run.gram_table(why, sample=sample).total()
        (row,) = rule.coefficients(run.times, [time], gram_matrix)
        return Mixture.of(run.trajectory.checkpoints, row.tolist(), target, bases=run.bases)


def chosen_target(recipe: Recipe, target_step: int | None) -> int:
    """The target step that is asked for, or the recipe's only one.

    Raises:
        RecipeError: it has no such step, or several and none is asked for.
    """
    steps = recipe.target_steps
    if target_step is None and len(steps) == 1:
        return steps[0]
    if target_step not in steps:
        listed = ", ".join(map(str, steps))
        asked = "several target steps" if target_step is None else f"no target step {target_step}"
        raise RecipeError(f"the recipe has {asked}; choose one of {listed}")
    return target_step
