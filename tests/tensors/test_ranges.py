from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hubextrap.tensors.ranges import Span, coalesce


def test_neighbours_are_joined() -> None:
    assert coalesce([(0, 10), (10, 5), (20, 5)], max_gap=0, max_size=100) == [
        Span(0, 15, (0, 1)),
        Span(20, 25, (2,)),
    ]
    assert coalesce([(0, 10), (10, 5), (20, 5)], max_gap=5, max_size=100) == [Span(0, 25, (0, 1, 2))]


def test_members_are_positions_in_the_list_given() -> None:
    assert coalesce([(20, 5), (0, 10)], max_gap=10, max_size=100) == [Span(0, 25, (1, 0))]


def test_spans_stay_under_the_size() -> None:
    assert coalesce([(0, 6), (6, 6), (12, 30)], max_gap=0, max_size=12) == [
        Span(0, 12, (0, 1)),
        Span(12, 42, (2,)),
    ]


def test_a_span_may_be_just_as_large_and_a_gap_just_as_wide_as_said_wherever_it_lies() -> None:
    far = 10**12
    ranges = [(far, 10), (far + 15, 5)]
    assert coalesce(ranges, max_gap=5, max_size=20) == [Span(far, far + 20, (0, 1))]
    assert len(coalesce(ranges, max_gap=4, max_size=20)) == 2
    assert len(coalesce(ranges, max_gap=5, max_size=19)) == 2


def test_nothing() -> None:
    assert coalesce([], max_gap=1, max_size=1) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 50)), max_size=30),
    st.integers(0, 40),
    st.integers(0, 120),
)
def test_every_range_lies_whole_in_exactly_one_span(
    ranges: list[tuple[int, int]], max_gap: int, max_size: int
) -> None:
    spans = coalesce(ranges, max_gap, max_size)
    assert sorted(member for span in spans for member in span.members) == list(range(len(ranges)))
    for span in spans:
        inside = [ranges[member] for member in span.members]
        assert span.start == min(start for start, _ in inside)
        assert span.stop == max(start + length for start, length in inside)
        assert len(inside) == 1 or span.stop - span.start <= max_size
    assert [span.start for span in spans] == sorted(span.start for span in spans)
