"""What the past says of each prediction of a sweep, kept beside what was measured of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.api.outlook import outlooks_of
from hubextrap.digests import sha256_of_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.api.grid import Kept, Point
    from hubextrap.opening import Run


def outlooks(points: Sequence[Point], run: Run, kept: Kept) -> list[dict[str, Any]]:
    """Of each point, what `GridPoint` says of its outlook.

    Where the weights are not at hand, as all is measured, what was said of them before counts.
    """
    table = run.known_table(*(point.recipe for point in points))
    layouts = () if table is None else run.layouts
    dtypes = {info.dtype for layout in layouts for info in layout.tensors.values()}
    found = []
    for point in points:
        (time,) = run.target_times(point.recipe)
        said: dict[str, Any] = {"expected_relative_error": None, "trusted_up_to": None}
        key = sha256_of_json(["outlook", point.key])
        if table is not None:
            (outlook,) = outlooks_of(point.recipe, run, table, dtypes)
            trusted = None if outlook.trusted is None else outlook.trusted.said
            said = {"expected_relative_error": outlook.expected.relative_error, "trusted_up_to": trusted}
            if outlook.expected.stderr is not None:
                said["expected_relative_error_stderr"] = outlook.expected.stderr
            kept.put(key, said)
        else:
            said |= _checked(kept.get(key))
        found.append({"horizon": run.horizon_at(time), **said})
    return found


def _checked(content: Any) -> dict[str, Any]:
    """What was kept; nothing where that is not what is kept here."""
    if not isinstance(content, dict):
        return {}
    names = ("expected_relative_error", "expected_relative_error_stderr", "trusted_up_to")
    error, stderr, trusted = (content.get(name) for name in names)
    right = isinstance(error, float | None) and isinstance(stderr, float | None)
    if not right or not isinstance(trusted, str | None):
        return {}
    return dict(zip(names, (error, stderr, trusted), strict=True))
