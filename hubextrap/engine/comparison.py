"""The headers of all checkpoints side by side: which tensors there are, and everything that does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.engine.findings import HAS_MORE, LACKS, OTHERWISE, Problem
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.tied import OUTPUT_EMBEDDINGS, ends_with, tied_pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""What can be combined, by safetensors name. Everything else is copied when it is the same everywhere."""

UNTIED = (
    " (a model whose embeddings are tied stores none; here config.json of the last checkpoint does not say "
    "tie_word_embeddings: true, or it stores a head that differs)"
)


@dataclass(frozen=True, slots=True)
class TensorInputs:
    """One tensor, and where the checkpoints that it is read from keep it."""

    name: str
    """As the last checkpoint calls it."""
    elements: int
    checkpoints: tuple[int, ...]
    """Their numbers, in step order."""
    inputs: tuple[TensorInfo, ...]
    """One for each of them."""
    twins: tuple[tuple[int, TensorInfo], ...]
    """Tied copies: (position in ``inputs``, copy), which have to hold the same bytes."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element of what is made of it: none, where it is only looked at."""
        return 0

    @property
    def bytes_read(self) -> int:
        """Of all checkpoints together."""
        return sum(info.nbytes for info in (*self.inputs, *(twin for _, twin in self.twins)))

    @property
    def bytes_stored(self) -> int:
        """The same, as they are stored."""
        every = (*self.inputs, *(twin for _, twin in self.twins))
        return sum(info.packed or info.nbytes for info in every)


def compare(
    steps: Sequence[int], layouts: Sequence[CheckpointLayout], *, tied: bool
) -> tuple[list[TensorInputs], list[Problem], list[str]]:
    """Match the tensors of K checkpoints by name.

    Tied embeddings: when ``tied`` (config.json's tie_word_embeddings of the last checkpoint) and a known pair
    of output and input embedding is there, the two names are one tensor. The output holds it once, under the
    input embedding's name (under the other if the last checkpoint stores only that). Checkpoints may store
    either name or both; where both are stored they are compared while the bytes stream.

    Returns:
        The output's tensors in the last checkpoint's file and offset order, as all checkpoints hold them;
        every mismatch; facts worth telling that are no mismatch.
    """
    tensors = [layout.tensors for layout in layouts]  # those of a run are one table
    copied = layouts[-1].copied
    count, every = len(layouts), tuple(range(len(layouts)))
    stored_names = {name for table in {id(one): one for one in tensors}.values() for name in table}
    pair = tied_pair(stored_names) if tied else None
    last, last_step = tensors[-1], f"step {steps[-1]}"
    labels = [f"step {step} ({layout.name})" for step, layout in zip(steps, layouts, strict=True)]
    problems: list[Problem] = []
    notes: list[str] = []
    entries: list[TensorInputs] = []
    alike = all(checkpoint is last for checkpoint in tensors)
    for name, reference in last.items():
        if pair and name == pair[0] and pair[1] in last:
            notes.append(
                f"tied: {name} is written once, as {pair[1]}; every checkpoint used is checked for it"
            )
            continue
        elements = reference.nbytes // DTYPES[reference.dtype].itemsize
        if (alike or name in copied) and not (pair and name in pair):
            entries.append(TensorInputs(name, elements, every, (reference,) * count, ()))
            continue
        names = (name, *(other for other in pair if other != name)) if pair and name in pair else (name,)
        found: list[TensorInfo] = []
        twins: list[tuple[int, TensorInfo]] = []
        for k, checkpoint in enumerate([last] * count if name in copied else tensors):
            stored = [checkpoint[alias] for alias in names if alias in checkpoint]
            problems += (
                _differences(stored, reference, (steps[k], labels[k]), last_step)
                if stored
                else [_missing(name, last_step, labels[k], steps[k], LACKS)]
            )
            found += stored[:1]
            twins += [(k, twin) for twin in stored[1:]]
        if len(found) == count:
            entries.append(TensorInputs(name, elements, every, tuple(found), tuple(twins)))
    known = {*last, *(pair or ())}
    for step, label, checkpoint in zip(steps[:-1], labels, tensors, strict=False):
        if checkpoint is last:
            continue
        problems += [
            _missing(name, label, last_step, step, HAS_MORE) for name in checkpoint if name not in known
        ]
    return entries, problems, notes


def _differences(
    stored: Sequence[TensorInfo], reference: TensorInfo, there: tuple[int, str], last_step: str
) -> Iterator[Problem]:
    """Why what a checkpoint holds under a tensor's names, one or two, does not fit the last one's."""
    step, label = there
    for info in stored:
        if info.shape != reference.shape:
            how = f"shape {list(info.shape)} in {label}, {list(reference.shape)} in {last_step}"
            yield Problem(f"{info.name} has {how}", reference.name, step, OTHERWISE, how)
        elif info.dtype != reference.dtype and not {info.dtype, reference.dtype}.issubset(FLOATS):
            how = f"{info.dtype} in {label}, {reference.dtype} in {last_step}"
            yield Problem(f"{info.name} is {how}", reference.name, step, OTHERWISE, how)
    if len(stored) == 2 and stored[0].dtype != stored[1].dtype:
        yield Problem(
            f"{stored[1].name} is {stored[1].dtype} and {stored[0].name} {stored[0].dtype} in {label}, "
            "but config.json says that they are tied",
            reference.name,
            step,
        )


def uncombinable(name: str, dtype: str, remedy: str) -> list[Problem]:
    """The problem with a tensor of several checkpoints, if it is neither floats to combine nor integers."""
    if dtype in FLOATS or dtype[0] in "IUB":
        return []
    if dtype.startswith("F8"):  # weights: to take those of one checkpoint is no way out
        remedy = f"store it in every checkpoint as one of {', '.join(FLOATS)}"
    return [Problem(f"{name} is {dtype}, which cannot be combined; {remedy}", name)]


def dtype_notes(steps: Sequence[int], layouts: Sequence[CheckpointLayout]) -> list[str]:
    """The float dtypes of each step, where they differ."""
    known: dict[int, str] = {}
    for table in (layout.tensors for layout in layouts):
        if id(table) not in known:
            dtypes = {info.written for info in table.values()}
            known[id(table)] = "/".join(sorted(dtypes.intersection(FLOATS)))
    stored = {step: known[id(layout.tensors)] for step, layout in zip(steps, layouts, strict=True)}
    if len(set(stored.values())) < 2:
        return []
    return ["dtypes differ: " + ", ".join(f"step {step} {dtype}" for step, dtype in stored.items())]


def _missing(name: str, there: str, absent: str, step: int, kind: str) -> Problem:
    text = f"{name} is in {there} but not in {absent}"
    if ends_with(name, OUTPUT_EMBEDDINGS):
        text += UNTIED
    return Problem(text, name, step, kind, f"in {there} but not in {absent}")
