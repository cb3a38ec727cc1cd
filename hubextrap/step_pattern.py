"""Patterns of names that users give, ``run-{seed}-step_{step}``, matched in time linear in the name.

As a regular expression each ``{word}`` would be one more way to divide the name: five of them took minutes on
one branch. Here every place in the name is tried once for every place in the pattern, in the order in which a
backtracking matcher would, so that what is found is the same.
"""

from __future__ import annotations

import re

STEP = "{step}"

NAME_LIMIT = 1024
"""Characters; no longer name says a step."""

_WORD = re.compile(r"(\{\w+\})")
_FILLER, _DIGIT, _MORE, _THOUSAND = range(4)


class StepPattern:
    """``{step}`` is a number (``50k`` too), any other ``{word}`` text without a slash, as short as can be."""

    def __init__(self, pattern: str) -> None:
        self._program: list[str | int] = []
        for piece in _WORD.split(pattern):
            if piece == STEP:
                self._program += [_DIGIT, _MORE, _THOUSAND]
            elif _WORD.fullmatch(piece):
                self._program += [_FILLER]
            elif piece:
                self._program += [piece]

    def number_in(self, name: str) -> str | None:
        """What stands for ``{step}`` when all of ``name`` is of this pattern, None when it is not."""
        # each part but the number's takes one character or more
        if not len(self._program) - 2 <= len(name) <= NAME_LIMIT:
            return None
        tried: set[tuple[int, int]] = set()
        pending = [(0, 0, 0, 0)]  # place in the program, place in the name, where the number starts and ends
        while pending:
            at, place, start, end = pending.pop()
            if (at, place) in tried:
                continue
            tried.add((at, place))
            if at == len(self._program):
                if place == len(name):
                    return name[start:end]
                continue
            what = self._program[at]
            here = name[place : place + 1]
            if isinstance(what, str):
                if name.startswith(what, place):
                    pending.append((at + 1, place + len(what), start, end))
            elif what == _FILLER:  # what is put last is tried first
                if here and here != "/":
                    pending += [(at, place + 1, start, end), (at + 1, place + 1, start, end)]
            elif what == _DIGIT:
                if here.isdecimal():
                    pending.append((at + 1, place + 1, place, end))
            elif what == _MORE:
                pending.append((at + 1, place, start, place))
                if here.isdecimal():
                    pending.append((at, place + 1, start, end))
            else:
                pending.append((at + 1, place, start, place))
                if here and here in "kK":
                    pending.append((at + 1, place + 1, start, place + 1))
        return None
