"""What an output takes over from the last checkpoint beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.hub.carried_over import unreadable
from hubextrap.hub.side_files import SideFiles, read_side_files
from hubextrap.tensors.interfaces import SMALL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hubextrap.tensors.interfaces import Source

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Beside:
    """What the last checkpoint gives to every output beside the weights."""

    names: SideFiles
    files: Mapping[str, bytes]
    """The side files as they are written, by path."""
    card: str | None
    """Its model card, from which licence and language are taken over; None without one that can be read."""
    note: str | None
    """Why its card, or the metadata in it, gives nothing."""

    @classmethod
    def of(
        cls,
        last: Source,
        out_dtype: str | None,
        check_memory: Callable[[int], object] = lambda count: None,
    ) -> Beside:
        """Read them.

        Args:
            check_memory: as `hub.side_files.read_side_files` has it.

        Raises:
            HubExtrapError: as `hub.side_files.read_side_files`.
        """
        names, files = read_side_files(last, out_dtype, check_memory)
        info = last.files().get(CARD)
        card, wrong = None, None
        if info is not None and info.size > SMALL_FILE:
            wrong = f"its {info.size:,} bytes are more than {SMALL_FILE:,}"
        elif info is not None:
            card = last.read_file(CARD).decode(errors="replace")
            wrong = unreadable(card)
            card = None if wrong else card
        note = f"{CARD} of the last checkpoint: nothing of its metadata is taken over: {wrong}"
        return cls(names, files, card, note if wrong else None)
