"""Names with several counters, ``epoch_1_step_40``: which of them counts the steps of the run.

The grammar of names takes one number for the step and leaves the others as they stand, so each epoch would be
a run of its own. Here names that differ in numbers alone are looked at together.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from hubextrap.step_names import StepName
from hubextrap.step_pattern import STEP

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"\{step\}|\d+")
_PLAIN_NUMBER = re.compile(r"(?<!\d)\d{1,15}(?!\d)", re.ASCII)
_COUNTER = re.compile(
    r"(?<![a-z])(epochs?|ep|(?:epoch|global)?[-_ ]?steps?|iter(?:ation)?s?|updates?|rounds?|episodes?|"
    r"(?:checkpoint|ckpt)s?)[-_= ]?$",
    re.IGNORECASE,
)
"""What stands before a number that counts, at its end."""
_EPOCH = re.compile(r"(?i)ep(?:ochs?)?")


class _Name:
    """One name's folder that says the step, cut at its numbers."""

    def __init__(self, name: StepName) -> None:
        self.name = name
        parts = name.pattern.split("/")
        self.at = next(at for at, part in enumerate(parts) if STEP in part)
        part = parts[self.at]
        self.texts = _NUMBER.split(part)
        self.numbers = _NUMBER.findall(part)
        self.values = [name.step if number == STEP else int(number) for number in self.numbers]
        self.alike = (*parts[: self.at], *self.texts, *parts[self.at + 1 :])
        """What names of one kind share."""


def counted_together(names: Iterable[StepName]) -> dict[StepName, StepName]:
    """Names of one run that differ in more than one counter, as names of one pattern: the counter that rises
    over all of them is the step, the others are wildcards. Other names are left out.

    An epoch is never taken for the step, for it is none; nor is a number that no word of a counter stands
    before ever a wildcard, for it may tell runs apart.
    """
    found: dict[StepName, StepName] = {}
    for group in _alike(names):
        varying = _varying(group)
        words = {at: _word_before(group[0], at) for at in varying}
        if len(varying) < 2 or not all(words.values()):
            continue
        counters = [at for at in _by_the_grammar(group, varying) if not _EPOCH.fullmatch(words[at])]
        step = next((at for at in counters if _rises(group, at, words)), None)
        if step is not None:
            pattern = _with_wildcards(group[0], step, words)
            for one in group:
                found[one.name] = StepName(pattern, one.values[step], one.name.unit)
    return found


def pattern_over(names: Iterable[StepName]) -> str | None:
    """The pattern that takes names of several patterns for one run, where they differ in numbers alone and
    one of these is another in each; None where they do not."""
    groups = _alike(names)
    if len(groups) != 1:
        return None
    (group,) = groups
    varying = _varying(group)
    for at in _by_the_grammar(group, varying):
        if len(varying) > 1 and len({one.values[at] for one in group}) == len(group):
            return _with_wildcards(group[0], at, {at: _word_before(group[0], at) or "word" for at in varying})
    return None


def pattern_of_numbers(names: Iterable[str]) -> str | None:
    """The pattern of names that say no step by a word, ``epoch_1`` or ``ep0-ba100``; None for others.

    A number in them is another in each and rises with the others, the last such; of several kinds of names
    the one counts that most are of.
    """
    numbers = {name: list(_PLAIN_NUMBER.finditer(name)) for name in names}
    for place in range(1, 1 + max(map(len, numbers.values()), default=0)):
        said = [
            StepName(f"{name[: one.start()]}{STEP}{name[one.end() :]}", int(one[0]), name)
            for name, found in numbers.items()
            for one in found[-place : len(found) - place + 1]
        ]
        for group in sorted(_alike(said), key=len, reverse=True):
            at, varying = group[0].numbers.index(STEP), _varying(group)
            ordered = sorted(group, key=lambda one: one.values)
            decimals = any(group[0].texts[other] == "." for other in varying)  # 0.1B, 1.5B
            if (
                not decimals
                and len(group) > 1
                and all(a.values[at] < b.values[at] for a, b in pairwise(ordered))
            ):
                return _with_wildcards(
                    group[0], at, {other: _word_before(group[0], other) or "word" for other in varying}
                )
    return None


def _alike(names: Iterable[StepName]) -> list[list[_Name]]:
    """Names that differ in numbers alone, grouped."""
    groups: dict[tuple[object, ...], list[_Name]] = {}
    for name in dict.fromkeys(names):
        if STEP in name.pattern:
            one = _Name(name)
            groups.setdefault((one.at, one.alike), []).append(one)
    return list(groups.values())


def _varying(group: Sequence[_Name]) -> list[int]:
    """The places of numbers that are not the same in all."""
    return [
        at
        for at, values in enumerate(zip(*(one.values for one in group), strict=True))
        if len(set(values)) > 1
    ]


def _by_the_grammar(group: Sequence[_Name], varying: Sequence[int]) -> list[int]:
    """The number that the grammar takes for the step first."""
    return sorted(varying, key=lambda at: group[0].numbers[at] != STEP)


def _rises(group: Sequence[_Name], at: int, words: dict[int, str]) -> bool:
    """Whether a counter is another one in each name, and no epoch falls while it rises."""
    ordered = sorted(group, key=lambda one: one.values[at])
    epochs = [place for place, word in words.items() if place != at and _EPOCH.fullmatch(word)]
    return all(
        one.values[at] < other.values[at]
        and all(one.values[place] <= other.values[place] for place in epochs)
        for one, other in pairwise(ordered)
    )


def _word_before(one: _Name, at: int) -> str:
    """The word that says what a number counts; "" where none does."""
    found = _COUNTER.search(one.texts[at].lstrip("-_. "))
    return re.sub(r"\W", "_", found[1].lower()) if found else ""


def _with_wildcards(one: _Name, step: int, words: dict[int, str]) -> str:
    """The name as a pattern, with wildcards for numbers that vary beside the step."""
    taken: list[str] = []
    written = one.texts[0]
    for at, (number, text) in enumerate(zip(one.numbers, one.texts[1:], strict=True)):
        if at == step:
            number = STEP
        elif at in words:
            word = "other" if words[at] == "step" else words[at]
            taken.append(word)
            number = "{" + word + (str(taken.count(word)) if taken.count(word) > 1 else "") + "}"
        written += number + text
    parts = one.name.pattern.split("/")
    return "/".join((*parts[: one.at], written, *parts[one.at + 1 :]))
