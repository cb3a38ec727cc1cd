"""The headers of all checkpoints side by side: which tensors there are, and everything that does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import CheckpointMismatch
from hubextrap.foreign_text import own_lines
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""What can be combined, by safetensors name. Everything else is copied when it is the same everywhere."""

OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How tied pairs end in transformers' models: Llama, Qwen, Gemma …; GPT-2; GPT-NeoX; BLOOM, Falcon."""
LISTED_PROBLEMS = 20


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


def compare(
    steps: Sequence[int], layouts: Sequence[CheckpointLayout], *, tied: bool
) -> tuple[list[TensorInputs], list[str], list[str]]:
    """Match the tensors of K checkpoints by name.

    Tied embeddings: when ``tied`` (config.json's tie_word_embeddings of the last checkpoint) and a known pair
    of output and input embedding is there, the two names are one tensor. The output holds it once, under the
    input embedding's name (under the other if the last checkpoint stores only that). Checkpoints may store
    either name or both; where both are stored they are compared while the bytes stream.

    Returns:
        The output's tensors in the last checkpoint's file and offset order, as all checkpoints hold them;
        every mismatch, one line each; facts worth telling that are no mismatch.
    """
    comparison = _Comparison(steps, layouts, tied)
    last, pair = layouts[-1].tensors, comparison.pair
    notes: list[str] = []
    entries: list[TensorInputs] = []
    for name, reference in last.items():
        if pair and name == pair[0] and pair[1] in last:
            notes.append(
                f"tied: {name} is written once, as {pair[1]}; every checkpoint used is checked for it"
            )
        elif (entry := comparison.find(name, reference)) is not None:
            entries.append(entry)
    comparison.find_others()
    return entries, comparison.problems, notes


class _Comparison:
    """Looks for tensors in K checkpoints, and collects what does not fit."""

    def __init__(self, steps: Sequence[int], layouts: Sequence[CheckpointLayout], tied: bool) -> None:
        self.problems: list[str] = []
        self._tensors = [layout.tensors for layout in layouts]
        self._every = tuple(range(len(layouts)))
        self.pair = _tied_pair(self._tensors) if tied else None
        self._last_step = steps[-1]
        self._labels = [f"step {step} ({layout.name})" for step, layout in zip(steps, layouts, strict=True)]

    def find(self, name: str, reference: TensorInfo) -> TensorInputs | None:
        """The tensor of that name in all checkpoints; None where one has none."""
        pair = self.pair
        names = (name, *(other for other in pair if other != name)) if pair and name in pair else (name,)
        found: list[TensorInfo] = []
        twins: list[tuple[int, TensorInfo]] = []
        for k, checkpoint in enumerate(self._tensors):
            stored = [checkpoint[alias] for alias in names if alias in checkpoint]
            if not stored:
                self.problems.append(
                    f"{name} is in step {self._last_step} but not in {self._labels[k]}" + _tying_hint(name)
                )
                continue
            self._check(stored, reference, self._labels[k])
            found.append(stored[0])
            twins += [(k, twin) for twin in stored[1:]]
        if len(found) < len(self._tensors):
            return None
        elements = reference.nbytes // DTYPES[reference.dtype].itemsize
        return TensorInputs(name, elements, self._every, tuple(found), tuple(twins))

    def find_others(self) -> None:
        """What earlier checkpoints have and the last one does not."""
        known = {*self._tensors[-1], *(self.pair or ())}
        for label, checkpoint in zip(self._labels[:-1], self._tensors[:-1], strict=True):
            self.problems += [
                f"{name} is in {label} but not in step {self._last_step}" + _tying_hint(name)
                for name in checkpoint
                if name not in known
            ]

    def _check(self, stored: Sequence[TensorInfo], reference: TensorInfo, label: str) -> None:
        for info in stored:
            if (problem := _difference(info, reference)) is not None:
                self.problems.append(
                    f"{info.name} {problem[0]} in {label}, {problem[1]} in step {self._last_step}"
                )
        if len(stored) == 2 and stored[0].dtype != stored[1].dtype:
            self.problems.append(
                f"{stored[1].name} is {stored[1].dtype} and {stored[0].name} {stored[0].dtype} in {label}, "
                "but config.json says that they are tied"
            )


def refuse(problems: Sequence[str]) -> None:
    """Refuse checkpoints that do not fit together.

    Raises:
        CheckpointMismatch: there are problems.
    """
    if not problems:
        return
    more = len(problems) - LISTED_PROBLEMS
    raise CheckpointMismatch(
        own_lines(
            f"the checkpoints do not fit together, {len(problems)} finding{'s' * (len(problems) > 1)}:",
            *(f"  {problem}" for problem in problems[:LISTED_PROBLEMS]),
            *([f"  … and {more} more"] if more > 0 else []),
            "leave out the checkpoints that differ (trajectory.steps), or choose ones that one run saved",
        )
    )


def uncombinable(name: str, dtype: str) -> list[str]:
    """The problem with a tensor of several checkpoints, if it is neither floats to combine nor integers."""
    if dtype in FLOATS or dtype[0] in "IUB":
        return []
    return [f"{name} is {dtype}, which cannot be combined; give it the method persistence by a rule"]


def _tied_pair(tensors: Sequence[Mapping[str, TensorInfo]]) -> tuple[str, str] | None:
    """(output embedding, input embedding), when exactly one of each is stored anywhere."""
    names = {name for checkpoint in tensors for name in checkpoint}
    outputs = [name for name in names if _ends_with(name, OUTPUT_EMBEDDINGS)]
    inputs = [name for name in names if _ends_with(name, INPUT_EMBEDDINGS)]
    return (outputs[0], inputs[0]) if len(outputs) == len(inputs) == 1 else None


def _ends_with(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _tying_hint(name: str) -> str:
    if not _ends_with(name, OUTPUT_EMBEDDINGS):
        return ""
    return " (if it is tied, the last checkpoint's config.json has to say tie_word_embeddings: true)"


def _difference(info: TensorInfo, reference: TensorInfo) -> tuple[str, str] | None:
    """What ``info`` and ``reference`` are, where they cannot be combined."""
    if info.shape != reference.shape:
        return f"has shape {list(info.shape)}", f"{list(reference.shape)}"
    if info.dtype != reference.dtype and not (info.dtype in FLOATS and reference.dtype in FLOATS):
        return f"is {info.dtype}", f"{reference.dtype}"
    return None
