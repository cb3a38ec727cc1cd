"""The zip files that torch.save writes: where in them each record's bytes lie.

A record lies uncompressed behind its local header, which torch pads so that the bytes begin at a multiple of
64, and before a data descriptor of 16 bytes (24 in zip64); the next record follows at once. So the central
directory at the end says where each begins, and the local headers, one for each tensor, need not be read.
Formats: APPNOTE 6.3.10 of PKWARE, sections 4.3.7 to 4.3.16; caffe2/serialize/inline_container.cc of torch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source

TAIL = 64 * 1024
"""Bytes read first, from the end: the directory of some 600 tensors."""
DIRECTORY = 64 * 2**20
"""Longest central directory."""
ALIGNMENT = 64
"""Where torch begins a record's bytes, whatever larger alignment is asked of it."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENDINGS = _END.size + _LOCATOR.size + _END64.size
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_DESCRIBED = 0x0008
"""The flag: a data descriptor follows the bytes."""
_FLAGS = _DESCRIBED | 0x0800
"""Those that torch sets; the other: names are UTF-8."""


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes of one file in the archive."""

    offset: int
    """First byte, counted from the start of the real file."""
    size: int


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file, or one within a file."""

    file: str
    where: str
    """What messages call it."""
    records: dict[str, Record]
    """By name, without the folder that they all lie in; only those whose bytes may be wanted."""

    def record(self, name: str) -> Record:
        """Raises CorruptFile where there is none."""
        if name not in self.records:
            what = f"it has no record {shorten(repr(name))}"
            raise CorruptFile(f"{self.where}: {what}; copy or download the file again", file=self.file)
        return self.records[name]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A zip file's place: a whole file, or a part of one."""

    file: str
    where: str
    start: int
    size: int

    def read(self, source: Source, offset: int, length: int) -> bytes:
        """Bytes of it, counted from its start."""
        return read_bytes(source, self.file, self.start + offset, length)

    def corrupt(self, what: str) -> CorruptFile:
        said = f"{self.where}: {what}: the file is damaged or cut short"
        return CorruptFile(
            f"{said}; copy or download it again, or save it again with torch.save", file=self.file
        )


def read_archive(source: Source, stretch: Stretch) -> Archive:
    """The records of a zip file, by one read of its end, and a second one where its directory is long.

    Raises:
        CorruptFile: the file is no zip file, is cut short, or is not laid out as torch lays it out.
        UnsupportedCheckpoint: torch.save wrote it before torch 1.6.
        SourceError: bytes could not be read.
    """
    tail = stretch.read(source, max(0, stretch.size - TAIL), min(TAIL, stretch.size))
    if tail[-_END.size :][:4] != b"PK\x05\x06":
        _refuse_old(stretch.read(source, 0, min(64, stretch.size)), stretch)
    first, _ = directory_place(tail, stretch)
    if first < stretch.size - len(tail):
        tail = stretch.read(source, first, stretch.size - first)
    return parse_archive(tail, stretch)


def parse_archive(tail: bytes, stretch: Stretch) -> Archive:
    """As `read_archive`, from the zip file's last bytes, at least from its directory on."""
    first, count = directory_place(tail, stretch)
    tail_start = stretch.size - len(tail)
    if first < tail_start:
        raise stretch.corrupt("its directory is longer than it can be")
    entries = _entries(tail, first - tail_start, count, stretch)
    ends = [*(header for _, header, _, _ in entries[1:]), first]
    records: dict[str, Record] = {}
    position = 0
    for (name, header, size, described), end in zip(entries, ends, strict=True):
        folder, _, inner = name.partition("/")
        if header != position or folder != entries[0][0].partition("/")[0]:
            raise stretch.corrupt(f"its record {shorten(repr(name))} is not where the one before it ends")
        if inner in records or not inner or any(part in ("", ".", "..") for part in inner.split("/")):
            raise stretch.corrupt(f"{shorten(repr(name))} is no name of a record")
        offset = _data_offset(header, len(name.encode()), size, end, described)
        if offset is None:
            raise stretch.corrupt(f"its record {shorten(repr(name))} does not fit where it lies")
        records[inner] = Record(stretch.start + offset, size)
        position = end
    return Archive(stretch.file, stretch.where, records)


def _data_offset(header: int, name: int, size: int, end: int, described: bool) -> int | None:
    """Where a record's bytes begin, between its local header and the next at ``end``; None: they cannot."""
    earliest = header + _LOCAL.size + name
    for descriptor in (16, 24) if described else (0,):
        offset = end - descriptor - size
        if offset % ALIGNMENT == 0 and earliest <= offset <= earliest + _FULL16:
            return offset
    return None


def directory_place(tail: bytes, stretch: Stretch) -> tuple[int, int]:
    """Where the central directory begins, counted from the zip file's start, and how many entries it has.

    Raises:
        CorruptFile: the end of the zip file is not what torch writes.
    """
    size = stretch.size
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise stretch.corrupt("it does not end as a zip file of torch.save ends")
    _, disk, first_disk, here, count, length, first, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    if len(tail) >= _ENDINGS and tail[-_END.size - _LOCATOR.size :][:4] == b"PK\x06\x07":
        end -= _LOCATOR.size
        _, _, place, disks = _LOCATOR.unpack(tail[-_END.size - _LOCATOR.size : -_END.size])
        end -= _END64.size
        signature, room, _, _, disk, first_disk, here, count, length, first = _END64.unpack(
            tail[-_ENDINGS : -_END.size - _LOCATOR.size]
        )
        if signature != b"PK\x06\x06" or room != _END64.size - 12 or place != end or disks != 1:
            raise stretch.corrupt("its zip64 end is wrong")
    elif _FULL16 in (here, count) or _FULL32 in (length, first):
        raise stretch.corrupt("its zip64 end is missing")
    if disk or first_disk or comment or here != count or first + length != end or length > DIRECTORY:
        raise stretch.corrupt("the end of the zip file contradicts itself")
    if not 0 < count <= length // _ENTRY.size:
        raise stretch.corrupt("its directory is empty, or shorter than it says")
    return first, count


def _entries(tail: bytes, start: int, count: int, stretch: Stretch) -> list[tuple[str, int, int, bool]]:
    """Of each record in file order: name, place of the local header, size, whether a descriptor follows."""
    entries = []
    at = start
    for _ in range(count):
        if at + _ENTRY.size > len(tail):
            raise stretch.corrupt("its directory is cut short")
        fields = _ENTRY.unpack_from(tail, at)
        signature, _, _, flags, method, _, _, _, packed, size, *lengths, disk, _, _, header = fields
        name_length, extra_length, comment_length = lengths
        at += _ENTRY.size
        name_end = at + name_length
        if signature != b"PK\x01\x02" or name_end + extra_length > len(tail) or comment_length or disk:
            raise stretch.corrupt("its directory is wrong")
        try:
            name = tail[at:name_end].decode()
        except UnicodeDecodeError:
            raise stretch.corrupt("a name in its directory is not UTF-8") from None
        if method or flags & ~_FLAGS:
            _refuse_packed(name, stretch)
        at = name_end + extra_length
        size, packed, header = _wide(tail[name_end:at], (size, packed, header), stretch)
        if size != packed:
            raise stretch.corrupt(f"its record {shorten(repr(name))} has two sizes")
        entries.append((name, header, size, bool(flags & _DESCRIBED)))
    return entries


def _wide(extra: bytes, narrow: tuple[int, int, int], stretch: Stretch) -> tuple[int, int, int]:
    """Size, packed size and place, from the zip64 field where they do not fit into 32 bits (4.5.3)."""
    at = 0
    wide = b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
        at += 4 + length
    values = []
    for value in narrow:
        if value == _FULL32:
            if len(wide) < 8:
                raise stretch.corrupt("a size beyond 4 GiB is missing from its directory")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        values.append(value)
    return values[0], values[1], values[2]


def _refuse_packed(name: str, stretch: Stretch) -> None:
    what = f"its record {shorten(repr(name))} is compressed or encrypted, which torch.save does not do"
    remedy = "load it with torch.load(..., weights_only=True) and save it again with torch.save"
    raise UnsupportedCheckpoint(f"{stretch.where}: {what}; {remedy}", file=stretch.file)


def _refuse_old(head: bytes, stretch: Stretch) -> None:
    """Raises UnsupportedCheckpoint for what torch.save wrote before it wrote zip files.

    Such a file begins with a pickle of a magic number (torch/serialization.py: MAGIC_NUMBER).
    """
    if b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." in head:
        what = "torch.save wrote it in its old form, a pickle without a zip file"
        remedy = (
            "save it anew: torch.save(torch.load(FILE, weights_only=True), FILE), with torch 1.6 or later"
        )
        raise UnsupportedCheckpoint(f"{stretch.where}: {what}; {remedy}", file=stretch.file)


def read_bytes(source: Source, file: str, offset: int, length: int) -> bytes:
    """A part of a file."""
    data = bytearray(length)
    source.read(file, offset, memoryview(data))
    return bytes(data)
