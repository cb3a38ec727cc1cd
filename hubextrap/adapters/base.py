"""Which base an adapter is of: what the user says, or what the adapter's configuration names, pinned."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.adapters.config import CONFIG_FILE, LONGEST_NAME, read_adapter_config
from hubextrap.containment import leads_out
from hubextrap.errors import (
    AccessDenied,
    CheckpointMismatch,
    HubExtrapError,
    ReferenceNotFound,
    TrajectoryError,
    UnsupportedCheckpoint,
)
from hubextrap.foreign_data import shorten
from hubextrap.step_names import INNER_FOLDERS
from hubextrap.tensors import open_source
from hubextrap.tensors.configuration import quantisation_method, read_config
from hubextrap.tensors.dequantising import READ_AS_FLOATS
from hubextrap.trajectory import Checkpoint, Pins, resolve_checkpoint
from hubextrap.trajectory.checkpoint import ADAPTER, BASE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.trajectory import Trajectory

_LONGEST_PATH = 4096
"""Characters that the path of a folder may have."""
_WHERE_NAMED = "trajectory.base in a recipe, or --base"
_NAME_IT = f"name the base model yourself: {_WHERE_NAMED}"


@dataclass(frozen=True, slots=True)
class _Named:
    """What an adapter's configuration says of its base."""

    base: str
    revision: str | None
    where: str
    """Names the file."""


def reference_of_base(adapter: Checkpoint) -> str:
    """The base that an adapter's configuration names, as a reference; it is not looked for.

    Raises:
        ReferenceNotFound: it names none.
        HubExtrapError: the configuration cannot be read.
    """
    named = _named_by(adapter)
    elsewhere = named.base if leads_out(named.base) else _on_the_hub(named)
    return str(_folder(adapter, named.base) or elsewhere)


class Bases:
    """The bases of checkpoints that one command loads together, each looked for once.

    A run's base without a place of its own is that of the adapters. Where the base that an adapter names
    cannot be had, but another names the same and its can, that is taken: a prediction lies elsewhere than its
    run.
    """

    def __init__(self, base_model: Checkpoint | str | None = None, pins: Pins | None = None) -> None:
        """
        Args:
            base_model: what the user names as the base of all; a reference is looked for here.

        Raises:
            HubExtrapError: it cannot be had, or is no plain model.
        """
        self._pins = pins or Pins()
        self._given: Checkpoint | None = None
        self._of: dict[Checkpoint, Checkpoint] = {}
        self._named: dict[tuple[str, str | None], Checkpoint] = {}
        if base_model is not None:
            found = base_model
            if not isinstance(found, Checkpoint):
                found = _had(found, f"the base {shorten(repr(base_model))}", self._pins)
            _check(found, f"the base {found.name}", "name the model that it was made from instead")
            self._given = replace(found, step=0, kind=BASE)

    @classmethod
    def of_run(cls, trajectory: Trajectory, pins: Pins) -> Bases:
        """What is known where the base of a run has been found; nothing, where it holds whole models.

        Raises:
            HubExtrapError: as `find`.
        """
        found = cls(trajectory.base_model, pins)
        found.find([trajectory.last])
        return found

    def find(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Look for those of several, which may say each other's; each is pinned, of the kind BASE, at step 0.

        Raises:
            ReferenceNotFound, AccessDenied: one cannot be had, or nothing says which it is.
            UnsupportedCheckpoint: it is quantised, or no model in safetensors.
            HubExtrapError: its configuration, or the adapter's, cannot be read.
        """
        without: dict[Checkpoint, tuple[_Named, HubExtrapError]] = {}
        for one in checkpoints:
            if one.kind != ADAPTER or one in self._of:
                continue
            if self._given is not None:
                self._of[one] = self._given
                continue
            named = _named_by(one)
            try:
                self._of[one] = self._found(one, named)
            except HubExtrapError as error:
                without[one] = named, error
            else:
                self._named[named.base, named.revision] = self._of[one]
        for one, (named, problem) in without.items():
            if (same := self._named.get((named.base, named.revision))) is None:
                raise problem
            self._of[one] = same

    def of(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """The base of one; of a base itself, that; None of any other whole model.

        Raises:
            HubExtrapError: as `find`, or as `common`.
        """
        if checkpoint.kind == ADAPTER:
            self.find([checkpoint])
            return self._of[checkpoint]
        if checkpoint.kind != BASE:
            place = (checkpoint.repo, checkpoint.commit, checkpoint.path)
            return next((one for one in self.found if (one.repo, one.commit, one.path) == place), None)
        return self.common() if checkpoint.repo is None and not checkpoint.path else checkpoint

    @property
    def found(self) -> tuple[Checkpoint, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(self._of.values()))

    def common(self) -> Checkpoint:
        """The base of all that were looked for.

        Raises:
            ReferenceNotFound: there were none.
            CheckpointMismatch: they have different ones.
        """
        theirs = self.found if self._given is None else (self._given,)
        if not theirs:
            raise ReferenceNotFound(f"the base model: nothing says which it is; {_NAME_IT}", step=0)
        if len(theirs) > 1:
            names = " and ".join(base.name for base in theirs[:2])
            raise CheckpointMismatch(f"the adapters are of different bases, {names}; {_NAME_IT}")
        return theirs[0]

    def _found(self, checkpoint: Checkpoint, named: _Named) -> Checkpoint:
        folder = _folder(checkpoint, named.base)
        if folder is None and (known := self._named.get((named.base, named.revision))):
            return known
        found = _resolved(checkpoint, named, folder, self._pins)
        _check(found, f"{named.where}: its base {found.name}", f"{_NAME_IT}, the original in bf16 for one")
        return replace(found, kind=BASE)


def _named_by(adapter: Checkpoint) -> _Named:
    with closing(open_source(adapter)) as source:
        config = read_adapter_config(source)
    where = f"{adapter.name}/{CONFIG_FILE}"
    if config.base is None:
        said = "names no base (base_model_name_or_path)"
        raise ReferenceNotFound(f"{where}: {said}; {_NAME_IT}", file=where, step=adapter.step)
    if len(config.base) > _LONGEST_PATH or max(map(len, config.base.split("/"))) > LONGEST_NAME:
        said = f"its base {shorten(repr(config.base))} is too long a name for any model"
        raise ReferenceNotFound(f"{where}: {said}; {_NAME_IT}", file=where, step=adapter.step)
    return _Named(config.base, config.base_revision, where)


def _resolved(checkpoint: Checkpoint, named: _Named, folder: Path | None, pins: Pins) -> Checkpoint:
    """The base in a local folder, or on the Hub."""
    where, what = named.where, f"{named.where}: its base {shorten(repr(named.base))}"
    if folder is None and is_folder(checkpoint, named.base):
        there = "is not there" if checkpoint.repo is None else "is a folder of whoever trained it"
        raise ReferenceNotFound(f"{what} {there}; {_NAME_IT}", file=where, step=checkpoint.step)
    return _had(str(folder or _on_the_hub(named)), what, pins, file=where, step=checkpoint.step)


def _on_the_hub(named: _Named) -> str:
    # a name without an owner is one of the Hub's oldest repos, for which hf:// has no form
    bare = "/" not in named.base and not Path(named.base).exists()
    return ("" if bare else "hf://") + named.base + (f"@{named.revision}" if named.revision else "")


def _had(reference: str, what: str, pins: Pins, *, file: str | None = None, step: int = 0) -> Checkpoint:
    """The base of a reference; where there is none, the error calls it ``what``, and is about ``file``."""
    try:
        return resolve_checkpoint(reference, step=0, pins=pins)
    except HubExtrapError as error:
        kinds = (AccessDenied, ReferenceNotFound, UnsupportedCheckpoint)
        kind = next((one for one in kinds if isinstance(error, one)), TrajectoryError)
        remedy = _NAME_IT if file is not None else f"name another: {_WHERE_NAMED}"
        said = f"{what} cannot be had ({error}); {remedy}"
        raise kind(said, file=file, step=step, repo=error.repo) from error


def is_folder(adapter: Checkpoint, named: str) -> bool:
    """Whether what an adapter names as its base is a folder, here or on the machine that trained it."""
    return named.startswith("~") or leads_out(named) or _folder(adapter, named) is not None


def _folder(checkpoint: Checkpoint, named: str) -> Path | None:
    """The folder that a local adapter names: from here, or beside it in its run."""
    if checkpoint.repo is not None:  # what somebody wrote on the Hub opens no folder of this machine
        return None
    place, own = Path(named), Path(checkpoint.path)
    while own.name in INNER_FOLDERS:
        own = own.parent
    beside = () if place.is_absolute() or leads_out(str(place)) else (own.parent / place,)
    return next((one.resolve() for one in (place, *beside) if one.is_dir()), None)


def _check(base: Checkpoint, what: str, instead: str) -> None:
    """Refuse a base that is no plain model."""
    if base.kind == ADAPTER:
        said = "is an adapter itself; merge it into its own base first"
        raise UnsupportedCheckpoint(f"{what} {said}, and {_NAME_IT}", repo=base.repo)
    with closing(open_source(base)) as source:
        method = quantisation_method(read_config(source))
    if method is not None and method.lower() not in READ_AS_FLOATS:  # of those, who reads the base says more
        by = {"bitsandbytes": "by bitsandbytes"}.get(method, f"({shorten(repr(method))})" if method else "")
        said = " ".join(filter(None, ("is quantised", by)))
        raise UnsupportedCheckpoint(
            f"{what} {said}, so nothing can be added to its weights; {instead}", repo=base.repo
        )
