"""The one parser of JSON and the one of YAML: what is refused, with which words, and in bounded time."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest
import yaml

from hubextrap.errors import CorruptFile, RecipeError
from hubextrap.foreign_data import DEPTH, parse_json, parse_yaml

REFUSED_JSON = {
    "twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "Latin-1": (b'{\n"a": "\xe9"}', "line 2: not UTF-8"),
    "NaN": (b"[NaN]", "NaN is not JSON"),
    "Infinity": (b"[-Infinity]", "-Infinity is not JSON"),
    "overflow": (b"[1e999]", "1e999 is more than a number can be"),
    "digits": (b"9" * 5000, "a number of more than 100 digits"),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "nested more than 64 deep"),
    "open lists": (b"[" * 100_000, "nested more than 64 deep"),
    "deep objects": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
    "half a character": (b'{"a": "\\ud800"}', "half a character"),
    "HTML": (b"<html>", "line 1, column 1: Expecting value"),
    "nothing": (b"", "line 1, column 1"),
    "cut short": (b'{"a":\n[1, 2', "line 2, column 6"),
    "large": (b'"' + b" " * 2_000 + b'"', "longer than 2,000 bytes"),
}


@pytest.mark.parametrize(("data", "says"), REFUSED_JSON.values(), ids=REFUSED_JSON)
def test_json_is_refused(data: bytes, says: str) -> None:
    limit = 2_000 if says.startswith("longer") else 1_000_000
    with pytest.raises(RecipeError) as caught:
        parse_json(data, "some/file.json", error=RecipeError, remedy="correct it", limit=limit)
    message = str(caught.value)
    assert says in message
    assert message.startswith("some/file.json: not valid JSON (")
    assert message.endswith("); correct it")
    assert len(message) < 400


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_the_error_has_the_file(parse: Any) -> None:
    """Also of one line of it, and whatever a caller says beside it; errors of Python's own have no file."""
    for given in ({"where": "a/b.json"}, {"where": "a/b.json, line 3"}):
        with pytest.raises(CorruptFile) as caught:
            parse("[", **given)
        assert caught.value.file == "a/b.json"
    with pytest.raises(CorruptFile) as caught:
        parse_json("[", "a/b.json: its header", file="a/b.json")
    assert caught.value.file == "a/b.json"
    with pytest.raises(ValueError, match="not valid"):
        parse("[", "the body", error=ValueError)


def test_json_that_is_taken() -> None:
    deepest = b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1)
    assert json.dumps(parse_json(deepest, "file")) == deepest.decode()
    assert parse_json(b'"\\ud83d\\ude00"', "file") == "\U0001f600"
    assert parse_json(b"1" + b"0" * 30, "file") == 10**30
    assert parse_json("[NaN, 1e999]", "file", nan=True)[1] == float("inf")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_json_is_read_as_python_reads_it_or_refused(seed: int) -> None:
    choose = random.Random(seed)
    text = json.dumps(
        {"a": [1, 2.5, -3, None, True], "b": {"c": 'x\u00e9\\"', "d": []}, "e": 10**20}
    ).encode()
    pieces = (b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\u", b"e9", b"-", b"\xff", b"NaN", b'"a":', b"0")
    for _ in range(500):
        mutated = bytearray(text)
        for _ in range(choose.randint(1, 4)):
            at = choose.randrange(len(mutated))
            mutated[at : at + choose.randint(0, 3)] = choose.choice(pieces)
        try:
            value = parse_json(bytes(mutated), "file")
        except CorruptFile:
            continue
        assert value == json.loads(bytes(mutated).decode())


REFUSED_YAML = {
    "twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is there twice"),
    "digits": ("x: " + "1" * 5000, "line 1, column 4: a number of more than 100 digits"),
    "sexagesimal": ("x: " + "1:" * 5000 + "1", "more than 100 digits"),
    "deep brackets": ("[" * 100_000, "nested more than 64 deep"),
    "deep braces": ("{" * 50_000 + "}" * 50_000, "nested more than 64 deep"),
    "deep items": ("- " * 100_000, "nested more than 64 deep"),
    "deep keys": ("? " * 100_000, "nested more than 64 deep"),
    "itself": ("&a [*a]", "nested more than 64 deep"),
    "aliases": (
        "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in pairwise("abcdefgh")),
        "its aliases repeat too much",
    ),
    "merges": (
        "a: &a {" + ", ".join(f"k{key}: 1" for key in range(50)) + "}\n<<: [" + "*a, " * 20_000 + "]",
        "its aliases repeat too much",
    ),
    "code": ("a: !!python/object/apply:os.system [x]", "has no place here"),
    "binary": ("a: !!binary aGk=", "has no place here"),
    "a set": ("a: !!set {x, y}", "has no place here"),
    "wrong tag": ("a: !!int x", "'x' is no int"),
    "infinity": ("a: .inf", "'.inf' is not a finite number"),
    "odd escape": ('a: "\\UFFFFFFFF"', "not valid YAML ("),
    "control": ("a: 1\nb: \x00", "line 2: special characters are not allowed"),
    "key": ("? [a]\n: b", "a key has to be text"),
    "two": ("---\na: 1\n---\nb: 2", "expected a single document"),
    "unknown alias": ("a: *b", "line 1, column 4: found undefined alias"),
    "large": ("#" * 1_000_001, "longer than 1,000,000 bytes"),
    "not UTF-8": (b"a: 1\nb: \xff", "line 2: not UTF-8"),
}


@pytest.mark.parametrize(("data", "says"), REFUSED_YAML.values(), ids=REFUSED_YAML)
def test_yaml_is_refused(data: str | bytes, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        parse_yaml(data, "some/file.yaml", error=RecipeError, remedy="correct it")
    message = str(caught.value)
    assert says in message
    assert message.startswith("some/file.yaml: not valid YAML (")
    assert message.endswith("); correct it")
    assert len(message) < 400
    assert time.monotonic() - start < 20


def test_yaml_is_what_the_safe_loader_reads() -> None:
    text = (
        "\ufeffa: &x {q: 1, r: 2.5, s: [yes, No, ~, 0x1f, 017, 1_000, .5, 1e3]}\nb: {<<: *x, r: 3}\n"
        "c:\n  <<: [{z: 1, r: 9}, *x]\n  r: 4\nd: |\n  text\n  more\n? e\n: 1:30\n5: number\n"
    )
    assert parse_yaml(text, "file") == yaml.safe_load(text)
    assert parse_yaml("", "file") is None


def test_dates_stay_text() -> None:
    assert parse_yaml("release: 2024-02-30\nday: 2024-02-03\nat: 2024-02-03 99:99:99", "file") == {
        "release": "2024-02-30",
        "day": "2024-02-03",
        "at": "2024-02-03 99:99:99",
    }


@pytest.mark.parametrize("seed", range(4))
def test_mutated_yaml_is_read_as_the_safe_loader_reads_it_or_refused(seed: int) -> None:
    choose = random.Random(seed)
    text = "a: &x {q: 1, r: [2.5, no, ~]}\nb:\n  - 'it s'\n  - \"\\x41\"\n  - *x\nc: |\n  text\nd: {<<: *x}\n"
    pieces = (
        "&x ",
        "*x",
        "<<: ",
        "- ",
        "\n",
        "  ",
        "!!int ",
        "!!str ",
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        ": ",
        "? ",
        "%",
    )
    for _ in range(150):
        mutated = text
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(mutated))
            mutated = mutated[:at] + choose.choice(pieces) + mutated[at + choose.randint(0, 3) :]
        try:
            value = parse_yaml(mutated, "file")
        except CorruptFile:
            continue
        assert value == yaml.safe_load(mutated)
