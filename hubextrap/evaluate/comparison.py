"""What a prediction has to be compared with, found through the pinned inputs in its hubextrap.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError, HubExtrapError
from hubextrap.evaluate.table import BASE, LAST, PREDICTION, TARGET
from hubextrap.hub import PROVENANCE_FILE, Provenance, read_provenance
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.progress import SilentProgress
from hubextrap.trajectory import Checkpoint, find_series, resolve_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.hub import InputCheckpoint
    from hubextrap.progress import Progress

ROLES = (LAST, BASE, TARGET)


def compared_checkpoints(
    references: Sequence[str], against: Sequence[str] | None = None, *, progress: Progress | None = None
) -> list[tuple[str, Checkpoint]]:
    """The checkpoints to evaluate, labelled, with what they are compared with.

    Args:
        references: predictions (models with a ``hubextrap.json``) and any other checkpoints.
        against: what to add: ``last``, ``base`` and ``target`` are the last observed checkpoint, the first
            one, and the real one at the predicted step, all through the predictions' own inputs; ``last=REF``
            (or ``base=``, ``target=``) names it, which inputs in local folders need; any other reference is
            added as it is. None adds of the three whatever is found.

    Raises:
        EvaluationError: ``last`` or ``base`` is asked for and no input says which it is, or two predictions
            have different ones.
        TrajectoryError, CheckpointError: a reference leads nowhere.
    """
    progress = progress or SilentProgress()
    given, predictions = [], []
    for item in map(resolve_checkpoint, references):
        if (provenance := _provenance_of(item)) is not None:
            if provenance.target_step is not None:
                item = replace(item, step=provenance.target_step)
            predictions.append((item, provenance))
        given.append(item)
    rows = _Rows()
    for entry in ROLES if against is None else against:
        role, equals, reference = entry.partition("=")
        if role in ROLES and equals:
            rows.add(role, resolve_checkpoint(reference))
        elif role not in ROLES:
            other = resolve_checkpoint(entry)
            rows.add(_short_name(other), other)
        elif role == TARGET:
            for prediction, made_from in predictions:
                if (target := _real_target(prediction, made_from)) is not None:
                    rows.add(TARGET, target)
        else:
            _add_input(rows, role, predictions, required=against is not None, progress=progress)
    made = {_place(prediction) for prediction, _ in predictions}
    short_names = Counter(map(_short_name, given))
    labelled = []
    for item in given:
        name = _short_name(item) if short_names[_short_name(item)] == 1 else item.name
        if _place(item) in made:
            name = PREDICTION if len(made) == 1 else f"{PREDICTION} {name}"
        labelled.append((name, item))
    # a checkpoint that is named and has a role as well is one row, under its role
    return [row for row in labelled if not rows.has(row[1])] + rows.items


class _Rows:
    """Rows under construction: a place once, a role once."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Checkpoint]] = []

    def has(self, checkpoint: Checkpoint) -> bool:
        return any(_place(known) == _place(checkpoint) for _, known in self.items)

    def add(self, label: str, checkpoint: Checkpoint) -> None:
        for known_label, known in self.items:
            if known_label == label and _place(known) != _place(checkpoint):
                raise EvaluationError(
                    f"two checkpoints would be {label!r}: {known.name} and {checkpoint.name}; "
                    "evaluate the predictions one by one"
                )
        if not self.has(checkpoint):
            self.items.append((label, checkpoint))


def _add_input(
    rows: _Rows,
    role: str,
    predictions: Sequence[tuple[Checkpoint, Provenance]],
    *,
    required: bool,
    progress: Progress,
) -> None:
    if required and not predictions:
        raise EvaluationError(
            f"--against {role}: none of the models has a {PROVENANCE_FILE} that says which checkpoint that "
            f"is; name it: --against {role}=REF"
        )
    for prediction, provenance in predictions:
        source = provenance.inputs[-1 if role == LAST else 0]
        if source.repo is not None:
            rows.add(role, _pinned(source))
            continue
        problem = (
            f"{prediction.name}: its {role} checkpoint, step {source.step}, was the local folder "
            f"{source.path!r}; name it: --against {role}=FOLDER"
        )
        if required:
            raise EvaluationError(problem)
        progress.say(problem)


def _pinned(source: InputCheckpoint) -> Checkpoint:
    """An input as it was read; its name is still the one that the user knows."""
    reference = f"{source.repo}@{source.commit}" + (f":{source.path}" if source.path else "")
    return replace(resolve_checkpoint(reference, step=source.step), revision=source.revision)


def _real_target(prediction: Checkpoint, provenance: Provenance) -> Checkpoint | None:
    """The checkpoint at the predicted step in the last input's series, unless it is a prediction itself."""
    last, step = provenance.inputs[-1], provenance.target_step
    if last.repo is None or step is None:
        return None
    try:
        found = find_series(last.repo)
    except HubExtrapError:  # the run may have gone since; what was read is still pinned
        return None
    for series in found:
        counted = next((item.step for item in series.checkpoints if _is_input(item, last)), None)
        for item in series.checkpoints:
            # steps in the file are scaled as the recipe says, those of the series are as the names say
            if (
                counted is None
                or item.step * last.step != step * counted
                or _place(item) == _place(prediction)
            ):
                continue
            if _provenance_of(item) is None:
                return replace(item, step=step)
    return None


def _is_input(checkpoint: Checkpoint, source: InputCheckpoint) -> bool:
    same_name = checkpoint.revision == source.revision or checkpoint.commit == source.commit
    return checkpoint.repo == source.repo and checkpoint.path == source.path and same_name


def _provenance_of(checkpoint: Checkpoint) -> Provenance | None:
    """What its hubextrap.json says; None where there is none: an observed checkpoint.

    Raises:
        CorruptFile: there is one and it cannot be understood.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if checkpoint.repo is None:
        path = Path(checkpoint.path) / PROVENANCE_FILE
        return read_provenance(path) if path.is_file() else None
    file = f"{checkpoint.path}/{PROVENANCE_FILE}" if checkpoint.path else PROVENANCE_FILE
    with hub_errors(checkpoint.name):
        try:
            copy = hub_api().hf_hub_download(checkpoint.repo, file, revision=checkpoint.commit)
        except RemoteEntryNotFoundError:
            return None
    return read_provenance(Path(copy).read_bytes(), f"{checkpoint.name}: {PROVENANCE_FILE}")


def _place(checkpoint: Checkpoint) -> tuple[str | None, str | None, str]:
    return (checkpoint.repo, checkpoint.commit, checkpoint.path)


def _short_name(checkpoint: Checkpoint) -> str:
    if checkpoint.repo is None:
        return Path(checkpoint.path).name
    return checkpoint.name
