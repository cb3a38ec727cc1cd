"""Checkpoints in the folders of a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import ReferenceNotFound
from hubextrap.trajectory.bucket_files import pin_of_files
from hubextrap.trajectory.checkpoint import Series
from hubextrap.trajectory.hub_files import list_files
from hubextrap.trajectory.hub_layouts import series_among

if TYPE_CHECKING:
    from hubextrap.trajectory.search import Search


def bucket(search: Search) -> list[Series]:
    """One checkpoint per folder of a bucket, or of a folder in it."""
    reference = search.reference
    if not reference.in_bucket:
        return []
    files = list_files(reference.repo, "", reference.path, reference.text, recursive=True)
    if files is None:
        what = f"{reference.text}: nothing lies there in the bucket; name the folder that holds the run"
        raise ReferenceNotFound(what, repo=reference.repo)
    return series_among(search, files, "", pin_of_files, "bucket")
