"""References: how a user names a model or a run on the Hub or on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hubextrap.errors import ReferenceNotFound, wrong_argument
from hubextrap.hub_access import hub_errors
from hubextrap.trajectory.bucket_files import BUCKETS, is_bucket

_SHORT_FORM = re.compile(r"(?P<repo>[^@:]+)(?:@(?P<revision>[^:]*))?(?::(?P<path>.*))?")
_FORMS = (
    "org/name, org/name@revision:folder, hf://org/name@revision/folder, hf://buckets/org/name/folder or a "
    "local folder (./folder)"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a reference names: a local folder, or a place in a model repo or in a bucket."""

    text: str
    """As the user wrote it."""
    folder: Path | None = None
    """The absolute local folder; None on the Hub."""
    repo: str = ""
    """``org/name``, or ``buckets/org/name`` of a bucket."""
    revision: str | None = None
    """Branch, tag or commit; None where the user named none."""
    path: str = ""
    """Folder in the repo, "" for its root."""

    @property
    def in_bucket(self) -> bool:
        """Whether it is a place in a bucket, where nothing has a revision."""
        return is_bucket(self.repo)

    @property
    def file_name(self) -> str:
        """What a file about it can be called: the folder's or the repo's name, and what is named of it."""
        parts = [self.folder.name] if self.folder is not None else self.repo.split("/")[-1:]
        parts += [part for part in (self.revision, self.path) if part]
        return re.sub(r"[^\w.-]+", "-", "-".join(parts), flags=re.ASCII).strip("-.")[:100] or "run"


def reference_text(given: Path | str, name: str = "reference") -> str:
    """A reference as text; a path is a local folder, whatever it is called.

    Raises:
        WrongArgument: it is neither.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        path = Path(given)
        return str(path) if path.is_absolute() or path.parts[:1] == ("~",) else f"./{path}"
    raise wrong_argument(name, "a reference: org/name, org/name@revision or a local folder", given)


def parse_reference(text: str) -> Reference:
    """Read a reference.

    It is local if it exists on disk or starts with ``./``, ``../``, ``/`` or ``~``; everything else is on the
    Hub, and ``hf://org/name`` always is. A bucket is ``hf://buckets/org/name``.

    Raises:
        ReferenceNotFound: it is malformed, names no model repo, or the local folder is not there.
    """
    if text.startswith(("hf://", "http://", "https://")):
        return _parse_uri(text)
    try:
        local = Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError as error:
        raise ReferenceNotFound(f"{text}: no such user; give the whole path of the folder") from error
    if text in (".", "..") or text.startswith(("./", "../", "/", "~")) or (text and local.exists()):
        return Reference(text, folder=_existing_folder(text, local))
    return _parse_short_form(text)


def _existing_folder(text: str, folder: Path) -> Path:
    if not folder.exists():
        what = f"{text}: no such local folder; on the Hub it would be org/name or hf://org/name"
        raise ReferenceNotFound(what, file=text)
    if not folder.is_dir():
        what = f"{text}: this is a file; name the folder that holds the checkpoint or the run"
        if folder.suffix in (".yaml", ".yml"):
            what += "; if it is a recipe: hubextrap run, merge and plan take one"
        elif folder.suffix == ".safetensors":
            what += "; if it is a scan, name the run, and give the file as --scan"
        raise ReferenceNotFound(what, file=text)
    return folder.resolve()


def _parse_uri(text: str) -> Reference:
    from huggingface_hub import parse_hf_uri

    with hub_errors(text):
        uri = parse_hf_uri(text)
    if uri.type == "bucket":
        return Reference(text, repo=f"{BUCKETS}{uri.id}", path=_checked_path(text, uri.path_in_repo))
    if uri.type != "model":
        raise ReferenceNotFound(
            f"{text}: this is a {uri.type}; checkpoints are read from model repos and buckets"
        )
    return Reference(text, repo=uri.id, revision=uri.revision, path=_checked_path(text, uri.path_in_repo))


def _parse_short_form(text: str) -> Reference:
    match = _SHORT_FORM.fullmatch(text)
    if match is None or match["repo"].count("/") > 1 or match["revision"] == "" or match["path"] == "":
        raise ReferenceNotFound(
            f"{text or 'an empty reference'}: neither an existing folder nor a reference; write {_FORMS}"
        )
    _check_repo(text, match["repo"])
    return Reference(
        text, repo=match["repo"], revision=match["revision"], path=_checked_path(text, match["path"] or "")
    )


def _check_repo(text: str, repo: str) -> None:
    """Refuse what no repo is called, and none of its siblings, before the network is asked and waited for."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with hub_errors(text):
        validate_repo_id(repo.partition("{")[0].rstrip("-_=. /") or repo)


def _checked_path(text: str, path: str) -> str:
    path = path.strip("/")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ReferenceNotFound(
            f"{text}: the folder {path!r} has empty, '.' or '..' parts; write the path without them"
        )
    return path
