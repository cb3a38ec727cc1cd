"""The snapshots of the last windows, in memory or in safetensors files: what a jump is computed from."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hubextrap.claims import DIGEST
from hubextrap.durable.atomic import writing
from hubextrap.errors import CheckpointMismatch, CorruptFile, OutputError
from hubextrap.tensors import DTYPES, build_header
from hubextrap.tensors.headers import header_end

_NO_DIGEST = "0" * 64
_NAMES = {dtype.torch_name: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Layout:
    """What one rank holds of one tensor, as a flat row of elements."""

    dtype: str
    """As safetensors names it."""
    elements: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Layout:
        return cls(_NAMES[str(tensor.dtype).removeprefix("torch.")], tensor.numel())


class SnapshotRing:
    """Copies of this rank's trainable tensors, by represented step, in their own dtypes.

    Args:
        layouts: what every snapshot holds, by the parameter's name.
        folder: where the snapshots lie as ``step-{step}.safetensors``; in CPU memory when None. What an
            earlier run left there is removed.
    """

    def __init__(self, layouts: Mapping[str, Layout], folder: Path | None = None) -> None:
        self.layouts, self.folder = dict(layouts), folder
        self._held: dict[int, Any] = {}
        if folder is not None:
            _clear(folder)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(self._held)

    @property
    def snapshot_bytes(self) -> int:
        return sum(of.elements * DTYPES[of.dtype].itemsize for of in self.layouts.values())

    def check_room(self, windows: int, memory: int, output: Path) -> None:
        """Refuse, before training, more snapshots of so many windows than there is room for.

        Args:
            memory: bytes that they may take.
            output: where the folder lies, if they are files.

        Raises:
            OutputError: says what takes less.
        """
        needed = 2 * windows * self.snapshot_bytes
        if needed > memory:
            raise OutputError(
                f"{2 * windows} snapshots of {self.snapshot_bytes:,} bytes take {needed:,}, above "
                f"memory={memory:,}; raise memory"
                + (f", choose fewer windows than {windows}" if windows > 2 else "")
                + (", or keep them in files with snapshots='disk'" if self.folder is None else "")
            )
        if self.folder is not None:
            output.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(output).free
            if needed > free:
                raise OutputError(
                    f"{output}: {2 * windows} snapshots take {needed:,} bytes per rank, and the disk has "
                    f"{free:,} free; free some, or choose another output_dir",
                    file=output,
                )

    def put(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors as they are now.

        Raises:
            OutputError: the disk did not take them.
        """
        flat = (tensors[name].detach().reshape(-1) for name in self.layouts)
        if self.folder is None:
            # `to` alone would hand a CPU tensor over as it is, and training would go on in it
            copies = (tensor.to("cpu", copy=True) for tensor in flat)
            self._held[step] = dict(zip(self.layouts, copies, strict=True))
            return
        path = self.folder / _file_name(step)
        _write_file(path, self.layouts, flat)
        self._held[step] = _open_file(path)

    def read(self, step: int, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements of one tensor, 1-D, on the CPU; in memory they are the snapshot's own, not a copy."""
        stop = self.layouts[name].elements if stop is None else stop
        if self.folder is None:
            return self._held[step][name][start:stop]  # type: ignore[no-any-return]
        if start == stop:
            return torch.empty(0, dtype=getattr(torch, DTYPES[self.layouts[name].dtype].torch_name))
        return self._held[step].get_slice(name)[start:stop]  # type: ignore[no-any-return]

    def keep_only(self, steps: Iterable[int]) -> None:
        kept = set(steps)
        for step in [step for step in self._held if step not in kept]:
            del self._held[step]
            if self.folder is not None:
                (self.folder / _file_name(step)).unlink()

    def save(self, folder: Path) -> None:
        """Write every snapshot into a folder, for `load`.

        Raises:
            OutputError: the disk did not take them.
        """
        for step in self._held:
            flat = (self.read(step, name) for name in self.layouts)
            _write_file(folder / _file_name(step), self.layouts, flat, state_digest=True)

    def load(self, folder: Path, steps: Iterable[int]) -> None:
        """Take over the snapshots that `save` wrote.

        Raises:
            CorruptFile: one is missing, cannot be read, or is not as it was written.
            CheckpointMismatch: one holds other tensors than this rank trains.
        """
        for step in steps:
            path = folder / _file_name(step)
            file = _open_file(path)
            _check_layouts(path, file, self.layouts)
            _check_digest(path, file)
            self.put(step, {name: file.get_tensor(name) for name in self.layouts})

    def remove(self) -> None:
        self._held.clear()
        if self.folder is not None:
            _clear(self.folder)
            with suppress(OSError):  # another rank's are still there
                self.folder.parent.rmdir()


def _clear(folder: Path) -> None:
    """Remove the snapshots in a folder, half-written ones too, and the folder where it holds nothing else."""
    with suppress(OSError):
        for path in folder.glob("step-*.safetensors*"):
            path.unlink()
        folder.rmdir()


def _file_name(step: int) -> str:
    return f"step-{step}.safetensors"


def _write_file(
    path: Path, layouts: Mapping[str, Layout], flat: Iterable[torch.Tensor], *, state_digest: bool = False
) -> None:
    """With ``state_digest``, the header holds the sha256 that the file has with 0s in that place."""
    entries = [(name, of.dtype, [of.elements]) for name, of in layouts.items()]
    header = build_header(entries, {DIGEST: _NO_DIGEST} if state_digest else None)
    digest = hashlib.sha256(header)
    with writing(path, "free some space, or keep the ring in memory with snapshots='cpu'", "the snapshot "):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(header)
            for tensor in flat:
                data = tensor.cpu().contiguous().view(torch.uint8).numpy().data
                file.write(data)
                if state_digest:
                    digest.update(data)
            if state_digest:
                file.seek(0)
                file.write(build_header(entries, {DIGEST: digest.hexdigest()}))


def _check_digest(path: Path, opened: Any) -> None:
    """What was written before there was a digest in it is taken as it is."""
    stated = (opened.metadata() or {}).get(DIGEST)
    if stated is None:
        return
    with path.open("rb") as file:
        start = file.read(8)
        header = start + file.read(header_end(start, os.fstat(file.fileno()).st_size, str(path)) - 8)
        digest = hashlib.sha256(header.replace(stated.encode(), _NO_DIGEST.encode(), 1))
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != stated:
        raise CorruptFile(
            f"{path}: the snapshot has changed since it was written; resume from an earlier checkpoint",
            file=path,
        )


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CorruptFile(
            f"{path}: a snapshot of the re-grounded run cannot be read ({error}); resume from an earlier "
            "checkpoint",
            file=path,
        ) from error


def _check_layouts(path: Path, file: Any, layouts: Mapping[str, Layout]) -> None:
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    found = {name: Layout(part.get_dtype(), math.prod(part.get_shape())) for name, part in parts.items()}
    for name in sorted(found.keys() | layouts.keys()):
        if found.get(name) != layouts.get(name):
            raise CheckpointMismatch(
                f"{path}: tensor {name} is {_said(found.get(name))} in the checkpoint but "
                f"{_said(layouts.get(name))} in training; resume with the model, the trainable "
                "parameters and the number of ranks that it was saved with",
                file=path,
                tensor=name,
            )


def _said(layout: Layout | None) -> str:
    return "missing" if layout is None else f"{layout.elements} × {layout.dtype}"
