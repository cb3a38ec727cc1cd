"""Patterns that users give match what a regular expression would, in time linear in the name."""

from __future__ import annotations

import random
import re
import time

import pytest

from hubextrap.step_names import pattern_reader, read_step, read_title
from hubextrap.step_pattern import NAME_LIMIT, StepPattern


def as_expression(pattern: str) -> re.Pattern[str]:
    """The meaning: a number that takes all it can, words that take as little as they can."""
    pieces = {"{step}": r"(?P<step>\d+[kK]?)"}
    return re.compile(
        "".join(
            pieces.get(piece) or (r"[^/]+?" if re.fullmatch(r"\{\w+\}", piece) else re.escape(piece))
            for piece in re.split(r"(\{\w+\})", pattern)
        )
    )


@pytest.mark.parametrize("seed", range(5))
def test_means_what_the_regular_expression_means(seed: int) -> None:
    choose = random.Random(seed)
    matched = 0
    for _ in range(2_000):
        pieces = choose.choices(("{a}", "{b}", "-", "1", "k", "/", "x"), k=choose.randint(0, 5))
        pieces.insert(choose.randint(0, len(pieces)), "{step}")
        pattern = "".join(pieces)
        name = "".join(choose.choices("12kK-x/\u0663\n", k=choose.randint(0, 9)))
        expected = as_expression(pattern).fullmatch(name)
        matched += expected is not None
        assert StepPattern(pattern).number_in(name) == (expected and expected["step"]), (pattern, name)
    assert matched > 20


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{a}-{b}-{c}-{d}-{e}-{step}", "a-" * (NAME_LIMIT // 2)),
        ("{a}{b}{c}{d}{e}{step}x", "1" * NAME_LIMIT),
        ("{step}{a}{b}{c}{d}{e}/", "1" * NAME_LIMIT),
        ("{a}" * 100 + "{step}x", "1" * 300),
        ("{a}" * 100_000 + "{step}", "1" * NAME_LIMIT),
        ("{a}-{step}", "1" * 50_000_000),
    ],
)
def test_no_name_takes_long(pattern: str, name: str) -> None:
    start = time.process_time()
    assert pattern_reader(pattern)(name) is None
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "name",
    ["step_" + "9" * 5000, "9" * 5000 + "step", "step " * 20_000, "\u0663" * 50_000, "step_1/" * 20_000],
)
def test_no_name_breaks_or_holds_up_the_readers(name: str) -> None:
    start = time.process_time()
    for read in (read_step, read_title, pattern_reader("step_{step}"), pattern_reader("{a}{step}")):
        found = read(name)
        assert found is None or found.step < 10**18
    assert time.process_time() - start < 2
