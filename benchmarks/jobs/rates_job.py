"""What the parts of a unit of work take here: `rates_job FOLDER COUNT ROUNDS [PART…]`.

From the Hub of HF_ENDPOINT, where ``me/run`` has COUNT checkpoints and ``me/out`` is a repo to upload to;
FOLDER is for what is written. The last line has a figure per round of each PART (by default all): processor
seconds of the process per GB (1e9 bytes), but for ``opening``, per file; ``fetch_wall`` has GB/s. Processor
time hardly depends on what else the machine does, which the time on the clock does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from xxhash import xxh3_128

from hubextrap.engine.kernels import Combiner
from hubextrap.engine.units import Combination
from hubextrap.hub.outgoing import OutgoingFile
from hubextrap.methods import coefficients
from hubextrap.tensors.remote import IN_FLIGHT, PART, RemoteSource
from hubextrap.tensors.sinks import LocalSink
from hubextrap.tensors.weights import read_header

MB = 10**6
WEIGHTS = 2**18
folder, count, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
api = HfApi()
commits = [
    api.repo_info("me/run", revision=f"step_{10 * number}").sha or "" for number in range(1, count + 1)
]
data = np.random.default_rng(0).integers(0, 256, 128 * MB, np.uint8)


sources = [RemoteSource("me/run", commit) for commit in commits]
sizes = {name: info.size for name, info in sources[-1].files().items() if name.endswith(".safetensors")}


def fetching() -> int:
    """The first shard of all checkpoints, in as many requests side by side as a merge makes."""
    file, size = next(iter(sizes.items()))
    blocks = [(source, start) for start in range(0, size, PART) for source in sources]

    def read(numbered: tuple[int, tuple[RemoteSource, int]]) -> None:
        number, (source, start) = numbered
        place = number % IN_FLIGHT * PART
        source.read(file, start, memoryview(data)[place : place + min(PART, size - start)])

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(read, enumerate(blocks)))
    return size * count


def opening() -> int:
    """Find files and read their headers, each for the first time."""
    source = RemoteSource("me/run", commits[-1], listed=dict(sources[-1].files()))
    for file in sizes:
        read_header(source, file)
    return 10**9 * len(sizes)


def connected() -> list[ssl.SSLObject]:
    """The reading and the writing end of a TLS connection that no network is between."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=here -days 1 -keyout {key} -out {certificate}"
    )
    subprocess.run(shlex.split(made), check=True, capture_output=True)
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server.load_cert_chain(certificate, key)
    first, second = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(first, second), server.wrap_bio(second, first, server_side=True)]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends


def deciphering() -> float:
    """What the reading end of a TLS connection takes per GB."""
    reader, writer = connected()
    taken, record, buffer = 0.0, memoryview(data)[:MB], bytearray(2**16)
    for _ in range(128):
        writer.write(record)
        left = len(record)
        started = time.process_time()
        while left:
            left -= reader.read(len(buffer), buffer)  # type: ignore[operator]
        taken += time.process_time() - started
    return taken / (128 * MB) * 1e9


def hashing(make: Callable[[], object]) -> int:
    hasher = make()
    for start in range(0, len(data), PART):
        hasher.update(data[start : start + PART])  # type: ignore[attr-defined]
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
    for start in range(0, len(data), PART):
        writer.write(start, memoryview(data)[start : start + PART])
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
programs = {name: program for name, program in programs.items() if name in (sys.argv[4:] or programs)}
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
