"""One mistake is one problem: what follows from another one, or is the same again, is not told beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.recipe.yaml_nodes import Place

MISSING, UNKNOWN = "missing", "unknown"
"""What a problem begins with, where a key is not there, and where one is that nobody knows."""
NO_TARGET = "target_step is missing"
_SHOWN = 5

Problem = tuple["Place", int, str]
"""Place, line, what is wrong."""


def told_once(problems: Sequence[Problem]) -> list[Problem]:
    """The problems of a recipe, one for each mistake, in the order of the lines."""
    ordered = sorted(set(problems), key=lambda each: (each[1], str(each[0]), each[2]))
    return _without_repetitions(_without_echoes(ordered))


def _without_echoes(problems: list[Problem]) -> list[Problem]:
    """A key under a wrong name is one problem, not also the lack of the right one."""
    lacking: dict[Place, list[tuple[str, Problem]]] = {}
    for problem in problems:
        place, _, said = problem
        if said.startswith(MISSING) and place:
            lacking.setdefault(place[:-1], []).append((str(place[-1]), problem))
        elif said.startswith(NO_TARGET):
            lacking.setdefault(place, []).append(("target_step", problem))
    kept = {problem: problem for problem in problems}
    for section, found in lacking.items():
        strange = [each for each in problems if each[0][:-1] == section and each[2].startswith(UNKNOWN)]
        meant = {each[2].removesuffix("?").rpartition(" ")[2] for each in strange if each[2].endswith("?")}
        if "target" in meant:
            meant.add("target_step")
        left = [(key, problem) for key, problem in found if key not in meant]
        for key, problem in found:
            if key in meant:
                del kept[problem]
        unmeant = [each for each in strange if not each[2].endswith("?")]
        if left and unmeant:
            names = ", ".join(key for key, _ in left)
            first = unmeant[0]
            kept[first] = (*first[:2], f"{first[2]}; {names} {'is' if len(left) == 1 else 'are'} missing")
            for _, problem in left:
                del kept[problem]
        elif len(left) > 1:
            first = left[0][1]
            others = [key for key, _ in left[1:]]
            verb = "is" if len(others) == 1 else "are"
            kept[first] = (*first[:2], f"{first[2]}, and so {verb} {_listed(others)}")
            for _, problem in left[1:]:
                del kept[problem]
    return list(kept.values())


def _without_repetitions(problems: list[Problem]) -> list[Problem]:
    """What is wrong in the same way at several entries of a list, or keys of a section, once."""
    groups: dict[object, list[Problem]] = {}
    for problem in problems:
        place, _, said = problem
        general = tuple("*" if isinstance(part, int) else part for part in place)
        if said.startswith(UNKNOWN) and not said.endswith("?"):
            general = general[:-1]
        groups.setdefault((general, said.partition(", not ")[0]), []).append(problem)
    return [(*group[0][:2], group[0][2] + _again(group)) for group in groups.values()]


def _again(group: list[Problem]) -> str:
    first, *others = group
    if not others:
        return ""
    if all(other[0][:-1] == first[0][:-1] and other[0] and isinstance(other[0][-1], str) for other in others):
        return f" (also {_listed([str(other[0][-1]) for other in others])})"
    lines = [line for line in dict.fromkeys(other[1] for other in others) if line != first[1]]
    if not lines:
        return f" (and {len(others)} more)"
    return f" (also in line{'s' * (len(lines) > 1)} {_listed([str(line) for line in lines])})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
