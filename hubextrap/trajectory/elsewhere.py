"""Where else the models of a repo or folder lie, for the error that one place holds none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, ReferenceNotFound
from hubextrap.progress import SilentProgress
from hubextrap.step_names import read_step
from hubextrap.trajectory.bucket_files import pin_of_files
from hubextrap.trajectory.checkpoint import ADAPTER, place_name
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.hub_files import list_checkpoint, list_files
from hubextrap.trajectory.local_layout import files_under
from hubextrap.trajectory.weights import OTHER, weights_by_folder, weights_of

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

    if where.in_bucket:
        return pin_of_files(list_checkpoint(where.repo, "", where.path, where.text))
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
    if where.folder is not None or where.in_bucket:
        return []
    refs = [pair for pairs in pins.refs(where.repo, where.text).values() for pair in pairs]
    others = {name: commit for name, commit in refs if name != (where.revision or "main")}
    latest = sorted(others.items(), key=lambda ref: _order(ref[0]))[:_LOOKED_INTO]

    def look(ref: tuple[str, str]) -> str | None:
        files = list_files(where.repo, ref[1], where.path, where.text) or []
        held = weights_of((file.path.rpartition("/")[2], file.size) for file in files)
        return _said(held, _as_text(replace(where, revision=ref[0])), predicted)

    return list(filter(None, map_concurrently(look, latest, SilentProgress())))


def _in_folders(where: Reference, pins: Pins, predicted: bool) -> list[str]:
    """Folders below the place."""
    if where.folder is not None:
        files: Iterable[tuple[str, int]] = files_under(where.folder)
    else:
        commit = "" if where.in_bucket else pins.commit_of(where.repo, where.revision, where.text)
        below = f"{where.path}/" if where.path else ""
        listed = list_files(where.repo, commit, where.path, where.text, recursive=True) or []
        files = [(file.path.removeprefix(below), file.size) for file in listed]
    held = weights_by_folder(files)
    found = []
    for name in sorted(filter(None, held), key=lambda name: _order(name.rpartition("/")[2])):
        place = f"{where.text.rstrip('/')}/{name}"
        if where.folder is None:
            place = _as_text(replace(where, path="/".join(filter(None, (where.path, name)))))
        found.append(_said(held[name], place, predicted))
    return list(filter(None, found))


def _said(weights: Weights | None, place: str, predicted: bool) -> str | None:
    """The place, where its weights are what is looked for."""
    if weights is None or weights.kind == OTHER or (predicted and not weights.predicted):
        return None
    return f"{place} (an adapter)" if weights.kind == ADAPTER else place


def _order(name: str) -> tuple[int, str]:
    """The highest step first."""
    step = read_step(name)
    return (-step.step if step is not None else 1, name)


def _as_text(where: Reference) -> str:
    """As a user writes it."""
    if where.in_bucket:
        return place_name(where.repo, "", where.path)
    revision = "" if where.revision is None else f"@{where.revision}"
    return f"{where.repo}{revision}" + (f":{where.path}" if where.path else "")
