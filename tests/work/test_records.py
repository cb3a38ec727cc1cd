"""What is on record of units: it comes back as it was, and what is not as it was written counts as none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubextrap import errors
from hubextrap.claims import sealed
from hubextrap.errors import CorruptFile, HubExtrapError
from hubextrap.foreign_text import own_lines
from hubextrap.work.places import FolderPlace
from hubextrap.work.records import (
    DONE,
    FAILED,
    Record,
    Records,
    error_as_json,
    error_from_json,
)

PLAN, OTHER = "a" * 64, "b" * 64
SECRET = "hf_zq7Xk3vPm9TdLw2RbYs8JcNzq7"
CONTENT = {"shards": [{"file": "model.safetensors", "size": 3, "sha256": "c" * 64}], "identical": False}

whole_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | whole_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(whole_text, inner, max_size=4),
    max_leaves=12,
).filter(lambda value: "Infinity" not in json.dumps(value))
contents = st.dictionaries(whole_text, values, max_size=4)


def kinds(kind: type[HubExtrapError] = HubExtrapError) -> Iterator[type[HubExtrapError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from kinds(below)


KINDS = sorted(set(kinds()), key=lambda kind: kind.__name__)


def same(one: HubExtrapError, other: HubExtrapError) -> None:
    assert type(other) is type(one)
    assert str(other) == str(one)
    for name in ("file", "tensor", "step", "repo", "line", "extra"):
        assert getattr(other, name, None) == getattr(one, name, None)
    assert len(other.parts) == len(one.parts)
    for mine, theirs in zip(one.parts, other.parts, strict=True):
        same(mine, theirs)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    place = FolderPlace(tmp_path / "place")
    place.write("plan.json", b"{}")
    return Records(place, PLAN)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**12), whole_text, contents)
def test_a_record_comes_back_as_it_was(unit: int, plan: str, content: dict[str, Any]) -> None:
    record = Record(unit, plan, content)
    assert Record.from_bytes(record.to_bytes(), "x") == record


@pytest.mark.parametrize("content", [{"x": float("nan")}, {"x": float("inf")}])
def test_what_json_does_not_have_is_not_written(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Record(0, PLAN, content).to_bytes()


def test_a_record_cut_anywhere_or_with_a_bit_flipped_is_none() -> None:
    data = Record(3, PLAN, CONTENT).to_bytes()
    for end in range(0, len(data) - 1, 3):  # the last byte is the line's end
        with pytest.raises(CorruptFile, match="is no record of a unit") as caught:
            Record.from_bytes(data[:end], "x")
        assert caught.value.file == "x"
    assert str(caught.value).endswith("; remove it, and the unit is done again")
    for place in range(0, len(data) - 1, 5):
        for bit in (1, 32):
            flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            with contextlib.suppress(CorruptFile):  # but for a space more or less
                assert Record.from_bytes(flipped, "x") == Record(3, PLAN, CONTENT)


@pytest.mark.parametrize(
    "stated",
    [
        {"unit": 0, "plan": PLAN, "content": {}, "digest": "0" * 64},
        {"unit": 0, "plan": PLAN, "content": {}},
        sealed({"unit": True, "plan": PLAN, "content": {}}),
        sealed({"unit": "0", "plan": PLAN, "content": {}}),
        sealed({"unit": 0, "plan": None, "content": {}}),
        sealed({"unit": 0, "plan": PLAN, "content": []}),
        sealed({"unit": 0, "plan": PLAN}),
        [],
        None,
        "digest",
    ],
)
def test_what_is_no_record(stated: object, records: Records) -> None:
    """One without its own sha256 is none either: nothing of ours writes such."""
    data = json.dumps(stated).encode()
    with pytest.raises(CorruptFile, match="no record of a unit"):
        Record.from_bytes(data, "x")
    records.place.write(f"{DONE}/0.json", data)
    assert records.get(0) is None


def test_what_is_done(records: Records) -> None:
    assert records.done() == frozenset()
    assert records.get(0) is None
    record = Record(0, PLAN, CONTENT)
    records.put(record)
    records.put(Record(12, PLAN, {}))
    assert records.done() == {0, 12}
    assert records.get(0) == record
    records.put(record)
    assert records.get(0) == record
    data = records.place.read(f"{DONE}/0.json")
    assert data is not None
    records.place.write(f"{DONE}/7.json", data)
    assert records.get(7) is None, "it is another unit's"
    assert Records(records.place, OTHER).get(0) is None, "it is another plan's"


def test_only_names_of_records_are_units(records: Records) -> None:
    for name in ("x.json", "1.txt", "-1.json", "01.json", "²3.json", "٣.json", "5.json.part", "1e3.json"):
        records.place.write(f"{DONE}/{name}", b"{}")
    records.put(Record(5, PLAN, {}))
    assert records.done() == {5}


def test_what_failed(records: Records) -> None:
    error = errors.NonFinite("w: 3 of 9 results are NaN", tensor="w", step=400, file="model.safetensors")
    assert records.failure(4) is None
    records.fail(4, error)
    found = records.failure(4)
    assert found is not None
    same(error, found)
    assert records.failed() == {4}
    assert Records(records.place, OTHER).failed() == frozenset(), "of another plan"
    assert Records(records.place, OTHER).failure(4) is None
    records.put(Record(4, PLAN, {}))
    assert records.failed() == frozenset(), "done since"
    records.place.write(f"{DONE}/4.json", b"damaged")
    assert records.failed() == {4}


@pytest.mark.parametrize(
    "stated",
    [
        {"plan": PLAN, "error": {"kind": "NonFinite", "message": "x"}},
        *(
            sealed({"plan": PLAN, "error": error})
            for error in (
                "x",
                [],
                None,
                {"kind": "NonFinite"},
                {"message": "x"},
                {"kind": [], "message": "x"},
                {"kind": "NonFinite", "message": "x", "step": "400"},
                {"kind": "NonFinite", "message": "x", "file": 7},
                {"kind": "NonFinite", "message": "x", "extra": "ray"},
                {"kind": "MissingExtra", "message": "x", "file": "y"},
                {"kind": "NonFinite", "message": "x", "parts": "parts"},
                {"kind": "NonFinite", "message": "x", "parts": 3},
            )
        ),
        sealed({"error": {"kind": "NonFinite", "message": "x"}}),
        [],
    ],
)
def test_what_is_no_record_of_a_failure(stated: object, records: Records) -> None:
    records.place.write(f"{FAILED}/0.json", json.dumps(stated).encode())
    assert records.failure(0) is None
    assert records.failed() == frozenset()


@pytest.mark.parametrize("name", ["KeyboardInterrupt", "OwnLines", "redact", "sys", "Iterable", "Novel"])
def test_an_error_of_a_kind_that_is_not_ours(name: str) -> None:
    found = error_from_json({"kind": name, "message": "x", "tensor": "w"})
    assert type(found) is HubExtrapError
    assert (str(found), found.tensor) == ("x", "w")


def test_an_error_of_a_kind_below_ours_travels_as_ours() -> None:
    class Below(errors.AccessDenied):
        pass

    assert error_as_json(Below("x"))["kind"] == "AccessDenied"


texts = st.lists(
    st.text(max_size=30)
    | st.sampled_from([SECRET, "::error::x", "\x1b[31m", "##[error]", "\n", "\r\n", "́" * 9, "\ud800"])
    | st.integers(3_980, 9_000).map(lambda size: "x" * size),
    max_size=4,
).map("".join)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    lines=st.lists(texts, min_size=1, max_size=3),
    name=texts,
    number=st.none() | st.integers(0, 10**9),
)
def test_an_error_comes_back_as_it_was(
    kind: type[HubExtrapError], lines: list[str], name: str, number: int | None
) -> None:
    """Whatever others' texts are in it; and no secret travels."""
    message = own_lines(*lines) if len(lines) > 1 else lines[0]
    if kind is errors.MissingExtra:
        error: HubExtrapError = errors.MissingExtra(message, extra="ray")
    else:
        part = errors.RecipeError(name, line=3)
        error = kind(message, file=name, tensor=name, repo=name, step=number, line=number, parts=[part])
    data = json.dumps(error_as_json(error))
    assert SECRET not in data
    same(error, error_from_json(json.loads(data)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_travels(kind: type[HubExtrapError]) -> None:
    error = kind("it", "is so")
    same(error, error_from_json(json.loads(json.dumps(error_as_json(error)))))
    assert error_as_json(error)["kind"] == kind.__name__


def test_what_a_record_of_a_failure_says_acts_no_more_than_other_texts() -> None:
    """Whoever can write into the place can write one."""
    found = error_from_json(
        {"kind": "SourceError", "message": f"a\n::error::b \x1b[2J {SECRET}", "file": "\x1b"}
    )
    assert str(found) == "a\n\\x3a:error::b \\x1b[2J hf_***"
    assert found.file == "\\x1b"
