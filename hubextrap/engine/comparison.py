"""The headers of all checkpoints side by side: which tensors there are, and everything that does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""What can be combined, by safetensors name. Everything else is copied when it is the same everywhere."""

OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How tied pairs end in transformers' models: Llama, Qwen, Gemma …; GPT-2; GPT-NeoX; BLOOM, Falcon."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the output and where each checkpoint keeps it."""

    name: str
    """As the last checkpoint calls it."""
    inputs: tuple[TensorInfo, ...]
    """One a checkpoint, in step order."""
    twins: tuple[TensorInfo | None, ...]
    """The tied copy that a checkpoint stores beside it, which has to hold the same bytes."""


def compare(
    steps: Sequence[int], layouts: Sequence[CheckpointLayout], *, tied: bool
) -> tuple[list[Entry], list[str], list[str]]:
    """Match the tensors of K checkpoints by name.

    Tied embeddings: when ``tied`` (config.json's tie_word_embeddings of the last checkpoint) and a known pair
    of output and input embedding is there, the two names are one tensor. The output holds it once, under the
    input embedding's name (under the other if the last checkpoint stores only that). Checkpoints may store
    either name or both; where both are stored they are compared while the bytes stream.

    Returns:
        The output's tensors in the last checkpoint's file and offset order; every mismatch, one line each;
        facts worth telling that are no mismatch.
    """
    tensors = [layout.tensors for layout in layouts]
    no_twins = (None,) * len(tensors)
    pair = _tied_pair(tensors) if tied else None
    last, last_step = tensors[-1], steps[-1]
    labels = [f"step {step} ({layout.name})" for step, layout in zip(steps, layouts, strict=True)]
    problems: list[str] = []
    notes: list[str] = []
    entries: list[Entry] = []
    for name, reference in last.items():
        if pair and name == pair[0] and pair[1] in last:
            notes.append(
                f"tied: {name} is written once, as {pair[1]}; every checkpoint used is checked for it"
            )
            continue
        names = (
            (name, *(other for other in pair or () if other != name)) if pair and name in pair else (name,)
        )
        found: list[TensorInfo] = []
        twins: list[TensorInfo | None] = []
        for k, checkpoint in enumerate(tensors):
            stored = [checkpoint[alias] for alias in names if alias in checkpoint]
            if not stored:
                problems.append(f"{name} is in step {last_step} but not in {labels[k]}" + _tying_hint(name))
                continue
            for info in stored:
                problem = _difference(info, reference)
                if problem:
                    problems.append(
                        f"{info.name} {problem[0]} in {labels[k]}, {problem[1]} in step {last_step}"
                    )
            if len(stored) == 2 and stored[0].dtype != stored[1].dtype:
                problems.append(
                    f"{stored[1].name} is {stored[1].dtype} and {stored[0].name} {stored[0].dtype} in "
                    f"{labels[k]}, but config.json says that they are tied"
                )
            found.append(stored[0])
            twins.append(stored[1] if len(stored) == 2 else None)
        if len(found) == len(tensors):
            entries.append(Entry(name, tuple(found), tuple(twins) if any(twins) else no_twins))
    known = {*last, *(pair or ())}
    for k, checkpoint in enumerate(tensors[:-1]):
        problems += [
            f"{name} is in {labels[k]} but not in step {last_step}" + _tying_hint(name)
            for name in checkpoint
            if name not in known
        ]
    return entries, problems, notes


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
