"""A file written in order, in aligned blocks that go from memory straight to the disk.

A shard is written once, must be on the disk before it is called finished, and is larger than what the page
cache should be asked to keep: through the cache every byte is copied, given pages, flushed, and pushes out
the checkpoints that are being read. So whole blocks are written with O_DIRECT; the file's odd end, and any
file system that cannot do it, go through the cache. sha256 is the slowest step but for the disk: a block is
hashed by one thread, then written by another, while the next ones are made.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import queue
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Blocks = queue.SimpleQueue["tuple[int, mmap.mmap] | None"]
"""Blocks and their places in the file, in order; None after the last one."""
WRITE_SIZE = 2**20
"""Bytes written at once; a multiple of every device's sector, so that O_DIRECT takes it."""
WRITE_BUFFERS = 4
"""Blocks of one file: one is filled, one hashed, one written, and one is free."""


class BlockWriter:
    """Appends to a file that was opened for writing and is written by nobody else. Not thread-safe.

    Its memory is ``WRITE_BUFFERS`` blocks. Whatever ends the work on a block, such as an OSError of the disk,
    is raised by the next call, or by ``close`` at the latest.
    """

    def __init__(self, descriptor: int) -> None:
        self.hash = hashlib.sha256()
        """Of all that was appended, once ``close`` has returned."""
        self._descriptor = descriptor
        self._free = Blocks()
        for _ in range(WRITE_BUFFERS):
            # mmap's memory starts at a page, as O_DIRECT demands
            self._free.put((0, mmap.mmap(-1, WRITE_SIZE)))
        self._block = self._take_free()
        self._position = 0
        self._error: BaseException | None = None
        self._first: Blocks | None = None
        self._threads: list[threading.Thread] = []

    def append(self, data: memoryview) -> None:
        """Take the bytes over; they are on their way when this returns."""
        done, numbers = 0, np.frombuffer(data, np.uint8)
        while done < len(data):
            start = self._position % WRITE_SIZE
            count = min(WRITE_SIZE - start, len(data) - done)
            # numpy lets other threads run while it copies
            np.frombuffer(self._block, np.uint8)[start : start + count] = numbers[done : done + count]
            done += count
            self._position += count
            if start + count == WRITE_SIZE:
                self._hand_over()

    def close(self) -> None:
        """Wait until every byte is written, not yet forced to the disk; the descriptor stays open."""
        self.stop()
        self._check()
        rest = memoryview(self._block)[: self._position % WRITE_SIZE]
        if rest:
            self.hash.update(rest)
            self._through_the_cache()
            self._write(self._position - len(rest), rest)

    def stop(self) -> None:
        """End the threads once the blocks that they have are written; the file's end is not."""
        if self._first is not None:
            self._first.put(None)
            for thread in self._threads:
                if thread.ident is not None:  # it has been started
                    thread.join()
            self._first = None

    def _hand_over(self) -> None:
        first = self._first or self._start()
        first.put((self._position - WRITE_SIZE, self._block))
        self._block = self._take_free()
        self._check()

    def _start(self) -> Blocks:
        """Two threads, one after the other in each block's way; the queue of the first."""
        if hasattr(os, "O_DIRECT"):  # macOS has none
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the file system has none
                    raise
        full, hashed = Blocks(), Blocks()
        stages = ((self._hash, full, hashed), (self._write, hashed, self._free))
        self._threads = [
            threading.Thread(target=self._pass_on, args=stage, name=f"hubextrap-{name}")
            for name, stage in zip(("sha256", "write"), stages, strict=True)
        ]
        self._first = full  # before they start: `stop` ends those that did
        for thread in self._threads:
            thread.start()
        return full

    def _pass_on(self, work: Callable[[int, mmap.mmap], None], source: Blocks, target: Blocks) -> None:
        """Do the work on each block while all is well, and pass it on, come what may; the end too."""
        while (item := source.get()) is not None:
            if self._error is None:
                try:
                    work(*item)
                except BaseException as error:
                    self._error = error
            target.put(item)
        target.put(None)

    def _take_free(self) -> mmap.mmap:
        """A block whose bytes are written; waits for one."""
        item = self._free.get()
        assert item is not None
        return item[1]

    def _hash(self, offset: int, block: mmap.mmap) -> None:
        self.hash.update(block)

    def _write(self, offset: int, data: mmap.mmap | memoryview) -> None:
        data, done = memoryview(data), 0
        while done < len(data):
            try:
                done += os.pwrite(self._descriptor, data[done:], offset + done)
            except OSError as error:
                # a stricter alignment than ours, or the rest of a block that was written in part
                if error.errno != errno.EINVAL or not self._through_the_cache():
                    raise

    def _through_the_cache(self) -> bool:
        """Leave O_DIRECT; whether it was on."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        direct = flags & getattr(os, "O_DIRECT", 0)
        if direct:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~direct)
        return bool(direct)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
