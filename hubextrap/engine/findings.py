"""What does not fit between checkpoints, by what it has in common, with the lines of a recipe that mend it.

A model whose tensors are called otherwise differs in all of them, one without its vision tower in hundreds.
So findings are one line for each cause: a prefix, a part of the model that one side lacks, a shape. The lines
of a recipe are made of the names at hand and tried on them: each glob takes what it is there for and nothing
else.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from fnmatch import translate
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from hubextrap.errors import CheckpointMismatch
from hubextrap.foreign_data import shorten
from hubextrap.foreign_text import own_lines
from hubextrap.notebooks import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

LISTED_PROBLEMS = 20
LACKS, HAS_MORE, OTHERWISE = "lacks", "has more", "otherwise"
"""A checkpoint lacks what the last one has; has what that has not; has it in another shape or dtype."""
TENSORS_SECTION = "  tensors: "
"""Begins the line of a recipe that mends names."""
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_SPECIAL = re.compile(r"[*?\[]")
_LEAVE_OUT = "leave out the checkpoints that differ (trajectory.steps), or choose checkpoints of one run"
_OTHER_BASE = "take the base that the run started from (trajectory.base), or leave it out"


class Problem(NamedTuple):
    """Why checkpoints do not fit together."""

    text: str
    tensor: str
    step: int | None = None
    """Of the checkpoint that differs from the last one."""
    kind: str = ""
    """One of those above; "" where nothing in a recipe's trajectory mends it."""
    how: str = ""
    """What it has in common with others of its kind."""


_Renames: TypeAlias = dict[str, tuple[str, tuple[str, str]]]
"""A name → the last checkpoint's, and the renaming that leads there."""


class _Group(NamedTuple):
    text: str
    tensors: tuple[str, ...]
    key: str = ""
    """Of ``trajectory.tensors``, that mends it."""
    globs: tuple[str, ...] = ()
    renames: Mapping[str, str] = {}


def refuse(problems: Sequence[Problem], layouts: Sequence[CheckpointLayout] = ()) -> None:
    """Refuse checkpoints that do not fit together.

    Args:
        layouts: theirs, where a recipe may say what to do about names.

    Raises:
        CheckpointMismatch: there are problems; with its tensor and step, where they are about one.
    """
    if not problems:
        return
    groups = list(_grouped(problems, layouts)) if layouts else [_Group(one.text, ()) for one in problems]
    more = len(groups) - LISTED_PROBLEMS
    tensors, steps = {problem.tensor for problem in problems}, {problem.step for problem in problems}
    raise CheckpointMismatch(
        own_lines(
            f"the checkpoints do not fit together, {len(problems)} problem{'s' * (len(problems) > 1)}:",
            *(f"  {group.text}" for group in groups[:LISTED_PROBLEMS]),
            *([f"  … and {more} more"] if more > 0 else []),
            *_mended(groups),
            _OTHER_BASE if steps == {0} else _LEAVE_OUT,
        ),
        tensor=tensors.pop() if len(tensors) == 1 else None,
        step=steps.pop() if len(steps) == 1 else None,
    )


def _mended(groups: Sequence[_Group]) -> Iterator[str]:
    """The lines of a recipe after which they fit, those aside that no such lines mend."""
    section: dict[str, object] = {}
    for key in ("ignore", "copy"):
        globs = list(dict.fromkeys(glob for group in groups if group.key == key for glob in group.globs))
        section |= {key: globs} if globs else {}
    renames = {old: new for group in groups for old, new in group.renames.items()}
    section |= {"rename": renames} if renames else {}
    if not section:
        return
    yield "if it is one model, write this under trajectory in the recipe (or a part of it):"
    yield f"{TENSORS_SECTION}{_flow(section)}"
    if "ignore" in section:
        yield "ignore leaves out what the last checkpoint has not, so the prediction has not either"
    if "copy" in section:
        yield "copy takes what others lack from the last checkpoint as it is, and does not predict it"


def _flow(section: Mapping[str, object]) -> str:
    """YAML of one line; JSON's quotes are YAML's."""
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in section.items()) + "}"


def _grouped(problems: Sequence[Problem], layouts: Sequence[CheckpointLayout]) -> Iterator[_Group]:
    """The problems by what they have in common; several checkpoints that differ alike are told once."""
    last = layouts[-1].tensors
    earlier = {
        name: info for layout in layouts[:-1] for name, info in layout.tensors.items() if name not in last
    }
    lacking = {problem.tensor for problem in problems if problem.kind == LACKS}
    fits = {name for name in last if name not in lacking}
    renames = _renames(earlier, {name: last[name] for name in last if name in lacking})
    yield from _of_renames(renames, problems)
    done = {*renames, *(new for new, _ in renames.values())}
    rest = [problem for problem in problems if problem.tensor not in done or problem.kind == OTHERWISE]
    for (kind, how), those in _by_kind(rest).items():
        if kind in (HAS_MORE, LACKS):
            there = last if kind == HAS_MORE else fits
            key = "ignore" if kind == HAS_MORE else "copy"
            for globs, names in _globbed([one.tensor for one in those], there):
                yield _of_names(key, globs, names, how, those)
        elif kind == OTHERWISE:
            names = list(dict.fromkeys(one.tensor for one in those))
            text = those[0].text if len(names) == 1 else f"{_named(names)}: {how}"
            yield _Group(text + _in_others(those), tuple(names), "copy", tuple(map(_literal, names)))
        else:
            yield from (_Group(one.text, (one.tensor,)) for one in those)


def _by_kind(problems: Iterable[Problem]) -> dict[tuple[str, str], list[Problem]]:
    """Problems of one kind; those of several checkpoints are with the first that has any of them."""
    found: dict[tuple[str, str], list[Problem]] = {}
    first: dict[tuple[str, str, str], tuple[str, str]] = {}
    for one in problems:
        shape = one.how.partition(" in ")[0] if one.kind == OTHERWISE else ""
        key = first.setdefault((one.kind, one.tensor, shape), (one.kind, one.how))
        found.setdefault(key, []).append(one)
    return found


def _of_names(
    key: str, globs: tuple[str, ...], names: Sequence[str], how: str, those: Sequence[Problem]
) -> _Group:
    taken = set(names)
    members = [one for one in those if one.tensor in taken]
    if len(taken) == 1:
        return _Group(members[0].text + _in_others(members), tuple(names), key, globs)
    called = f"{shorten(globs[0])}: " if len(globs) == 1 and len(taken) > 1 else ""
    text = f"{called}{_named(names)}: {how}{_in_others(members)}"
    return _Group(text, tuple(names), key, globs)


def _in_others(problems: Sequence[Problem]) -> str:
    steps = list(dict.fromkeys(one.step for one in problems))[1:]
    more = f" and {len(steps) - 3} more" if len(steps) > 3 else ""
    return f"; so at step {', '.join(map(str, steps[:3]))}{more}" if steps else ""


def _of_renames(renames: _Renames, problems: Sequence[Problem]) -> Iterator[_Group]:
    by_rule: dict[tuple[str, str], list[str]] = {}
    for old, (_, rule) in renames.items():
        by_rule.setdefault(rule, []).append(old)
    where = {one.tensor: one for one in problems if one.kind == HAS_MORE}
    for (old, new), names in by_rule.items():
        first = where[names[0]]
        example = f"{shorten(names[0])} is {shorten(renames[names[0]][0])}"
        text = (
            f"{_count(names)} called {shorten(old)}, {first.how.replace(' but not in ', '; ')} has them as "
            f"{shorten(new)}, e.g. {example}"
        )
        yield _Group(text, tuple(names), "rename", (), {old: new})


def _renames(earlier: Mapping[str, TensorInfo], lacking: Mapping[str, TensorInfo]) -> _Renames:
    """Names of which only the beginning differs: the last checkpoint's, and the renaming by which they are.

    Of each name, the longest end that one lacking name has too says how the beginnings differ; a difference
    that leads from names to others of the same shape, each to one of its own, counts.
    """
    ends: dict[str, list[str]] = {}
    for name in lacking:
        for end in _ends(name):
            ends.setdefault(end, []).append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name in earlier:
        for end in _ends(name):
            if end in ends:
                if len(ends[end]) == 1 and end.count("."):
                    new = ends[end][0]
                    votes[name[: len(name) - len(end)], new[: len(new) - len(end)]] += 1
                break
    found: _Renames = {}
    taken: set[str] = set()
    for before, after in sorted(votes, key=lambda rule: (-votes[rule], -len(rule[0]))):
        for name, info in earlier.items():
            if name in found or not name.startswith(before):
                continue
            new = after + name[len(before) :]
            if new in lacking and new not in taken and lacking[new].shape == info.shape:
                # a beginning that is none would take every name
                part = "" if before else name.partition(".")[0] + "."
                found[name] = new, (f"{before}{part}*", f"{after}{part}*")
                taken.add(new)
    return found


def _ends(name: str) -> Iterator[str]:
    """A name without its first parts, from the whole of it on."""
    yield name
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)


def _globbed(names: Sequence[str], there: Collection[str]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The names by globs that take none of ``there``: all that is missing, whatever its numbers are."""
    prefixes = {prefix for name in there for prefix in _prefixes(name)}
    by_part: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        part = next((f"{_literal(one)}*" for one in _prefixes(name) if one not in prefixes), _literal(name))
        by_part.setdefault(part, []).append(name)
    by_part = {_literal(held[0]) if len(held) == 1 else part: held for part, held in by_part.items()}
    alike: dict[str, list[str]] = {}
    for part in by_part:
        alike.setdefault(_NUMBER.sub("*", part), []).append(part)
    for general, parts in alike.items():
        held = [name for part in parts for name in by_part[part]]
        wide = len(parts) > 1 and not _takes(general, there)
        yield ((general,) if wide else tuple(parts)), held


def _prefixes(name: str) -> Iterator[str]:
    """``a.``, ``a.b.`` … of a name."""
    at = name.find(".")
    while at >= 0:
        yield name[: at + 1]
        at = name.find(".", at + 1)


def _takes(glob: str, names: Collection[str]) -> bool:
    matches = re.compile(translate(glob)).match
    return any(map(matches, names))


def _literal(name: str) -> str:
    """A glob that takes this name alone."""
    return _SPECIAL.sub(lambda found: f"[{found[0]}]", name)


def _count(names: Sequence[str]) -> str:
    return counted(len(names), "tensor")


def _named(names: Sequence[str]) -> str:
    return f"{_count(names)}, e.g. {shorten(names[0])}" if len(names) > 1 else shorten(names[0])
