"""Not tests: damage of every kind to a file, by a seed. Bytes, JSON, and safetensors files with tables."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hubextrap.tensors import build_header

NUMBERS: list[Any] = [-1, 0, 1, 2, 7, 2**31, 2**53 + 1, 2**63, 10**30, 0.5, -0.5, 1e308, -1e308, 1e400]
JUNK: list[Any] = [
    *NUMBERS,
    float("nan"),
    None,
    True,
    False,
    "",
    "x" * 3000,
    "1",
    "\ud800",
    "a\nb",
    "\x1b[31m",
    "../../x",
    "/etc/passwd",
    [],
    [0],
    [[]],
    {},
    {"a": 1},
]
DEEP = "[" * 40_000 + "]" * 40_000
ARRAYS = ("nan", "inf", "negative", "asymmetric", "huge", "flipped", "zeroed", "swapped", "cut", "longer")
"""What is done to a table."""


def damaged_json(dice: random.Random, text: bytes) -> bytes:
    """JSON with one change: another type, a key or an item gone, added or there twice, a deep nest."""
    kind = dice.random()
    if kind < 0.04:
        return text.replace(b"{", b'{"a": ' + DEEP.encode() + b", ", 1)
    if kind < 0.12:
        content = json.loads(text)
        key = dice.choice(sorted(content))
        again = json.dumps({key: dice.choice(JUNK)})[1:-1].encode()
        where = text.find(b"{") + 1 if dice.random() < 0.5 else text.rfind(b"}")
        return text[:where] + (again + b"," if text[where:].strip() != b"}" else b"," + again) + text[where:]
    return json.dumps(damaged(dice, json.loads(text))).encode() + b"\n"


def damaged(dice: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which one node is another."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        result, key = dict(value), dice.choice(sorted(value))
        kind = dice.random()
        if kind < 0.75:
            result[key] = damaged(dice, value[key])
        elif kind < 0.85:
            del result[key]
        elif kind < 0.93:
            result[dice.choice(["x", "", "9" * 50, "-1", "a\nb"])] = result.pop(key)
        else:
            result[key] = value[dice.choice(sorted(value))]
        return result
    if isinstance(value, list) and value and dice.random() < 0.9:
        items, place = list(value), dice.randrange(len(value))
        kind = dice.random()
        if kind < 0.7:
            items[place] = damaged(dice, items[place])
        elif kind < 0.8:
            del items[place]
        elif kind < 0.9:
            items.insert(place, items[place])
        else:
            dice.shuffle(items)
        return items
    if isinstance(value, str) and len(value) > 1 and dice.random() < 0.6:
        place = dice.randrange(len(value))
        return value[:place] + dice.choice("0f/.*\n\x07 é") + value[place + 1 :]
    if type(value) in (int, float) and dice.random() < 0.6:
        return value + dice.choice([-2, -1, 1, 1e-9, 1e-3]) if dice.random() < 0.6 else -value
    return dice.choice(JUNK)


def damaged_bytes(dice: random.Random, data: bytes) -> bytes:
    """A bit flipped, or a few bytes changed, added, taken away or cut off."""
    result, place = bytearray(data), dice.randrange(max(1, len(data)))
    kind = dice.random()
    if kind < 0.5:
        result[place] ^= 1 << dice.randrange(8)
    elif kind < 0.6:
        result[place] = dice.randrange(256)
    elif kind < 0.7:
        result[place:place] = dice.randbytes(dice.randint(1, 9))
    elif kind < 0.8:
        del result[place : place + dice.randint(1, 9)]
    elif kind < 0.9:
        del result[place:]
    else:
        result += dice.randbytes(dice.randint(1, 9))
    return bytes(result)


def tables_of(data: bytes) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The tables of a safetensors file in memory, and its metadata."""
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    metadata = header.pop("__metadata__", {})
    kinds = {"I64": "<i8", "F64": "<f8", "F32": "<f4"}
    tables = {}
    for name, entry in header.items():
        first, last = (length + offset for offset in entry["data_offsets"])
        tables[name] = np.frombuffer(data[first:last], kinds[entry["dtype"]]).reshape(entry["shape"]).copy()
    return tables, metadata


def file_of(tables: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> bytes:
    """The file of these tables."""
    kinds = {"int64": "I64", "float64": "F64", "float32": "F32"}
    entries = [(name, kinds[table.dtype.name], table.shape) for name, table in tables.items()]
    return build_header(entries, metadata) + b"".join(table.tobytes() for table in tables.values())


def damaged_tables(
    dice: random.Random, data: bytes, digest: Callable[[dict[str, str], dict[str, Any]], dict[str, str]]
) -> bytes:
    """One table of a scan, or one field of its JSON, is another; ``digest`` makes the metadata fit."""
    tables, metadata = tables_of(data)
    if dice.random() < 0.4:
        metadata["scan"] = damaged_json(dice, metadata["scan"].encode()).decode()
        return file_of(tables, digest(metadata, tables))
    name = dice.choice(sorted(tables))
    table, kind = tables[name], dice.choice(ARRAYS)
    place = dice.randrange(max(1, table.size))
    flat = table.reshape(-1)
    real = table.dtype.kind == "f"
    if kind in ("nan", "inf") and real:
        flat[place] = np.nan if kind == "nan" else dice.choice([np.inf, -np.inf])
    elif kind == "negative":
        flat[place] = -1 - abs(flat[place]) if real else -dice.randint(1, 2**62)
    elif kind == "huge":
        flat[place] = (1e300 if table.itemsize == 8 else 3e38) if real else 2**62
    elif kind == "asymmetric":
        flat[place] = flat[place] // 2 + 1
    elif kind == "flipped":
        bits = table.view(np.uint8).reshape(-1)
        bits[dice.randrange(max(1, bits.size))] ^= 1 << dice.randrange(8)
    elif kind == "zeroed":
        table[...] = 0
    elif kind == "swapped":
        table[...] = table[::-1].copy()
    elif kind == "cut":
        tables[name] = table[:-1]
    else:
        tables[name] = np.concatenate([table, table[:1]])
    return file_of(tables, digest(metadata, tables))


def mutations(seed: int, count: int, *kinds: Callable[[random.Random], bytes]) -> Iterator[bytes]:
    """``count`` damaged files, the kinds in turn."""
    dice = random.Random(seed)
    for number in range(count):
        yield kinds[number % len(kinds)](dice)
