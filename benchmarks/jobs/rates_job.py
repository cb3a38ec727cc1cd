"""What the parts of a unit of work take on this machine: `rates_job FOLDER COUNT ROUNDS`, from the Hub of HF_ENDPOINT.

FOLDER has checkpoints of which the Hub's ``me/run`` holds the same; COUNT of them are combined; ``me/out`` is a
repo to upload to. The last line has one figure per round of each: processor seconds of the process per GB (1e9
bytes), but for ``opening``, per file. ``fetch_wall`` has GB/s instead. Processor time hardly depends on what
else the machine does, which the time on the clock does.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from xxhash import xxh3_128

from hubextrap.engine.kernels import Combiner
from hubextrap.engine.units import Combination
from hubextrap.hub.outgoing import OutgoingFile
from hubextrap.methods import coefficients
from hubextrap.tensors.remote import RemoteSource
from hubextrap.tensors.sinks import LocalSink
from hubextrap.tensors.weights import read_header

MB = 10**6
BLOCK = 8 * 2**20
WEIGHTS = 2**18
SHARD = "model-00001-of-"
folder, count, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
api = HfApi()
commit = api.repo_info("me/run", revision=f"step_{10 * count}").sha
assert commit is not None
data = np.random.default_rng(0).integers(0, 256, 128 * MB, np.uint8)


def fetching() -> int:
    """All of a checkpoint, in requests side by side as a unit makes them."""
    source = RemoteSource("me/run", commit)
    files = [name for name in source.files() if name.endswith(".safetensors")]
    buffer = memoryview(data)
    for file in files:
        size = source.files()[file].size
        for start in range(0, size, 8 * BLOCK):
            source.read(file, start, buffer[: min(8 * BLOCK, size - start)])
    return sum(source.files()[file].size for file in files)


listed = RemoteSource("me/run", commit).files()


def opening() -> int:
    """Resolve files and read their headers, each for the first time."""
    source = RemoteSource("me/run", commit, listed=dict(listed))
    files = [name for name in listed if name.endswith(".safetensors")]
    for file in files:
        read_header(source, file)
    return 10**9 * len(files)


def deciphering() -> float:
    """What the reading end of a TLS connection takes, by the cipher that servers prefer, with no network."""
    ends = []
    first, second = ssl.MemoryBIO(), ssl.MemoryBIO()
    for protocol, inward, outward in (
        (ssl.PROTOCOL_TLS_CLIENT, first, second),
        (ssl.PROTOCOL_TLS_SERVER, second, first),
    ):
        context = ssl.SSLContext(protocol)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # without a certificate
        context.set_ciphers("ADH-AES128-GCM-SHA256:@SECLEVEL=0")
        ends.append(context.wrap_bio(inward, outward, server_side=protocol == ssl.PROTOCOL_TLS_SERVER))
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    reader, writer = ends
    taken, record, buffer = 0.0, memoryview(data)[:MB], bytearray(2**16)
    for _ in range(128):
        writer.write(record)
        left = len(record)
        started = time.process_time()
        while left:
            left -= reader.read(len(buffer), buffer)
        taken += time.process_time() - started
    return taken / (128 * MB) * 1e9


def hashing(make: Callable[[], object]) -> int:
    hasher = make()
    for start in range(0, len(data), BLOCK):
        hasher.update(data[start : start + BLOCK])  # type: ignore[attr-defined]
    return len(data)


values = np.random.default_rng(count).standard_normal((count, WEIGHTS), np.float32) * 0.02
inputs = [row.view(np.uint8) for row in (values.view(np.uint32) >> 16).astype(np.uint16)]
weights = coefficients("least_squares", range(10, 10 * count + 1, 10), 15 * count).tolist()
how = Combination("sum", tuple(range(count)), tuple(weights))
output, combiner = np.zeros(2 * WEIGHTS, np.uint8), Combiner(1)


def summing() -> int:
    for _ in range(20):
        combiner.combine(inputs, ["BF16"] * count, [how], [output], "BF16", last=count - 1)
    return 20 * count * 2 * WEIGHTS


def writing() -> int:
    writer = LocalSink(folder).open("written.safetensors", len(data))
    for start in range(0, len(data), BLOCK):
        writer.write(start, memoryview(data)[start : start + BLOCK])
    writer.finish()
    return len(data)


def uploading() -> int:
    """Of a file with known sha256, by the client's LFS or Xet, whichever it uses here."""
    data[:8] = np.frombuffer(os.urandom(8), np.uint8)
    path = folder / "uploaded.safetensors"
    path.write_bytes(data.data)
    outgoing = OutgoingFile(path.name, path, hashlib.sha256(data.data).hexdigest())
    started = time.process_time()
    api.preupload_lfs_files("me/out", additions=[outgoing.operation], free_memory=True)
    apart.append(time.process_time() - started)
    return len(data)


apart: list[float] = []
"""Seconds that a program measured itself."""
programs: dict[str, Callable[[], int]] = {
    "fetch": fetching,
    "opening": opening,
    "sha256": partial(hashing, hashlib.sha256),
    "xxh3": partial(hashing, xxh3_128),
    "sums": summing,
    "write": writing,
    "upload": uploading,
}
found: dict[str, list[float]] = {name: [] for name in (*programs, "tls", "fetch_wall")}
for number in range(rounds + 1):
    for name, program in programs.items():
        apart.clear()
        clock, busy = time.perf_counter(), time.process_time()
        size = program()
        busy, clock = time.process_time() - busy, time.perf_counter() - clock
        if number:  # the first compiles, connects and warms
            found[name].append((apart[0] if apart else busy) / size * 1e9)
            if name == "fetch":
                found["fetch_wall"].append(size / clock / 1e9)
    found["tls"].append(deciphering())
print(json.dumps(found))
