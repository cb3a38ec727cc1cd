"""The real checkpoint at the step that a prediction is for, found through the prediction's hubextrap.json."""

from __future__ import annotations

import os
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError
from hubextrap.hub import PROVENANCE_FILE, Provenance, read_provenance
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.recipe import parse_recipe
from hubextrap.tensors.cache import check_cached
from hubextrap.trajectory import Checkpoint, find_series, parse_reference, scaled_by
from hubextrap.trajectory.bucket_files import is_bucket

if TYPE_CHECKING:
    from hubextrap.hub import InputCheckpoint
    from hubextrap.recipe import TrajectorySection
    from hubextrap.trajectory import Pins, Series


class TargetSearch:
    """Looks for real targets in the runs of a command's predictions, each run listed once."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._found: dict[tuple[str, str | None], list[Series]] = {}

    def find(self, prediction: Checkpoint, made_from: Provenance) -> Checkpoint | None:
        """The checkpoint at the predicted step in the last input's series; predictions are none."""
        last, step = made_from.inputs[-1], made_from.target_step
        if last.repo is None or step is None or "target" in made_from.parameters:
            return None
        if is_bucket(last.repo):  # nothing is evaluated there
            return None
        section = section_of(made_from)
        if section is not None and not _on_the_hub(section):
            section = None
        try:
            found = self._series(section.repo or last.repo, section.steps.pattern) if section else None
            found = found or self._series(last.repo, None)
        except HubExtrapError:  # the run may have gone since; what was read is still pinned
            return None
        for series in found:
            if not any(_is_input(item, last) for item in series.checkpoints):
                continue
            # steps in the file are scaled as the recipe says, those of the series are as the names say
            scale = section.steps.scale if section else scale_of(series, made_from)
            if scale is None:
                continue
            for item in scaled_by(series, scale).checkpoints:
                other = item.step == step and place_of(item) != place_of(prediction)
                if other and provenance_of(item) is None:
                    return item
        return None

    def _series(self, reference: str, pattern: str | None) -> list[Series]:
        key = (reference, pattern)
        if key not in self._found:
            self._found[key] = find_series(reference, pattern=pattern, pins=self._pins)
        return self._found[key]


def section_of(made_from: Provenance) -> TrajectorySection | None:
    """How the recipe in the file found the run; None where it lists checkpoints one by one, or is none."""
    try:
        section = parse_recipe(made_from.recipe).trajectory
    except HubExtrapError:
        return None
    return None if section.repo is None else section


def _on_the_hub(section: TrajectorySection) -> bool:
    try:
        return section.repo is not None and parse_reference(section.repo).folder is None
    except HubExtrapError:
        return False


def scale_of(series: Series, made_from: Provenance) -> float | None:
    """The simplest number that, times the numbers in the inputs' names and rounded, gives their steps.

    1 where they do not say; None where there is no such number.
    """
    low, high = Fraction(0), None
    for source in made_from.inputs:
        numbers = [item.step for item in series.checkpoints if _is_input(item, source)]
        if source.repo is None and len(numbers) > 1:  # verl calls the folder of every step huggingface
            continue
        number = numbers[0] if numbers else None
        if number == 0 and source.step != 0:
            return None
        if number:
            low = max(low, Fraction(2 * source.step - 1, 2 * number))
            end = Fraction(2 * source.step + 1, 2 * number)
            high = end if high is None else min(high, end)
    if high is None:
        return 1.0
    return float(_simplest(low, high)) if 0 < low <= high else None


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of the smallest denominator from ``low`` to ``high``, both above 0."""
    if ceil(low) <= high:
        return Fraction(ceil(low))
    whole = floor(low)
    return whole + 1 / _simplest(1 / (high - whole), 1 / (low - whole))


def _is_input(checkpoint: Checkpoint, source: InputCheckpoint) -> bool:
    if source.repo is None:  # of a local folder the last part alone is known
        return checkpoint.repo is None and Path(checkpoint.path).name == source.path
    same_name = checkpoint.revision == source.revision or checkpoint.commit == source.commit
    return checkpoint.repo == source.repo and checkpoint.path == source.path and same_name


def provenance_of(checkpoint: Checkpoint) -> Provenance | None:
    """What its hubextrap.json says; None where there is none: an observed checkpoint.

    Raises:
        CorruptFile: there is one and it cannot be understood.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if checkpoint.repo is None:
        path = Path(checkpoint.path) / PROVENANCE_FILE
        return read_provenance(path) if os.path.lexists(path) else None
    file = f"{checkpoint.path}/{PROVENANCE_FILE}" if checkpoint.path else PROVENANCE_FILE
    with hub_errors(checkpoint.name):
        try:
            copy = hub_api().hf_hub_download(checkpoint.repo, file, revision=checkpoint.commit)
        except RemoteEntryNotFoundError:
            return None
    name = f"{checkpoint.name}: {PROVENANCE_FILE}"
    return read_provenance(check_cached(Path(copy), name), name)


def place_of(checkpoint: Checkpoint) -> tuple[str | None, str | None, str]:
    """What makes two checkpoints one."""
    return (checkpoint.repo, checkpoint.commit, checkpoint.path)
