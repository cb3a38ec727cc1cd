"""Experts that one checkpoint holds one by one and another as one tensor: the same numbers, cut otherwise.

transformers 5 keeps the experts of a layer in one tensor (``conversion_mapping.py``: MergeModulelist(dim=0),
then Concatenate(dim=1)): ``experts.gate_up_proj`` (E, 2·I, H) holds each expert's ``gate_proj`` (I, H) above
its ``up_proj``, ``experts.down_proj`` (E, H, I) each one's ``down_proj``; Mixtral's call them w1, w3 and w2.
In row-major order a fused tensor is its experts' one after the other, so each of them is one range of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from hubextrap.foreign_data import shorten
from hubextrap.notebooks import and_more
from hubextrap.tensors.assembled import AssembledSource, Assembly, shard_of
from hubextrap.tensors.layout import TensorInfo, share_tensors
from hubextrap.tensors.pieces import Pieces, StoredPiece

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout, ShardInfo

FUSED_FILE = "fused-experts.safetensors"
"""The file, which lies nowhere, of what is put together of single experts."""

_FUSED: dict[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}
"""What a fused tensor consists of, expert by expert, in each of the ways in which they are called."""
_SINGLE = re.compile(r"(.*\bexperts)\.(\d{1,6})\.(\w+)\.weight")
_WHOLE = re.compile(r"(.*\bexperts)\.(gate_up_proj|down_proj|up_proj)")
_PARTS = {part: fused for fused, ways in _FUSED.items() for way in ways for part in way}


@dataclass(frozen=True, slots=True)
class Fused:
    """A tensor of all experts, as what each of them gives to it, in the order in which it lies."""

    name: str
    shape: tuple[int, ...]
    singles: tuple[str, ...]
    """Of each expert, all that it gives, expert after expert."""
    rows: int
    """Of each."""


class Recut(NamedTuple):
    """Checkpoints whose experts are cut as the last one's are."""

    layouts: list[CheckpointLayout]
    sources: tuple[Source, ...]
    notes: tuple[str, ...]


def cut_as_last(layouts: Sequence[CheckpointLayout], sources: Sequence[Source]) -> Recut:
    """Earlier checkpoints, whose tensors are called as the last one's, with experts in that one's form.

    Single experts are ranges of a fused tensor; a fused tensor of single ones is in a file that lies nowhere.
    """
    last = layouts[-1].tensors
    known: dict[int, _Cut] = {id(last): _Cut({}, {}, ())}
    found, read, notes = list(layouts), list(sources), dict[str, list[str]]()
    for k, layout in enumerate(layouts[:-1]):
        if (key := id(layout.tensors)) not in known:
            known[key] = _cut(layout.tensors, last)
        cut = known[key]
        if cut.ranges or cut.parts:
            found[k] = _laid_out(layout, cut)
            notes.setdefault(_note(cut), []).append(layout.name)
        if cut.parts:
            read[k] = AssembledSource(sources[k], Assembly((_shard(cut),), layout.index_file, cut.parts))
    share_tensors(found)
    said = (f"{these[0]}{and_more(len(these))}: {note}" for note, these in notes.items())
    return Recut(found, tuple(read), tuple(said))


class _Cut(NamedTuple):
    """How the tensors of a checkpoint are cut otherwise than they are stored."""

    ranges: dict[str, list[TensorInfo]]
    """Of fused tensors."""
    parts: dict[str, Pieces]
    """Of fused tensors that are put together."""
    singles: tuple[str, ...]
    """What they are put together of."""


def _cut(tensors: Mapping[str, TensorInfo], like: Mapping[str, TensorInfo]) -> _Cut:
    parts, singles = {}, list[str]()
    for one, infos in fused_of_singles(tensors, like):
        extent = (1, one.rows, one.shape[2])
        many = len(infos) // one.shape[0]
        pieces = (
            StoredPiece(info.file, info.offset, (at // many, at % many * one.rows, 0), extent)
            for at, info in enumerate(infos)
        )
        parts[one.name] = Pieces(infos[0].dtype, one.shape, tuple(pieces))
        singles += one.singles
    return _Cut(singles_of_fused(tensors, like), parts, tuple(singles))


def _laid_out(layout: CheckpointLayout, cut: _Cut) -> CheckpointLayout:
    shards = tuple(
        replace(
            shard, tensors=tuple(one for info in shard.tensors for one in cut.ranges.get(info.name, [info]))
        )
        for shard in layout.shards
    )
    more = (_shard(cut),) if cut.parts else ()
    return replace(layout, shards=(*shards, *more), left_out=layout.left_out | frozenset(cut.singles))


def _shard(cut: _Cut) -> ShardInfo:
    return shard_of(FUSED_FILE, list(cut.parts.items()))


def _note(cut: _Cut) -> str:
    said = []
    if cut.parts:
        read = f"{len(cut.singles):,} tensors of single experts are read as {_named(list(cut.parts))}"
        said.append(f"{read}, as the last checkpoint has them")
    if cut.ranges:
        said.append(f"{_named(list(cut.ranges))}: read as single experts, as the last checkpoint has them")
    return "; ".join(said)


def _named(names: Sequence[str]) -> str:
    return f"{shorten(names[0])}{and_more(len(names))}"


def other_forms(tensors: Mapping[str, TensorInfo]) -> set[str]:
    """What the tensors that are fused, or may be, would be called in another checkpoint."""
    names = {
        single for name, info in tensors.items() for one in _ways(name, info.shape) for single in one.singles
    }
    for name in tensors:
        if (single := _SINGLE.fullmatch(name)) and single[3] in _PARTS:
            names |= {f"{single[1]}.{fused}" for fused in (_PARTS[single[3]], *_also(single[3]))}
    return names


def fused_of_singles(
    tensors: Mapping[str, TensorInfo], like: Mapping[str, TensorInfo]
) -> Iterator[tuple[Fused, tuple[TensorInfo, ...]]]:
    """The tensors of ``like`` that ``tensors`` hold expert by expert, and what those hold, in order."""
    for name, info in like.items():
        if name in tensors:
            continue
        for one in _ways(name, info.shape):
            found = tuple(tensors[single] for single in one.singles if single in tensors)
            if len(found) == len(one.singles) and _fits(one, found) and not _further(one, tensors):
                yield one, found


def singles_of_fused(
    tensors: Mapping[str, TensorInfo], like: Mapping[str, TensorInfo]
) -> dict[str, list[TensorInfo]]:
    """The fused tensors that ``like`` holds expert by expert, as the ranges of those, by name.

    All of them are there, in offset order, and each has the bytes of its place.
    """
    found: dict[str, list[TensorInfo]] = {}
    for name, info in tensors.items():
        if name in like:
            continue
        for one in _ways(name, info.shape):
            wanted = tuple(like[single] for single in one.singles if single in like and single not in tensors)
            if len(wanted) < len(one.singles) or not _shapes_fit(one, wanted) or _further(one, like):
                continue
            size = info.nbytes // len(one.singles)
            found[name] = [
                TensorInfo(
                    single, info.dtype, (one.rows, one.shape[2]), info.file, info.offset + at * size, size
                )
                for at, single in enumerate(one.singles)
            ]
    return found


def _ways(name: str, shape: tuple[int, ...]) -> Iterator[Fused]:
    """How a tensor may be cut by experts."""
    whole = _WHOLE.fullmatch(name)
    if whole is None or len(shape) != 3 or not all(shape):
        return
    for way in _FUSED[whole[2]]:
        if shape[1] % len(way) == 0:
            singles = tuple(
                f"{whole[1]}.{expert}.{part}.weight" for expert in range(shape[0]) for part in way
            )
            yield Fused(name, shape, singles, shape[1] // len(way))


def _fits(one: Fused, found: tuple[TensorInfo, ...]) -> bool:
    return _shapes_fit(one, found) and len({info.dtype for info in found}) == 1


def _shapes_fit(one: Fused, found: tuple[TensorInfo, ...]) -> bool:
    return all(info.shape == (one.rows, one.shape[2]) for info in found)


def _further(one: Fused, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether there are more experts than it holds."""
    prefix, _, rest = one.singles[0].rpartition(".0.")
    return f"{prefix}.{one.shape[0]}.{rest}" in tensors


def _also(part: str) -> tuple[str, ...]:
    """What a part may be fused into beside what `_PARTS` says: ``up_proj`` alone, where there is no gate."""
    return ("up_proj", "gate_up_proj") if part == "up_proj" else ()
