"""How checkpoints become series: those whose names share a pattern count the same steps of the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from hubextrap.step_names import StepName, read_bare_number
from hubextrap.trajectory.checkpoint import ADAPTER, PassedOver, Series
from hubextrap.trajectory.counters import counted_together
from hubextrap.trajectory.weights import (
    DCP,
    FSDP,
    KINDS,
    OTHER,
    SHARDED,
    THE_MODEL_IS_READ,
    WHOLE_MODEL,
    Weights,
    kind_of_form,
    weights_by_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint

A_PREDICTION = "a prediction of hubextrap, not a checkpoint of the run"
UNLIKE = {
    **dict.fromkeys((FSDP, DCP, OTHER), "no safetensors, unlike other steps"),
    **dict.fromkeys((WHOLE_MODEL, SHARDED), "a whole model, unlike other steps"),
    ADAPTER: "an adapter, unlike other steps",
}
"""Why weights of a kind are passed over where others of the run are of a better one."""

_HOLDERS = ("weights", "checkpoints", "trainer")
"""Folders by which prime-rl tells a run's whole models from its states."""

Reader = Callable[[str], StepName | None]


def group_by_pattern(found: Iterable[tuple[StepName, Checkpoint]], layout: str) -> list[Series]:
    """One series per pattern, patterns in alphabetical order; the same place under two names is kept once."""
    groups: dict[str, dict[tuple[object, ...], Checkpoint]] = {}
    found = list(found)
    counted = counted_together(name for name, _ in found)
    for name, checkpoint in found:
        if name in counted:
            name = counted[name]
            checkpoint = replace(checkpoint, step=name.step)
        place = (checkpoint.step, checkpoint.repo, checkpoint.commit, checkpoint.path)
        groups.setdefault(name.pattern, {}).setdefault(place, checkpoint)
    return [Series(pattern, layout, in_step_order(groups[pattern].values())) for pattern in sorted(groups)]


def in_step_order(checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    return tuple(sorted(checkpoints, key=lambda checkpoint: (checkpoint.step, checkpoint.name)))


def series_in_folders(
    files: Iterable[tuple[str, int]], read: Reader, at: Callable[[str, int], Checkpoint], layout: str
) -> tuple[list[Series], list[str]]:
    """The series among the subfolders of one tree, and the names of folders that do not belong to one.

    Args:
        files: path from the tree's root and bytes of every file.
        read: the reader of folder names.
        at: makes the checkpoint of a folder (its path from the root) at a step.
        layout: what the series say of their layout.
    """
    folders = weights_by_folder(files)
    names, units = _names_of(folders, read)
    kept: dict[str, list[_Found]] = {unit: [] for unit in units}
    for folder, name in names.items():
        if (weights := folders[folder]) is not None:
            kept[name.unit].append(_Found(folder, name, weights))
    runs: dict[str, list[list[_Found]]] = {}
    for unit, inside in kept.items():
        runs.setdefault(units[unit].pattern, []).append(inside)

    found: list[tuple[StepName, Checkpoint]] = []
    passed_over: dict[str, tuple[PassedOver, ...]] = {}
    """By the pattern of the units that they lie in."""
    for pattern, steps in runs.items():
        kind = _kind_taken(steps)
        taken, others = _of_one_run([one for inside in steps for one in _main_folders(inside, kind)], kind)
        found += ((one.name, one.weights.of(at(one.folder, one.name.step))) for one in taken)
        over = [PassedOver(one.weights.of(at(one.folder, one.name.step)), why) for one, why in others] + [
            PassedOver(at(unit, units[unit].step), "no weights")
            for unit, inside in kept.items()
            if not inside and units[unit].pattern == pattern
        ]
        passed_over[pattern] = tuple(over)

    of_run = {name.pattern: units[name.unit].pattern for name in names.values()}
    series = [
        replace(one, files_known=True, passed_over=passed_over[of_run[one.pattern]])
        for one in group_by_pattern(found, layout)
    ]
    nameless = [
        f"{folder}/" for folder in sorted(folders) if folder and folder not in names and "/" not in folder
    ]
    said = sorted(f"{over.checkpoint.path} ({over.why})" for those in passed_over.values() for over in those)
    return series, nameless + said


class _Found(NamedTuple):
    """A folder that holds weights, in a step's folder or that itself."""

    folder: str
    name: StepName
    weights: Weights


def _names_of(folders: Iterable[str], read: Reader) -> tuple[dict[str, StepName], dict[str, StepName]]:
    """The names of folders that say a step, and of the steps' own folders, where several counters are one
    run."""
    names = {folder: name for folder in folders if folder and (name := read(folder)) is not None}
    units = {name.unit: read(name.unit) or name for name in names.values()}
    counted = counted_together(units.values())
    for folder, name in names.items():
        if (unit := counted.get(units[name.unit])) is not None:
            rest = name.pattern.removeprefix(units[name.unit].pattern)
            names[folder] = StepName(unit.pattern + rest, unit.step, name.unit)
    return names, {unit: counted.get(name, name) for unit, name in units.items()}


def _kind_taken(steps: Iterable[Iterable[_Found]]) -> str:
    """The kind of weights that a run's checkpoints are taken in: the best that makes more than one of them.

    A trainer may write a whole model at the last step alone, and slices at all.
    """
    there = [one for inside in steps for one in inside if not one.weights.predicted]
    kinds = sorted({one.weights.kind for one in there} - {OTHER}, key=KINDS.index)
    for kind in kinds:
        patterns = {one.name.pattern for one in there if one.weights.kind == kind}
        readable = (one for one in there if one.name.pattern in patterns and one.weights.kind != OTHER)
        if len({one.name.step for one in readable}) > 1:
            return kind
    return kinds[0] if kinds else OTHER


def _main_folders(inside: list[_Found], wanted: str) -> Iterator[_Found]:
    """Of one step's folders those with weights of the kind that is wanted, or else of the best, without what
    lies under another of them."""
    kinds = {one.weights.kind for one in inside}
    best = wanted if wanted in kinds else min(kinds, key=KINDS.index, default=None)
    chosen = [one for one in inside if one.weights.kind == best]
    taken = {one.folder for one in chosen}
    adapters = [one.name.pattern for one in inside if one.weights.kind == ADAPTER]
    for one in chosen:
        if any(str(outer) in taken for outer in PurePosixPath(one.folder).parents):
            continue
        if best == WHOLE_MODEL and adapters and one.weights.note is None:
            note = f"holds {THE_MODEL_IS_READ}; --pattern {quote(adapters[0])} takes the adapters"
            yield one._replace(weights=replace(one.weights, note=note))
        else:
            yield one


def _of_one_run(there: Sequence[_Found], best: str) -> tuple[list[_Found], list[tuple[_Found, str]]]:
    """Of the main folders of a run's steps those that are its checkpoints, and why others are not.

    Args:
        best: the kind that the checkpoints are taken in.

    Raw shards beside converted weights (verl's actor/*.pt and actor/huggingface) are no series of their own:
    their steps were not converted. Nor are adapters where other steps are whole models, nor what cannot be
    read.
    """
    of_best = {one.name.pattern for one in there if one.weights.kind == best and not one.weights.predicted}
    taken, others = [], []
    for one in there:
        fits = one.name.pattern in of_best
        if one.weights.predicted:
            others.append((one, A_PREDICTION))
        elif one.weights.kind == OTHER and best not in (OTHER, ADAPTER) and fits:
            others.append((one, one.weights.said))
        elif not fits or (one.weights.kind == OTHER and best != OTHER):
            others.append((one, UNLIKE[one.weights.kind]))
        else:
            taken.append(one)
    return taken, others


def series_with_bare_numbers(
    files: Sequence[tuple[str, int]], read: Reader, at: Callable[[str, int], Checkpoint], layout: str
) -> tuple[list[Series], list[str]]:
    """As `series_in_folders`; where no name says a step of what can be read, a folder's name that is a number
    does, of several."""
    series, others = series_in_folders(files, read, at, layout)
    if any(kind_of_form(one.weights) != OTHER for one in series):
        return series, others
    numbered, _ = series_in_folders(files, read_bare_number, at, layout)
    return series + [
        one for one in numbered if len(one.checkpoints) > 1 and kind_of_form(one.weights) != OTHER
    ], others


def worth_choosing(series: Sequence[Series]) -> tuple[list[Series], list[Series]]:
    """Of several series those among which a user may have to choose, and those that are left out: of a kind
    that is not read where others are, and the same run's in a worse kind (prime-rl's checkpoints and
    weights)."""
    runs: dict[tuple[str, ...], list[Series]] = {}
    for one in series:
        runs.setdefault(tuple(part for part in one.pattern.split("/") if part not in _HOLDERS), []).append(
            one
        )
    read = any(kind_of_form(one.weights) not in ("", OTHER) for one in series)
    kept = []
    for alike in runs.values():
        best = min(map(_rank, alike))
        kept += [
            one for one in alike if _rank(one) == best and not (read and kind_of_form(one.weights) == OTHER)
        ]
    return [one for one in series if one in kept], [one for one in series if one not in kept]


def _rank(series: Series) -> int:
    kind = kind_of_form(series.weights)
    return KINDS.index(kind) if kind else 0


def table_of(series: Sequence[Series]) -> list[str]:
    """The series as lines: label, how many checkpoints, first and last step; of what kind, where that
    differs."""
    width = max(len(one.label) for one in series)
    kinds = {one.weights for one in series}
    return [
        f"  {one.label:<{width}}  {extent_of(one)}" + (f" ({one.weights})" if len(kinds) > 1 else "")
        for one in series
    ]


def extent_of(series: Series) -> str:
    """How many checkpoints, first and last step."""
    checkpoints = series.checkpoints
    if len(checkpoints) == 1:
        return f"1 checkpoint, step {checkpoints[0].step}"
    return f"{len(checkpoints)} checkpoints, steps {checkpoints[0].step} to {checkpoints[-1].step}"
