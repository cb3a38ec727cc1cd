"""Predictions of a grid: what each depends on, what was measured of it, and its model.

What was measured is kept under the sha256 of all that it depends on, so that work that was stopped goes on
where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__
from hubextrap.api.adapted import adapter_files
from hubextrap.api.adapting import output_kind
from hubextrap.api.fingerprint import check_unchanged, merge_fingerprint
from hubextrap.api.making import make_in
from hubextrap.api.output import check_output, output_sizes
from hubextrap.api.preparing import MergeOptions, prepare
from hubextrap.api.staging import remove_leftover, staged
from hubextrap.digests import sha256_of_json
from hubextrap.durable.atomic import read_sealed, write_sealed
from hubextrap.engine.kernels import check_device
from hubextrap.evaluation.sweep_report import GridPoint
from hubextrap.evaluation.table import PREDICTION
from hubextrap.methods import find_method
from hubextrap.trajectory import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubextrap.api.preparing import Prepared
    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe

REMEDY = "choose another --out"


@dataclass(frozen=True, slots=True)
class Point:
    """A prediction of the grid."""

    grid: GridPoint
    recipe: Recipe
    key: str
    """sha256 of all that its figures depend on."""


def point_of(recipe: Recipe, run: Run, pins: Sequence[str], measured_with: str) -> Point:
    """The prediction of a settled recipe with one target.

    Args:
        pins: what stands for each checkpoint.
        measured_with: what stands for all that its figures depend on beside the weights.

    Raises:
        MethodError, StepError: the method cannot serve the step.
    """
    (step,), damping = recipe.target_steps, recipe.parameters.damping
    steps, times = run.times, run.target_times(recipe)
    rules: list[Any] = []
    for rule in recipe.rules:
        rule.check(steps, times)
        if rule.needs_gram_matrix:  # they follow from the pinned weights and from this
            package = find_method(rule.method).package  # ours changes with __version__
            how: Any = [rule.method, *package, dict(rule.parameters), rule.damping, *times]
            how += [] if recipe.fit_sample is None else [{"sample": recipe.fit_sample}]
        else:
            how = rule.coefficients(steps, times).tolist()
        rules.append([rule.match, how])
    output = [] if recipe.output is None else [recipe.output.model_dump(mode="json")]
    key = sha256_of_json(
        [measured_with, list(pins), list(steps), rules, recipe.out_dtype, __version__, *output]
    )
    label = f"{PREDICTION} {step}"
    if recipe.parameters.target is not None:  # another model than that of the run's own step of this number
        label += " at the peak rate"
    if damping != 1:
        label += f" × {damping if damping == 'auto' else format(damping, 'g')}"
    return Point(GridPoint(label=label, step=step, damping=damping), recipe, key)


class Kept:
    """What was found, in a folder, each in a file by its key."""

    def __init__(self, folder: Path, remedy: str = REMEDY) -> None:
        self._folder, self._remedy = folder, remedy

    def get(self, key: str) -> Any:
        """What is kept under ``key``; None if that is nothing, or not as it was written."""
        try:
            return read_sealed(self._folder / f"{key}.json", nan=True)
        except (OSError, ValueError):
            return None

    def put(self, key: str, content: Mapping[str, Any]) -> None:
        """Keep it."""
        write_sealed(self._folder / f"{key}.json", content, remedy=self._remedy)


@dataclass(frozen=True, slots=True)
class Making:
    """Putting points' models into ``predictions/KEY``, all that are missing in one pass over the weights."""

    recipe: Recipe
    run: Run
    settings: MergeOptions
    folder: Path
    pins: Sequence[str]
    points: Sequence[Point]

    @property
    def missing(self) -> list[Point]:
        """Points with the same coefficients are one model."""
        models = {point.key: point for point in self.points}
        return [point for key, point in models.items() if not (self.folder / "predictions" / key).is_dir()]

    def model_of(self, point: Point) -> Checkpoint:
        """A point's model, once it is made."""
        place = self.folder / "predictions" / point.key
        kind = output_kind(self.recipe, self.run)
        return Checkpoint(point.grid.step, None, "", None, str(place.resolve()), kind=kind)

    def merge(self) -> None:
        """Make them."""
        if not self.points:
            return
        made, fresh = self.folder / "predictions", self.folder / "merged"
        made.mkdir(exist_ok=True)
        _move(fresh, made)
        if not (missing := self.missing):
            return
        prepared = self.prepared(missing, read_weights=True)
        for checkpoint, pin in zip(self.run.trajectory.checkpoints, self.pins, strict=True):
            check_unchanged(checkpoint, pin)
        remove_leftover(fresh)
        files, names = _files_beside(prepared), [point.key for point in missing]
        with staged(fresh, names, merge_fingerprint(prepared), self.run.progress) as staging:
            every = [files] * len(names)
            make_in(staging, every, prepared.plan, prepared.sources, self.run, self.settings)
        _move(fresh, made)

    def prepared(self, missing: Sequence[Point], *, read_weights: bool) -> Prepared:
        """Their merge, or what would keep it from being done."""
        return prepare(
            self.recipe,
            self.run,
            self.settings,
            read_weights=read_weights,
            variants=[point.recipe for point in missing],
            check=partial(_check_room, out=self.folder / "merged", names=[point.key for point in missing]),
        )


def _check_room(prepared: Prepared, out: Path, names: Sequence[str]) -> None:
    check_device(prepared.settings.device)
    if out.is_dir():  # a pass that is finished, and taken over first
        return
    sizes = output_sizes(prepared.plan, _files_beside(prepared))
    check_output(out, dict.fromkeys(names, sizes))


def _files_beside(prepared: Prepared) -> dict[str, bytes]:
    index = prepared.plan.index_file
    own = adapter_files(prepared)
    return dict(prepared.beside.files) | own | ({} if index is None else {index: prepared.plan.index})


def _move(fresh: Path, made: Path) -> None:
    """Take over a finished pass; what is in ``made`` is whole."""
    if fresh.is_dir():
        for prediction in fresh.iterdir():
            prediction.replace(made / prediction.name)
        fresh.rmdir()
