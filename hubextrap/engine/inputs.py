"""What is read of the checkpoints, hashed in the order of the jobs, whoever reads it.

A file that is read whole is compared with the hash that the Hub lists for it, before the last shard that is
made from it is finished. What a shard was made from is hashed by tensor as well, with a fast hash, for the
journal: a run that was stopped goes on only where its inputs hold that still.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from xxhash import xxh3_128

from hubextrap.digests import hasher_like
from hubextrap.errors import CorruptFile
from hubextrap.tensors.hashing import blocks_of, check_file, corrupt
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.interfaces import ShardInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence

    from hubextrap.engine.jobs import Job, Piece
    from hubextrap.engine.plan import MergePlan, ShardPlan, TensorPlan
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import ShardInfo, TensorInfo

SMALL_REST = 2**20
REST_SHARE = 16
"""A file is read whole where what is not needed of it is at most so many bytes, or this part of it."""
BLOCK = 4 * 2**20
"""Bytes of one of the two buffers for a file that is read once more."""

Key = tuple[int, str]
"""A checkpoint and a file of it."""


@dataclass(slots=True)
class FileUse:
    """What a plan needs of one file."""

    shards: list[str] = field(default_factory=list)
    """The output's that are made from it."""
    needed: int = 0
    """Bytes that go into the output."""
    twins: int = 0
    """Bytes of tied copies, which are only looked at."""
    in_order: bool = True
    _end: int = 0

    def add(self, shard: str, info: TensorInfo) -> None:
        if not self.shards or self.shards[-1] != shard:
            self.shards.append(shard)
        self.needed += info.nbytes
        self.in_order &= info.offset >= self._end
        self._end = info.offset + info.nbytes

    def is_whole(self, info: ShardInfo) -> bool:
        rest = info.size - info.header_size - self.needed - self.twins
        return rest <= max(SMALL_REST, info.size // REST_SHARE)


def file_uses(plan: MergePlan, shards: Iterable[ShardPlan] | None = None) -> dict[Key, FileUse]:
    """What is read of each file, header aside; those that nothing is read of are left out."""
    uses: dict[Key, FileUse] = {}
    for shard in plan.shards if shards is None else shards:
        for tensor in shard.tensors:
            for k, info in zip(tensor.checkpoints, tensor.inputs, strict=True):
                if info.nbytes:
                    uses.setdefault((k, info.file), FileUse()).add(shard.file, info)
            for i, twin in tensor.twins:
                use = uses.setdefault((tensor.checkpoints[i], twin.file), FileUse())
                use.twins += twin.nbytes
                use.in_order = False
    return uses


ReadAs = Literal["whole", "part", "header"]


def read_as(plan: MergePlan) -> dict[Key, ReadAs]:
    """How much of each file of each checkpoint is read: that depends on the plan alone."""
    uses = file_uses(plan)
    return {
        (k, info.file): "header"
        if (use := uses.get((k, info.file))) is None
        else "whole"
        if use.is_whole(info)
        else "part"
        for k, layout in enumerate(plan.layouts)
        for info in layout.shards
    }


def check_blamed(
    tensor: TensorPlan, sources: Sequence[Source], checkpoints: Container[int] | None = None
) -> None:
    """Before these checkpoints (by default all) are blamed for a tensor: are its bytes what the Hub lists?

    Raises:
        CorruptFile: a file that holds the tensor is not what was uploaded, so leaving it out is no remedy.
        SourceError: it could not be read.
    """
    files = {(k, info.file) for k, info in zip(tensor.checkpoints, tensor.inputs, strict=True)}
    files |= {(tensor.checkpoints[i], twin.file) for i, twin in tensor.twins}
    for k, file in sorted(files):
        if checkpoints is None or k in checkpoints:
            check_file(sources[k], file)


class InputHashes:
    """Takes the jobs' inputs one job after the other, in their order. To be closed.

    Args:
        uses: what is needed of each file, what an earlier run has read included.
        compared: files that an earlier run has compared, and of which nothing is read now.
        begun: files of which an earlier run has read something.
        keep: whether ``digests_of`` will be asked for each tensor.
    """

    def __init__(
        self,
        plan: MergePlan,
        sources: Sequence[Source],
        uses: Mapping[Key, FileUse],
        *,
        compared: Collection[Key] = (),
        begun: Collection[Key] = (),
        keep: bool = False,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._shard = [xxh3_128() for _ in sources]
        self._tensor = [xxh3_128() for _ in sources]
        self._kept: dict[str, dict[int, str]] | None = {} if keep else None
        self._streams: dict[Key, _Stream] = {}
        self._late: dict[Key, dict[int, bytes]] = {}
        """Files to be read once more in the end, with the hashes of the tensors that were read of them."""
        self._shards_of: dict[Key, list[str]] = {}
        infos = {(k, info.file): info for k, one in enumerate(plan.layouts) for info in one.shards}
        for key, use in uses.items():
            source, info = sources[key[0]], infos[key]
            digest = source.files()[key[1]].digest
            if digest is None or not use.is_whole(info) or key in compared:
                continue
            self._shards_of[key] = use.shards
            if use.in_order and key not in begun:
                self._streams[key] = _Stream(source, info, digest, use.needed)
            else:
                self._late[key] = {}
        streams = len({k for k, _ in self._streams})
        # sha256 takes as long as all else; hashing what is local takes next to nothing
        self._pool = (
            ThreadPoolExecutor(min(streams, os.cpu_count() or 1), thread_name_prefix="hubextrap-hash")
            if streams
            else None
        )

    def take(self, job: Job, memory: memoryview) -> None:
        """Hash what the job has read into ``memory``.

        Raises:
            CorruptFile: a file that has been read whole by now is not what the Hub lists.
            SourceError: the rest of such a file could not be read.
        """
        of_checkpoint: dict[int, list[tuple[Piece, TensorInfo, int]]] = {}
        for piece in job.pieces:
            tensor = piece.tensor
            for k, info, place in zip(tensor.checkpoints, tensor.inputs, piece.inputs, strict=True):
                of_checkpoint.setdefault(k, []).append((piece, info, place))
        if self._pool is None:
            for k, items in of_checkpoint.items():
                self._hash(k, items, memory)
            return
        futures = [self._pool.submit(self._hash, k, items, memory) for k, items in of_checkpoint.items()]
        errors = [future.exception() for future in futures]  # nobody looks into the memory any more
        for error in errors:
            if error is not None:
                raise error

    def digests_of(self, tensor: TensorPlan) -> tuple[str, ...]:
        """The hashes of a tensor that was just taken whole, one for each of its checkpoints."""
        assert self._kept is not None
        found = self._kept.pop(tensor.name)
        return tuple(found[k] for k in tensor.checkpoints)

    def expect(self, tensor: TensorPlan, digests: Sequence[str]) -> None:
        """What an earlier run said of a tensor that is not read by this one."""
        for k, info, digest in zip(tensor.checkpoints, tensor.inputs, digests, strict=True):
            if (late := self._late.get((k, info.file))) is not None:
                late[info.offset] = bytes.fromhex(digest)

    def end_shard(self, shard: str) -> ShardInputs:
        """What went into the shard whose last job was taken."""
        digests = tuple(found.hexdigest() for found in self._shard)
        self._shard = [xxh3_128() for _ in self._sources]
        waiting = [*(key for key, stream in self._streams.items() if stream.left), *self._late]
        return ShardInputs(digests, not any(shard in self._shards_of[key] for key in waiting))

    def finish(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Read the files once more that could not be compared as they came.

        Raises:
            CorruptFile: one is not what the Hub lists, or not what it was before.
            SourceError: it could not be read.
        """
        for (k, file), digests in self._late.items():
            info = next(info for info in self._plan.layouts[k].shards if info.file == file)
            _read_again(self._sources[k], info, digests, advance)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _hash(self, k: int, items: Sequence[tuple[Piece, TensorInfo, int]], memory: memoryview) -> None:
        for piece, info, place in items:
            itemsize = DTYPES[info.dtype].itemsize
            view = memory[place : place + piece.count * itemsize]
            if piece.start == 0:
                self._tensor[k] = xxh3_128(view)
            else:
                self._tensor[k].update(view)
            if piece.ends_tensor:
                digest = self._tensor[k].digest()
                self._shard[k].update(digest)
                if self._kept is not None:
                    self._kept.setdefault(piece.tensor.name, {})[k] = digest.hex()
                if (late := self._late.get((k, info.file))) is not None:
                    late[info.offset] = digest
            stream = self._streams.get((k, info.file))
            if stream is not None:
                stream.take(info.offset + piece.start * itemsize, view)


class _Stream:
    """The hash of a file whose needed bytes come in their order; the others are read for it."""

    def __init__(self, source: Source, info: ShardInfo, digest: str, needed: int) -> None:
        self._source = source
        self._info = info
        self._hash = hasher_like(digest, info.size)
        self._digest = digest
        self._position = 0
        self.left = needed
        """Needed bytes to come; at 0 the file has been compared."""

    def take(self, offset: int, view: memoryview) -> None:
        self._fill(offset)
        self._hash.update(view)
        self._position += len(view)
        if self.left == len(view):
            self._fill(self._info.size)
            if self._hash.hexdigest() != self._digest:
                raise corrupt(self._source, self._info.file, self._hash.hexdigest())
        self.left -= len(view)

    def _fill(self, stop: int) -> None:
        """Hash what lies up to ``stop`` and was not needed: the header, tensors that are left out."""
        header = hashlib.sha256()
        while self._position < stop:
            in_header = self._position < self._info.header_size
            end = min(stop, self._info.header_size) if in_header else stop
            block = memoryview(bytearray(min(2**20, end - self._position)))
            self._source.read(self._info.file, self._position, block)
            self._hash.update(block)
            self._position += len(block)
            if in_header:
                header.update(block)
                if self._position == self._info.header_size:
                    _check_header(self._source, self._info, header.hexdigest())


def _check_header(source: Source, info: ShardInfo, found: str) -> None:
    if info.header_sha256 and found != info.header_sha256:
        raise _differs(source, info)


def _differs(source: Source, info: ShardInfo) -> CorruptFile:
    return CorruptFile(
        f"{source.name}/{info.file}: held other bytes when it was read a second time; run the same command "
        "again"
    )


def _read_again(
    source: Source, info: ShardInfo, digests: dict[int, bytes], advance: Callable[[int], None]
) -> None:
    """Compare a whole file with the Hub's hash, and its tensors with what was read of them before."""
    digest = source.files()[info.file].digest
    assert digest is not None
    whole, header, position = hasher_like(digest, info.size), hashlib.sha256(), 0
    tensors = iter([tensor for tensor in info.tensors if tensor.nbytes])
    tensor, found = next(tensors, None), xxh3_128()
    for view in blocks_of(source, info.file, BLOCK):
        whole.update(view)
        header.update(view[: max(0, info.header_size - position)])
        end = position + len(view)
        while tensor is not None and tensor.offset < end:
            last = tensor.offset + tensor.nbytes
            found.update(view[max(tensor.offset, position) - position : last - position])
            if last > end:
                break
            if digests.get(tensor.offset, found.digest()) != found.digest():
                raise _differs(source, info)
            tensor, found = next(tensors, None), xxh3_128()
        position = end
        advance(len(view))
    if whole.hexdigest() != digest:
        raise corrupt(source, info.file, whole.hexdigest())
    _check_header(source, info, header.hexdigest())
