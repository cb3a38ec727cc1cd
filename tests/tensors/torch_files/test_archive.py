"""Zip files of torch.save: where each record's bytes lie, and what a directory that lies may not do."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import pytest
from torch_pickles import HeldFiles, records_in, zip_of

from hubextrap.errors import CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.tensors.torch_files import archive
from hubextrap.tensors.torch_files.archive import Archive, Stretch, read_archive

FILE = "x.pt"


def read(data: bytes, start: int = 0, size: int | None = None) -> Archive:
    source = HeldFiles({FILE: data})
    return read_archive(source, Stretch(FILE, f"run/{FILE}", start, len(data) if size is None else size))


def saved(count: int = 3, **options: Any) -> bytes:
    import torch

    held = io.BytesIO()
    torch.save({str(i): torch.full((i + 1, 7), float(i)) for i in range(count)}, held, **options)
    return held.getvalue()


def check(data: bytes) -> None:
    """Each record lies where Python's zipfile finds it, which reads the local headers."""
    found = read(data)
    for name, wanted in records_in(data).items():
        record = found.record(name)
        assert data[record.offset : record.offset + record.size] == wanted, name


@pytest.mark.parametrize("count", [1, 3, 40])
def test_records_lie_where_the_local_headers_say(count: int) -> None:
    check(saved(count))


def test_the_test_s_own_zip_files_are_as_torch_s() -> None:
    import torch

    records = records_in(saved())
    data = zip_of(records)
    check(data)
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert loaded["2"].tolist() == [[2.0] * 7] * 3


def test_a_zip_file_in_a_stretch_of_a_file() -> None:
    inner = saved()
    found = read(b"\xff" * 1001 + inner + b"\xee" * 77, 1001, len(inner))
    record = found.record("data/1")
    assert record.offset == read(inner).record("data/1").offset + 1001


def test_a_long_directory_takes_a_second_read() -> None:
    data = saved(1200)
    source = HeldFiles({FILE: data})
    found = read_archive(source, Stretch(FILE, FILE, 0, len(data)))
    assert source.reads[0][2] == archive.TAIL
    assert len(source.reads) == 2
    assert len(found.records) > 1200
    check(data)


def test_another_alignment_of_torch_s() -> None:
    config = pytest.importorskip("torch.utils.serialization.config")
    before = config.save.storage_alignment
    config.save.storage_alignment = 4096
    try:
        data = saved()
    finally:
        config.save.storage_alignment = before
    assert read(data).record("data/1").offset % 4096 == 0
    check(data)


def test_records_beyond_4_gib(tmp_path: Any) -> None:
    """A sparse file: sizes and places in zip64 fields, and a data descriptor of 24 bytes."""
    import torch
    from torch.serialization import skip_data

    file = tmp_path / FILE
    with skip_data():
        torch.save({"a": torch.empty(2**32 + 5, dtype=torch.uint8), "b": torch.empty(3)}, file)
    size = file.stat().st_size
    assert size > 2**32

    class Sparse(HeldFiles):
        def read(self, name: str, offset: int, buffer: memoryview) -> None:
            with file.open("rb") as opened:
                opened.seek(offset)
                buffer[:] = opened.read(len(buffer))

    found = read_archive(Sparse({}), Stretch(FILE, FILE, 0, size))
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            opened.fp.seek(info.header_offset + 26)  # type: ignore[union-attr]
            name, extra = struct.unpack("<2H", opened.fp.read(4))  # type: ignore[union-attr]
            record = found.record(info.filename.partition("/")[2])
            assert (record.offset, record.size) == (info.header_offset + 30 + name + extra, info.file_size)


def _zip(**options: Any) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", options.get("method", zipfile.ZIP_STORED)) as opened:
        for name in options.get("names", ("a/data.pkl", "a/data/0")):
            opened.writestr(name, bytes(200))
    return held.getvalue()


def _patched(at: bytes, skip: int, new: bytes, which: int = -1) -> bytes:
    """A file of torch.save, some bytes behind a signature changed."""
    data = bytearray(saved())
    place = data.rindex(at) if which < 0 else [i for i in range(len(data)) if data[i : i + 4] == at][which]
    data[place + skip : place + skip + len(new)] = new
    return bytes(data)


ENTRY, END, END64, LOCATOR = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
LIES = {
    "nothing": (b"", "does not end as"),
    "short": (b"PK", "does not end as"),
    "a header": (saved()[:500], "does not end as"),
    "cut": (saved()[:-1], "does not end as"),
    "longer": (saved() + b"\0", "does not end as"),
    "before": (b"\0" + saved(), "zip64 end is wrong"),
    "compressed": (_zip(method=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "of another program": (_zip(), "does not fit where it lies"),
    "encrypted": (_patched(ENTRY, 8, b"\x09\x08"), "is compressed or encrypted"),
    "method": (_patched(ENTRY, 10, b"\x08"), "is compressed or encrypted"),
    "two sizes": (_patched(ENTRY, 20, b"\x01\x01"), "two sizes"),
    "larger": (_patched(ENTRY, 20, b"\xff\xff\0\0\xff\xff\0\0"), "does not fit where it lies"),
    "smaller": (_patched(ENTRY, 20, b"\1\0\0\0\1\0\0\0", 4), "does not fit where it lies"),
    "smaller by 64": (_patched(ENTRY, 20, bytes(8), 6), "does not fit where it lies|two sizes"),
    "vast": (_patched(ENTRY, 20, b"\xff" * 8), "beyond 4 GiB is missing"),
    "overlap": (_patched(ENTRY, 42, bytes(4)), "does not fit where it lies"),
    "elsewhere": (_patched(ENTRY, 42, b"\xf0\xff\xff\x7f"), "does not fit where it lies"),
    "overlap of two": (_patched(ENTRY, 42, bytes(4), 3), "does not fit|is not where the one before it ends"),
    "other disk": (_patched(ENTRY, 34, b"\1"), "directory is wrong"),
    "comment": (_patched(ENTRY, 32, b"\1"), "directory is wrong"),
    "no entry": (_patched(ENTRY, 0, b"PK\1\3"), "directory is wrong"),
    "long name": (_patched(ENTRY, 28, b"\xff\xff"), "directory is wrong"),
    "not UTF-8": (_patched(ENTRY, 46, b"\xff\xff"), "not UTF-8"),
    "another folder": (_patched(ENTRY, 46, b"zz"), "is not where"),
    "fewer": (_patched(END64, 24, b"\1" + bytes(7) + b"\1"), "is not where|does not fit"),
    "more": (_patched(END64, 24, b"\x7f" + bytes(7) + b"\x7f"), "empty, or shorter|cut short|is wrong"),
    "none": (_patched(END64, 24, bytes(16)), "directory is empty"),
    "millions": (_patched(END64, 24, (b"\xff" * 7 + b"\0") * 2), "directory is empty, or shorter"),
    "a directory elsewhere": (_patched(END64, 48, b"\1"), "contradicts itself"),
    "a vast directory": (_patched(END64, 40, b"\xff" * 7), "contradicts itself"),
    "end64 elsewhere": (_patched(LOCATOR, 8, b"\1"), "zip64 end is wrong"),
    "no end64": (_patched(END64, 0, b"PK\1\1"), "zip64 end is wrong"),
    "disks": (_patched(LOCATOR, 16, b"\2"), "zip64 end is wrong"),
    "a comment": (_patched(END, 20, b"\1"), "contradicts itself"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_contradicts_itself_is_refused(name: str) -> None:
    data, expected = LIES[name]
    with pytest.raises(HubExtrapError, match=expected) as caught:
        read(data)
    assert caught.value.file == FILE
    assert isinstance(caught.value, (CorruptFile, UnsupportedCheckpoint))


@pytest.mark.parametrize("name", ["../data", "data/../../x", "data//0", "./data", ""])
def test_names_stay_inside(name: str) -> None:
    with pytest.raises(CorruptFile, match="is no name of a record"):
        read(zip_of({"data.pkl": b"", name: b""}))
