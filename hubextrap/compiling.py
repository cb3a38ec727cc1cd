"""Loops that numba compiles, once for a machine and a version: what it made is kept on disk where that can be.

Where it is kept is numba's affair: NUMBA_CACHE_DIR, else beside the module, else the user's own cache.
Whatever is wrong there, a folder that cannot be written, a full disk, a damaged file, costs a compilation and
nothing else: no command fails for it. Importing a module with such loops neither compiles nor looks for the cache.
"""

from __future__ import annotations

import pickle
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numba import njit  # type: ignore[attr-defined]
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache

from hubextrap.digests import sha256_hex

if TYPE_CHECKING:
    from collections.abc import Iterator


class Listener(Protocol):
    """Whom to tell: `hubextrap.progress.Progress` is one."""

    def say(self, line: str) -> None:
        """Tell the user one fact, as a line."""


def compiled(function: Any = None, *, cache: bool = True, **options: Any) -> Any:
    """A function that is compiled when it is first called with arguments of a type; it gives up the GIL.

    Args:
        cache: whether to keep it on disk; what only other compiled functions call is kept with them.
        options: more of numba's njit.
    """
    if function is None:
        return partial(compiled, cache=cache, **options)
    made = njit(nogil=True, **options)(function)
    if cache:
        made._cache = _Cache(function)
    return made


@contextmanager
def announced(progress: Listener) -> Iterator[None]:
    """Inside it, the first compilation is told, as it takes seconds; what the cache has is not."""
    listener = _Announcement(progress)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


class _Announcement(event.Listener):
    def __init__(self, progress: Listener) -> None:
        self._progress: Listener | None = progress

    def on_start(self, event: Any) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.say("compiling the loops, once for this machine and version …")

    def on_end(self, event: Any) -> None:
        pass


class _Cache(NullCache):  # type: ignore[misc]
    """numba's cache of a function, which is looked for when it is first needed and fails in silence."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._found: Any = None

    @property
    def cache_path(self) -> Any:
        return self._numbas().cache_path

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            return self._numbas().load_overload(signature, context)
        except Exception:  # an index that cannot be read is in the way of a new one
            self.flush()
            return None

    def save_overload(self, signature: Any, made: Any) -> None:
        try:
            self._numbas().save_overload(signature, made)
        except Exception:
            self.flush()

    def flush(self) -> None:
        try:
            self._numbas().flush()
        except Exception:
            self._found = NullCache()

    def _numbas(self) -> Any:
        if self._found is None:
            try:
                self._found = FunctionCache(self._function)
                self._found._cache_file.__class__ = _CheckedFile
            except Exception:  # RuntimeError: no folder can be written
                self._found = NullCache()
        return self._found


class _CheckedFile(IndexDataCacheFile):  # type: ignore[misc]
    """numba's own, with a sum behind the data: machine code that is not what was written must not run."""

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(sha256_hex(dumped).encode() + dumped)

    def _load_data(self, name: str) -> Any:
        stored = Path(self._data_path(name)).read_bytes()
        expected, dumped = stored[:64], stored[64:]
        if sha256_hex(dumped).encode() != expected:
            raise ValueError(name)
        return pickle.loads(dumped)
