"""How checkpoints become series: those whose names share a pattern count the same steps of the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from shlex import quote
from typing import TYPE_CHECKING

from hubextrap.step_names import StepName
from hubextrap.trajectory.checkpoint import ADAPTER, PassedOver, Series
from hubextrap.trajectory.weights import (
    KINDS,
    OTHER,
    THE_MODEL_IS_READ,
    WHOLE_MODEL,
    Weights,
    weights_by_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hubextrap.trajectory.checkpoint import Checkpoint

A_PREDICTION = "a prediction of hubextrap, not a checkpoint of the run"
UNLIKE = {OTHER: "no safetensors, unlike other steps", ADAPTER: "an adapter, unlike other steps"}
"""Why weights of a kind are passed over where others of the run are of a better one."""

Reader = Callable[[str], StepName | None]


def group_by_pattern(found: Iterable[tuple[StepName, Checkpoint]], layout: str) -> list[Series]:
    """One series per pattern, patterns in alphabetical order; the same place under two names is kept once."""
    groups: dict[str, dict[tuple[object, ...], Checkpoint]] = {}
    for name, checkpoint in found:
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
    names = {folder: name for folder in folders if folder and (name := read(folder)) is not None}
    kept: dict[str, list[tuple[str, Weights]]] = {name.unit: [] for name in names.values()}
    for folder, name in names.items():
        if (weights := folders[folder]) is not None:
            kept[name.unit].append((folder, weights))
    kept = {unit: list(_main_folders(inside, names)) for unit, inside in kept.items()}

    unit_pattern = {name.pattern: (read(name.unit) or name).pattern for name in names.values()}
    of_pattern: dict[str, str] = {}
    of_units: dict[str, str] = {}
    for folder, weights in (pair for inside in kept.values() for pair in inside if not pair[1].predicted):
        pattern = names[folder].pattern
        for kinds, key in ((of_pattern, pattern), (of_units, unit_pattern[pattern])):
            kinds[key] = min(kinds.get(key, OTHER), weights.kind, key=KINDS.index)

    found: dict[str, list[tuple[StepName, Checkpoint]]] = {}
    left_out: list[tuple[str, PassedOver]] = []
    """With the pattern of the unit that each lies in."""
    for folder, weights in (pair for inside in kept.values() for pair in inside):
        name = names[folder]
        of_unit, best = unit_pattern[name.pattern], of_units.get(unit_pattern[name.pattern])
        if weights.predicted:
            left_out.append((of_unit, PassedOver(at(folder, name.step), A_PREDICTION)))
        # Raw trainer shards beside converted weights (verl's actor/*.pt and actor/huggingface) are no series
        # of their own: their steps were not converted. Nor are adapters where other steps are whole models.
        elif of_pattern[name.pattern] != best or (weights.kind, best) == (OTHER, ADAPTER):
            left_out.append((of_unit, PassedOver(at(folder, name.step), UNLIKE[weights.kind])))
        else:
            found.setdefault(name.pattern, []).append((name, weights.of(at(folder, name.step))))
    for unit, inside in kept.items():
        if not inside and (name := read(unit)) is not None:
            left_out.append((name.pattern, PassedOver(at(unit, name.step), "no weights")))

    passed_over: dict[str, list[PassedOver]] = {}
    for unit, over in left_out:
        passed_over.setdefault(unit, []).append(over)
    series = [
        replace(one, files_known=True, passed_over=tuple(passed_over.get(unit_pattern[one.pattern], ())))
        for one in group_by_pattern((pair for pairs in found.values() for pair in pairs), layout)
    ]
    others = [
        f"{folder}/" for folder in sorted(folders) if folder and folder not in names and "/" not in folder
    ]
    return series, others + sorted(f"{over.checkpoint.path} ({over.why})" for _, over in left_out)


def _main_folders(
    inside: list[tuple[str, Weights]], names: Mapping[str, StepName]
) -> Iterator[tuple[str, Weights]]:
    """Of one step's folders those with the best kind of weights, without what lies under another of them."""
    best = min((weights.kind for _, weights in inside), key=KINDS.index, default=None)
    chosen = [(folder, weights) for folder, weights in inside if weights.kind == best]
    taken = {folder for folder, _ in chosen}
    adapters = [names[folder].pattern for folder, weights in inside if weights.kind == ADAPTER]
    for folder, weights in chosen:
        if any(str(outer) in taken for outer in PurePosixPath(folder).parents):
            continue
        if best == WHOLE_MODEL and adapters and weights.note is None:
            note = f"holds {THE_MODEL_IS_READ}; --pattern {quote(adapters[0])} takes the adapters"
            yield folder, replace(weights, note=note)
        else:
            yield folder, weights


def table_of(series: list[Series]) -> list[str]:
    """The series as lines: label, how many checkpoints, first and last step."""
    width = max(len(one.label) for one in series)
    return [f"  {one.label:<{width}}  {_extent(one.checkpoints)}" for one in series]


def _extent(checkpoints: tuple[Checkpoint, ...]) -> str:
    if len(checkpoints) == 1:
        return f"1 checkpoint, step {checkpoints[0].step}"
    return f"{len(checkpoints)} checkpoints, steps {checkpoints[0].step} to {checkpoints[-1].step}"
