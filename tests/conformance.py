"""What holds of every `Source`; a new one is checked by calling it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from hubextrap.errors import HubExtrapError
from hubextrap.tensors import Source


def check_source(source: Source, files: Mapping[str, bytes]) -> None:
    """It serves ``files``, by ranges and whole, to many threads, and nothing else; it ends closed.

    Args:
        files: name to content, one of them of 1,000 bytes or more.
    """
    assert source.name
    for file, content in files.items():
        assert source.files()[file].size == len(content)
        assert source.read_file(file) == content
        for start, end in ((0, len(content)), (0, 0), (len(content), len(content)), (1, len(content) // 2)):
            if start <= end:
                assert _range(source, file, start, end - start) == content[start:end]
    file = max(files, key=lambda name: len(files[name]))
    content = files[file]
    assert len(content) >= 1000

    with ThreadPoolExecutor(8) as pool:
        places = [(place * 37 % 900, 1 + place % 100) for place in range(64)]
        read = list(pool.map(lambda place: _range(source, file, *place), places))
    assert read == [content[start : start + size] for start, size in places]

    for start, size in ((len(content) - 1, 2), (len(content) + 1, 1), (-1, 2)):
        with pytest.raises(HubExtrapError):
            _range(source, file, start, size)
    with pytest.raises(HubExtrapError):
        source.read_file(file, limit=len(content) - 1)
    for absent in ("absent", "../absent", "/etc/hostname", ""):
        with pytest.raises(HubExtrapError):
            source.read_file(absent)
        with pytest.raises(HubExtrapError):
            _range(source, absent, 0, 1)
    source.close()
    source.close()
    with pytest.raises(HubExtrapError):
        _range(source, file, 0, 1)


def _range(source: Source, file: str, offset: int, size: int) -> bytes:
    """The bytes of a range, read into the middle of a buffer whose rest must stay as it was."""
    buffer = bytearray(b"\xaa" * (size + 16))
    source.read(file, offset, memoryview(buffer)[8 : 8 + size])
    assert buffer[:8] == buffer[-8:] == b"\xaa" * 8
    return bytes(buffer[8 : 8 + size])
