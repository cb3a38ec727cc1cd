"""``hubextrap_logits.json``: a mixture as a file. It refers to weights, which stay where they are."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from hubextrap._version import __version__
from hubextrap.adapters.base import Bases
from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.containment import read_named
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import CorruptFile, HubExtrapError
from hubextrap.foreign_data import parse_json
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.logits.mixture import Mixture
from hubextrap.tensors.cache import check_cached
from hubextrap.trajectory import Checkpoint, parse_reference, resolve_checkpoint
from hubextrap.trajectory.checkpoint import BASE

MANIFEST_FILE = "hubextrap_logits.json"


class _Entry(BaseModel, extra="forbid", frozen=True):
    coefficient: float = Field(allow_inf_nan=False)
    step: int
    repo: str | None
    revision: str
    commit: str | None = Field(pattern="^[0-9a-f]{40}$")
    path: str
    """Folder in the repo; of a local checkpoint, the way from the manifest's folder to its own."""
    kind: Literal["model", "adapter", "base"] = "model"


class _Manifest(BaseModel, extra="forbid", frozen=True):
    format: Literal[1] = 1
    hubextrap: str
    target_step: int | None
    checkpoints: tuple[_Entry, ...] = Field(min_length=1)
    base_model: _Entry | None = None
    """That of adapters, which takes no part by itself."""


def write_manifest(
    mixture: Mixture, folder: str | os.PathLike[str], *, home: str | os.PathLike[str] | None = None
) -> Path:
    """Write the manifest into ``folder``, which is made if need be.

    Args:
        home: where the folder will lie, from which the ways to local checkpoints go; where it lies if None.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / MANIFEST_FILE
    here = Path(home or folder).resolve()
    base = None if mixture.base_model is None else _entry(mixture.base_model, 0.0, here)
    content = _Manifest(
        hubextrap=__version__,
        target_step=mixture.target_step,
        checkpoints=tuple(
            _entry(*pair, here) for pair in zip(mixture.checkpoints, mixture.coefficients, strict=True)
        ),
        base_model=base,
    ).model_dump(mode="json")
    if base is None:  # as whole models have always been written
        del content["base_model"]
        for entry in content["checkpoints"]:
            del entry["kind"]
    text = json.dumps(sealed(content), indent=2, ensure_ascii=False)
    write_whole(path, f"{text}\n".encode(), remedy="name another folder", parents=True)
    return path


def read_manifest(reference: str) -> Mixture:
    """The mixture in a local folder, or in ``owner/name@revision:folder`` on the Hub.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        CorruptFile: there is no manifest, it does not say what it must, or it lies on the Hub and refers to
            folders on the disk of whoever wrote it.
        TrajectoryError: a local checkpoint is not there any more.
    """
    where = parse_reference(reference)
    if where.folder is not None:
        name, path = str(where.folder / MANIFEST_FILE), where.folder / MANIFEST_FILE
    else:
        file = f"{where.path}/{MANIFEST_FILE}" if where.path else MANIFEST_FILE
        name = f"{reference}: {file}"
        with hub_errors(name):
            path = Path(hub_api().hf_hub_download(where.repo, file, revision=where.revision))
    try:
        data = read_named(path, pipes=False) if where.folder is not None else check_cached(path, name)
        read = parse_json(data, name, remedy="make the mixture again")
        stated = read.pop(DIGEST, None) if isinstance(read, dict) else None
        content = _Manifest.model_validate(read)
    except OSError as error:
        what = f"{name}: cannot be read ({error.strerror}); it is what save_pretrained of a mixture writes"
        raise CorruptFile(what, file=name) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "the file"
        said = f"{field}: {problem['msg']}"[:300]
        raise CorruptFile(f"{name}: {said}; make the mixture again", file=name) from error
    except (ValueError, OverflowError) as error:
        raise CorruptFile(f"{name}: {str(error)[:300]}; make the mixture again", file=name) from error
    checkpoints = [_checkpoint(entry, where.folder, name) for entry in content.checkpoints]
    coefficients = [entry.coefficient for entry in content.checkpoints]
    base = None if content.base_model is None else _checkpoint(content.base_model, where.folder, name)
    bases = Bases(base)
    try:
        mixture = Mixture.of(checkpoints, coefficients, content.target_step, bases=bases)
        if stated is not None:
            unsealed({**read, DIGEST: stated})
    except (HubExtrapError, ValueError) as error:
        raise CorruptFile(f"{name}: {error}; make the mixture again", file=name) from error
    return mixture


def _checkpoint(entry: _Entry, folder: Path | None, name: str) -> Checkpoint:
    if entry.repo is not None:
        if entry.commit is None:
            what = f"{name}: {entry.repo} is not pinned to a commit; make the mixture again"
            raise CorruptFile(what, file=name, repo=entry.repo)
        return Checkpoint(entry.step, entry.repo, entry.revision, entry.commit, entry.path, kind=entry.kind)
    if folder is None:
        raise CorruptFile(
            f"{name}: refers to {entry.path!r} on the disk of whoever wrote it; push the checkpoints, and "
            "make the mixture from the Hub",
            file=name,
        )
    found = resolve_checkpoint(str((folder / entry.path).resolve()), step=entry.step)
    return replace(found, kind=BASE) if entry.kind == BASE else found


def _entry(checkpoint: Checkpoint, coefficient: float, here: Path) -> _Entry:
    path = checkpoint.path
    if checkpoint.repo is None:
        path = Path(os.path.relpath(path, here)).as_posix()
    return _Entry(
        coefficient=coefficient,
        step=checkpoint.step,
        repo=checkpoint.repo,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        path=path,
        kind=checkpoint.kind,  # type: ignore[arg-type]
    )
