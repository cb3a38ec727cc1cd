"""`push`: a merged folder to the Hub, apart from what makes one, of which it needs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import wrong_argument
from hubextrap.given import path_of
from hubextrap.hub import PushTarget, push_folder
from hubextrap.hub.target import one_target

if TYPE_CHECKING:
    from pathlib import Path

    from hubextrap.hub import PushResult
    from hubextrap.progress import Progress


def push(folder: Path | str, target: PushTarget | str, *, progress: Progress | None = None) -> PushResult:
    """Push a merged folder as one commit.

    Args:
        target: ``owner/name`` or ``owner/name@branch``, where it is a text.

    Raises:
        PushError: the folder holds no whole model, or the Hub did not take it; nothing was committed then.
    """
    folder = path_of("folder", folder)
    parsed = one_target(target, "target")
    if parsed is None:
        raise wrong_argument("target", "owner/name, owner/name@branch or a PushTarget", target)
    return push_folder(folder, parsed, progress)
