"""The layouts in which a run's checkpoints lie, in the order in which they are looked for.

A layout is a function: it returns the series that it finds in a ``Search``, and none where it does not apply
(a local folder has no branches). To add one, write the function in a new module and name it in ``LAYOUTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hubextrap.trajectory.bucket_layout import bucket
from hubextrap.trajectory.checkpoint import Series
from hubextrap.trajectory.hub_layouts import branches_and_tags, history, siblings, subfolders
from hubextrap.trajectory.local_layout import folders
from hubextrap.trajectory.search import Search

Layout = Callable[[Search], list[Series]]

LAYOUTS: tuple[tuple[Layout, ...], ...] = (
    (folders,),
    (bucket,),
    (branches_and_tags, subfolders),
    (siblings,),
    (history,),
)
"""The first row that holds a series is taken; where a row holds several, the user chooses."""


def series_by_layout(search: Search) -> Iterator[list[Series]]:
    """What each row of ``LAYOUTS`` finds; asks the Hub only as far as it is iterated.

    Raises:
        ReferenceNotFound: no such repo, revision or folder.
        AccessDenied: it is private.
    """
    for row in LAYOUTS:
        before = len(search.found)
        for layout in row:
            search.found.extend(layout(search))
        yield search.found[before:]
    if search.missing is not None and not search.found:
        raise search.missing
