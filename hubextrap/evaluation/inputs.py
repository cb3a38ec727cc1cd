"""Where the checkpoints lie that a prediction was made from, when its hubextrap.json pins none of them.

It names a local folder by its last part only. So the run is the one that a user names, or is looked for where
the recipe in the file says and beside the prediction; and what is found there counts only if nothing in
hubextrap.json speaks against it.
"""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.digests import hasher_like
from hubextrap.errors import EvaluationError, HubExtrapError
from hubextrap.evaluation.recomputed import odd_tensor
from hubextrap.evaluation.targets import place_of, provenance_of, scale_of, section_of
from hubextrap.recipe import parse_recipe
from hubextrap.tensors import open_source
from hubextrap.tensors.assembled import beneath
from hubextrap.tensors.hashing import blocks_of
from hubextrap.trajectory import Checkpoint, find_series, resolve_checkpoint, scaled_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hubextrap.hub import InputCheckpoint, Provenance
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Pins, Series


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The checkpoints of a run that a prediction is compared with."""

    last: Checkpoint
    base: Checkpoint | None
    """None where it is not among the run's, as a base from elsewhere is not."""
    target: Checkpoint | None


def inputs_in(
    run: str, prediction: Checkpoint, made_from: Provenance, pins: Pins, progress: Progress
) -> FoundInputs:
    """Those of the run that a user names.

    Raises:
        EvaluationError: its checkpoints are not what the prediction was made from.
        TrajectoryError, CheckpointError: ``run`` leads nowhere.
    """
    last = made_from.inputs[-1]
    problem = f"it holds no step {last.step}, the last that {prediction.name} was made from"
    section = section_of(made_from)
    for series in find_series(run, pattern=section.steps.pattern if section else None, pins=pins):
        found, why = _inputs_of(series, prediction, made_from, progress)
        if found is not None:
            return found
        problem = why or problem
    raise EvaluationError(
        f"--run {run}: {problem}; name the run that it was made from, or its last checkpoint: "
        "--against last=REF",
        step=last.step,
    )


def inputs_nearby(
    prediction: Checkpoint, made_from: Provenance, pins: Pins, progress: Progress
) -> FoundInputs | None:
    """Those of a local prediction that lie where its recipe says, or beside it; None where none do."""
    if prediction.repo is not None:
        return None
    for folder in _folders(Path(prediction.path), made_from):
        with suppress(HubExtrapError):  # a place that may have been another's since
            return inputs_in(str(folder.absolute()), prediction, made_from, pins, progress)
    return _listed_inputs(prediction, made_from, pins, progress)


def is_input(checkpoint: Checkpoint, source: InputCheckpoint, progress: Progress) -> bool:
    """Whether a checkpoint of some run is the one that went in at its step."""
    return checkpoint.step == source.step and input_problem(checkpoint, source, progress) is None


def input_problem(checkpoint: Checkpoint, source: InputCheckpoint, progress: Progress) -> str | None:
    """What shows that a checkpoint is not the one that went in; None where nothing does.

    Its weight files are to have the same names and sizes, and the same hash where one is known.
    """
    if checkpoint.repo is not None and (checkpoint.repo, checkpoint.commit) == (source.repo, source.commit):
        return None if checkpoint.path == source.path else f"it is {checkpoint.path}, not {source.path}"
    with closing(open_source(checkpoint)) as opened:
        stored, _ = beneath(opened, ())
        present = stored.files()
        for file in source.files:
            info = present.get(file.file)
            if info is None or info.problem is not None:
                return f"{checkpoint.name}: holds no {file.file}, which went in"
            if info.size != file.size:
                what = f"has {info.size:,} bytes, and what went in had {file.size:,}"
                return f"{checkpoint.name}/{file.file}: {what}"
            digest = info.digest
            if file.listed is not None and digest is None:
                progress.say(f"hash {checkpoint.name}/{file.file}, to see that it is what went in")
                hasher = hasher_like(file.listed, file.size)
                for block in blocks_of(stored, file.file):
                    hasher.update(block)
                digest = hasher.hexdigest()
            if file.listed is not None and digest != file.listed:
                return f"{checkpoint.name}/{file.file}: holds other bytes than what went in"
    return None


def _inputs_of(
    series: Series, prediction: Checkpoint, made_from: Provenance, progress: Progress
) -> tuple[FoundInputs | None, str | None]:
    """What a series holds of them; or why it is another run's, where it has the step."""
    section = section_of(made_from)
    scale = section.steps.scale if section else scale_of(series, made_from)
    if scale is None:
        return None, None
    at = {item.step: item for item in scaled_by(series, scale).checkpoints}
    elsewhere = _pinned_elsewhere(made_from)
    found = {source.step: at[source.step] for source in made_from.inputs if source.step in at} | elsewhere
    if problem := _problem(found, prediction, made_from, progress):
        return None, problem
    last, base = found.get(made_from.inputs[-1].step), found.get(made_from.inputs[0].step)
    if base in elsewhere.values():  # the commit in hubextrap.json says it
        base = None
    if last is None:
        return None, None
    target = None if "target" in made_from.parameters else at.get(made_from.target_step or 0)
    if target is not None and (
        target.step <= last.step
        or place_of(target) == place_of(prediction)
        or provenance_of(target) is not None
    ):
        target = None
    return FoundInputs(last, base, target), None


def _pinned_elsewhere(made_from: Provenance) -> dict[int, Checkpoint]:
    """Inputs from the Hub of a prediction whose last one lay in a local folder: such as the base of a run."""
    if made_from.inputs[-1].repo is not None:
        return {}
    return {
        source.step: Checkpoint(source.step, source.repo, source.revision, source.commit, source.path)
        for source in made_from.inputs
        if source.repo is not None
    }


def _problem(
    found: Mapping[int, Checkpoint], prediction: Checkpoint, made_from: Provenance, progress: Progress
) -> str | None:
    """What shows that these are not the checkpoints that went in, by their steps."""
    ends = (made_from.inputs[-1], made_from.inputs[0])
    for source in ends:
        if source.step in found and (problem := input_problem(found[source.step], source, progress)):
            return problem
    hashed = all(one.files and all(file.listed for file in one.files) for one in ends)
    if len(found) < len(made_from.inputs) or hashed:
        return None
    # names and sizes are alike in every run of a model, and of local files no hash is known
    tensor = odd_tensor(prediction, [found[step] for step in made_from.steps], made_from)
    return tensor and f"its checkpoints are not what went in: {tensor} of the prediction is not their sum"


def _folders(prediction: Path, made_from: Provenance) -> Iterator[Path]:
    """Folders that may hold the run: as the recipe has it, from here and from beside the prediction."""
    with suppress(HubExtrapError):
        named = parse_recipe(made_from.recipe).trajectory.repo
        if named is not None:
            yield from _existing(prediction, named)
    if (prediction.parent / made_from.inputs[-1].path).is_dir():
        yield prediction.parent


def _existing(prediction: Path, named: str) -> Iterator[Path]:
    """Places that a path of a recipe may mean. An absolute one was cut to its last part."""
    places = (Path(named), prediction.parent / named, prediction.parent / Path(named).name)
    for place in dict.fromkeys(path.resolve() for path in places if not Path(named).is_absolute()):
        # what somebody else wrote there should not have a disk searched
        if place.is_dir() and place not in (*prediction.parents, *Path.cwd().parents):
            yield place


def _listed_inputs(
    prediction: Checkpoint, made_from: Provenance, pins: Pins, progress: Progress
) -> FoundInputs | None:
    """Those of a recipe that lists its checkpoints one by one."""
    found: dict[int, Checkpoint] = {}
    with suppress(HubExtrapError):
        listed = parse_recipe(made_from.recipe).trajectory.checkpoints or ()
        models = {entry.step: entry.model for entry in listed}
        for source in made_from.inputs:
            for folder in _existing(Path(prediction.path), models.get(source.step, "")):
                item = resolve_checkpoint(str(folder), step=source.step, pins=pins)
                if input_problem(item, source, progress) is None:
                    found.setdefault(source.step, item)
        last = found.get(made_from.inputs[-1].step)
        if last is not None and _problem(found, prediction, made_from, progress) is None:
            return FoundInputs(last, found.get(made_from.inputs[0].step), None)
    return None
