"""Units of work, as plain data that JSON can carry: a worker needs a unit and the sources, and nothing else.

What is made of a unit follows from its content and the sources' bytes alone, so units can be done anywhere,
in any order, and more than once.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


@dataclass(frozen=True, slots=True)
class Combination:
    """How one target's tensor is made: Σ weights_i · inputs[indices_i], in the order and form of mergekit.

    ``copy``: one coefficient of exactly 1. ``line``: two coefficients that sum to 1, as
    base + weights[1]·(last − base), which leaves a weight that did not move as it was (mergekit's
    task_arithmetic). ``sum``: anything else (mergekit's linear with normalize: false).
    """

    kind: Literal["copy", "line", "sum"]
    indices: tuple[int, ...]
    """Positions among the tensor's inputs, in step order."""
    weights: tuple[float, ...]
    """float64; the kernel rounds each once to the accumulator's dtype."""


@dataclass(frozen=True, slots=True)
class Made:
    """What is known of one target's output."""

    non_finite: int
    """NaN or infinite elements."""
    identical: bool
    """Whether its bytes are the last checkpoint's."""


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes of one checkpoint's file and their place in the buffer."""

    checkpoint: int
    file: str
    offset: int
    size: int
    position: int


@dataclass(frozen=True, slots=True)
class Twin:
    """A tied copy, which has to hold the same bytes."""

    input: int
    """Position of what it is a copy of, among the piece's inputs."""
    name: str
    place: int
    """In the buffer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of one tensor, as several checkpoints hold it."""

    tensor: str
    elements: int
    """Of the whole tensor."""
    start: int
    """First element."""
    count: int
    checkpoints: tuple[int, ...]
    """The numbers of those that it is read from."""
    dtypes: tuple[str, ...]
    """What each of them stores, by safetensors name."""
    places: tuple[int, ...]
    """In the buffer, one for each of them."""
    twins: tuple[Twin, ...]

    @property
    def ends_tensor(self) -> bool:
        return self.start + self.count == self.elements


@dataclass(frozen=True, slots=True)
class Unit:
    """What is read at once, and what it is: all that a scan needs."""

    pieces: tuple[Piece, ...]
    reads: tuple[Read, ...]
    """In the order of their positions."""

    def origin(self, place: int) -> tuple[str, int]:
        """The file and the offset in it that the byte at ``place`` of the buffer is read from."""
        read = self.reads[bisect_right(self.reads, place, key=attrgetter("position")) - 1]
        return read.file, read.offset + place - read.position

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, once JSON has carried it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The unit that `to_json` was asked of."""
        fields = {name: _tuples(value) for name, value in data.items()}
        fields["reads"] = tuple(Read(**read) for read in fields["reads"])
        fields["pieces"] = tuple(
            Piece(**piece | {"twins": tuple(Twin(**twin) for twin in piece["twins"])})
            for piece in fields["pieces"]
        )
        if "forms" in fields:
            fields["forms"] = tuple(
                Form(**form | {"combinations": tuple(Combination(**one) for one in form["combinations"])})
                for form in fields["forms"]
            )
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Form:
    """What is made of one piece."""

    dtype: str
    """By safetensors name."""
    combinations: tuple[Combination, ...]
    """One per target; empty where the inputs have to be the same, and are copied."""
    wide: bool = False
    """Whether sums are taken in float64, whatever ``dtype`` is."""


@dataclass(frozen=True, slots=True)
class MergeUnit(Unit):
    """Consecutive bytes of one output file, and what they are made from."""

    file: str
    offset: int
    """First byte in the file."""
    size: int
    """Bytes, the same for every target."""
    begins_file: bool
    """Nothing but the header comes before it."""
    ends_file: bool
    outputs: tuple[int, ...]
    """Place in the buffer of each target's bytes."""
    forms: tuple[Form, ...]
    """One per piece. The pieces are in offset order, without gaps."""


def _tuples(value: Any) -> Any:
    """The tuples that JSON made lists of."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
