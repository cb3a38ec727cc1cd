"""What a prediction has to be compared with, found through the pinned inputs in its hubextrap.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.inputs import FoundInputs, inputs_in, inputs_nearby
from hubextrap.evaluation.table import BASE, LAST, PREDICTION, TARGET
from hubextrap.evaluation.targets import TargetSearch, place_of, provenance_of
from hubextrap.hub import PROVENANCE_FILE, Provenance
from hubextrap.progress import SilentProgress
from hubextrap.trajectory import Checkpoint, Pins, path_in_run, resolve_checkpoint
from hubextrap.trajectory.bucket_files import is_bucket
from hubextrap.trajectory.checkpoint import place_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.progress import Progress

ROLES = (LAST, BASE, TARGET)


def compared_checkpoints(
    references: Sequence[str],
    against: Sequence[str] | None = None,
    *,
    run: str | None = None,
    pins: Pins | None = None,
    progress: Progress | None = None,
) -> list[tuple[str, Checkpoint]]:
    """The checkpoints to evaluate, labelled, with what they are compared with.

    Args:
        references: predictions (models with a ``hubextrap.json``) and any other checkpoints.
        against: what to add: ``last``, ``base`` and ``target`` are the last observed checkpoint, the first
            one, and the real one at the predicted step, all through the predictions' own inputs; ``last=REF``
            (or ``base=``, ``target=``) names it; any other reference is added as it is. None adds whatever is
            found of the three.
        run: where the run lies that the predictions were made from, instead of where their hubextrap.json and
            its recipe say: a folder or a repo.
        pins: what the command has pinned so far.

    Raises:
        EvaluationError: ``last`` or ``base`` is asked for and no input says which it is, or two predictions
            have different ones; ``run`` holds other checkpoints than went in, or has no effect.
        TrajectoryError, CheckpointError: a reference leads nowhere.
    """
    progress, pins = progress or SilentProgress(), pins or Pins()
    given, predictions = [], []
    for reference in references:
        item = resolve_checkpoint(reference, pins=pins)
        if (provenance := provenance_of(item)) is not None:
            if provenance.target_step is not None:
                item = replace(item, step=provenance.target_step)
            predictions.append((item, provenance))
        given.append(item)
    rows = Rows()
    entries = list(ROLES if against is None else against)
    _check_run(run, entries, predictions)
    search = TargetSearch(pins)
    inputs: list[FoundInputs | None] = [None] * len(predictions)
    if set(entries) & set(ROLES):
        inputs = [_inputs_of(one, made_from, run, pins, progress) for one, made_from in predictions]
    for entry in entries:
        role, equals, reference = entry.partition("=")
        if role in ROLES and equals:
            rows.add(role, resolve_checkpoint(reference, pins=pins))
        elif role not in ROLES:
            other = resolve_checkpoint(entry, pins=pins)
            rows.add(short_name(other), other)
        elif role == TARGET:
            for (prediction, made_from), found in zip(predictions, inputs, strict=True):
                target = search.find(prediction, made_from) if found is None else found.target
                if target is not None:
                    rows.add(TARGET, target)
        else:
            _add_input(rows, role, predictions, inputs, pins, required=against is not None, progress=progress)
    made = {place_of(prediction) for prediction, _ in predictions}
    short_names = Counter(map(short_name, given))
    labelled = []
    for item in given:
        name = short_name(item) if short_names[short_name(item)] == 1 else item.name
        if place_of(item) in made:
            name = PREDICTION if len(made) == 1 else f"{PREDICTION} {name}"
        labelled.append((name, item))
    # a checkpoint that is named and has a role as well is one row, under its role
    return [row for row in labelled if not rows.has(row[1])] + rows.items


class Rows:
    """Rows under construction: a place once, a role once."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Checkpoint]] = []

    def has(self, checkpoint: Checkpoint) -> bool:
        return any(place_of(known) == place_of(checkpoint) for _, known in self.items)

    def add(self, label: str, checkpoint: Checkpoint) -> None:
        """Raise EvaluationError where ``label`` is another checkpoint's."""
        for known_label, known in self.items:
            if known_label == label and place_of(known) != place_of(checkpoint):
                raise EvaluationError(
                    f"two checkpoints would be {label!r}: {known.name} and {checkpoint.name}; "
                    "evaluate the predictions one by one"
                )
        if not self.has(checkpoint):
            self.items.append((label, checkpoint))


def _add_input(
    rows: Rows,
    role: str,
    predictions: Sequence[tuple[Checkpoint, Provenance]],
    inputs: Sequence[FoundInputs | None],
    pins: Pins,
    *,
    required: bool,
    progress: Progress,
) -> None:
    if required and not predictions:
        raise EvaluationError(
            f"--against {role}: none of the models has a {PROVENANCE_FILE} that says which checkpoint that "
            f"is; name it: --against {role}=REF"
        )
    for (prediction, provenance), known in zip(predictions, inputs, strict=True):
        source = provenance.inputs[-1 if role == LAST else 0]
        found = None if known is None else known.last if role == LAST else known.base
        if found is None and source.repo is not None and not is_bucket(source.repo):
            commit = f"{source.repo}@{source.commit}" + (f":{source.path}" if source.path else "")
            found = resolve_checkpoint(commit, step=source.step, pins=pins)
            found = replace(found, revision=source.revision)  # the name that the user knows
        if found is not None:
            rows.add(role, found)
            continue
        problem = (
            f"{prediction.name}: its {role} checkpoint, step {source.step}, was the local folder "
            f"{source.path!r}, which is not found from here; name the run that it came from: --run FOLDER; "
            f"or that checkpoint: --against {role}=FOLDER"
        )
        if source.repo is not None:
            place = place_name(source.repo, source.revision, source.path)
            problem = (
                f"{prediction.name}: its {role} checkpoint, step {source.step}, lies in a bucket, from which "
                f"nothing loads a model; copy it to this disk (hf buckets sync {place} FOLDER) and name it: "
                f"--against {role}=FOLDER"
            )
        if required:
            raise EvaluationError(problem, step=source.step)
        progress.say(problem)


def _check_run(
    run: str | None, entries: Sequence[str], predictions: Sequence[tuple[Checkpoint, Provenance]]
) -> None:
    """Refuse a run that nothing is looked for in."""
    if run is None:
        return
    if not predictions:
        raise EvaluationError(
            f"--run {run}: none of the models has a {PROVENANCE_FILE}, so none was made from a run; leave it "
            "out"
        )
    if not set(entries) & set(ROLES):
        raise EvaluationError(
            f"--run {run}: has no effect: {LAST}, {BASE} and {TARGET} are looked for in it, and none of them "
            "is asked for; leave it out"
        )


def _inputs_of(
    prediction: Checkpoint, made_from: Provenance, run: str | None, pins: Pins, progress: Progress
) -> FoundInputs | None:
    """What lies in the run that is named, or of local inputs nearby; None where the Hub's commits say it."""
    if run is not None:
        return inputs_in(run, prediction, made_from, pins, progress)
    if made_from.inputs[-1].repo is not None:
        return None
    return inputs_nearby(prediction, made_from, pins, progress)


def short_name(checkpoint: Checkpoint) -> str:
    """Where a local folder lies in its run, the whole name of anything on the Hub."""
    return path_in_run(checkpoint) if checkpoint.repo is None else checkpoint.name
