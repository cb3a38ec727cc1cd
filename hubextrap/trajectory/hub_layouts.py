"""The layouts in which a run's checkpoints lie on the Hub.

They take few requests: one for the refs, one per thousand files for the tree, one per thousand repos, and the
history's pages.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import ReferenceNotFound, TrajectoryError
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.step_names import StepName, is_bare_counter
from hubextrap.trajectory.checkpoint import Checkpoint, Series
from hubextrap.trajectory.counters import counted_together
from hubextrap.trajectory.hub_files import list_files
from hubextrap.trajectory.sameness import digest_of
from hubextrap.trajectory.series import (
    group_by_pattern,
    in_step_order,
    series_in_folders,
    series_with_bare_numbers,
)
from hubextrap.trajectory.weights import INNER_FOLDERS, inner_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hubextrap.trajectory.hub_file import HubFile
    from hubextrap.trajectory.search import Search


def branches_and_tags(search: Search) -> list[Series]:
    """One checkpoint per branch or tag."""
    where = search.reference
    found: list[tuple[StepName, Checkpoint]] = []
    kinds: dict[tuple[str, str], set[str]] = {}
    for kind, ref, commit in ((kind, *pair) for kind, those in search.refs().items() for pair in those):
        if (name := search.read(ref)) is None:
            search.seen.append(ref)
            continue
        kinds.setdefault((ref, commit), set()).add(kind)
        found.append((name, Checkpoint(name.step, where.repo, ref, commit, where.path)))
    return [
        replace(one, layout=" and ".join(sorted(set().union(*(kinds[place] for place in _refs_of(one))))))
        for one in group_by_pattern(found, "branches")
    ]


def _refs_of(series: Series) -> Iterator[tuple[str, str]]:
    """The branches and tags of its checkpoints, with their commits."""
    return ((one.revision, str(one.commit)) for one in series.checkpoints)


def subfolders(search: Search) -> list[Series]:
    """One checkpoint per folder of one revision."""
    reference, commit = search.reference, search.head()
    if commit is None:
        return []
    revision = reference.revision or "main"
    files = list_files(reference.repo, commit, reference.path, reference.text, recursive=True)
    if files is None:
        if search.found:  # branches, in which the folder is
            return []
        what = f"{reference.text}: no folder {reference.path!r} in {reference.repo}@{revision}"
        raise ReferenceNotFound(what, repo=reference.repo)
    return series_among(search, files, revision, lambda _: commit, "subfolders")


def series_among(
    search: Search,
    files: Sequence[HubFile],
    revision: str,
    pin: Callable[[Sequence[HubFile]], str],
    layout: str,
) -> list[Series]:
    """One checkpoint per folder of a tree.

    Args:
        files: all that lie below the folder which the reference names.
        pin: what a checkpoint is pinned by, from its files, paths from its folder.
    """
    reference = search.reference
    root = f"{reference.path}/" if reference.path else ""
    inside: dict[str, list[HubFile]] = {}
    for file in files:
        inside.setdefault(file.path.rpartition("/")[0], []).append(file)
    around = {folder.rpartition("/")[0] for folder in inside if folder.rpartition("/")[2] in INNER_FOLDERS}
    listed = {folder: _of_checkpoint(folder, inside) for folder in {*inside, *around}}
    pins = {folder: pin(found) for folder, found in listed.items()}
    search.pins.listed |= {(reference.repo, pins[folder], folder): found for folder, found in listed.items()}

    def at(folder: str, step: int) -> Checkpoint:
        place = root + folder
        pinned = pins[place] if place in pins else pin([])
        digest = digest_of(listed.get(place, []))
        return Checkpoint(step, reference.repo, revision, pinned, place, digest=digest)

    relative = [(file.path.removeprefix(root), file.size) for file in files]
    find = series_in_folders if search.pattern else series_with_bare_numbers
    series, others = find(relative, search.read, at, layout)
    search.seen.extend(others)
    return series


def _of_checkpoint(folder: str, inside: Mapping[str, Sequence[HubFile]]) -> list[HubFile]:
    """The files of a folder and of its inner folders, paths from it, among all of a tree by their folders."""
    start = f"{folder}/" if folder else ""
    files = list(inside.get(folder, ()))
    for inner in inner_folders({file.path.removeprefix(start) for file in files}):
        files += inside.get(start + inner, ())
    return [replace(file, path=file.path.removeprefix(start)) for file in files]


def siblings(search: Search) -> list[Series]:
    """One checkpoint per repo of the same owner: ``name-step-100``, ``name-step-600``."""
    reference = search.reference
    owner, own_name, stem = siblings_of(search)
    if (
        not owner
        or reference.in_bucket
        or reference.revision is not None
        or (reference.path and search.missing is None)
    ):
        return []
    own = search.read(own_name)
    with hub_errors(reference.text, TrajectoryError):
        repos = list(hub_api().list_models(author=owner, search=stem, expand=["sha"]))
    found = []
    for repo in repos:
        name = search.read(repo.id.removeprefix(f"{owner}/"))
        if name is None or not (search.pattern or _is_sibling(name, own, own_name)):
            continue
        pins = search.pins
        commit = pins.keep(repo.id, "main", repo.sha) if repo.sha else pins.commit_of(repo.id, None, repo.id)
        found.append((name, Checkpoint(name.step, repo.id, "main", commit, "")))
    return group_by_pattern(found, "repos")


def siblings_of(search: Search) -> tuple[str, str, str]:
    """Of the repo that the reference names: its owner, its own name, and what its siblings' begin with."""
    owner, _, own_name = search.reference.repo.rpartition("/")
    own = search.read(own_name)
    stem = re.split(r"\{\w+\}", search.pattern or (own.pattern if own else own_name))[0].rstrip("-_=. ")
    return owner, own_name, stem


def _is_sibling(name: StepName, own: StepName | None, own_name: str) -> bool:
    if own is not None:
        return name.pattern == own.pattern
    return name.pattern.startswith(own_name) and is_bare_counter(name.pattern[len(own_name) :])


def history(search: Search) -> list[Series]:
    """One checkpoint per commit whose title says a step; a counter that starts again begins a new series."""
    reference, head = search.reference, search.head()
    if head is None:
        return []
    with hub_errors(reference.text, TrajectoryError):
        commits = hub_api().list_repo_commits(reference.repo, revision=head)
    runs: dict[str, list[list[Checkpoint]]] = {}
    titles = {commit.title: search.read_title(commit.title) for commit in commits}
    counted = counted_together(filter(None, titles.values()))
    for commit in reversed(commits):
        if (said := titles[commit.title]) is None:
            search.seen.append(repr(commit.title))
            continue
        name = counted.get(said, said)
        sha, date = commit.commit_id, commit.created_at
        series = runs.setdefault(name.pattern, [[]])
        if series[-1] and name.step <= series[-1][-1].step:
            series.append([])
        series[-1].append(Checkpoint(name.step, reference.repo, sha, sha, reference.path, date=date))
    return [
        Series(f"{pattern} [run {number}]" if len(series) > 1 else pattern, "commits", in_step_order(run))
        for pattern, series in sorted(runs.items())
        for number, run in enumerate(series, start=1)
    ]
