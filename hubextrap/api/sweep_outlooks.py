"""What the past says of each prediction of a sweep, kept beside what was measured of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from hubextrap.api.outlook import outlooks_of
from hubextrap.digests import sha256_of_json
from hubextrap.durable.atomic import read_sealed, write_sealed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe


class _Predicted(Protocol):
    """A prediction of the grid."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def key(self) -> str: ...


def outlooks(points: Iterable[_Predicted], run: Run, folder: Path, remedy: str) -> list[dict[str, Any]]:
    """Of each point, what `GridPoint` says of its outlook.

    Where the weights are not at hand, as all is measured, what was said of them before counts.

    Args:
        folder: of what is kept.
    """
    table = run.known_table()
    layouts = () if table is None else run.layouts
    dtypes = {info.dtype for layout in layouts for info in layout.tensors.values()}
    found = []
    for point in points:
        (time,) = run.target_times(point.recipe)
        said: dict[str, Any] = {"expected_relative_error": None, "trusted_up_to": None}
        place = folder / f"{sha256_of_json(['outlook', point.key])}.json"
        if table is not None:
            (outlook,) = outlooks_of(point.recipe, run, table, dtypes)
            trusted = None if outlook.trusted is None else outlook.trusted.said
            said = {"expected_relative_error": outlook.expected.relative_error, "trusted_up_to": trusted}
            write_sealed(place, said, remedy=remedy)
        else:
            said |= _kept(place)
        found.append({"horizon": run.horizon_at(time), **said})
    return found


def _kept(place: Path) -> dict[str, Any]:
    try:
        content = read_sealed(place)
    except (OSError, ValueError):
        return {}  # not there, or not as it was written
    if not isinstance(content, dict):
        return {}
    error, trusted = (content.get(key) for key in ("expected_relative_error", "trusted_up_to"))
    right = isinstance(error, float | None) and isinstance(trusted, str | None)
    return {"expected_relative_error": error, "trusted_up_to": trusted} if right else {}
