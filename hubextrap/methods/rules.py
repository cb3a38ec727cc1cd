"""Which tensors get which method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


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


def first_match(rules: Sequence[Rule], tensor: str) -> int:
    """Index of the first rule that matches; the last rule of a recipe matches every name.

    Raises:
        LookupError: none does, so the rules do not come from a recipe.
    """
    for index, rule in enumerate(rules):
        if rule.matches(tensor):
            return index
    raise LookupError(f"no rule matches tensor {tensor}")
