"""A search for series of checkpoints: what is known of one reference while the layouts look into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubextrap.errors import ReferenceNotFound
from hubextrap.step_names import pattern_reader, read_step, read_title
from hubextrap.trajectory.pins import Pins
from hubextrap.trajectory.reference import parse_reference

if TYPE_CHECKING:
    from hubextrap.trajectory.checkpoint import Series
    from hubextrap.trajectory.pins import Refs
    from hubextrap.trajectory.reference import Reference
    from hubextrap.trajectory.series import Reader


@dataclass(slots=True)
class Search:
    """A search in what one reference names."""

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
    found: list[Series] = field(default_factory=list)
    """What the layouts before have found."""
    missing: ReferenceNotFound | None = None
    """The repo is not there, though siblings of its name may be."""

    def refs(self) -> Refs:
        """Branches and tags; none where the reference names a revision, a local folder or a bucket."""
        where = self.reference
        if self.missing is None and where.folder is None and where.revision is None and not where.in_bucket:
            try:
                return self.pins.refs(where.repo, where.text)
            except ReferenceNotFound as error:
                self.missing = error
        return {}

    def head(self) -> str | None:
        """The commit of the revision that the reference names, or of main; None where the Hub has none."""
        where = self.reference
        if where.revision is not None:
            return self.pins.commit_of(where.repo, where.revision, where.text)
        return dict(self.refs().get("branches", ())).get("main")


def search_of(reference: str, pattern: str | None = None, pins: Pins | None = None) -> Search:
    """A search in what a reference names, by a pattern or the built-in grammar.

    Raises:
        ReferenceNotFound: the reference names nothing.
        TrajectoryError: the pattern has no ``{step}``.
    """
    own = None if pattern is None else pattern_reader(pattern)
    return Search(parse_reference(reference), own or read_step, own or read_title, pins or Pins(), pattern)
