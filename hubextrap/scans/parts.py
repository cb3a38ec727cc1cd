"""What a scan says of its checkpoints, and of the reference protocol's draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ScannedCheckpoint:
    """A checkpoint as it was read."""

    step: int
    name: str
    repo: str | None
    revision: str
    commit: str | None
    path: str
    dtype: str
    """safetensors names of its float dtypes, e.g. ``BF16`` or ``BF16/F32``."""
    pin: str
    """What stands for its bytes: two scans with the same pins have read the same."""
    digest: str | None = None
    """Of a sample: what stands for its weights, where the Hub lists their hashes. Another commit may hold the
    same: where checkpoints are folders of one branch, each push moves the commit of all."""

    def as_json(self) -> dict[str, Any]:
        """What its scan's file says of it."""
        return {key: value for key, value in asdict(self).items() if key != "digest" or value is not None}


@dataclass(frozen=True, slots=True)
class ReferenceSample:
    """The reference protocol: the same filters and R² over weights that were drawn."""

    fraction: float
    counts: NDArray[np.int64]
    """(N, BINS + 3)."""
