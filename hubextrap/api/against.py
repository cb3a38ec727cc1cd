"""What a recipe's predictions are compared with, found before the first of them is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError, StepError
from hubextrap.evaluate.comparison import short_name
from hubextrap.evaluate.table import BASE, LAST, TARGET
from hubextrap.foreign_text import own_lines
from hubextrap.trajectory import real_checkpoint, resolve_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.progress import Progress
    from hubextrap.recipe import EvaluateSection, Recipe
    from hubextrap.trajectory import Checkpoint, Pins, Trajectory


@dataclass(frozen=True, slots=True)
class Against:
    """``evaluate.against`` of a recipe, pinned: a checkpoint that lands later is not among it."""

    recipe: Recipe
    trajectory: Trajectory
    entries: tuple[tuple[str, Checkpoint | None], ...]
    """Label and checkpoint, in the recipe's order; None for the real target, which goes by the step."""

    @classmethod
    def pinned(cls, recipe: Recipe, section: EvaluateSection, trajectory: Trajectory, pins: Pins) -> Against:
        """Look every reference up.

        Args:
            trajectory: the recipe's.
            pins: with which it was found.

        Raises:
            TrajectoryError, CheckpointError: a reference leads nowhere.
            EvaluationError: two of them would have one label.
        """
        entries: dict[str, Checkpoint | None] = {}
        for entry in section.against:
            role, equals, reference = entry.partition("=")
            if equals and role in (LAST, BASE, TARGET):
                entries[role] = resolve_checkpoint(reference, pins=pins)
            elif entry in (LAST, BASE, TARGET):
                entries[entry] = {LAST: trajectory.last, BASE: trajectory.base}.get(entry)
            else:
                other = resolve_checkpoint(entry, pins=pins)
                label = short_name(other)
                if entries.setdefault(label, other) != other:
                    raise EvaluationError(
                        f"evaluate.against: two checkpoints would be {label!r}; rename one of the folders"
                    )
        return cls(recipe, trajectory, tuple(entries.items()))

    def at(self, step: int, progress: Progress) -> Iterator[tuple[str, Checkpoint]]:
        """Labelled checkpoints for predictions of ``step``."""
        for label, checkpoint in self.entries:
            if (found := checkpoint or self.real(step, progress)) is not None:
                yield label, found

    def real(self, step: int, progress: Progress) -> Checkpoint | None:
        """The checkpoint that the run itself had left at ``step``; where there is none, says so."""
        reference = self.recipe.trajectory.repo or "the recipe's list of checkpoints"
        try:
            return real_checkpoint(self.trajectory, step, reference)
        except StepError as error:
            progress.say(own_lines(*f"the real checkpoint is not compared: {error}".split("\n")))
            return None
