"""A checkpoint knows its step and where its bytes lie; series and trajectories hold checkpoints in order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubextrap.notebooks import counted, html_table, one_line, steps_in_words
from hubextrap.trajectory.bucket_files import is_bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

MODEL, ADAPTER, BASE = "model", "adapter", "base"
"""What a checkpoint is: a whole model; an adapter, which holds what training adds to a base model; or that
base model, in a run of adapters."""
BASE_NAME = "the base model"
"""What messages call step 0 of a run of adapters, which no file holds."""

UNKNOWN_STEP = -1
"""The step of a checkpoint whose name says none, e.g. a final model's main branch; never in a trajectory."""


def place_name(repo: str, revision: str, path: str) -> str:
    """What a place on the Hub is called, in a form that a reference can have."""
    if is_bucket(repo):
        return f"hf://{repo}" + (f"/{path}" if path else "")
    return f"{repo}@{revision}" + (f":{path}" if path else "")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights at a training step, pinned.

    On the Hub: ``repo`` with ``revision`` as the user knows it, ``commit`` as it is read, ``path`` the folder
    in the repo ("" for its root). In a bucket: ``repo`` is ``buckets/owner/name``, ``revision`` is empty, and
    ``commit`` stands for the files (`bucket_files.pin_of_files`). Locally: ``repo`` and ``commit`` are None,
    ``path`` is an absolute folder.
    """

    step: int
    repo: str | None
    revision: str
    commit: str | None
    path: str
    size: int | None = None
    """Bytes of its weight files, where known."""
    dtype: str | None = None
    """safetensors name of the dtype of most of its bytes, e.g. BF16, where known."""
    date: datetime | None = None
    note: str | None = None
    """What is to be known of its weight files beside their bytes."""
    digest: str | None = field(default=None, compare=False)
    """What stands for the bytes of its weight files, where the Hub's listing says it."""
    kind: str = MODEL
    """``MODEL``, ``ADAPTER`` or ``BASE``; not known before its folder is looked into."""
    weights: str = field(default="", compare=False)
    """In which form its weights lie, e.g. ``safetensors`` or ``FSDP shards`` (`weights.Weights.form`); ""
    before its folder is looked into."""

    @property
    def name(self) -> str:
        """What messages call it: ``repo@revision``, ``repo@revision:folder``, ``hf://buckets/owner/name/folder``
        or the local folder."""
        if self.repo is None:
            return self.path or BASE_NAME
        return place_name(self.repo, self.revision, self.path)


UNTOUCHED_BASE = Checkpoint(0, None, "", None, "", kind=BASE)
"""Step 0 of a run of adapters, which adds nothing to the base model and has no files."""


def is_untouched_base(checkpoint: Checkpoint) -> bool:
    """Whether it is the step 0 that has no files, so that there is nothing to open."""
    return checkpoint.kind == BASE and checkpoint.repo is None and not checkpoint.path


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A place that is named like a checkpoint of the run and is none."""

    checkpoint: Checkpoint
    why: str
    """What it is instead, e.g. ``no weights``."""

    def __str__(self) -> str:
        return f"{self.checkpoint.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Series:
    """Checkpoints of one pattern in one layout, in step order; a step may still be there twice."""

    pattern: str
    layout: str
    """How they lie: branches, tags, branches and tags, subfolders, commits, repos or folders."""
    checkpoints: tuple[Checkpoint, ...]
    passed_over: tuple[PassedOver, ...] = ()
    """Folders that are named like the others and hold no weights as they do, or predictions."""
    files_known: bool = False
    """Whether ``checkpoints`` are known to hold weights; branches and commits are not looked into yet."""

    @property
    def label(self) -> str:
        """What tells it from every other series of the reference."""
        return f"{self.layout}: {self.pattern}"

    @property
    def weights(self) -> str:
        """The form in which the weights of most of its checkpoints lie; "" where that is not known."""
        forms = Counter(one.weights for one in self.checkpoints)
        return max(forms, key=lambda form: forms[form], default="")


def say_notes(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """A line for each note on checkpoints' files, however many have it."""
    steps: dict[str, list[int]] = {}
    for checkpoint in checkpoints:
        if checkpoint.note:
            steps.setdefault(checkpoint.note, []).append(checkpoint.step)
    return [
        f"step {those[0]} {note}"
        if len(those) == 1
        else f"each of {len(those)} steps from {those[0]} to {those[-1]} {note}"
        for note, those in steps.items()
    ]


def say_same_weights(groups: Iterable[Sequence[int]], count: int) -> tuple[str, ...]:
    """A line for each group of steps with the same weights, of ``count`` checkpoints."""
    lines = []
    for steps in groups:
        if len(steps) == count:
            what = f"all {count} checkpoints hold the same weights: nothing was trained"
        else:
            *others, last = map(str, steps)
            listed = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
            what = (
                f"step{'s' * (len(others) > 1)} {listed} hold{'s' * (len(others) == 1)} the same weights as "
                f"step {last}: nothing was trained between them"
            )
        lines.append(f"{what}, or the upload is wrong; leave out the steps that hold the wrong weights")
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Checkpoints of one training run, in step order, no step twice."""

    checkpoints: tuple[Checkpoint, ...]
    series: str
    """The names that belong together, e.g. ``step_{step}``."""
    whole: Series | None = field(default=None, compare=False, repr=False)
    """All of the series, as it was when ``checkpoints`` were chosen; None where they were listed."""
    same_weights: tuple[tuple[int, ...], ...] = ()
    """Steps whose checkpoints hold the same weights, each group in order; see ``sameness``."""
    base_model: Checkpoint | str | None = None
    """The base model of a run of adapters: of kind ``BASE`` where the run holds it at step 0; as the user
    named it, not looked for before it is needed; None where only adapters' configurations say which it is."""
    passed_over: tuple[PassedOver, ...] = field(default=(), compare=False, repr=False)
    """Places between the bounds that are named like a checkpoint of the run and are none, or not yet."""

    def __repr__(self) -> str:
        count, last = counted(len(self.checkpoints), "checkpoint"), self.checkpoints[-1:]
        return one_line(self, count, steps_in_words(self.steps), *(f"last {one.name}" for one in last))

    def _repr_html_(self) -> str:
        rows = [
            (
                str(one.step),
                one.name,
                (one.commit or "")[:8],
                one.kind,
                one.size,
                one.dtype or "",
                one.note or "",
            )
            for one in self.checkpoints
        ]
        said = f"{counted(len(rows), 'checkpoint')} of {self.series}"
        headings = ("step", "checkpoint", "commit", "kind", "bytes of weights", "dtype", "note")
        return html_table(said, headings, rows, self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each group of steps with the same weights."""
        return say_same_weights(self.same_weights, len(self.checkpoints))

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    @property
    def of_adapters(self) -> bool:
        """Whether the checkpoints are adapters, so that each stands for the base model plus what it adds."""
        return any(one.kind == ADAPTER for one in self.checkpoints)

    @property
    def base(self) -> Checkpoint:
        return self.checkpoints[0]

    @property
    def last(self) -> Checkpoint:
        return self.checkpoints[-1]
