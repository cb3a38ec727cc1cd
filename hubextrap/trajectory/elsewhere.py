"""Where else the models of a repo or folder lie, for the error that one place holds none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, ReferenceNotFound
from hubextrap.progress import SilentProgress
from hubextrap.step_names import read_step
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.hub_files import list_files
from hubextrap.trajectory.local_layout import files_under
from hubextrap.trajectory.weights import WHOLE_MODEL, weights_by_folder, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.trajectory.pins import Pins
    from hubextrap.trajectory.reference import Reference
    from hubextrap.trajectory.weights import Weights

_LOOKED_INTO = 32
"""Branches and tags at most, of the highest steps: a request each."""
_SHOWN = 4


def pinned_commit(where: Reference, pins: Pins, *, predicted: bool = False) -> str:
    """The commit of a reference's revision; where there is none, the error says which revisions hold models.

    Raises:
        ReferenceNotFound, AccessDenied: it is not there, or not open to this token.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return pins.commit_of(where.repo, where.revision, where.text)
    except ReferenceNotFound as error:
        no_revision = isinstance(error.__cause__, RevisionNotFoundError)
        if no_revision and (found := models_elsewhere(where, pins, predicted=predicted)):
            raise ReferenceNotFound(f"{where.text}: no such revision; {found}", repo=where.repo) from error
        raise


def models_elsewhere(where: Reference, pins: Pins, *, predicted: bool = False) -> str:
    """Which branches, tags and folders hold models, for a message: ``a model is in me/run@step_400``.

    Args:
        where: the place that holds none.
        predicted: look for hubextrap's predictions alone.

    Returns:
        "" where there is none, or the Hub does not say.
    """
    found: list[str] = []
    for look in (_in_refs, _in_folders):
        with suppress(HubExtrapError, OSError):
            found += look(where, pins, predicted)
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{'a model is' if len(found) == 1 else 'models are'} in {', '.join(found[:_SHOWN])}{more}"


def _in_refs(where: Reference, pins: Pins, predicted: bool) -> list[str]:
    """The same folder of other branches and tags."""
    if where.folder is not None:
        return []
    refs = [pair for pairs in pins.refs(where.repo, where.text).values() for pair in pairs]
    others = {name: commit for name, commit in refs if name != (where.revision or "main")}
    latest = sorted(others.items(), key=lambda ref: _order(ref[0]))[:_LOOKED_INTO]

    def look(ref: tuple[str, str]) -> bool:
        files = list_files(where.repo, ref[1], where.path, where.text) or []
        return _counts(weights_of((file.path.rpartition("/")[2], file.size) for file in files), predicted)

    holds = map_concurrently(look, latest, SilentProgress())
    return [
        _as_text(replace(where, revision=name)) for (name, _), one in zip(latest, holds, strict=True) if one
    ]


def _in_folders(where: Reference, pins: Pins, predicted: bool) -> list[str]:
    """Folders below the place."""
    if where.folder is not None:
        files: Iterable[tuple[str, int]] = files_under(where.folder)
    else:
        commit = pins.commit_of(where.repo, where.revision, where.text)
        below = f"{where.path}/" if where.path else ""
        listed = list_files(where.repo, commit, where.path, where.text, recursive=True) or []
        files = [(file.path.removeprefix(below), file.size) for file in listed]
    holding = [name for name, held in weights_by_folder(files).items() if name and _counts(held, predicted)]
    return [
        f"{where.text.rstrip('/')}/{name}"
        if where.folder is not None
        else _as_text(replace(where, path="/".join(filter(None, (where.path, name)))))
        for name in sorted(holding, key=lambda name: _order(name.rpartition("/")[2]))
    ]


def _counts(weights: Weights | None, predicted: bool) -> bool:
    return weights is not None and weights.kind == WHOLE_MODEL and (weights.predicted or not predicted)


def _order(name: str) -> tuple[int, str]:
    """The highest step first."""
    step = read_step(name)
    return (-step.step if step is not None else 1, name)


def _as_text(where: Reference) -> str:
    """As a user writes it."""
    revision = "" if where.revision is None else f"@{where.revision}"
    return f"{where.repo}{revision}" + (f":{where.path}" if where.path else "")
