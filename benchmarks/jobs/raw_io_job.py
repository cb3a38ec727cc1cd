"""The raw I/O of a merge without its arithmetic: `raw_io_job OUT INPUT…`; the last line has its seconds.

Two threads read every input in the same chunks as a merge would into reused buffers, and write as many bytes
as the last input has, forced to disk at the end. OUT `-` only reads.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 2**20
THREADS = 2

out, *inputs = sys.argv[1:]
sources = [os.open(path, os.O_RDONLY) for path in inputs]
size = min(os.fstat(source).st_size for source in sources)
started, busy = time.perf_counter(), time.process_time()
target = None if out == "-" else os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
if target is not None:
    os.posix_fallocate(target, 0, size)


def copy(thread: int) -> None:
    buffer = memoryview(mmap.mmap(-1, CHUNK))  # a bytearray begins anywhere, and costs half the speed
    for offset in range(thread * CHUNK, size, THREADS * CHUNK):
        part = buffer[: min(CHUNK, size - offset)]
        for source in sources:
            os.preadv(source, [part], offset)
        if target is not None:
            os.pwrite(target, part, offset)


with ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(copy, range(THREADS)))
if target is not None:
    os.fsync(target)
    os.close(target)
    Path(out).unlink()
print(json.dumps({"own": time.perf_counter() - started, "processors": time.process_time() - busy}))
