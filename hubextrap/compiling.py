"""Loops that numba compiles, once for a machine and a version: what it made is kept on disk if it can be.

`MachineCode` is for loops that every merge needs: its second run takes the machine code off the disk, and
imports neither numba nor the Python that it was made from, which would take a third of a second.
`compiled` is numba's njit, for loops that take arrays.

Whatever is wrong with what is kept, a folder that cannot be written, a full disk, a damaged file, costs a
compilation and nothing else: no command fails for it. Importing a module with loops neither compiles nor
looks for them.
"""

from __future__ import annotations

import ctypes
import os
import pickle
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from hubextrap._version import __version__
from hubextrap.containment import read_named, regular_at
from hubextrap.digests import sha256_hex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Listener(Protocol):
    """Whom to tell: `hubextrap.progress.Progress` is one."""

    def say(self, line: str) -> None:
        """Tell the user one fact, as a line."""


_LONGEST = 2**24
"""Bytes of machine code that are read; a function has a few dozen thousand."""

_listeners: list[Listener] = []
_told: list[Listener] = []
"""Who has heard it: a command that scans and then merges compiles twice."""
_one_at_a_time = Lock()
_engines: list[Any] = []
"""What owns the machine code that was loaded."""
_results = ctypes.create_string_buffer(8)
_UNUSED = ctypes.addressof(_results)
"""Where a function that numba compiled leaves its result, nothing, and its exception, none."""


@contextmanager
def announced(progress: Listener) -> Iterator[None]:
    """Inside it, the first compilation is told, as it takes seconds; what is on disk is not."""
    if not any(progress is one for one in _told):
        _listeners.append(progress)
    try:
        yield
    finally:
        if progress in _listeners:
            _listeners.remove(progress)


def _announce() -> list[Listener]:
    """Tell those who have not been told; who they were."""
    told = []
    while _listeners:
        _told.append(listener := _listeners.pop())
        told.append(listener)
        listener.say("compiling the loops, once for this machine and version: some seconds …")
    return told


def _complain(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.say(
            "the next command compiles them again, because no folder to keep them in can be written; set "
            "NUMBA_CACHE_DIR to one that can"
        )


class MachineCode:
    """A function of a module of loops. It takes whole numbers, addresses among them, and returns nothing.

    It is loaded, or else compiled, when it is first called, and does not hold the GIL.

    Args:
        package: where the modules are.
        modules: the one of the function, then those of ours that it is made with.
        name: of the function, which is a plain one that only calls what numba compiles.
    """

    def __init__(self, package: str, modules: Sequence[str], name: str) -> None:
        self._package, self._modules, self._name = package, modules, name
        self._call: Callable[..., Any] | None = None

    def __call__(self, *arguments: int) -> None:
        if self._call is None:
            with _one_at_a_time:
                self._call = self._call or self._ready(len(arguments))
        self._call(_UNUSED, _UNUSED, *arguments)

    def _ready(self, count: int) -> Callable[..., Any]:
        file = f"{self._name}-{self._key()}.o"
        places = [folder / file for folder in self._folders()]
        stored = _stored(places)
        if stored is None:
            told = _announce()
            stored = self._compiled()
            if not _keep(places, stored):
                _complain(told)
        symbol, machine_code = stored.split(b"\n", 1)
        kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * count)
        return kind(_loaded(symbol.decode(), machine_code))

    def _folders(self) -> list[Path]:
        """Where machine code may lie, in the order of preference, which is numba's."""
        if chosen := os.environ.get("NUMBA_CACHE_DIR"):
            return [Path(chosen)]
        folders = [Path(folder) / "__pycache__" for folder in import_module(self._package).__path__]
        with suppress(RuntimeError):  # there is no home
            folders.append(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hubextrap")
        return [folder for folder in folders if folder.is_absolute()]  # others are not for XDG_CACHE_HOME

    def _key(self) -> str:
        """What the machine code depends on."""
        import llvmlite.binding as llvm  # type: ignore[import-untyped]

        sources = [_source(self._package, module) for module in self._modules]
        settings = sorted(
            f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_")
        )
        machine = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        versions = _version("numba"), _version("llvmlite"), __version__
        return sha256_hex(b"\0".join(sources) + repr((settings, machine, versions)).encode())[:24]

    def _compiled(self) -> bytes:
        """The symbol's name, a line, and the object file."""
        with _never_as_python():
            from numba import njit, types

            function = getattr(import_module(f"{self._package}.{self._modules[0]}"), self._name)
            numbers = [types.int64] * function.__code__.co_argcount
            alone: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
            made: Any = njit(error_model="numpy", **alone)(function)
            made.compile(types.void(*numbers))
        result = made.overloads[tuple(numbers)]
        _, _, (machine_code, _) = result.library.serialize_using_object_code()
        symbol: str = result.fndesc.llvm_func_name
        return symbol.encode() + b"\n" + bytes(machine_code)


@contextmanager
def _never_as_python() -> Iterator[None]:
    """Have numba compile, NUMBA_DISABLE_JIT or not: what the loops are made of is the compiler's own."""
    from numba import config

    before, config.DISABLE_JIT = config.DISABLE_JIT, 0  # type: ignore[attr-defined]
    try:
        yield
    finally:
        config.DISABLE_JIT = before  # type: ignore[attr-defined]


def _loaded(symbol: str, machine_code: bytes) -> int:
    """The address of a function in an object file."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(symbol))


def _stored(places: Sequence[Path]) -> bytes | None:
    for place in places:
        with suppress(OSError):
            content = read_named(place, _LONGEST, pipes=False)
            if sha256_hex(content[64:]).encode() == content[:64]:
                return content[64:]
    return None


def _keep(places: Sequence[Path], content: bytes) -> bool:
    """Store it at the first place that takes it, whole or not at all; whether there is one."""
    for place in places:
        beside = place.with_suffix(f".{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(sha256_hex(content).encode() + content)
            beside.replace(place)
        except BaseException as error:
            with suppress(OSError):
                beside.unlink()
            if not isinstance(error, OSError):
                raise
        else:
            return True
    return False


def compiled(function: Any = None, **options: Any) -> Any:
    """numba's njit of a function, which gives up the GIL; looked up, or compiled, when it is first called.

    Args:
        options: more of njit's.
    """
    if function is None:
        return partial(compiled, **options)
    with _never_as_python():
        from numba import njit

        made = njit(nogil=True, **options)(function)
    compile_it = made.compile

    def compile_anyway(signature: Any) -> Any:
        with _never_as_python():
            return compile_it(signature)

    made.compile = compile_anyway
    made._cache = _Cache(function)
    return made


def inlined(typed: Any) -> Any:
    """numba's intrinsic, which is called with other arguments than ``typed`` has; mypy need not know them.

    Args:
        typed: of the types of the arguments, gives the signature, ``result(*arguments)``, and what builds the
            instructions of a call.
    """
    from numba.extending import intrinsic

    return intrinsic(typed)


def _source(package: str, module: str) -> bytes:
    """The text of a module, or nothing where only its bytecode is installed."""
    from pkgutil import get_data

    with suppress(OSError):
        return get_data(package, f"{module}.py") or b""
    return b""


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # it came without its metadata, as programs that are packed into one file do
        return str(import_module(package).__version__)


class _Cache:
    """numba's cache of a function, behind its own interface: made when needed, and failing in silence."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._numbas: Any = None
        self._told: list[Listener] = []

    def load_overload(self, signature: Any, context: Any) -> Any:
        _, found = self._attempt("load_overload", signature, context)
        if found is None:
            self._told = _announce()
        return found

    def save_overload(self, signature: Any, made: Any) -> None:
        done, _ = self._attempt("save_overload", signature, made)
        if not done:
            _complain(self._told)

    def _attempt(self, what: str, *arguments: Any) -> tuple[bool, Any]:
        """Call it: whether it went well, and what it gave.

        If it fails, the index is cleared, as one that cannot be read is in the way of a new one.
        """
        with suppress(Exception):
            self._numbas = self._numbas or self._found()
            return True, getattr(self._numbas, what)(*arguments)
        with suppress(Exception):
            self._numbas.flush()
        return False, None

    def _found(self) -> Any:
        """It, with a sum behind the data: machine code that is not what was written must not run."""
        from numba.core import caching

        library: Any = caching
        cache = library.FunctionCache(self._function)
        file = cache._cache_file
        dump, place, load_index = file._dump, file._data_path, file._load_index

        def index() -> Any:
            with suppress(FileNotFoundError):
                regular_at(Path(file._index_path))  # a pipe would be waited for
            return load_index()

        def checked(name: str) -> Any:
            content = read_named(place(name), _LONGEST, pipes=False)
            dumped, expected = content[:-64], content[-64:]
            if sha256_hex(dumped).encode() != expected:
                raise ValueError(name)
            return pickle.loads(dumped)

        file._dump = lambda data: (dumped := dump(data)) + sha256_hex(dumped).encode()
        file._load_index, file._load_data = index, checked
        return cache
