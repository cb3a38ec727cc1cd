"""Which tensors get which method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import MethodError, RecipeError
from hubextrap.methods.checking import coefficients

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rule:
    """A method with its parameters, for every tensor whose name matches one of the globs."""

    match: tuple[str, ...]
    """Globs over the whole tensor name, case-sensitive; ``*`` crosses dots, ``?`` and ``[…]`` work too."""
    method: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    damping: float = 1.0

    def matches(self, tensor: str) -> bool:
        return any(fnmatchcase(tensor, glob) for glob in self.match)

    def coefficients(self, steps: Sequence[int], target_steps: Sequence[int]) -> NDArray[np.float64]:
        """Coefficients of T targets over K checkpoints, float64 (T, K), rows with sum 1.

        Raises:
            StepError, MethodError: as `hubextrap.methods.coefficients` does.
        """
        try:
            rows = [
                coefficients(self.method, steps, target, self.parameters, damping=self.damping)
                for target in target_steps
            ]
        except MethodError as error:
            where = "" if self.match == ("*",) else f"tensors {', '.join(self.match)}: "
            raise MethodError(f"{where}{self.method}: {error}") from error
        return np.stack(rows)


def assign_rules(rules: Sequence[Rule], tensors: Iterable[str]) -> dict[str, Rule]:
    """The first rule that matches, for each tensor; the last rule of a recipe matches every name.

    Raises:
        RecipeError: a rule other than the last gets no tensor, so its globs say something that was not meant.
    """
    assigned = {tensor: next(rule for rule in rules if rule.matches(tensor)) for tensor in tensors}
    for index, rule in enumerate(rules[:-1]):
        if not any(taken is rule for taken in assigned.values()):
            earlier = any(rule.matches(tensor) for tensor in assigned)
            raise RecipeError(
                f"parameters.tensors[{index}]: {', '.join(rule.match)} matches "
                + (
                    "only tensors that earlier rules have taken; put it before them, or remove it"
                    if earlier
                    else f"no tensor of the model; its names are like {', '.join(list(assigned)[:3])}"
                )
            )
    return assigned
