"""The layouts in which a run's checkpoints lie on the Hub.

Branches and tags, subfolders of one revision, sibling repos (``name-step-100``, ``name-step-600``), and the
commit history. They are looked for in this order, by few requests: one for the refs, one a thousand files for
the tree, one a thousand repos, and the history's pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hubextrap.errors import ReferenceNotFound, TrajectoryError
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.trajectory.checkpoint import Checkpoint
from hubextrap.trajectory.hub_files import HubFile, list_files
from hubextrap.trajectory.names import StepName, is_bare_counter
from hubextrap.trajectory.sameness import digest_of
from hubextrap.trajectory.series import Reader, Series, group_by_pattern, in_step_order, series_in_folders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.trajectory.pins import Pins, Refs
    from hubextrap.trajectory.reference import Reference


@dataclass(slots=True)
class HubSearch:
    """A look for series in what one reference names."""

    reference: Reference
    read: Reader
    """Reads names of branches, tags, folders and repos."""
    read_title: Reader
    """Reads titles of commits."""
    pins: Pins
    pattern: str | None = None
    """The pattern that the user gave, where the readers are made of it."""
    seen: list[str] = field(default_factory=list)
    """Names that say no step, for the error that nothing was found."""

    def layouts(self) -> Iterator[list[Series]]:
        """What is found, layout by layout; asks the Hub only as far as it is iterated.

        Raises:
            ReferenceNotFound: no such repo, revision or folder.
            AccessDenied: it is private.
        """
        reference = self.reference
        if reference.revision is not None:
            commit = self.pins.commit_of(reference.repo, reference.revision, reference.text)
            yield self._subfolders(commit, must_exist=True)
            yield self._history(commit)
            return
        try:
            refs = self.pins.refs(reference.repo, reference.text)
        except ReferenceNotFound:
            siblings = self._siblings()
            if not siblings:
                raise
            yield siblings
            return
        main = dict(refs["branches"]).get("main")
        branches = self._refs(refs)
        yield branches + (self._subfolders(main, must_exist=not branches) if main else [])
        if not reference.path:
            yield self._siblings()
        if main:
            yield self._history(main)

    def _refs(self, refs: Refs) -> list[Series]:
        found: list[tuple[StepName, Checkpoint]] = []
        kinds: dict[str, set[str]] = {}
        for kind, ref, commit in ((kind, *pair) for kind, those in refs.items() for pair in those):
            if (name := self.read(ref)) is None:
                self.seen.append(ref)
                continue
            kinds.setdefault(name.pattern, set()).add(kind)
            found.append((name, self._at(ref, commit, self.reference.path, name.step)))
        return [
            replace(one, layout=" and ".join(sorted(kinds[one.pattern])))
            for one in group_by_pattern(found, "branches")
        ]

    def _subfolders(self, commit: str, *, must_exist: bool) -> list[Series]:
        reference = self.reference
        files = list_files(reference.repo, commit, reference.path, reference.text, recursive=True)
        if files is None:
            if not must_exist:
                return []
            raise ReferenceNotFound(
                f"{reference.text}: no folder {reference.path!r} in "
                f"{reference.repo}@{reference.revision or 'main'}"
            )
        root = f"{reference.path}/" if reference.path else ""

        inside: dict[str, list[HubFile]] = {}
        for file in files:
            inside.setdefault(file.path.rpartition("/")[0], []).append(file)

        def at(folder: str, step: int) -> Checkpoint:
            found = self._at(reference.revision or "main", commit, root + folder, step)
            return replace(found, digest=digest_of(inside.get(root + folder, [])))

        relative = ((file.path.removeprefix(root), file.size) for file in files)
        series, others = series_in_folders(relative, self.read, at, "subfolders")
        self.seen.extend(others)
        return series

    def _siblings(self) -> list[Series]:
        owner, _, own_name = self.reference.repo.rpartition("/")
        if not owner:
            return []
        own = self.read(own_name)
        stem = re.split(r"\{\w+\}", self.pattern or (own.pattern if own else own_name))[0].rstrip("-_=. ")
        with hub_errors(self.reference.text, TrajectoryError):
            repos = list(hub_api().list_models(author=owner, search=stem, expand=["sha"]))
        found = []
        for repo in repos:
            name = self.read(repo.id.removeprefix(f"{owner}/"))
            if name is None or not self._is_sibling(name, own, own_name):
                continue
            commit = (
                self.pins.keep(repo.id, "main", repo.sha)
                if repo.sha
                else self.pins.commit_of(repo.id, None, repo.id)
            )
            found.append((name, Checkpoint(name.step, repo.id, "main", commit, "")))
        return group_by_pattern(found, "repos")

    def _is_sibling(self, name: StepName, own: StepName | None, own_name: str) -> bool:
        if self.pattern is not None:
            return True
        if own is not None:
            return name.pattern == own.pattern
        return name.pattern.startswith(own_name) and is_bare_counter(name.pattern[len(own_name) :])

    def _history(self, head: str) -> list[Series]:
        """Commits whose titles say a step; where the counter starts again, so does another series."""
        reference = self.reference
        with hub_errors(reference.text, TrajectoryError):
            commits = hub_api().list_repo_commits(reference.repo, revision=head)
        runs: dict[str, list[list[Checkpoint]]] = {}
        for commit in reversed(commits):
            if (name := self.read_title(commit.title)) is None:
                self.seen.append(repr(commit.title))
                continue
            checkpoint = self._at(commit.commit_id, commit.commit_id, reference.path, name.step)
            checkpoint = replace(checkpoint, date=commit.created_at)
            series = runs.setdefault(name.pattern, [[]])
            if series[-1] and checkpoint.step <= series[-1][-1].step:
                series.append([])
            series[-1].append(checkpoint)
        return [
            Series(
                pattern if len(series) == 1 else f"{pattern} [run {number}]",
                "commits",
                in_step_order(checkpoints),
            )
            for pattern, series in sorted(runs.items())
            for number, checkpoints in enumerate(series, start=1)
        ]

    def _at(self, revision: str, commit: str, path: str, step: int) -> Checkpoint:
        return Checkpoint(step, self.reference.repo, revision, commit, path)
