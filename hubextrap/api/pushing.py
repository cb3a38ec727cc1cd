"""`push`: a merged folder to the Hub, apart from what makes one, of which it needs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.hub import PushTarget, push_folder

if TYPE_CHECKING:
    from hubextrap.hub import PushResult
    from hubextrap.progress import Progress


def push(folder: Path | str, target: PushTarget | str, *, progress: Progress | None = None) -> PushResult:
    """Push a merged folder as one commit.

    Args:
        target: ``owner/name`` or ``owner/name@branch``, where it is a text.

    Raises:
        PushError: the folder holds no whole model, or the Hub did not take it; nothing was committed then.
    """
    if isinstance(target, str):
        target = PushTarget.parse(target)
    return push_folder(Path(folder), target, progress)
