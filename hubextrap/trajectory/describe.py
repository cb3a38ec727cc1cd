"""What a table of checkpoints shows beside their place: bytes, dtype, date. Two requests a checkpoint."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from hubextrap.containment import Entry, entries_of, open_regular, shown
from hubextrap.errors import CorruptFile, SourceError, TrajectoryError
from hubextrap.foreign_data import parse_json
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.progress import SilentProgress
from hubextrap.trajectory.checkpoint import Checkpoint, Trajectory
from hubextrap.trajectory.concurrent import map_concurrently
from hubextrap.trajectory.hub_files import HubFile, list_files
from hubextrap.trajectory.weights import Weights, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.progress import Progress

_MOST_HEADER_BYTES = 100_000_000


def describe(trajectory: Trajectory, progress: Progress | None = None) -> Trajectory:
    """The trajectory with size, dtype and date of every checkpoint filled in.

    The size is that of the weight files, the dtype the one of most bytes of the first safetensors file (None
    without one), the date that of the commit that last changed the weights; locally, their modification time.

    Raises:
        AccessDenied: the repo is gated, and listing it is allowed but reading is not.
        CorruptFile: the header of a safetensors file cannot be read.
    """
    progress = progress or SilentProgress()
    with progress.stage("read headers", len(trajectory.checkpoints), "checkpoints") as stage:
        described = map_concurrently(describe_checkpoint, trajectory.checkpoints, stage)
    return replace(trajectory, checkpoints=tuple(described))


def describe_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """One checkpoint with its size, dtype and date; see ``describe``."""
    if checkpoint.repo is None:
        files = [_local_file(*file) for file in entries_of(checkpoint.path).items()]
    else:
        assert checkpoint.commit is not None
        listed = list_files(checkpoint.repo, checkpoint.commit, checkpoint.path, checkpoint.name, dates=True)
        prefix = f"{checkpoint.path}/" if checkpoint.path else ""
        files = [replace(file, path=file.path.removeprefix(prefix)) for file in listed or []]
    weights = weights_of((file.path, file.size) for file in files)
    if weights is None:
        return checkpoint
    dates = [file.date for file in files if file.path in weights.files and file.date is not None]
    return replace(
        weights.of(checkpoint),
        dtype=_dtype(checkpoint, weights),
        date=max(dates, default=checkpoint.date),
    )


def _local_file(name: str, entry: Entry) -> HubFile:
    return HubFile(name, entry.size, datetime.fromtimestamp(entry.stamp[1] / 1e9, timezone.utc))


def _dtype(checkpoint: Checkpoint, weights: Weights) -> str | None:
    first = next((file for file in weights.files if file.endswith(".safetensors")), None)
    if first is None:
        return None
    if checkpoint.repo is None:
        return _most_bytes(_local_header(checkpoint.path, first))
    return _most_bytes(_remote_header(checkpoint, first))


def _remote_header(checkpoint: Checkpoint, file: str) -> Iterable[tuple[str, int]]:
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    assert checkpoint.repo is not None
    path = f"{checkpoint.path}/{file}" if checkpoint.path else file
    with hub_errors(f"{checkpoint.name}, {file}", TrajectoryError):
        try:
            header = hub_api().parse_safetensors_file_metadata(
                checkpoint.repo, path, revision=checkpoint.commit
            )
        except (SafetensorsParsingError, NotASafetensorsRepoError, ValueError) as error:
            raise _corrupt(checkpoint.name, file) from error
    return [
        (tensor.dtype, tensor.data_offsets[1] - tensor.data_offsets[0]) for tensor in header.tensors.values()
    ]


def _local_header(folder: str, file: str) -> Iterable[tuple[str, int]]:
    entry = entries_of(folder)[file]
    if entry.problem is not None:
        raise SourceError(f"{folder}/{shown(file)}: {entry.problem}")
    with os.fdopen(open_regular(entry.path), "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= _MOST_HEADER_BYTES else b""
    try:
        content = parse_json(header, file, error=ValueError, limit=_MOST_HEADER_BYTES)
        tensors = {name: entry for name, entry in content.items() if name != "__metadata__"}
        return [
            (str(entry["dtype"]), entry["data_offsets"][1] - entry["data_offsets"][0])
            for entry in tensors.values()
        ]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _corrupt(folder, file) from error


def _corrupt(where: str, file: str) -> CorruptFile:
    return CorruptFile(
        f"{where}: the header of {file} is not safetensors; the upload may be broken, fetch it again"
    )


def _most_bytes(tensors: Iterable[tuple[str, int]]) -> str | None:
    total: dict[str, int] = {}
    for dtype, size in tensors:
        total[dtype] = total.get(dtype, 0) + size
    return max(total, key=lambda dtype: total[dtype]) if total else None
