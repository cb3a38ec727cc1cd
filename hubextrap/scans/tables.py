"""The tables of a scan's file: safetensors, read whole and written whole."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.claims import digest_of
from hubextrap.containment import open_regular, regular_at
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import CheckpointError, CorruptFile, ReferenceNotFound, SourceError
from hubextrap.foreign_data import shorten
from hubextrap.tensors.headers import build_header, header_end, parse_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

TABLE_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
}


def write_tables(path: Path, tables: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file beside its place and rename it there."""
    names = {dtype: name for name, dtype in TABLE_DTYPES.items()}
    header = build_header(
        [(name, names[table.dtype], table.shape) for name, table in tables.items()], metadata
    )
    content = (np.ascontiguousarray(table).tobytes() for table in tables.values())
    write_whole(path, header, *content, remedy="make room, or choose another --out")


def read_tables(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tables and the metadata of a file.

    Raises:
        ReferenceNotFound: no such file. CorruptFile: it is no complete one. SourceError: it cannot be read.
    """
    try:
        with os.fdopen(open_regular(regular_at(path)), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(8)
            header_end(content, size, str(path))  # what is no scan is not read
            content += file.read(size - len(content))
        shard = parse_header(content, len(content), str(path))
    except FileNotFoundError:
        raise ReferenceNotFound(f"{path}: no such file; make it with `hubextrap scan`", file=path) from None
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read: {error.strerror}; give a scan's file that you may read", file=path
        ) from error
    except CheckpointError as error:
        said = str(error).removeprefix(f"{path}: ").partition("; ")[0]
        raise corrupt(path, f"is not a complete scan ({said}); remove it, then scan again") from error
    tables = {}
    for info in shard.tensors:
        if (dtype := TABLE_DTYPES.get(info.dtype)) is None:
            problem = f"table {shorten(repr(info.name))} is {info.dtype}, so this is not a scan"
            raise corrupt(path, f"{problem}; make one with `hubextrap scan`")
        table = np.frombuffer(content, dtype, info.nbytes // dtype.itemsize, info.offset)
        tables[info.name] = table.reshape(info.shape)
    return tables, shard.metadata


def corrupt(path: Path, problem: str) -> CorruptFile:
    """The error about a file that cannot be a scan."""
    return CorruptFile(f"{path}: {problem}", file=path)


def tables_digest(metadata: Mapping[str, str], tables: Mapping[str, NDArray[Any]]) -> str:
    """Of all that a scan's file says, whatever the order of its tables."""
    content = hashlib.sha256(digest_of(metadata).encode())
    for name, table in sorted(tables.items()):
        content.update(f"{name}\0{table.dtype.str}{table.shape}".encode())
        content.update(np.ascontiguousarray(table).tobytes())
    return content.hexdigest()
