"""What became of a run since it was looked at last: which checkpoints came, were replaced, or went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hubextrap.digests import sha256_of_json
from hubextrap.trajectory.checkpoint import ADAPTER, Checkpoint, PassedOver, is_untouched_base
from hubextrap.trajectory.listing import files_of_checkpoint
from hubextrap.trajectory.local_files import entries_of_checkpoint
from hubextrap.trajectory.pins import Pins
from hubextrap.trajectory.selection import place_of
from hubextrap.trajectory.series import A_PREDICTION
from hubextrap.trajectory.weights import ADAPTER_CONFIG, weights_of
from hubextrap.trajectory.wholeness import still_to_come, unfinished

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from hubextrap.trajectory.checkpoint import Trajectory


OVERTAKEN_BY = 2
"""Later checkpoints that are whole, so that one which is not is taken for given up."""


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """A checkpoint as it was, in a few words that a file keeps."""

    step: int
    name: str
    commit: str | None
    """None in a local folder."""
    weights: str
    """What stands for the bytes of its weights, and for how an adapter is scaled."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> SeenCheckpoint:
        """A pinned one; of a local folder, as its files are now."""
        return cls(checkpoint.step, checkpoint.name, checkpoint.commit, _weights_of(checkpoint))

    @classmethod
    def from_json(cls, value: Any) -> SeenCheckpoint:
        """What ``as_json`` made.

        Raises:
            ValueError: it is something else.
        """
        names = {"step": int, "name": str, "commit": (str, type(None)), "weights": str}
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError("is not a checkpoint that was seen")
        if wrong := [name for name, kind in names.items() if not isinstance(value[name], kind)]:  # type: ignore[arg-type]
            raise ValueError(f"{wrong[0]}: is not of the kind that is written there")
        return cls(**value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Replaced:
    """A step at which other bytes lie than before."""

    before: SeenCheckpoint
    now: Checkpoint

    def __str__(self) -> str:
        if self.now.commit is None:
            return f"{self.now.name}: its weights were written to"
        was = self.before.name + (f" ({self.before.commit[:8]})" if self.before.commit else "")
        return f"{was} is {place_of(self.now)} now, with other weights"


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of a run's checkpoints, each kind in step order."""

    new: tuple[Checkpoint, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    """Force-pushed, or written to."""
    gone: tuple[SeenCheckpoint, ...] = ()
    unfinished: tuple[PassedOver, ...] = ()
    """Being written: to be waited for, and not to be used until then."""
    given_up: tuple[PassedOver, ...] = ()
    """Not whole, and overtaken by so many that are: not to be used, nor waited for. What was seen of them
    before is gone; once they are whole they are new."""
    recommitted: tuple[Replaced, ...] = ()
    """The same weights at another commit, which changed something else: a card, or another folder."""
    now: Mapping[int, SeenCheckpoint] = field(default_factory=dict)
    """All checkpoints of the run by step, as they were when this was found out."""

    def __bool__(self) -> bool:
        """Whether weights changed that can be used."""
        return bool(self.new or self.replaced or self.gone)

    @property
    def ready(self) -> tuple[Checkpoint, ...]:
        """The new ones that come before all that is unfinished, so that steps are taken in their order."""
        first = min((over.checkpoint.step for over in self.unfinished), default=None)
        return tuple(one for one in self.new if first is None or one.step < first)

    def lines(self) -> tuple[str, ...]:
        """A line for each, for people."""
        return (
            *(f"step {one.now.step} was replaced: {one}" for one in self.replaced),
            *(
                f"step {one.step} is gone: {one.name}" + (f" ({one.commit[:8]})" if one.commit else "")
                for one in self.gone
            ),
            *(f"step {one.step} is new: {place_of(one)}" for one in self.ready),  # others: in their turn
            *(
                f"step {over.checkpoint.step} is not whole yet and is waited for: {over}"
                for over in self.unfinished
            ),
            *(
                f"step {over.checkpoint.step} is not whole, and {OVERTAKEN_BY} later ones are: it is left "
                f"out until it is: {over}"
                for over in self.given_up
            ),
        )


def changes_since(
    before: Mapping[int, SeenCheckpoint], trajectory: Trajectory, pins: Pins | None = None
) -> Changes:
    """What became of a run since its checkpoints were ``before``.

    Which of its places are still being written is looked up too: of those that are new or were replaced the
    folders are listed, on the Hub by a request each unless ``pins`` have them.

    Args:
        before: by step; empty where nothing was seen yet.
        trajectory: as ``find_trajectory`` finds it now.
        pins: with which it was found.
    """
    seen = {one.step: SeenCheckpoint.of(one) for one in trajectory.checkpoints}
    changed = [
        one
        for one in trajectory.checkpoints
        if one.step not in before or seen[one.step].weights != before[one.step].weights
    ]
    return compared(
        before, trajectory.checkpoints, seen, _unfinished_among(changed, trajectory, before, pins)
    )


def compared(
    before: Mapping[int, SeenCheckpoint],
    checkpoints: Sequence[Checkpoint],
    seen: Mapping[int, SeenCheckpoint],
    unfinished: Iterable[PassedOver] = (),
) -> Changes:
    """The changes from checkpoints as they were to those that are there, ``seen``; some may be unfinished."""
    half = {over.checkpoint.step: over for over in unfinished}
    whole = [one.step for one in checkpoints if one.step not in half]
    given_up = [step for step in sorted(half) if _is_overtaken(step, whole, before)]
    waited_for = {step: over for step, over in half.items() if step not in given_up}
    new, replaced, recommitted = [], [], []
    for one in checkpoints:
        was = before.get(one.step)
        if one.step in half:
            continue
        if was is None:
            new.append(one)
        elif seen[one.step].weights != was.weights:
            replaced.append(Replaced(was, one))
        elif seen[one.step] != was:
            recommitted.append(Replaced(was, one))
    gone = [
        before[step] for step in sorted(set(before).difference(set(seen).difference(given_up), waited_for))
    ]
    return Changes(
        tuple(new),
        tuple(replaced),
        tuple(gone),
        tuple(waited_for[step] for step in sorted(waited_for)),
        tuple(half[step] for step in given_up),
        tuple(recommitted),
        seen,
    )


def _is_overtaken(step: int, whole: Iterable[int], before: Collection[int]) -> bool:
    """Whether so many later ones are whole; of a step that was seen whole before, as many new ones."""
    later = [other for other in whole if other > step and (step not in before or other not in before)]
    return len(later) >= OVERTAKEN_BY


def _unfinished_among(
    changed: Sequence[Checkpoint],
    trajectory: Trajectory,
    before: Mapping[int, SeenCheckpoint],
    pins: Pins | None,
) -> list[PassedOver]:
    """What was passed over and may become a checkpoint, and what is not whole of those that changed.

    A place without weights that others have overtaken is none of them, unless it held a checkpoint before.
    """
    last = trajectory.checkpoints[-1].step if trajectory.checkpoints else -1
    found = [
        over
        for over in trajectory.passed_over
        if over.why != A_PREDICTION and (over.checkpoint.step > last or over.checkpoint.step in before)
    ]
    listed: dict[int, dict[str, int]] = {}

    def files_of(one: Checkpoint) -> dict[str, int]:
        if one.step not in listed:
            there = {} if is_untouched_base(one) else dict(files_of_checkpoint(one, one.name, pins)[0])
            listed[one.step] = there
        return listed[one.step]

    for one in changed:
        if is_untouched_base(one):
            continue
        at = trajectory.checkpoints.index(one)
        previous = trajectory.checkpoints[at - 1] if at else None

        def names_before(previous: Checkpoint | None = previous) -> dict[str, int]:
            return {} if previous is None else files_of(previous)

        why = unfinished(one, files_of(one), names_before)
        if why is None and one.step == last:
            why = still_to_come(files_of(one), names_before())
        if why is not None:
            found.append(PassedOver(one, why))
    return found


def _weights_of(checkpoint: Checkpoint) -> str:
    """The hashes that the Hub lists, or else the commit; of a local folder sizes, times and places of files,
    though not the device, which has another number tomorrow."""
    if is_untouched_base(checkpoint):
        return checkpoint.name
    if checkpoint.repo is not None:
        return checkpoint.digest or f"{checkpoint.repo}@{checkpoint.commit}:{checkpoint.path}"
    entries = entries_of_checkpoint(checkpoint.path)
    weights = weights_of((name, entry.size) for name, entry in entries.items())
    names = set(weights.files) if weights is not None else set()
    if checkpoint.kind == ADAPTER:
        names |= {ADAPTER_CONFIG} & set(entries)
    return sha256_of_json({name: entries[name].stamp[:-1] for name in names})
