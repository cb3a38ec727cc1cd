"""What a table of checkpoints shows beside their place: bytes, dtype, date."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile
from hubextrap.progress import SilentProgress
from hubextrap.tensors.bucket import hub_source
from hubextrap.tensors.headers import header_object
from hubextrap.tensors.interfaces import FileInfo
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.weights import read_header
from hubextrap.trajectory.checkpoint import Checkpoint, is_untouched_base
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.hub_file import HubFile
from hubextrap.trajectory.hub_files import list_checkpoint
from hubextrap.trajectory.local_files import entries_of_checkpoint
from hubextrap.trajectory.weights import Weights, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.checkpoint import Trajectory


def describe(trajectory: Trajectory, progress: Progress | None = None) -> Trajectory:
    """The trajectory with size, dtype and date of every checkpoint, and of the base it holds, filled in.

    The size is that of the weight files, the dtype the one of most bytes of the first safetensors file (None
    without one), the date that of the commit that last changed the weights; locally, their modification time.

    Raises:
        AccessDenied: the repo is gated, and listing it is allowed but reading is not.
        CorruptFile: the header of a safetensors file cannot be read.
    """
    progress = progress or SilentProgress()
    bases = [one for one in [trajectory.base_model] if isinstance(one, Checkpoint)]
    with progress.stage("read headers", len(bases) + len(trajectory.checkpoints), "checkpoints") as stage:
        described = map_concurrently(describe_checkpoint, [*bases, *trajectory.checkpoints], stage)
    base = described.pop(0) if bases else trajectory.base_model
    return replace(trajectory, checkpoints=tuple(described), base_model=base)


def describe_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """One checkpoint with its size, dtype and date; see ``describe``."""
    if is_untouched_base(checkpoint):
        return checkpoint
    if checkpoint.repo is None:
        files = [
            HubFile(name, entry.size, datetime.fromtimestamp(entry.stamp[1] / 1e9, timezone.utc))
            for name, entry in entries_of_checkpoint(checkpoint.path).items()
        ]
    else:
        assert checkpoint.commit is not None
        files = list_checkpoint(
            checkpoint.repo, checkpoint.commit, checkpoint.path, checkpoint.name, dates=True
        )
    weights = weights_of((file.path, file.size) for file in files)
    if weights is None:
        return checkpoint
    taken = set(weights.files)
    dates = [file.date for file in files if file.path in taken and file.date is not None]
    return replace(
        weights.of(checkpoint),
        dtype=_dtype(checkpoint, weights, files),
        date=max(dates, default=checkpoint.date),
    )


def _source(checkpoint: Checkpoint, files: Iterable[HubFile]) -> Source:
    """As `open_source` has it, without asking the Hub once more what lies there."""
    if checkpoint.repo is None or checkpoint.commit is None:
        return LocalSource(checkpoint.path)
    listed = {file.path: FileInfo(file.size, file.digest) for file in files}
    return hub_source(checkpoint.repo, checkpoint.commit, checkpoint.path, checkpoint.name, listed)


def _dtype(checkpoint: Checkpoint, weights: Weights, files: Iterable[HubFile]) -> str | None:
    first = next((file for file in weights.files if file.endswith(".safetensors")), None)
    if first is None:
        return None
    with closing(_source(checkpoint, files)) as source:
        try:
            header = header_object(*read_header(source, first), f"{source.name}/{first}")
            total: Counter[str] = Counter()
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    total[str(entry["dtype"])] += end - start
        except (CorruptFile, ValueError, TypeError, LookupError) as error:
            raise CorruptFile(
                f"{checkpoint.name}: the header of {first} is not safetensors; the upload may be broken, "
                "fetch it again",
                file=first,
                step=checkpoint.step,
            ) from error
    return max(total, key=lambda dtype: total[dtype], default=None)
