"""YAML by the 1.2 core rules: data, lines, and nothing that could surprise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hubextrap.recipe.yaml_nodes import dump_yaml, read_yaml

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False)
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000),
        ("2E+2", 200),
        ("1e-1", 0.1),
        ("1.5e3", 1500.0),
        ("1_000", 1000),
        ("-7", -7),
        ("0x10", 16),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("'100'", "100"),
        ("<<", "<<"),
        ("step_100", "step_100"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    document = read_yaml(f"key: {text}")
    assert document.problems == []
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


def test_lines_of_keys_and_items() -> None:
    document = read_yaml("# comment\na:\n  - x\n\n  - {b: 1,\n     c: 2}\n")
    assert document.data == {"a": ["x", {"b": 1, "c": 2}]}
    assert document.lines == {
        (): 2,
        ("a",): 2,
        ("a", 0): 3,
        ("a", 1): 5,
        ("a", 1, "b"): 5,
        ("a", 1, "c"): 6,
    }


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not valid YAML: while parsing a flow sequence"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "a second YAML document begins here"),
        ("a: 1\nb: \x07\n", 2, "not valid YAML: special characters are not allowed"),
        ("a: &x [1]\nb: *x\n", 2, "write out what the alias *x stands for"),
        ("a: &a [*a]\n", 1, "write out what the alias *a stands for"),
        ("a: 1\nb: 2\na: 3\n", 3, "appears twice, first in line 1"),
        ("? [1, 2]\n: 3\n", 1, "a key must be text"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            1,
            "the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !mine 3\n", 1, "the tag !mine is not allowed"),
        ("a: !!set {x}\n", 1, "is not allowed"),
        ("a: !!int nothing\n", 1, "is not allowed"),
        ("a: !!binary aGk=\n", 1, "is not allowed"),
        ("a:\n  b: 0100\n", 2, "0100 is octal to some YAML readers; write 100, or quote it if it is text"),
        ("[" * 100_000, 1, "nested more than 20 deep"),
        ('a: "\\UFFFFFFFF"', 1, "not valid YAML: "),
        ("a: [1, &x b, *x]", 1, "write out what the alias *x stands for"),
    ],
)
def test_what_is_refused(text: str, line: int, problem: str) -> None:
    found = read_yaml(text).problems
    assert any(at == line and problem in words for _, at, words in found), found


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "alias" in read_yaml(bomb).problems[0][2]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), plain, max_size=4))
def test_what_is_dumped_is_read_back(data: dict[str, Any]) -> None:
    text = dump_yaml(data)
    document = read_yaml(text)
    assert document.problems == []
    assert document.data == data


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.from_regex("[a-z]{1,6}", fullmatch=True), st.text(max_size=10) | st.integers(), max_size=4
    )
)
def test_other_readers_take_the_dump_for_the_same(data: dict[str, Any]) -> None:
    assert yaml.safe_load(dump_yaml(data)) == data


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    document = read_yaml(text)
    assert document.problems or document.lines[()] >= 1
