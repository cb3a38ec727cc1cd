"""Names that changed between the checkpoints of a run: the earlier ones' tensors under those of the last.

What a recipe says (``trajectory.tensors``) comes first. What is known is done without being asked for, where
a name is found on one side only and leads to one name of the other: wrappers that a trainer left in names,
and what transformers calls the modules of a model now and called them before.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from fnmatch import translate
from typing import TYPE_CHECKING, NamedTuple

from hubextrap.foreign_data import shorten
from hubextrap.notebooks import and_more
from hubextrap.recipe.tensor_names import WILDCARD, Naming
from hubextrap.tensors.fused import other_forms
from hubextrap.tensors.layout import share_tensors
from hubextrap.tensors.tied import OUTPUT_EMBEDDINGS, ends_with
from hubextrap.tensors.transformers_names import names_in_transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo

_INNER_WRAPPERS = re.compile(
    # torch.compile; FSDP; activation checkpointing; Lightning
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_WRAPPERS = re.compile(
    # DDP, DeepSpeed and FSDP again put theirs in front of all
    rf"^(?:module\.)+|{_INNER_WRAPPERS.pattern}"
)
_SINCE_TRANSFORMERS_5 = (
    (re.compile(r"^thinker\."), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.(?:model\.)?"), "model.language_model."),
    (
        re.compile(r"^(visual|vision_tower|vision_model|multi_modal_projector|audio_tower|image_newline)\b"),
        r"model.\1",
    ),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\."), r"model.language_model.\1."),
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
)
"""What the mapping of transformers 5 comes to for models of text and images, and for Mixtral's experts: for
machines without transformers."""


class Named(NamedTuple):
    """Checkpoints whose tensors are called as in the last of them."""

    layouts: list[CheckpointLayout]
    notes: tuple[str, ...]


class _Renaming(NamedTuple):
    """New names by old ones, and whose names they were."""

    names: dict[str, str]
    whose: str


def named_as_last(
    layouts: Sequence[CheckpointLayout], sources: Sequence[Source], naming: Naming | None = None
) -> Named:
    """Earlier checkpoints under the names of the last one, and which tensors take no part.

    Checkpoints that share a table of tensors go on sharing one. Nothing is read but the last one's
    config.json, where names differ in a way that is not known here.

    Raises:
        RecipeError: a glob or a renaming has no effect, or makes one tensor of two; with its line.
    """
    naming = naming or Naming()
    used = set[tuple[str, str]]()
    bare = without_wrappers(layouts[-1].tensors)
    last = _renamed(layouts[-1], bare)
    # of runs whose checkpoints are called alike, nothing is looked up
    alike = {id(one.tensors): one for one in layouts if one.tensors.keys() <= last.tensors.keys()}
    done: dict[int, CheckpointLayout] = alike | {id(layouts[-1].tensors): last, id(last.tensors): last}
    there = set() if len(alike) == len({id(one.tensors) for one in layouts}) else _names_of(last)
    notes: dict[str, list[str]] = {}
    for layout in layouts[:-1]:
        if (key := id(layout.tensors)) in done:
            continue
        renamings = [_by_recipe(layout, naming, there, used)]
        renamings += _known(layout, renamings[0].names, last, there, sources[-1])
        for note in (_note(one) for one in renamings if one.names):
            notes.setdefault(note, []).append(layout.name)
        done[key] = _renamed(layout, {old: new for one in renamings for old, new in one.names.items()})
    left_out = {key: _left_out(one, last, naming, used) for key, one in done.items()}
    copied = _copied(last, naming, used)
    _check_used(naming, used, last)
    found = [_marked(one, done[id(one.tensors)], left_out[id(one.tensors)]) for one in layouts[:-1]]
    found.append(replace(last, copied=copied) if copied else last)
    share_tensors(found)
    ignored = list(dict.fromkeys(name for names in left_out.values() for name in sorted(names)))
    said = [f"{names[0]}{and_more(len(names))}: {note}" for note, names in notes.items()]
    if bare:
        how = "without the wrappers that its trainer left in the names"
        said.insert(0, f"{last.name}: called {how}: {_arrow(bare)}")
    if ignored:
        said.append(f"ignored, as the last checkpoint has no such tensors: {_named(ignored)}")
    return Named(found, tuple(said))


def _names_of(last: CheckpointLayout) -> set[str]:
    """What the last checkpoint calls its tensors, would call them if its experts were cut otherwise, and
    would call a head that it does not store, as tied models do."""
    heads = () if any(ends_with(name, OUTPUT_EMBEDDINGS) for name in last.tensors) else OUTPUT_EMBEDDINGS
    return {*last.tensors, *other_forms(last.tensors), *heads}


def without_wrappers(names: Collection[str]) -> dict[str, str]:
    """A checkpoint's names that its trainer put wrappers into, and what loaders know them by; none where two
    tensors would then be one. A ``module.`` in front of some of them alone is a module of the model's own."""
    wrapped = all(name.startswith("module.") for name in names)
    bare = {name: (_WRAPPERS if wrapped else _INNER_WRAPPERS).sub("", name) for name in names}
    if len(set(bare.values())) < len(bare) or not all(bare.values()):
        return {}
    return {old: new for old, new in bare.items() if old != new}


def _marked(old: CheckpointLayout, new: CheckpointLayout, left_out: frozenset[str]) -> CheckpointLayout:
    """A checkpoint with what was made of one that shares its tensors."""
    if not left_out and new.tensors is old.tensors:
        return old
    shards = tuple(
        replace(one, tensors=like.tensors) for one, like in zip(old.shards, new.shards, strict=True)
    )
    return replace(old, shards=shards, left_out=left_out)


def _by_recipe(
    layout: CheckpointLayout, naming: Naming, there: Collection[str], used: set[tuple[str, str]]
) -> _Renaming:
    found: dict[str, str] = {}
    taken: dict[str, str] = {name: name for name in layout.tensors}
    for name in layout.tensors if naming.rename else ():
        if name in there:
            continue
        for old, new in naming.rename.items():
            target = _target(name, old, new)
            if target is None or target not in there:
                continue
            if target in taken:
                both = " and ".join(shorten(one) for one in (taken[target], name))
                what = f"makes one tensor, {shorten(target)}, of {both} of {layout.name}"
                raise naming.error("rename", old, f"{what}; narrow it")
            found[name] = taken[target] = target
            taken[target] = name
            used.add(("rename", old))
            break
    return _Renaming(found, "as the recipe renames them")


def _target(name: str, old: str, new: str) -> str | None:
    """What a renaming makes of a name; None where it does not take it."""
    before, star, after = old.partition(WILDCARD)
    if not star:
        return new if name == old else None
    if len(name) < len(before) + len(after) or not (name.startswith(before) and name.endswith(after)):
        return None
    return new.replace(WILDCARD, name[len(before) : len(name) - len(after)])


def _known(
    layout: CheckpointLayout,
    renamed: Mapping[str, str],
    last: CheckpointLayout,
    there: Collection[str],
    source: Source,
) -> list[_Renaming]:
    """What is known of names that differ still."""
    found: list[_Renaming] = []
    done = dict(renamed)
    for whose, called in (
        (
            "but for a wrapper that the trainer left in the names",
            lambda names: list(map(unwrapped, names)),
        ),
        ("as transformers renamed the modules of such models", lambda names: list(map(_since_5, names))),
        ("as the installed transformers converts them", lambda names: names_in_transformers(source, names)),
    ):
        held = {done.get(name, name) for name in layout.tensors}
        lacking = [name for name in layout.tensors if name not in there and name not in done]
        wanted = sorted(name for name in there if name not in held)
        if not lacking or not any(name not in held for name in last.tensors):
            break
        pairs = _pairs(lacking, wanted, called)
        if pairs:
            found.append(_Renaming(pairs, whose))
            done |= pairs
    return found


def _pairs(
    lacking: Sequence[str], wanted: Sequence[str], called: Callable[[Sequence[str]], Sequence[str]]
) -> dict[str, str]:
    """Which of the lacking are which of the wanted, where both are called the same and nothing else is."""
    both = called([*lacking, *wanted])
    ours, theirs = both[: len(lacking)], both[len(lacking) :]
    counts = Counter(ours), Counter(theirs)
    new = {name: one for name, one in zip(theirs, wanted, strict=True) if counts[1][name] == 1}
    return {
        old: new[name]
        for old, name in zip(lacking, ours, strict=True)
        if counts[0][name] == 1 and name in new
    }


def unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile, FSDP, DDP and checkpointing put into it."""
    return _WRAPPERS.sub("", name)


def _since_5(name: str) -> str:
    name = unwrapped(name)
    for pattern, new in _SINCE_TRANSFORMERS_5:
        name = pattern.sub(new, name)
    return name


def _renamed(layout: CheckpointLayout, names: Mapping[str, str]) -> CheckpointLayout:
    if not names:
        return layout

    def shard(one: ShardInfo) -> ShardInfo:
        return replace(one, tensors=tuple(named(info) for info in one.tensors))

    def named(info: TensorInfo) -> TensorInfo:
        return replace(info, name=names[info.name]) if info.name in names else info

    return replace(layout, shards=tuple(map(shard, layout.shards)))


def _left_out(
    layout: CheckpointLayout, last: CheckpointLayout, naming: Naming, used: set[tuple[str, str]]
) -> frozenset[str]:
    names = [name for name in layout.tensors if name not in last.tensors]
    return _matching("ignore", naming.ignore, names, used)


def _copied(last: CheckpointLayout, naming: Naming, used: set[tuple[str, str]]) -> frozenset[str]:
    copied = _matching("copy", naming.copied, last.tensors, used)
    for glob in naming.ignore:
        matches = re.compile(translate(glob)).match
        kept = next((name for name in last.tensors if name not in copied and matches(name)), None)
        if kept is not None:
            what = f"matches {shorten(kept)}, which the last checkpoint holds, so the output has it"
            raise naming.error("ignore", glob, f"{what}; write it under copy to take it as it is")
    if copied and len(copied) == len(last.tensors):
        what = "takes every tensor, so nothing would be predicted; narrow it, or use the method persistence"
        raise naming.error("copy", naming.copied[0], what)
    return copied


def _matching(
    key: str, globs: Sequence[str], names: Iterable[str], used: set[tuple[str, str]]
) -> frozenset[str]:
    found: set[str] = set()
    for glob in globs:
        matches = re.compile(translate(glob)).match
        if taken := {name for name in names if matches(name)}:
            used.add((key, glob))
            found |= taken
    return frozenset(found)


def _check_used(naming: Naming, used: Collection[tuple[str, str]], last: CheckpointLayout) -> None:
    for glob in naming.ignore:
        if ("ignore", glob) not in used:
            what = "matches no tensor that an earlier checkpoint has and the last one has not; leave it out"
            raise naming.error("ignore", glob, what)
    for glob in naming.copied:
        if ("copy", glob) not in used:
            what = f"matches no tensor of the last checkpoint, {last.name}"
            raise naming.error("copy", glob, f"{what}; what only earlier ones have goes under ignore")
    for old, new in naming.rename.items():
        if ("rename", old) not in used:
            what = f"no earlier checkpoint has such a tensor that the last one has as {shorten(repr(new))}"
            raise naming.error("rename", old, f"renames nothing: {what}")


def _note(one: _Renaming) -> str:
    return f"called as in the last checkpoint, {one.whose}: {_arrow(one.names)}"


def _arrow(names: Mapping[str, str]) -> str:
    old, new = next(iter(names.items()))
    return f"{shorten(old)} → {shorten(new)}{and_more(len(names))}"


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(map(shorten, names[:3])) + (" …" if len(names) > 3 else "")
    return f"{len(names):,} ({listed})"
