"""Whether a checkpoint's output embedding is its input embedding, where it stores both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.tensors.configuration import ties_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How tied pairs end in transformers' models: Llama, Qwen, Gemma …; GPT-2; GPT-NeoX; BLOOM, Falcon."""
STRETCHES, STRETCH = 8, 2**18
"""How many stretches of two copies are looked at, and bytes of each; copies that are no longer as a whole."""


def is_tied(source: Source, layout: CheckpointLayout) -> bool:
    """Whether a checkpoint ties its embeddings: as config.json says, unless it stores two that differ.

    transformers from 5 on loads such a model so: its `tie_weights` compares the two, and ties them only where
    they are alike.

    Raises:
        HubExtrapError: config.json is no JSON object, or bytes could not be read.
    """
    if not ties_embeddings(source):
        return False
    pair = tied_pair(layout.tensors)
    stored = [layout.tensors[name] for name in pair or () if name in layout.tensors]
    return len(stored) < 2 or alike(source, stored[0], stored[1])


def said_untied(source: Source, tied: bool) -> list[str]:
    """That a checkpoint is not tied though its config.json says so."""
    if tied or not ties_embeddings(source):
        return []
    what = "config.json says tie_word_embeddings: true, but the last checkpoint stores a head that differs"
    return [f"{what}: both are predicted and written; transformers before 5 loads them without that head"]


def alike(source: Source, one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors of a checkpoint hold the same bytes, as far as some stretches of them say.

    Raises:
        SourceError: they could not be read.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    for start, stop in _stretches(one.nbytes):
        both = bytearray(stop - start), bytearray(stop - start)
        for info, held in zip((one, other), both, strict=True):
            source.read(info.file, info.offset + start, memoryview(held))
        if both[0] != both[1]:
            return False
    return True


def _stretches(size: int) -> Iterator[tuple[int, int]]:
    """Evenly spread over so many bytes, the first and the last ones among them."""
    if size <= STRETCHES * STRETCH:
        yield 0, size
        return
    for number in range(STRETCHES):
        start = (size - STRETCH) * number // (STRETCHES - 1)
        yield start, start + STRETCH


def tied_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """(output embedding, input embedding), where exactly one of each is among the names."""
    names = list(names)
    outputs = [name for name in names if ends_with(name, OUTPUT_EMBEDDINGS)]
    inputs = [name for name in names if ends_with(name, INPUT_EMBEDDINGS)]
    return (outputs[0], inputs[0]) if len(outputs) == len(inputs) == 1 else None


def ends_with(name: str, endings: Sequence[str]) -> bool:
    """Whether a name's last parts are one of these."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
