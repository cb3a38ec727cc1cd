"""Pickles are taken apart and never executed: what they hold, what is refused, and how far one may grow."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from torch_pickles import pickle_of

from hubextrap.errors import CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.tensors.torch_files import pickles
from hubextrap.tensors.torch_files.pickles import Made, Name, Persistent, read_pickle

PLAIN: list[Any] = [
    *(None, True, False, 0, 255, 256, 65_535, 65_536, -1, 2**31 - 1, 2**62, -(2**62), 0.5, "", "é" * 300),
    *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [1, 2], {}, {"a": 1}, {"a": 1, 3: [(), {}]}),
    {"layers": [("weight", {"shape": (3, 4)}), ("weight", {"shape": (3, 4)})]},
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_pickle_made_them_of(protocol: int) -> None:
    value = [*PLAIN, tuple(PLAIN)] + ([b"", b"ab", b"c" * 300] if protocol > 2 else [])
    assert read_pickle(pickle.dumps(value, protocol), "x", "x") == value
    ordered = OrderedDict([("b", 1), ("a", 2)])
    ordered.attribute = {"version": 1}  # type: ignore[attr-defined]
    assert list(read_pickle(pickle.dumps(ordered, protocol), "x", "x").items()) == [("b", 1), ("a", 2)]


def test_what_would_be_called_is_told_and_not_called() -> None:
    made = Made(Name("torch.distributed.tensor", "DTensor"), (1, "a"), {"dim": 0})
    got = read_pickle(pickle_of({"a": made, "b": Persistent(("storage", "0"))}), "x", "x")
    assert (got["a"].by, got["a"].args, got["a"].state) == (made.by, (1, "a"), {"dim": 0})
    assert str(made.by) == "torch.distributed.tensor.DTensor"
    assert got["b"].id == ("storage", "0")
    assert read_pickle(pickle_of(Made(Name("torch", "Size"), ((3, 4),))), "x", "x") == (3, 4)


class _Calls:
    """Pickled, it calls something when it is loaded."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._what = (function, args)

    def __reduce__(self) -> Any:
        return self._what


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("what", ["system", "unlink", "socket", "import", "eval", "popen", "attribute"])
def test_nothing_is_run(protocol: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious, made = tmp_path / "precious", tmp_path / "made"
    precious.touch()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile_module.py").write_text(f"open({str(made)!r}, 'w')")
    calls = {
        "system": _Calls(os.system, f"touch {made}"),
        "unlink": _Calls(os.unlink, str(precious)),
        "socket": _Calls(socket.create_connection, listening.getsockname()),
        "import": _Calls(__import__, "hostile_module"),
        "eval": _Calls(eval, f"open({str(made)!r}, 'w')"),
        "popen": _Calls(subprocess.Popen, ["touch", str(made)]),
        "attribute": _Calls(getattr, Path, "unlink"),
    }
    data = pickle.dumps({"model.weight": calls[what]}, protocol)
    with pytest.raises(HubExtrapError, match=r"at byte \d") as caught:
        read_pickle(data, "step_3/model_world_size_1_rank_0.pt", "model_world_size_1_rank_0.pt")
    assert caught.value.file == "model_world_size_1_rank_0.pt"
    if protocol >= 2:
        assert "never executed" in str(caught.value)
        assert isinstance(caught.value, UnsupportedCheckpoint)
    assert precious.exists()
    assert not made.exists()
    assert "hostile_module" not in sys.modules
    with pytest.raises(TimeoutError):
        listening.accept()
    listening.close()


def test_a_name_is_refused_with_its_place() -> None:
    with pytest.raises(
        UnsupportedCheckpoint, match=r"the name 'posix\.system' at byte 2, which no weights need"
    ):
        read_pickle(b"\x80\x02cposix\nsystem\n.", "x", "x")
    by_attribute = Made(Name("builtins", "getattr"), (Name("torch", "Size"), "__class__"))
    with pytest.raises(UnsupportedCheckpoint, match=r"the name 'torch\.Size\.__class__'"):
        read_pickle(pickle_of(by_attribute), "x", "x")


REFUSED = {
    "POP": b"N0",
    "DUP": b"N2",
    "POP_MARK": b"(1",
    "INT": b"I1\n",
    "LONG": b"L1L\n",
    "FLOAT": b"F1.0\n",
    "STRING": b"S'a'\n",
    "UNICODE": b"Va\n",
    "LIST": b"(l",
    "DICT": b"(d",
    "PUT": b"Np0\n",
    "GET": b"g0\n",
    "INST": b"(ios\nsystem\n",
    "OBJ": b"(o",
    "PERSID": b"Pa\n",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\1\0\0\0",
    "LONG4": b"\x8b\x01\0\0\0\1",
    "BINUNICODE8": b"\x8d" + bytes(8),
    "EMPTY_SET": b"\x8f",
    "NEWOBJ_EX": b"\x92",
    "FROZENSET": b"(\x91",
    "BYTEARRAY8": b"\x96" + bytes(8),
    "NEXT_BUFFER": b"\x97",
    "0xff": b"\xff",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_opcodes_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=rf"the opcode {name} at byte \d"):
        read_pickle(b"\x80\x02" + REFUSED[name] + b".", "x", "x")


BROKEN = {
    "nothing": (b"", "does not begin as one"),
    "text": (b"x" * 99, "at byte 0 it does not begin as one"),
    "only a protocol": (b"\x80\2", "it ends before"),
    "no end": (b"\x80\x02N", "it ends before"),
    "nothing left": (b"\x80\x02.", "0 values are left"),
    "two left": (b"\x80\x02NN.", "2 values are left"),
    "a mark left": (b"\x80\x02(.", "values are left"),
    "old protocol": (b"\x80\x01N.", "protocol 1"),
    "new protocol": (b"\x80\x06N.", "protocol 6"),
    "protocol again": (b"\x80\x02\x80\x02N.", "protocol 2"),
    "cut number": (b"\x80\x02J\0\0", "cut short"),
    "cut text": (b"\x80\x02X\5\0\0\0ab.", "cut short"),
    "long text": (b"\x80\x02X\xff\xff\xff\xff", "longer than any name"),
    "long bytes": (b"\x80\x03B\xff\xff\xff\x7f", "more than a checkpoint holds"),
    "no text": (b"\x80\x02X\1\0\0\0\xff.", "not UTF-8"),
    "large number": (b"\x80\x02\x8a\xff" + bytes(255) + b".", "larger than any size"),
    "endless name": (b"\x80\x02ctorch" + b"h" * 1000, "does not end"),
    "unkept": (b"\x80\x02h\5.", "was not kept"),
    "no value": (b"\x80\x02\x85.", "a value is missing"),
    "mark as a value": (b"\x80\x02(\x85.", "a value is missing"),
    "no mark": (b"\x80\x02Nt.", "a mark is missing"),
    "into no list": (b"\x80\x02)Na.", "go into a list"),
    "into no dict": (b"\x80\x02]NNs.", "go into a dict"),
    "odd pairs": (b"\x80\x02}(Nu.", "go into a dict"),
    "a list as a key": (b"\x80\x02}]Ns.", "neither a name nor a number"),
    "a tuple as a key": (b"\x80\x02})Ns.", "neither a name nor a number"),
    "a large key": (b"\x80\x02}\x8a\x08" + b"\0" * 7 + b"\x10Ns.", "neither a name nor a number"),
    "calls text": (b"\x80\x02X\1\0\0\0a)R.", "is no name"),
    "calls with a list": (b"\x80\x02ctorch\nSize\n]R.", "is no name"),
    "state of text": (b"\x80\x02X\1\0\0\0aNb.", "belongs to nothing"),
    "name of numbers": (b"\x80\x04K\1K\2\x93.", "not text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles(name: str) -> None:
    data, expected = BROKEN[name]
    with pytest.raises(CorruptFile, match=expected):
        read_pickle(data, "x", "x")


def _deep(count: int) -> dict[str, bytes]:
    return {
        "tuples": b"\x80\x02)" + b"\x85" * count + b".",
        "marks": b"\x80\x02" + b"(" * count + b"t" * count + b".",
        "lists": b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b".",
        "dicts": b"\x80\x02" + b"}K\1" * count + b"N" + b"s" * count + b".",
        "calls": b"\x80\x02" + b"ctorch\ndevice\n" * count + b")" + b"R\x85" * (count - 1) + b"R.",
        "states": b"\x80\x02" + b"ctorch\ndevice\n)R" * count + b"b" * (count - 1) + b".",
        "persistent": b"\x80\x02N" + b"Q" * count + b".",
    }


@pytest.mark.parametrize("kind", _deep(2))
def test_deep_nesting_is_refused(kind: str) -> None:
    assert read_pickle(_deep(30)[kind], "x", "x") is not None or kind == "marks"
    with pytest.raises(CorruptFile, match="nests values more than 64 deep"):
        read_pickle(_deep(10_000)[kind], "x", "x")


def test_nesting_is_counted_over_values_that_lie_in_several_places() -> None:
    kept = b"\x80\x02)" + b"\x85" * 40 + b"q\0"
    shallow_first = kept + b"h\0" + b"\x85" * 20 + b"\x86."
    assert read_pickle(shallow_first, "x", "x")
    with pytest.raises(CorruptFile, match="64 deep"):
        read_pickle(kept + b"h\0" + b"\x85" * 30 + b"\x86.", "x", "x")


def test_a_value_may_hold_itself() -> None:
    value = read_pickle(b"\x80\x02]q\0h\0a.", "x", "x")
    assert value[0] is value


def test_doubling_costs_nothing_and_growing_is_bounded() -> None:
    laughs = b"\x80\x02X\4\0\0\0haha" + b"q\0h\0h\0\x87" * 50 + b"."
    tracemalloc.start()
    began = time.perf_counter()
    assert read_pickle(laughs, "x", "x")
    assert tracemalloc.get_traced_memory()[1] < 100_000
    assert time.perf_counter() - began < 20  # some milliseconds; minutes, were its work not bounded
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["dicts", "lists", "gets", "memo", "names", "records", "growing"])
def test_memory_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MEMORY", 2_000_000)
    count = 40_000
    data = {
        "dicts": b"}" * count,
        "lists": b"]" * count,
        "gets": b"}q\0" + b"h\0" * 300_000,
        "memo": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(count)),
        "names": b"ctorch\nSize\n" * count,
        "records": b"ctorch\ndevice\nq\0" + b"h\0)R" * count,
        "growing": b"]q\0" + b"(" + b"N" * 200_000 + b"e",
    }[kind]
    for measured in (False, True):  # what is imported for an error is no part of it
        if measured:
            tracemalloc.start()
        with pytest.raises(CorruptFile, match="grows beyond 2,000,000 bytes"):
            read_pickle(b"\x80\x02" + data + b".", "x", "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000 + len(data)


def test_steps_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "OPCODES", 5)
    assert read_pickle(b"\x80\x02]Na.", "x", "x") == [None]
    with pytest.raises(CorruptFile, match="more than 5 steps"):
        read_pickle(b"\x80\x02]NaNa.", "x", "x")
    monkeypatch.setattr(pickles, "BYTES", 7)
    with pytest.raises(UnsupportedCheckpoint, match="a pickle of 8 bytes is more than the 7"):
        read_pickle(b"\x80\x02]NaNa.", "x", "x")


def test_the_package_loads_no_pickle() -> None:
    folder = Path(pickles.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text
        assert "torch.load(" not in text.replace("torch.load(...", "").replace("torch.load(FILE", "")
