"""What a recipe's predictions are compared with, found before the first of them is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.api.beforehand import refuse
from hubextrap.errors import EvaluationError, HubExtrapError, StepError
from hubextrap.evaluation.comparison import short_name
from hubextrap.evaluation.table import BASE, LAST, TARGET
from hubextrap.foreign_text import own_lines
from hubextrap.progress import SilentProgress
from hubextrap.trajectory import TrajectoryOptions, resolve_checkpoint
from hubextrap.trajectory.leaving_out import with_weights
from hubextrap.trajectory.selection import select_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.opening import Run
    from hubextrap.progress import Progress
    from hubextrap.recipe import EvaluateSection, Recipe
    from hubextrap.trajectory import Checkpoint, Trajectory


@dataclass(frozen=True, slots=True)
class Against:
    """``evaluate.against`` of a recipe, pinned: a checkpoint that lands later is not among it."""

    recipe: Recipe
    trajectory: Trajectory
    entries: tuple[tuple[str, Checkpoint | None], ...]
    """Label and checkpoint, in the recipe's order; None for the real target, which goes by the step."""

    @classmethod
    def pinned(cls, recipe: Recipe, section: EvaluateSection, run: Run) -> Against:
        """Look every reference up.

        Args:
            run: the recipe's.

        Raises:
            TrajectoryError, CheckpointError: a reference leads nowhere; all that do, at once.
            EvaluationError: two of them would have one label.
        """
        entries: dict[str, Checkpoint | None] = {}
        problems: list[HubExtrapError] = []
        for entry in section.against:
            role, equals, reference = entry.partition("=")
            named = bool(equals) and role in (LAST, BASE, TARGET)
            if entry in (LAST, BASE, TARGET):
                entries[entry] = {LAST: run.trajectory.last, BASE: run.trajectory.base}.get(entry)
                continue
            try:
                other = resolve_checkpoint(reference if named else entry, pins=run.pins)
            except HubExtrapError as error:
                problems.append(error)
                continue
            if named:
                entries[role] = other
                continue
            label = short_name(other)
            if entries.setdefault(label, other) != other:
                said = f"evaluate.against: two checkpoints would be {label!r}; rename one of the folders"
                problems.append(EvaluationError(said))
        refuse(problems)
        return cls(recipe, run.trajectory, tuple(entries.items()))

    def at(self, step: int, progress: Progress) -> Iterator[tuple[str, Checkpoint]]:
        """Labelled checkpoints for predictions of ``step``."""
        for label, checkpoint in self.entries:
            if (found := checkpoint or self.real(step, progress)) is not None:
                yield label, found

    def real(self, step: int, progress: Progress) -> Checkpoint | None:
        """The checkpoint that the run itself had left at ``step``; where there is none, says so."""
        if self.recipe.parameters.target is not None:
            progress.say("the real checkpoint is not compared: the run had no steps at the peak rate there")
            return None
        reference = self.recipe.trajectory.repo or "the recipe's list of checkpoints"
        try:
            return real_checkpoint(self.trajectory, step, reference)
        except StepError as error:
            progress.say(own_lines(*f"the real checkpoint is not compared: {error}".split("\n")))
            return None


def real_checkpoint(trajectory: Trajectory, step: int, reference: str) -> Checkpoint:
    """The checkpoint that the run itself had left at ``step`` when ``trajectory`` was found, observed or not.

    Raises:
        StepError: there was none, or it holds no weights of the run.
    """
    for checkpoint in trajectory.checkpoints:
        if checkpoint.step == step:
            return checkpoint
    if trajectory.whole is None:
        raise StepError(f"step {step} is not in {reference}", step=step)
    selected = select_steps(trajectory.whole, reference, TrajectoryOptions(steps=[step]))
    if not trajectory.whole.files_known:
        selected = with_weights(selected, reference, [step], SilentProgress())
    return selected[0]
