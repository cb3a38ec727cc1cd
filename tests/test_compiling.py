"""What numba compiled is kept on disk where it can be; whatever is wrong there costs a compilation only."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import py_compile
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubextrap.compiling import MachineCode, announced

ROOT = Path(__file__).parent.parent
LOOPS = """
from hubextrap.engine.casts import load, store
import numpy as np

def add(numbers, count, total):
    found = 0
    for i in range(count):
        found += load(numbers, i, np.int64(0))
    store(total, 0, found)
"""
ARRAYS = """
from hubextrap.compiling import compiled

@compiled
def total(numbers):
    found = 0
    for number in numbers:
        found += number
    return found
"""


class Told(list[str]):
    """A `Listener` that remembers."""

    say = list.append


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a module of each kind of loops; nobody has a home."""
    name = f"loops_of_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "loops.py").write_text(LOOPS)
    (folder / "arrays.py").write_text(ARRAYS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    for variable in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def machine_code(package: str) -> list[str]:
    """Use the machine code as a new process does; what was told."""
    add, told, total = MachineCode(package, ("loops",), "add"), Told(), np.zeros(1, np.int64)
    numbers = np.arange(1000)
    with announced(told):
        for _ in range(2):
            add(numbers.ctypes.data, len(numbers), total.ctypes.data)
            assert total[0] == 499500
    return told


def arrays(package: str) -> list[str]:
    """Likewise with numba's njit."""
    sys.modules.pop(f"{package}.arrays", None)
    total, told = importlib.import_module(f"{package}.arrays").total, Told()
    with announced(told):
        for _ in range(2):
            assert total(np.arange(1000)) == 499500
    return told


KINDS = pytest.mark.parametrize("use", [machine_code, arrays])
Use = Callable[[str], list[str]]
SAID = ["compiling the loops, once for this machine and version: some seconds …"]
AGAIN = [
    (
        "the next command compiles them again, because no folder to keep them in can be written; set "
        "NUMBA_CACHE_DIR to one that can"
    )
]


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".o", ".nbi", ".nbc"))


@KINDS
def test_it_is_compiled_once_and_told_once(package: str, use: Use, tmp_path: Path) -> None:
    assert use(package) == SAID
    assert {path.parent for path in kept(tmp_path)} == {tmp_path / package / "__pycache__"}
    assert use(package) == []


@KINDS
def test_a_changed_source_is_compiled_anew(package: str, use: Use, tmp_path: Path) -> None:
    use(package)
    for module in ("loops", "arrays"):
        path = tmp_path / package / f"{module}.py"
        path.write_text(path.read_text() + "\n# changed\n")
    assert use(package) == SAID


def test_another_setting_of_numbas_is_another_machine(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_code(package)
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert machine_code(package) == SAID


def in_the_way(folder: Path) -> None:
    """A file where a folder has to be: root writes to any folder."""
    folder.write_text("")


@KINDS
def test_a_package_that_cannot_be_written(
    package: str, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way(tmp_path / package / "__pycache__")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert use(package) == SAID
    assert len(kept(tmp_path / "own")) >= 1
    assert use(package) == []


@KINDS
def test_nothing_can_be_written(package: str, use: Use, tmp_path: Path) -> None:
    in_the_way(tmp_path / package / "__pycache__")
    assert use(package) == SAID + AGAIN
    assert use(package) == SAID + AGAIN, "and compiled for each process"
    assert kept(tmp_path) == []


def test_nothing_is_left_where_the_command_runs(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way(tmp_path / package / "__pycache__")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert machine_code(package) == SAID + AGAIN
    assert not (tmp_path / "here").exists()


@KINDS
def test_a_disk_that_is_full(package: str, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # Python leaves it cut short, and then cannot load it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert use(package) == SAID + AGAIN
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [path for path in (tmp_path / package / "__pycache__").iterdir() if path.suffix != ".pyc"]
    assert all(path.suffix == ".nbi" for path in left), "nothing is left behind that is not whole"
    assert use(package) == SAID
    assert use(package) == []


def test_what_ends_the_writing_leaves_nothing(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine_code(package)
    left = [path for path in (tmp_path / package / "__pycache__").iterdir() if path.suffix != ".pyc"]
    assert left == []


@pytest.mark.slow
@KINDS
def test_numba_is_told_to_compile_nothing(
    package: str, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loops have no other form."""
    program = f"import test_compiling as t; print(t.{use.__name__}({package!r}))"
    search = os.pathsep.join(map(str, (ROOT, Path(__file__).parent, tmp_path)))
    environment = os.environ | {"PYTHONPATH": search, "NUMBA_DISABLE_JIT": "1"}
    for said in (SAID, []):
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
        )
        assert (result.stdout, result.returncode) == (f"{said}\n", 0), result.stderr


def test_a_package_without_its_sources(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bytecode is installed, and numba came without its metadata, as in a program of one file."""
    folder = tmp_path / package
    for module in ("__init__", "loops"):
        py_compile.compile(str(folder / f"{module}.py"), str(folder / f"{module}.pyc"))
        (folder / f"{module}.py").unlink()

    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    assert machine_code(package) == SAID
    assert machine_code(package) == []


@KINDS
def test_who_has_heard_it_is_not_told_again(package: str, use: Use, tmp_path: Path) -> None:
    """A merge that is fitted scans first; either compiles."""
    told = Told()
    with announced(told):
        use(package)
    for path in kept(tmp_path):
        path.unlink()
    with announced(told):
        assert use(package) == SAID, "and others are"
    assert told == SAID


def damages() -> dict[str, Callable[[bytes], bytes]]:
    return {
        "empty": lambda content: b"",
        "cut short": lambda content: content[: len(content) // 2],
        "another": lambda content: b"what no cache holds",
        "its end zero": lambda content: content[:-500] + bytes(500),
        "one bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("use", "which"), [(machine_code, ".o"), (arrays, ".nbi"), (arrays, ".nbc")])
@pytest.mark.parametrize("how", damages())
def test_a_damaged_file(package: str, use: Use, tmp_path: Path, how: str, which: str) -> None:
    use(package)
    (path,) = (path for path in kept(tmp_path) if path.suffix == which)
    path.write_bytes(damages()[how](path.read_bytes()))
    if which != ".nbi" or how in ("empty", "cut short", "another"):
        assert use(package) == SAID
    else:
        use(package)  # an index says where the data are, no more
    assert use(package) == []


def something_else() -> dict[str, Callable[[Path], object]]:
    return {
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "endless": lambda path: path.symlink_to("/dev/zero"),
        "link that leads nowhere": lambda path: path.symlink_to("nowhere"),
        "link in a circle": lambda path: path.symlink_to(path.name),
        "not for us": lambda path: path.touch(0),
        "too long": lambda path: (path.touch(), os.truncate(path, 2**40)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("use", "which"), [(machine_code, ".o"), (arrays, ".nbi"), (arrays, ".nbc")])
@pytest.mark.parametrize("what", something_else())
def test_something_else_lies_there(package: str, use: Use, tmp_path: Path, what: str, which: str) -> None:
    use(package)
    (path,) = (path for path in kept(tmp_path) if path.suffix == which)
    path.unlink()
    something_else()[what](path)
    replaced = what != "folder"
    assert use(package) == SAID + AGAIN * (not replaced)
    assert use(package) == ([] if replaced else SAID + AGAIN)


@pytest.mark.slow
def test_a_fork_uses_what_was_loaded(package: str) -> None:
    """While another thread does."""
    add, numbers, stop = MachineCode(package, ("loops",), "add"), np.arange(1000), threading.Event()

    def total() -> int:
        found = np.zeros(1, np.int64)
        add(numbers.ctypes.data, len(numbers), found.ctypes.data)
        return int(found[0])

    def work() -> None:
        while not stop.is_set():
            total()

    assert total() == 499500
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            if (pid := os.fork()) == 0:
                os._exit(0 if total() == 499500 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
@KINDS
def test_two_at_once(package: str, use: Use) -> None:
    """Two processes, which both find nothing."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import test_compiling as t; "
        "print(getattr(t, sys.argv[3])(sys.argv[4]))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), sys.path[0], use.__name__, package]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    two = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in two:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert use(package) == []


def test_two_threads_compile_once(package: str) -> None:
    add, told, totals = MachineCode(package, ("loops",), "add"), Told(), np.zeros(4, np.int64)
    numbers = np.arange(10)

    def work(i: int) -> None:
        add(numbers.ctypes.data, len(numbers), totals[i:].ctypes.data)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    with announced(told):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert totals.tolist() == [45] * 4
    assert told == SAID


def test_loops_that_were_compiled_need_no_numba() -> None:
    """Nor torch, nor a look at the disk before they are called."""
    program = (
        "import sys\n"
        "import numpy as np\n"
        "import hubextrap.engine.kernels as kernels\n"
        "opened = [name for name in sys.modules if name.split('.')[0] in ('numba', 'llvmlite', 'torch')]\n"
        "assert not opened, opened\n"
        "if sys.argv[1:]: sys.modules['numba'] = None\n"
        "data = np.array([1, 0x7F80, 0xFFC0], np.uint16).view(np.uint8)\n"
        "assert kernels.count_non_finite(data, 'BF16') == 2\n"
    )
    for arguments in ([], ["without"]):
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=ROOT, timeout=120)


@pytest.mark.slow
def test_machine_code_calls_nothing_but_c() -> None:
    """As what numba's own library offers is not there when it is loaded."""
    from numba import njit, types

    from hubextrap.engine import loops

    for name in ("combine_in_float32", "combine_in_float64", "count_non_finite", "compare", "widen"):
        function = getattr(loops, name)
        made: Any = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")(function)
        made.compile(types.void(*[types.int64] * function.__code__.co_argcount))
        text = made.inspect_llvm(made.signatures[0])
        called = {
            line.split("@")[1].split("(")[0] for line in text.splitlines() if line.startswith("declare")
        }
        assert {name for name in called if not name.startswith("llvm.")} <= {"fma", "fmaf"}


@pytest.mark.slow
def test_whose_processor_has_no_fused_operation_gets_the_same_bits() -> None:
    """C's is called for it."""
    program = (
        "import numpy as np\n"
        "from hubextrap.engine.kernels import Combiner\n"
        "from hubextrap.engine.units import Combination\n"
        "random = np.random.default_rng(5)\n"
        "inputs = [random.normal(size=5001).astype(np.float32).view(np.uint8) for _ in range(5)]\n"
        "for dtype, size in ('F32', 4), ('BF16', 2), ('F8_E4M3', 1):\n"
        "    made = [np.zeros(5001 * size, np.uint8) for _ in range(2)]\n"
        "    used = [Combination('sum', (0, 1, 2, 3, 4), (.3, -.6, .1, -.4, 1.6))]\n"
        "    used.append(Combination('line', (0, 4), (-.4, 1.4)))\n"
        "    Combiner(2).combine(inputs, ['F32'] * 5, used, made, dtype)\n"
        "    print(*(one.tobytes().hex() for one in made))\n"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | machine,
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for machine in ({}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""})
    }
    assert len(results) == 1
