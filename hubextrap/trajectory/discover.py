"""From a reference to pinned checkpoints in step order: the only way that the rooms above get checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import (
    ReferenceNotFound,
    StepError,
    UnsupportedCheckpoint,
    wrong_argument,
)
from hubextrap.progress import SilentProgress
from hubextrap.step_names import INNER_FOLDERS, read_step
from hubextrap.trajectory.adapters_of_run import listed_of_one_kind, selected_of_one_kind, with_base
from hubextrap.trajectory.checkpoint import (
    ADAPTER,
    UNKNOWN_STEP,
    Checkpoint,
    PassedOver,
    Series,
    Trajectory,
)
from hubextrap.trajectory.choosing import choose_series
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.elsewhere import models_elsewhere, pinned_commit
from hubextrap.trajectory.hub_files import list_entries
from hubextrap.trajectory.layouts import series_by_layout
from hubextrap.trajectory.leaving_out import tell_left_out, with_weights
from hubextrap.trajectory.listing import files_of_checkpoint, looked_into, shown_names
from hubextrap.trajectory.pins import Pins
from hubextrap.trajectory.reference import Reference, parse_reference, reference_text
from hubextrap.trajectory.sameness import same_weights
from hubextrap.trajectory.search import search_of
from hubextrap.trajectory.selection import (
    TrajectoryOptions,
    check_distinct,
    place_of,
    scaled_by,
    select_steps,
)
from hubextrap.trajectory.series import in_step_order
from hubextrap.trajectory.wholeness import without_unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe


def find_series(reference: str, *, pattern: str | None = None, pins: Pins | None = None) -> list[Series]:
    """Everything in a reference that looks like a series of checkpoints, in every layout.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        TrajectoryError: the pattern has no ``{step}``.
    """
    found = series_by_layout(search_of(reference, pattern, pins))
    return [series for layout in found for series in layout]


def find_trajectory(
    reference: Path | str,
    options: TrajectoryOptions | None = None,
    *,
    pins: Pins | None = None,
    progress: Progress | None = None,
    **named: Any,
) -> Trajectory:
    """The checkpoints of one run, pinned, with the bytes of their weights.

    Args:
        reference: a local folder, ``org/name``, ``org/name@revision:folder`` or ``hf://…``.
        options: which checkpoints; all of the one series that is there if not given.
        pins: what the command has pinned so far.
        named: fields of `TrajectoryOptions`, instead of ``options``: ``max_step=800``.

    Raises:
        ReferenceNotFound, AccessDenied: a reference leads nowhere, or is not open to this token.
        AmbiguousTrajectory: several series are there and ``series`` does not settle which.
        StepError: a step is missing, there twice, or none is left.
        TrajectoryError: nothing is found.
    """
    progress, pins, reference = progress or SilentProgress(), pins or Pins(), reference_text(reference)
    if options is not None and not isinstance(options, TrajectoryOptions):
        raise wrong_argument("options", "TrajectoryOptions, or None", options)
    asked = replace(options or TrajectoryOptions(), **named)
    chosen = choose_series(reference, asked.pattern, asked.series, pins, progress)
    scaled = scaled_by(chosen, asked.step_scale)
    check_distinct(scaled.checkpoints, reference)
    selected = select_steps(scaled, reference, asked, base_at_0=True)
    seen: dict[Checkpoint, Mapping[str, int]] = {}
    without: list[PassedOver] = []
    if not chosen.files_known:
        selected = with_weights(selected, reference, asked.steps, progress, seen, without)
    elif asked.steps is None:
        tell_left_out(
            progress, selected, [over for over in scaled.passed_over if asked.takes(over.checkpoint.step)]
        )
    selected, scaled = _whole_ones(selected, scaled, reference, asked, seen, pins, progress)
    named_steps = asked.steps is not None
    selected, scaled = selected_of_one_kind(selected, scaled, reference, progress, named=named_steps)
    if not any(one.kind == ADAPTER for one in selected):
        select_steps(scaled, reference, asked)  # only adapters have a step 0 without a file
    base = None if asked.base is None else _base_for(selected, asked.base, reference, pins)
    selected, base = with_base(selected, base, from_step_0=asked.takes(0) and 0 in (asked.steps or (0,)))
    found = _trajectory(selected, chosen.pattern, progress, scaled, base)
    passed = [over for over in (*scaled.passed_over, *without) if asked.takes(over.checkpoint.step)]
    return replace(found, passed_over=tuple(sorted(passed, key=lambda over: over.checkpoint.step)))


def _whole_ones(
    selected: tuple[Checkpoint, ...],
    series: Series,
    reference: str,
    asked: TrajectoryOptions,
    seen: dict[Checkpoint, Mapping[str, int]],
    pins: Pins,
    progress: Progress,
) -> tuple[tuple[Checkpoint, ...], Series]:
    """Those that were selected, and the whole series, without what is being written just now."""
    passed = {over.checkpoint.step for over in series.passed_over}
    newer = [one.step for one in series.checkpoints if one.step > selected[-1].step]
    if set(newer) - passed and asked.max_step is not None:
        return selected, series  # its newest checkpoints are not among them

    def files_of(checkpoint: Checkpoint) -> Mapping[str, int]:
        if checkpoint not in seen:
            seen[checkpoint] = dict(files_of_checkpoint(checkpoint, checkpoint.name, pins)[0])
        return seen[checkpoint]

    kept, left_out = without_unfinished(
        selected, reference, files_of, progress, named=asked.steps is not None
    )
    gone = {over.checkpoint.step for over in left_out}
    there = tuple(one for one in series.checkpoints if one.step not in gone)
    return kept, replace(series, checkpoints=there, passed_over=(*series.passed_over, *left_out))


def find_recipe_trajectory(
    recipe: Recipe, progress: Progress | None = None, *, pins: Pins | None = None
) -> Trajectory:
    """The checkpoints that a recipe observes, pinned, in step order: once per command, which hands them on.

    Args:
        pins: what the command has pinned so far.

    Raises:
        TrajectoryError: they cannot be found, pinned or put in order.
    """
    section = recipe.trajectory
    if section.checkpoints is not None:
        listed = [(entry.model, entry.step) for entry in section.checkpoints]
        return pin_checkpoints(listed, base=section.base, pins=pins, progress=progress)
    assert section.repo is not None
    said = section.steps
    asked = TrajectoryOptions(
        said.pattern, said.series, said.min, said.max, said.only, section.base, said.scale
    )
    return find_trajectory(section.repo, asked, pins=pins, progress=progress)


def pin_checkpoints(
    pairs: Iterable[tuple[str, int]],
    *,
    base: str | None = None,
    pins: Pins | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """A trajectory of checkpoints that were listed one by one, as (reference, step).

    Of adapters, too, these are all: the base model is step 0 where it is listed there, or is ``base``.

    Raises:
        ReferenceNotFound, AccessDenied, UnsupportedCheckpoint: a reference leads to no model.
        StepError: a step is negative or listed twice, no checkpoint is, or adapters and whole models are.
    """
    pairs, pins = list(pairs), pins or Pins()
    if not pairs:
        raise StepError("the list of checkpoints is empty")
    if negative := [f"{reference} at step {step}" for reference, step in pairs if step < 0]:
        raise StepError(f"steps count from 0: {', '.join(negative)}")
    progress = progress or SilentProgress()
    with progress.stage("pin checkpoints", len(pairs), "checkpoints") as stage:
        checkpoints = map_concurrently(
            lambda pair: resolve_checkpoint(pair[0], step=pair[1], pins=pins), pairs, stage
        )
    ordered = in_step_order(checkpoints)
    check_distinct(ordered, what := "the list of checkpoints")
    ordered = listed_of_one_kind(ordered, what)
    named = None if base is None else _base_for(ordered, base, what, pins)
    ordered, named = with_base(ordered, named, from_step_0=base is not None)
    return _trajectory(ordered, "listed", progress, base=named)


def _trajectory(
    checkpoints: tuple[Checkpoint, ...],
    pattern: str,
    progress: Progress,
    whole: Series | None = None,
    base: Checkpoint | str | None = None,
) -> Trajectory:
    found = Trajectory(checkpoints, pattern, whole, same_weights(checkpoints), base)
    for note in found.notes:
        progress.warn(note)
    return found


def resolve_checkpoint(
    reference: Path | str, *, step: int | None = None, pins: Pins | None = None
) -> Checkpoint:
    """One reference, pinned, with the bytes of its weights.

    Args:
        step: its step; where None, the one its name says, or ``UNKNOWN_STEP``.
        pins: what the command has pinned so far.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        UnsupportedCheckpoint: there are no weights of any kind.
    """
    reference, pins = reference_text(reference), pins or Pins()
    where = parse_reference(reference)
    step = _step_of(where) if step is None else step
    if where.folder is not None:
        checkpoint = Checkpoint(step, None, "", None, str(where.folder))
    else:
        commit = pinned_commit(where, pins)
        revision = "" if where.in_bucket else where.revision or "main"
        checkpoint = Checkpoint(step, where.repo, revision, commit, where.path)
    checkpoint, weights, files = looked_into(checkpoint, reference)
    if weights is not None:
        return checkpoint
    elsewhere = models_elsewhere(where, pins)
    if where.in_bucket and not files:
        raise ReferenceNotFound(f"{reference}: nothing lies there in the bucket", repo=where.repo)
    if where.path and not list_entries(where.repo, checkpoint.commit or "", where.path, reference):
        what = f"{reference}: no folder {where.path!r} in {where.repo}@{checkpoint.revision}"
        raise ReferenceNotFound(what + (elsewhere and f"; {elsewhere}"), repo=where.repo)
    raise UnsupportedCheckpoint(
        f"{reference}: no weight files in it ({shown_names([name for name, _ in files])}); "
        f"{elsewhere or 'name the folder with them'}",
        repo=checkpoint.repo,
    )


def _base_for(checkpoints: tuple[Checkpoint, ...], base: str, reference: str, pins: Pins) -> Checkpoint | str:
    """The base that the user named, before the first checkpoint: that of adapters is looked for where it is
    needed, and a local folder is named in full until then."""
    if checkpoints[0].step == 0 and checkpoints[0].kind != ADAPTER:
        raise StepError(
            f"{reference}: step 0 is already there, {place_of(checkpoints[0])}; drop the base {base}, or "
            "leave that step out",
            step=0,
        )
    if any(one.kind == ADAPTER for one in checkpoints):
        return str(Path(base).resolve()) if Path(base).is_dir() else base
    found = resolve_checkpoint(base, step=0, pins=pins)
    if found.kind == ADAPTER:
        raise UnsupportedCheckpoint(
            f"{base}: holds an adapter, so it is no base; name the model that it was trained on",
            repo=found.repo,
        )
    return found


def _step_of(where: Reference) -> int:
    """The step that a reference's names say."""
    if where.folder is not None:
        folder = where.folder
        while folder.name in INNER_FOLDERS:
            folder = folder.parent
        names = [folder.name]
    else:
        names = [where.path, where.revision or "", where.repo.rpartition("/")[2]]
    found = next((name for name in map(read_step, names) if name is not None), None)
    return UNKNOWN_STEP if found is None else found.step
