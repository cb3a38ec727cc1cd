"""Checkpoints of one run that hold the same weights: a wrong upload, or steps in which nothing was trained.

No tensor is compared. On the Hub the hashes in the listing tell; on a disk files that are one file, or of one
size and the same in the places that are looked at.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import open_regular
from hubextrap.digests import sha256_hex
from hubextrap.trajectory.checkpoint import ADAPTER, BASE
from hubextrap.trajectory.local_files import entries_of_checkpoint
from hubextrap.trajectory.weights import ADAPTER_CONFIG, DCP_METADATA, Weights, weights_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.trajectory.hub_file import HubFile

_PLACES = 64
_PLACE_SIZE = 4096
"""A checkpoint on a disk is looked at in so many places of so many bytes. Even where an update changes one
16-bit weight in a thousand, 130 of them lie there."""


def same_weights(checkpoints: Sequence[Checkpoint]) -> tuple[tuple[int, ...], ...]:
    """The steps of checkpoints that hold the same weights, in groups of two or more."""
    groups: dict[Hashable, list[int]] = {}
    of_size = Counter(checkpoint.size for checkpoint in checkpoints)
    for checkpoint in checkpoints:
        if of_size[checkpoint.size] > 1 and checkpoint.kind != BASE:
            local = checkpoint.repo is None
            key = _key_on_disk(Path(checkpoint.path)) if local else checkpoint.digest
            if key is not None:
                groups.setdefault(key, []).append(checkpoint.step)
    return tuple(tuple(steps) for steps in groups.values() if len(steps) > 1)


def digest_of(files: Iterable[HubFile]) -> str | None:
    """What stands for the weights among a checkpoint's files, paths from its folder, and for how an adapter
    is scaled; None where the Hub does not say it."""
    named = {file.path: file for file in files}
    weights = weights_of((name, file.size) for name, file in named.items())
    if weights is None:
        return None
    says_how = [ADAPTER_CONFIG] if weights.kind == ADAPTER and ADAPTER_CONFIG in named else []
    digests = [named[name].digest for name in (*_with_bytes(weights), *says_how)]
    return None if None in digests else sha256_hex("\n".join(map(str, digests)))


def _with_bytes(weights: Weights) -> list[str]:
    """The files that hold the weights; torch's metadata beside them has another number at each save."""
    return [name for name in weights.files if name.rpartition("/")[2] != DCP_METADATA]


def _key_on_disk(folder: Path) -> Hashable | None:
    """What two folders with the same weights share; None where that cannot be told."""
    try:
        entries = entries_of_checkpoint(folder)
        weights = weights_of((name, entry.size) for name, entry in entries.items())
        if weights is None:
            return None
        found = hashlib.sha256()
        files = _with_bytes(weights)
        places = max(1, _PLACES // len(files))
        for name in files:
            size = entries[name].size
            if entries[name].problem is not None:
                return None
            found.update(f"{name} {size}\n".encode())
            with os.fdopen(open_regular(entries[name].path), "rb") as file:
                for place in range(places + 1):  # the end too: a file begins with its header
                    file.seek(max(0, size - _PLACE_SIZE) * place // places)
                    found.update(file.read(_PLACE_SIZE))
    except OSError:  # who reads the weights will say it
        return None
    return found.digest()
