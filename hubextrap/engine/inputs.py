"""What is read of the checkpoints, hashed in the order of the units, whoever reads it.

A file that is read whole is compared with the hash that the Hub lists for it, before the last shard that is
made from it is finished. What is read is hashed by tensor as well, with a fast hash, for the journal: a run
that was stopped goes on only where its inputs hold that still.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from hubextrap.digests import hasher_like
from hubextrap.errors import CorruptFile
from hubextrap.tensors.assembled import beneath
from hubextrap.tensors.hashing import blocks_of, check_file, corrupt
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping, Sequence
    from typing import Literal

    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.engine.plan import MergePlan
    from hubextrap.engine.units import Piece, Unit
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo

SMALL_REST = 2**20
REST_SHARE = 16
"""A file is read whole where what is not needed of it is at most so many bytes, or this part of it."""
READ_AGAIN_AT_ONCE = 4 * 2**20
"""Bytes of one of the two buffers for a file that is read once more."""

Key = tuple[int, str]
"""A checkpoint and a file of it."""
Digests = dict[str, dict[int, bytes]]
"""The hashes of tensors, by name and checkpoint."""


@dataclass(slots=True)
class FileUse:
    """What a pass needs of one file."""

    needed: int = 0
    """Bytes of tensors."""
    twins: int = 0
    """Bytes of tied copies, which are only looked at."""
    in_order: bool = True
    _end: int = 0

    def add(self, info: TensorInfo) -> None:
        self.needed += info.nbytes
        self.in_order &= info.offset >= self._end
        self._end = info.offset + info.nbytes

    def is_whole(self, info: ShardInfo) -> bool:
        rest = info.size - info.header_size - self.needed - self.twins
        return rest <= max(SMALL_REST, info.size // REST_SHARE)


def file_uses(tensors: Iterable[TensorInputs]) -> dict[Key, FileUse]:
    """What is read of each file, header aside, if these are read one after the other."""
    uses: dict[Key, FileUse] = {}
    for tensor in tensors:
        for k, info in zip(tensor.checkpoints, tensor.inputs, strict=True):
            if info.nbytes:
                if (use := uses.get((k, info.file))) is None:
                    use = uses[k, info.file] = FileUse()
                use.add(info)
        for i, twin in tensor.twins:
            use = uses.setdefault((tensor.checkpoints[i], twin.file), FileUse())
            use.twins += twin.nbytes
            use.in_order = False
    return uses


def read_as(plan: MergePlan) -> dict[Key, Literal["whole", "part", "header"]]:
    """How much of each file of each checkpoint is read: that depends on the plan alone."""
    uses = file_uses(tensor for shard in plan.shards for tensor in shard.tensors)
    return {
        (k, info.file): "header"
        if (use := uses.get((k, info.file))) is None
        else "whole"
        if use.is_whole(info)
        else "part"
        for k, layout in enumerate(plan.layouts)
        for info in layout.shards
    }


def shared_files(
    parts: Sequence[Sequence[TensorInputs]], layouts: Sequence[CheckpointLayout]
) -> dict[Key, tuple[int, ...]]:
    """The files that several parts of a pass read, by the numbers of those, and that it reads as a whole.

    Which of them the Hub lists a hash for is the sources' to say.
    """
    readers: dict[Key, list[int]] = {}
    uses: dict[Key, FileUse] = {}
    for number, tensors in enumerate(parts):
        for key, use in file_uses(tensors).items():
            readers.setdefault(key, []).append(number)
            known = uses.setdefault(key, FileUse())
            known.needed, known.twins = known.needed + use.needed, known.twins + use.twins
    infos = {(k, one.file): one for k, layout in enumerate(layouts) for one in layout.shards}
    return {
        key: tuple(numbers)
        for key, numbers in readers.items()
        if len(numbers) > 1 and uses[key].is_whole(infos[key])
    }


def check_blamed(
    unit: Unit, piece: Piece, sources: Sequence[Source], checkpoints: Container[int] | None = None
) -> None:
    """Before these checkpoints (by default all) are blamed for a tensor: are its bytes what the Hub lists?

    Args:
        piece: one of the unit's, of that tensor.

    Raises:
        CorruptFile: a file that holds the tensor is not what was uploaded, so leaving it out is no remedy.
        SourceError: it could not be read.
    """
    places = [
        *zip(piece.checkpoints, piece.places, strict=True),
        *((piece.checkpoints[twin.input], twin.place) for twin in piece.twins),
    ]
    for k, file in sorted({(k, unit.origin(place)[0]) for k, place in places}):
        if checkpoints is None or k in checkpoints:
            source, stored = beneath(sources[k], [file])
            for one in stored:
                check_file(source, one)


class InputHashes:
    """Takes the units' inputs one unit after the other, in their order. To be closed.

    Args:
        uses: what is needed of each file, what an earlier run has read included.
        compared: files that an earlier run has compared, and of which nothing is read now.
        begun: files of which an earlier run has read something.
        elsewhere: files of which others read something: whoever ends last compares them, with `left`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        layouts: Sequence[CheckpointLayout],
        uses: Mapping[Key, FileUse],
        *,
        compared: Collection[Key] = (),
        begun: Collection[Key] = (),
        elsewhere: Collection[Key] = (),
    ) -> None:
        self._sources = sources
        self._elsewhere = elsewhere
        self._tensor = [xxh3_128() for _ in sources]
        self._streams: dict[Key, _Stream] = {}
        self._late: dict[Key, dict[int, bytes]] = {}
        """Files to be read once more in the end, with the hashes of the tensors that were read of them."""
        self._infos = {(k, info.file): info for k, one in enumerate(layouts) for info in one.shards}
        for key, use in uses.items():
            source, info = sources[key[0]], self._infos[key]
            digest = source.files()[key[1]].digest
            if digest is None or key in compared or not (key in elsewhere or use.is_whole(info)):
                continue
            if use.in_order and key not in begun and key not in elsewhere:
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

    def take(self, unit: Unit, memory: memoryview) -> Digests:
        """Hash what the unit has read into ``memory``; returns the hashes of the tensors that end in it.

        Raises:
            CorruptFile: a file that has been read whole by now is not what the Hub lists.
            SourceError: the rest of such a file could not be read.
        """
        of_checkpoint: dict[int, list[tuple[Piece, int]]] = {}
        for piece in unit.pieces:
            for i, k in enumerate(piece.checkpoints):
                of_checkpoint.setdefault(k, []).append((piece, i))
        ended: Digests = {piece.tensor: {} for piece in unit.pieces if piece.ends_tensor}
        if self._pool is None:
            for k, items in of_checkpoint.items():
                self._hash(k, items, unit, memory, ended)
            return ended
        futures = [
            self._pool.submit(self._hash, k, items, unit, memory, ended) for k, items in of_checkpoint.items()
        ]
        wait(futures)  # nobody looks into the memory any more
        for future in futures:
            future.result()
        return ended

    def expect(self, tensor: TensorInputs, digests: Sequence[str]) -> None:
        """What an earlier run said of a tensor that is not read by this one."""
        for k, info, digest in zip(tensor.checkpoints, tensor.inputs, digests, strict=True):
            if (late := self._late.get((k, info.file))) is not None:
                late[info.offset] = bytes.fromhex(digest)

    def is_waiting(self, key: Key) -> bool:
        """Whether a file is still to be compared."""
        stream = self._streams.get(key)
        return key in self._late or (stream is not None and stream.left > 0)

    def finish(self) -> None:
        """Read the files once more that could not be compared as they came.

        Raises:
            CorruptFile: one is not what the Hub lists, or not what it was before.
            SourceError: it could not be read.
        """
        for (k, file), digests in self._late.items():
            if (k, file) not in self._elsewhere:
                read_again(self._sources[k], self._infos[k, file], digests)

    def left(self) -> dict[Key, dict[int, bytes]]:
        """The hashes of what was read of each file that is compared elsewhere, by the tensor's offset."""
        return {key: digests for key, digests in self._late.items() if key in self._elsewhere}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _hash(
        self, k: int, items: Sequence[tuple[Piece, int]], unit: Unit, memory: memoryview, ended: Digests
    ) -> None:
        for piece, i in items:
            place, itemsize = piece.places[i], DTYPES[piece.dtypes[i]].itemsize
            view = memory[place : place + piece.count * itemsize]
            if piece.start == 0:
                self._tensor[k] = xxh3_128(view)
            else:
                self._tensor[k].update(view)
            if piece.ends_tensor:
                ended[piece.tensor][k] = self._tensor[k].digest()
            if not (self._late or self._streams):
                continue
            file, offset = unit.origin(place)
            if piece.ends_tensor and (late := self._late.get((k, file))) is not None:
                late[offset - piece.start * itemsize] = ended[piece.tensor][k]
            if (stream := self._streams.get((k, file))) is not None:
                stream.take(offset, view)


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
        f"{source.name}/{info.file}: its bytes changed between two reads; run the same command again",
        file=info.file,
    )


def read_again(source: Source, info: ShardInfo, digests: Mapping[int, bytes]) -> None:
    """Compare a whole file with the Hub's hash, and its tensors with what was read of them before.

    Args:
        digests: XXH3 (128 bits) of each tensor that was read, by its offset in the file.

    Raises:
        CorruptFile: it is not what the Hub lists, or not what it was before.
        SourceError: it could not be read.
    """
    digest = source.files()[info.file].digest
    assert digest is not None
    whole, header, position = hasher_like(digest, info.size), hashlib.sha256(), 0
    tensors = iter([tensor for tensor in info.tensors if tensor.nbytes])
    tensor, found = next(tensors, None), xxh3_128()
    for view in blocks_of(source, info.file, READ_AGAIN_AT_ONCE):
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
    if whole.hexdigest() != digest:
        raise corrupt(source, info.file, whole.hexdigest())
    _check_header(source, info, header.hexdigest())
