"""Which tensors get which method."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING, Literal

import numpy as np

from hubextrap.errors import BrokenMethod, MethodError, RecipeError
from hubextrap.foreign_data import shorten
from hubextrap.methods.checking import check_steps, coefficients, needs_gram_matrix, unless_it_cannot

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Rule:
    """A method with its parameters, for every tensor whose name matches one of the globs."""

    match: tuple[str, ...]
    """Globs over the whole tensor name, case-sensitive; ``*`` crosses dots, ``?`` and ``[…]`` work too."""
    method: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    damping: float | Literal["auto"] = 1.0
    called: str | None = field(default=None, compare=False, repr=False)
    """How its file writes it, where that is no entry of ``parameters.tensors``."""

    @property
    def needs_gram_matrix(self) -> bool:
        """Whether its coefficients differ from tensor to tensor, because they depend on the weights."""
        return needs_gram_matrix(self.method, self.parameters, self.damping)

    def matches(self, tensor: str) -> bool:
        return any(fnmatchcase(tensor, glob) for glob in self.match)

    def coefficients(
        self,
        steps: Sequence[float],
        target_steps: Sequence[float],
        gram_matrix: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Coefficients of T targets over K checkpoints, float64 (…, T, K), rows with sum 1.

        Args:
            gram_matrix: (…, K, K), of each tensor's deltas, where the rule needs it.

        Raises:
            StepError, MethodError: as `hubextrap.methods.coefficients` does.
        """
        try:
            rows = [
                coefficients(
                    self.method, steps, target, self.parameters, damping=self.damping, gram_matrix=gram_matrix
                )
                for target in target_steps
            ]
        except BrokenMethod:
            raise
        except MethodError as error:
            where = "" if self.match == ("*",) else f"tensors {', '.join(self.match)}: "
            raise MethodError(f"{where}{self.method}: {error}") from error
        return np.stack(rows, axis=-2)

    def predicts_motion(self, steps: Sequence[float], target_step: float) -> bool:
        """Whether its coefficients follow the target; an average's, say, are the same for each."""
        if target_step <= steps[-1]:
            return False
        gram = _straight_run(steps)
        here = unless_it_cannot(lambda: self.coefficients(steps, [steps[-1]], gram))
        return here is None or not np.array_equal(here, self.coefficients(steps, [target_step], gram))

    def check(self, steps: Sequence[float], target_steps: Sequence[float]) -> None:
        """Find out what can be found out before any weight is read.

        Raises:
            StepError, MethodError: as `coefficients` does.
        """
        for target in target_steps:
            check_steps(steps, target)
        self.coefficients(steps, target_steps, _straight_run(steps))


def _straight_run(steps: Sequence[float]) -> NDArray[np.float64]:
    """Of two tensors: what a method says of steps and parameters it says of them too."""
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    return np.stack([np.outer(times, times)] * 2)


class FirstMatch:
    """Finds the first rule that takes a tensor, without asking each of many rules.

    A glob is tried only on names that begin as it does before its first wildcard.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self._globs: dict[str, list[tuple[int, Callable[[str], object]]]] = {}
        for index, rule in enumerate(rules):
            for glob in rule.match:
                matches = re.compile(translate(glob)).match
                self._globs.setdefault(_WILDCARD.split(glob, 1)[0], []).append((index, matches))
        self._lengths = sorted({len(beginning) for beginning in self._globs})

    def __call__(self, tensor: str) -> int | None:
        """The number of the rule; None where none takes the tensor."""
        found: int | None = None
        for length in self._lengths:
            if length > len(tensor):
                break
            for index, matches in self._globs.get(tensor[:length], ()):
                if found is not None and index >= found:
                    break  # they are in order
                if matches(tensor):
                    found = index
        return found


def assign_rules(
    rules: Sequence[Rule], tensors: Iterable[str], earlier_only: Iterable[str] = ()
) -> dict[str, Rule]:
    """The first rule that matches, for each tensor; the last rule of a recipe matches every name.

    Args:
        earlier_only: names that the last checkpoint lacks, for the error.

    Raises:
        RecipeError: a rule other than the last gets no tensor, so its globs say something that was not meant.
    """
    first = FirstMatch(rules)
    numbers = {tensor: index for tensor in tensors if (index := first(tensor)) is not None}
    assigned, used = {tensor: rules[index] for tensor, index in numbers.items()}, set(numbers.values())
    for index, rule in enumerate(rules[:-1]):
        if index not in used:
            called = rule.called or f"parameters.tensors[{index}]: {', '.join(rule.match)}"
            raise RecipeError(f"{called} matches {_no_match(rule, list(assigned), earlier_only)}")
    return assigned


def _no_match(rule: Rule, tensors: Sequence[str], earlier_only: Iterable[str]) -> str:
    """What a rule that gets no tensor matches instead, and what to do."""
    if any(map(rule.matches, tensors)):
        return "only tensors that earlier rules have taken; put it before them, or remove it"
    if (elsewhere := next(filter(rule.matches, earlier_only), None)) is not None:
        return (
            f"only what the last checkpoint lacks, e.g. {shorten(elsewhere)}, so no tensor of the output; "
            "remove the rule, and write trajectory: {tensors: {ignore: "
            f"{json.dumps(list(rule.match))}}}}} to leave these tensors out"
        )
    return f"no tensor of the model; its tensors have names like {', '.join(tensors[:3])}"
