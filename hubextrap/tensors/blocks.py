"""A file written in order, in aligned blocks that go from memory straight to the disk.

A shard is written once, must be on the disk before it is called finished, and is larger than what the page
cache should be asked to keep: through the cache every byte is copied, given pages, flushed, and pushes out
the checkpoints that are being read. So whole blocks are written with O_DIRECT, by a thread of their own while
the next ones are made; the file's odd end, and any file system that cannot do it, go through the cache.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import queue
import threading

WRITE_SIZE = 2**20
"""Bytes written at once; a multiple of every device's sector, so that O_DIRECT takes it."""
WRITE_BUFFERS = 4
"""Blocks of one file: one is filled, the others are on their way to the disk."""


class BlockWriter:
    """Appends to a file that was opened for writing and is written by nobody else. Not thread-safe.

    Its memory is ``WRITE_BUFFERS`` blocks. An OSError of the disk is raised by the next call, or by ``close``
    at the latest.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(WRITE_BUFFERS):
            self._free.put(mmap.mmap(-1, WRITE_SIZE))  # mmap's memory starts at a page, as O_DIRECT demands
        self._full: queue.SimpleQueue[tuple[int, mmap.mmap] | None] = queue.SimpleQueue()
        self._block = self._free.get()
        self._position = 0
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def append(self, data: memoryview) -> None:
        """Take the bytes over; they are on their way when this returns."""
        done = 0
        while done < len(data):
            start = self._position % WRITE_SIZE
            count = min(WRITE_SIZE - start, len(data) - done)
            self._block[start : start + count] = data[done : done + count]
            done += count
            self._position += count
            if start + count == WRITE_SIZE:
                self._hand_over()

    def close(self) -> None:
        """Wait until every byte is written, not yet forced to the disk; the descriptor stays open."""
        self.stop()
        self._check()
        rest = self._position % WRITE_SIZE
        if rest:
            self._through_the_cache()
            self._write(self._position - rest, memoryview(self._block)[:rest])

    def stop(self) -> None:
        """End the thread once the blocks that it has are written; the file's end is not."""
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None

    def _hand_over(self) -> None:
        if self._thread is None:
            self._start()
        self._full.put((self._position - WRITE_SIZE, self._block))
        self._block = self._free.get()
        self._check()

    def _start(self) -> None:
        if hasattr(os, "O_DIRECT"):  # macOS has none
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the file system has none
                    raise
        self._thread = threading.Thread(target=self._run, name="hubextrap-write")
        self._thread.start()

    def _run(self) -> None:
        while (item := self._full.get()) is not None:
            offset, block = item
            if self._error is None:
                try:
                    self._write(offset, memoryview(block))
                except OSError as error:
                    self._error = error
            self._free.put(block)

    def _write(self, offset: int, data: memoryview) -> None:
        done = 0
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
