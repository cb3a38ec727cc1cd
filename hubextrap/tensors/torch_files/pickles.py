"""The pickles in torch's checkpoints, taken apart without being executed.

A pickle is a program for a stack machine (Python's Lib/pickletools.py describes each opcode). This reads the
few opcodes in torch's files and makes plain data of them: what a pickle would import is a `Name`, what it
would call is a `Made`, with the arguments of the call. Nothing is imported, nothing called. All else is
refused, by its name and its place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.torch_files.allowed import ALLOWED, REFUSED_OPCODES

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES = 256 * 2**20
"""Longest pickle."""
OPCODES = 40_000_000
"""Most steps of one; a checkpoint of 1,000 tensors with 256 pieces each takes some 15 million."""
MEMORY = 2**30
"""Bytes of what a pickle may become."""
DEPTH = 64
"""Deepest nesting; torch's own go to some 20."""
TEXT = 1_000_000
"""Longest single text or run of bytes."""
_NAME = 300
"""Longest name of a module or class."""
_DIGITS = 16
"""Bytes of a whole number."""
_KEY = 2**31
"""Numbers that are keys stay below it: larger ones can be chosen so that a dict finds none of them soon."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Made:
    """What a pickle would have made by a call; two are the same only where they are one."""

    by: Name
    args: tuple[Any, ...]
    state: Any = None
    """What it would have been told of itself afterwards."""


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """What lies outside the pickle: a storage."""

    id: Any


class _Mark:
    """Where a run of values begins."""


_MARK = _Mark()
_MISSING = object()


def read_pickle(data: bytes, where: str, file: str) -> Any:
    """The value of a pickle: numbers, text, bytes, tuples, lists, dicts, `Name`, `Made`, `Persistent`.

    Args:
        where: names the pickle in messages.
        file: what the error has as its file.

    Raises:
        CorruptFile: it is cut short or no pickle, or goes beyond a bound.
        UnsupportedCheckpoint: it holds what no checkpoint of torch holds; the message names it and its place.
    """
    if len(data) > BYTES:
        what = f"a pickle of {len(data):,} bytes is more than the {BYTES:,} that are read"
        raise UnsupportedCheckpoint(f"{where}: {what}", file=file)
    return _Machine(data, where, file).run()


class _Machine:
    """The stack, the memo and the place in the pickle."""

    def __init__(self, data: bytes, where: str, file: str) -> None:
        self.data = data
        self.where = where
        self.file = file
        self.at = 0
        self.opcode_at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = MEMORY

    def run(self) -> Any:
        data, handlers = self.data, _HANDLERS
        if data[:1] != _PROTO:
            raise self.corrupt("it does not begin as one that torch writes")
        for _ in range(OPCODES):
            self.opcode_at = at = self.at
            if at >= len(data):
                raise self.corrupt("it ends before its last opcode")
            code = data[at]
            self.at = at + 1
            if code == _STOP:
                return self.result()
            handler = handlers.get(code)
            if handler is None:
                self.refuse(f"the opcode {REFUSED_OPCODES.get(code, f'0x{code:02x}')}")
            handler(self)
        raise self.corrupt(f"it takes more than {OPCODES:,} steps")

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise self.corrupt(f"{len(self.stack)} values are left at its end, in place of one")
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise self.corrupt("a mark is left at its end")
        if _is_deep(value):
            raise self.corrupt(f"it nests values more than {DEPTH} deep")
        return value

    # What handlers use.

    def corrupt(self, what: str) -> CorruptFile:
        said = f"{self.where}: its pickle cannot be read: at byte {self.opcode_at:,} {what}"
        return CorruptFile(f"{said}; copy or download the file again", file=self.file)

    def refuse(self, what: str) -> NoReturn:
        said = f"{self.where}: its pickle holds {what} at byte {self.opcode_at:,}"
        does = "which no weights need; a pickle is never executed here, and nothing that it names was run"
        remedy = "take a file from a source that you trust, and save it as safetensors there"
        raise UnsupportedCheckpoint(f"{said}, {does}; {remedy}", file=self.file)

    def spend(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise self.corrupt(f"it grows beyond {MEMORY:,} bytes")

    def push(self, value: Any, nbytes: int = 8) -> None:
        self.spend(nbytes)
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.corrupt("a value is missing")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.corrupt("a value is missing")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise self.corrupt("a mark is missing")
        mark = self.marks.pop()
        values = self.stack[mark + 1 :]
        del self.stack[mark:]
        return values

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise self.corrupt("it is cut short")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _NAME)
        if end < 0:
            raise self.corrupt("a name does not end")
        line = self.data[self.at : end]
        self.at = end + 1
        return line.decode("utf-8", "replace")

    def put(self, index: int) -> None:
        self.spend(120)
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        value = self.memo.get(index, _MISSING)
        if value is _MISSING:
            raise self.corrupt(f"value {index} is asked for, which was not kept")
        self.push(value)

    def text(self, length: int) -> None:
        if length > TEXT:
            raise self.corrupt(f"a text of {length:,} bytes is longer than any name")
        try:
            value = self.take(length).decode()
        except UnicodeDecodeError:
            raise self.corrupt("a text is not UTF-8") from None
        self.push(value, sys.getsizeof(value))

    def raw(self, length: int) -> None:
        if length > TEXT:
            raise self.corrupt(
                f"{length:,} bytes at once are more than a checkpoint holds beside its weights"
            )
        self.push(self.take(length), length + 50)

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.corrupt("a name is not text")
        if (module, name) not in ALLOWED:
            self.refuse(f"the name {shorten(repr(f'{module}.{name}'))}")
        self.push(Name(module, name), 150)

    def tuple(self, values: list[Any]) -> None:
        self.push(tuple(values), 56 + 8 * len(values))

    def store(self, target: Any, pairs: list[Any]) -> None:
        if type(target) is not dict or len(pairs) % 2:
            raise self.corrupt("keys and values do not go into a dict")
        self.spend(60 * len(pairs))
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not (type(key) in (str, Made) or (type(key) is int and 0 <= key < _KEY)):
                raise self.corrupt("a key is neither a name nor a number")
            target[key] = value

    def extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is not list:
            raise self.corrupt("values do not go into a list")
        self.spend(16 * len(values))
        target.extend(values)

    # The opcodes.

    def mark(self) -> None:
        if len(self.marks) >= DEPTH:
            raise self.corrupt(f"it nests values more than {DEPTH} deep")
        self.marks.append(len(self.stack))
        self.push(_MARK)

    def proto(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 5 or self.opcode_at:
            raise self.corrupt(f"protocol {version} is announced")

    def frame(self) -> None:
        self.take(8)  # how far a reader may read ahead

    def stack_global(self) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def global_(self) -> None:
        module = self.line()
        self.name(module, self.line())

    def long(self) -> None:
        count = self.number(1)
        if count > _DIGITS:
            raise self.corrupt(f"a number of {count} bytes is larger than any size")
        self.push(self.number(count, signed=True), 40)

    def float_(self) -> None:
        import struct

        self.push(struct.unpack(">d", self.take(8))[0], 32)

    def tuples(self, count: int) -> None:
        self.tuple([self.pop() for _ in range(count)][::-1])

    def append(self) -> None:
        value = self.pop()
        self.extend(self.top(), [value])

    def appends(self) -> None:
        values = self.since_mark()
        self.extend(self.top(), values)

    def set_item(self) -> None:
        value = self.pop()
        key = self.pop()
        self.store(self.top(), [key, value])

    def set_items(self) -> None:
        values = self.since_mark()
        self.store(self.top(), values)

    def call(self) -> None:
        """REDUCE and NEWOBJ: what would be called, and with what."""
        args, by = self.pop(), self.pop()
        if type(by) is not Name or type(args) is not tuple:
            raise self.corrupt("what is called is no name")
        if by.name == "getattr":
            owner, name = args if len(args) == 2 else (None, None)
            if type(owner) is not Name or type(name) is not str:
                raise self.corrupt("what is called is no name")
            self.name(owner.module, f"{owner.name}.{name}")
        elif by.name == "OrderedDict" and not args:
            self.push({}, 64)
        elif by.name == "Size" and len(args) == 1 and type(args[0]) is tuple:
            self.push(args[0])
        else:
            self.push(Made(by, args), 120)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is dict:
            return  # attributes of an OrderedDict: versions of the modules
        if type(target) is not Made or target.state is not None:
            raise self.corrupt("a state belongs to nothing")
        target.state = state

    def persistent(self) -> None:
        self.push(Persistent(self.pop()), 60)


def _is_deep(root: Any) -> bool:
    """Whether values nest more than ``DEPTH`` deep; each is looked at once."""
    heights: dict[int, int] = {}
    path: list[tuple[Any, list[Any], int]] = [(root, _inside(root), 0)]
    while path:
        value, rest, height = path.pop()
        while rest:
            inner = rest.pop()
            if type(inner) not in _NESTING:
                continue
            known = heights.get(id(inner))
            if known is None:
                heights[id(value)] = 0  # met again below, it holds itself: a mesh does, through its parts
                rest.append(inner)
                path += [(value, rest, height), (inner, _inside(inner), 0)]
                break
            height = max(height, known + 1)
            if len(path) + height > DEPTH:
                return True
        else:
            heights[id(value)] = height
        if len(path) > DEPTH:
            return True
    return False


_NESTING = frozenset((tuple, list, dict, Made, Persistent))


def _inside(value: Any) -> list[Any]:
    if type(value) is dict:
        return [*value, *value.values()]
    if type(value) is Made:
        return [value.args, value.state]
    if type(value) is Persistent:
        return [value.id]
    return list(value) if type(value) in (tuple, list) else []


_PROTO, _STOP = b"\x80", ord(".")
_HANDLERS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.proto,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2), 40),
    ord("J"): lambda m: m.push(m.number(4, signed=True), 40),
    0x8A: _Machine.long,
    ord("G"): _Machine.float_,
    ord("X"): lambda m: m.text(m.number(4)),
    0x8C: lambda m: m.text(m.number(1)),
    ord("B"): lambda m: m.raw(m.number(4)),
    ord("C"): lambda m: m.raw(m.number(1)),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuples(1),
    0x86: lambda m: m.tuples(2),
    0x87: lambda m: m.tuples(3),
    ord("t"): lambda m: m.tuple(m.since_mark()),
    ord("]"): lambda m: m.push([], 72),
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord("}"): lambda m: m.push({}, 72),
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
    ord("c"): _Machine.global_,
    0x93: _Machine.stack_global,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
"""What is done for each opcode that torch's files hold."""
