"""A tiny run and a plan of its merge, as `hubextrap.executors.testing` gives them to executors.

Three checkpoints of seven shards, some kilobytes each: BF16 and F32 tensors that are combined, an I64 that is
copied, an embedding with its tied copy, and a shard of a single number. Two targets.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.claims import sealed, unsealed
from hubextrap.engine.budget import Budget
from hubextrap.engine.plan import plan_merge
from hubextrap.engine.run import run_plan
from hubextrap.foreign_data import parse_json
from hubextrap.progress import SilentProgress
from hubextrap.tensors.headers import DTYPES, build_header
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.sinks import LocalSink
from hubextrap.tensors.weights import read_layouts
from hubextrap.trajectory.checkpoint import Checkpoint
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import Output, WorkPlan, files_to_compare, stamps_of
from hubextrap.work.records import DONE, Records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hubextrap.engine.plan import MergePlan
    from hubextrap.work.places import Place

STEPS = (100, 250, 400)
SHARDS = 7
TARGETS = 2
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COEFFICIENTS = {
    "layers.1.weight": np.array([[0.0, 0.0, 1.0], [0.25, 0.25, 0.5]]),  # a copy, and a sum
    "": np.array([[-0.5, 0.0, 1.5], [0.75, -1.5, 1.75]]),  # a line that leaves a checkpoint out, and a sum
}
Spec = tuple[str, str, tuple[int, ...]]


def shard_file(unit: int) -> str:
    """The output shard that a unit makes."""
    return f"model-{unit + 1:05d}-of-{SHARDS:05d}.safetensors"


def specs(unit: int) -> list[Spec]:
    """Name, dtype and shape of the tensors of one shard."""
    if unit == SHARDS - 1:
        return [("scale", "F32", ())]
    tensors: list[Spec] = [(f"layers.{unit}.weight", "BF16", (24, 31)), (f"layers.{unit}.norm", "F32", (33,))]
    if unit == 2:
        tensors.append(("position_ids", "I64", (16,)))
    if unit == 4:
        tensors += [(EMBEDDING, "BF16", (40, 8)), (HEAD, "BF16", (40, 8))]
    return tensors


def write_checkpoint(folder: Path, seed: int, *, large: int = 0) -> None:
    """One checkpoint.

    Args:
        large: bytes of a tensor of zeros that is added to the first shard; they take no room on the disk.
    """
    folder.mkdir(parents=True)
    rng, embedding = np.random.default_rng(seed), b""
    weight_map: dict[str, str] = {}
    for unit in range(SHARDS):
        tensors = specs(unit)
        if large and unit == 0:
            tensors.append(("large.weight", "BF16", (large // 2,)))
        with (folder / shard_file(unit)).open("wb") as file:
            file.write(build_header(tensors, {"format": "pt"}))
            for name, dtype, shape in tensors:
                if name == "large.weight":
                    file.truncate(file.tell() + large)
                    continue
                data = embedding if name == HEAD else _values(rng, dtype, math.prod(shape))
                embedding = data if name == EMBEDDING else embedding
                file.write(data)
        weight_map |= dict.fromkeys([name for name, _, _ in tensors], shard_file(unit))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')


def _values(rng: np.random.Generator, dtype: str, count: int) -> bytes:
    if dtype == "I64":
        return np.arange(count, dtype="<i8").tobytes()
    values = rng.standard_normal(count).astype("<f4")
    if dtype == "F32":
        return values.tobytes()
    return (values.view("<u4") >> 16).astype("<u2").tobytes()  # BF16 is the upper half


def tensor_place(folder: Path, unit: int, tensor: str) -> tuple[Path, int]:
    """The file that holds a tensor of a checkpoint, and the offset of its first byte."""
    tensors = specs(unit)
    offset = len(build_header(tensors, {"format": "pt"}))
    for name, dtype, shape in tensors:
        if name == tensor:
            return folder / shard_file(unit), offset
        offset += math.prod(shape) * DTYPES[dtype].itemsize
    raise KeyError(tensor)


def overwrite(folder: Path, unit: int, tensor: str, data: bytes) -> None:
    """Put other bytes at the beginning of a tensor of a checkpoint."""
    path, offset = tensor_place(folder, unit, tensor)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@dataclass(frozen=True)
class TinyRun:
    """The run, and where its merge goes."""

    root: Path

    @classmethod
    def write(cls, root: Path, *, large: int = 0) -> TinyRun:
        """The run in a folder that is not there yet; ``large`` as `write_checkpoint` takes it."""
        run = cls(root)
        for seed, folder in enumerate(run.checkpoints):
            write_checkpoint(folder, seed, large=large)
        return run

    @property
    def checkpoints(self) -> list[Path]:
        return [self.root / f"step_{step}" for step in STEPS]

    @property
    def place(self) -> Place:
        return FolderPlace(self.root / ".out.partial" / "work")

    @property
    def folders(self) -> list[Path]:
        """Where the shards of each target go."""
        return [self.root / ".out.partial" / "model" / str(target) for target in range(TARGETS)]

    def bytes_read(self) -> int:
        """Of all tensors that go in."""
        with self._open() as sources:
            return _merge_plan(sources).total_bytes_read

    def reference(self) -> list[dict[str, bytes]]:
        """What `run_plan` makes of it in this process: for each target, each shard's bytes by file.

        Raises:
            HubExtrapError: as `run_plan`.
        """
        folders = [self.root / f"reference-{target}" for target in range(TARGETS)]
        with self._open() as sources:
            run_plan(_merge_plan(sources), sources, [LocalSink(folder) for folder in folders])
        return [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]

    @contextmanager
    def _open(self) -> Iterator[list[LocalSource]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(closing(LocalSource(folder))) for folder in self.checkpoints]

    def work_plan(self) -> WorkPlan:
        """The same merge as a plan that travels, saved in the place; the folders of the output are there."""
        for folder in self.folders:
            folder.mkdir(parents=True)
        with self._open() as sources:
            merge = _merge_plan(sources)
            return WorkPlan(
                checkpoints=tuple(
                    Checkpoint(step, None, "", None, source.name)
                    for step, source in zip(STEPS, sources, strict=True)
                ),
                stamps=stamps_of(sources, merge),
                merge=merge,
                outputs=tuple(Output(str(folder)) for folder in self.folders),
                compared=files_to_compare(merge, sources),
            ).save(self.place)

    def outputs(self) -> list[dict[str, Path]]:
        """For each target the files that have a shard's final name, by that name."""
        return [
            {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}
            for folder in self.folders
        ]

    def strays(self) -> list[Path]:
        """Files of the output that have no final name."""
        return [
            path
            for path in (self.root / ".out.partial").rglob("*")
            if path.is_file() and path.name.startswith(".")
        ]

    def check_finished(self, expected: list[dict[str, bytes]], units: int | None = None) -> None:
        """Fail unless the output holds the bytes that it has to, and nothing half-made."""
        found = [{name: path.read_bytes() for name, path in files.items()} for files in self.outputs()]
        if units is None:
            assert [sorted(files) for files in found] == [sorted(files) for files in expected]
        for target, files in enumerate(found):
            for name, data in files.items():
                assert data == expected[target][name], f"target {target + 1}, {name}"

    def write_times(self) -> dict[Path, tuple[int, int]]:
        """Inode and time of every record and shard, to see whether any was written again."""
        files = [path for files in self.outputs() for path in files.values()]
        files += (self.root / ".out.partial" / "work" / DONE).iterdir()
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def _merge_plan(sources: list[LocalSource]) -> MergePlan:
    return plan_merge(STEPS, read_layouts(sources), _coefficients, tied=True, budget=Budget(workers=1))


def _coefficients(name: str) -> NDArray[np.float64]:
    return COEFFICIENTS.get(name, COEFFICIENTS[""])


def other_plan(data: bytes, how: str) -> bytes:
    """A plan's file with another byte, or sealed anew with another version or format."""
    if how == "byte":
        return data.replace(b"layers.1.weight", b"layers.2.weight", 1)
    stated = unsealed(parse_json(data, PLAN_FILE))
    if how == "format":
        stated["format"] = 0
    else:
        stated["versions"]["hubextrap"] = "0.0.0"
    return json.dumps(sealed(stated)).encode()


class Counting(SilentProgress):
    """Adds up what stages are announced to take, and what is reported as done, in bytes."""

    def __init__(self) -> None:
        self.announced = self.done = 0
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[SilentProgress]:
        if unit != "B":
            yield SilentProgress()
            return
        self.announced += total or 0
        yield self

    def advance(self, amount: int) -> None:
        with self._lock:
            self.done += amount


def holders(file: Path) -> list[int]:
    """The other processes that have a file open (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(_leads_to(link, file) for link in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
    return found


def _leads_to(link: Path, file: Path) -> bool:
    with contextlib.suppress(OSError):
        return str(link.readlink()) == str(file)
    return False


def send(pid: int, sign: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def state_of(pid: int) -> str:
    """The letter of a process's state (Linux): T for one that a signal stopped; "" for none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return state_of(pid) not in ("", "Z", "X")


def records_of(plan: WorkPlan, place: Place) -> Records:
    return Records(place, plan.digest)
