"""Every prediction that a trajectory's own checkpoints can check, and what rules say at each origin."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hubextrap.errors import ClockError
from hubextrap.methods.rehearsal import motions_between
from hubextrap.statistics.past import pasts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hubextrap.clocks import Clock
    from hubextrap.methods import Rehearsals
    from hubextrap.methods.rules import FirstMatch
    from hubextrap.statistics.measures import Spectra
    from hubextrap.statistics.past import Past
    from hubextrap.statistics.table import GramTable

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """What is to be predicted from where."""

    last: int
    target: int
    times: tuple[float, ...]
    """Of the checkpoints up to the last one, as the clock had them then."""
    time: float
    """The target's, as the clock had it then."""
    rehearsals: Rehearsals | None = None
    """Of it; None where no error is to be expected."""

    @property
    def horizon(self) -> float:
        return (self.time - self.times[-1]) / (self.times[-1] - self.times[0])


def pairs_of(table: GramTable) -> tuple[list[Pair], tuple[int, ...]]:
    """Every pair of checkpoints with a past whose later one's time could be told at the earlier one; and the
    steps from which some could not."""
    count = len(table.steps)
    pairs, unforeseen = [], []
    for last in range(1, count - 1):
        known = table.clock.known_at(table.steps[last])
        try:
            times = known.times(table.steps[: last + 1])
        except ClockError:
            unforeseen.append(table.steps[last])
            continue
        for target in range(last + 1, count):
            time = _foreseen(known, times[-1], table.steps[target])
            if time is None:
                unforeseen.append(table.steps[last])
            else:
                pairs.append(Pair(last, target, times, time))
    return pairs, tuple(dict.fromkeys(unforeseen))


def _foreseen(known: Clock, now: float, step: int) -> float | None:
    """When a step was going to be, by what was known; None where that could not be told or is no later."""
    try:
        time = known.time_of(step)
    except ClockError:
        return None
    return time if time > now else None


@dataclass(frozen=True, slots=True)
class Predicted:
    """What rules predict from one origin."""

    pairs: list[Pair]
    parts: list[Past]
    """One per rule, of all checkpoints."""
    moves: list[list[NDArray[np.float64]]]
    """Of each part, the displacement for each pair, (N or 1, K) or shorter."""

    @property
    def origins(self) -> NDArray[np.intp]:
        return np.array([pair.last for pair in self.pairs], dtype=np.intp)

    @property
    def targets(self) -> NDArray[np.intp]:
        return np.array([pair.target for pair in self.pairs], dtype=np.intp)

    def errors(self) -> Iterator[tuple[Past, NDArray[np.float64]]]:
        """Each part with its (N or 1, P, K) errors, one for each of P pairs."""
        motions = motions_between(self.origins, self.targets, len(self.parts[0].steps))
        for part, moved in zip(self.parts, self.moves, strict=True):
            errors = np.tile(-motions, (max(map(len, moved)), 1, 1))
            for row, one in enumerate(moved):
                errors[:, row, : one.shape[1]] += one
            yield part, errors


def predicted(
    left: dict[Pair, Found],
    first: FirstMatch,
    table: GramTable,
    rehearse: Callable[[Pair, list[Past]], None],
    spectra: Spectra | None = None,
    of_each: bool = False,
) -> Iterator[Predicted]:
    """What rules predict of pairs, origin by origin.

    Args:
        left: by the pairs, in order; one that the rules cannot predict goes.
        rehearse: called with each of the others that has rehearsals, and those whom to ask for these.
        spectra, of_each: as `Past` takes them.
    """
    times = table.times
    shared = pasts(first, table, spectra, of_each)
    for last, group in groupby(tuple(left), key=lambda pair: pair.last):
        pairs = list(group)
        parts = shared
        if pairs[0].times != times[: last + 1]:  # else what was rehearsed before is taken over
            parts = pasts(first, table.seen_at(last), spectra, of_each)
        moves: list[list[NDArray[np.float64]]] = [[] for _ in parts]
        for pair in tuple(pairs):
            found = [part.displacement(last, pair.time) for part in parts]
            known = [moved for moved in found if moved is not None]
            if len(known) < len(parts):
                pairs.remove(pair)
                del left[pair]
                continue
            for some, moved in zip(moves, known, strict=True):
                some.append(moved)
            if pair.rehearsals is not None:
                rehearse(pair, parts)
        if pairs and shared:
            yield Predicted(pairs, shared, moves)
