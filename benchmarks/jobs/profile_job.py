"""One `hubextrap merge` with its stages timed by thread: `profile_job RECIPE OUT`.

The last line has processor seconds by stage. A stage's own seconds do not hold those of a stage within it, so
the stages and "other" add up to what the process took from the command line on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import xxhash

import hubextrap.api.merging
from hubextrap.cli.main import main
from hubextrap.engine import inputs, run, stream, worker
from hubextrap.tensors import blocks, local, remote, sinks

for module in (
    "huggingface_hub.repocard_data",
    "llvmlite.binding",
    "yaml",
    "hubextrap.cli.app",
    "hubextrap.cli.summaries",
    "hubextrap.recipe",
):
    import_module(module)  # as in merge_job

taken: dict[str, float] = defaultdict(float)
lock = threading.Lock()
inner = threading.local()


def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, with the processor time of its thread counted for ``stage``."""

    def call(*given: Any, **named: Any) -> Any:
        around = getattr(inner, "seconds", 0.0)
        inner.seconds = 0.0
        started = time.thread_time()
        try:
            return function(*given, **named)
        finally:
            whole = time.thread_time() - started
            with lock:
                taken[stage] += whole - inner.seconds
            inner.seconds = around + whole

    return call


def watch(where: Any, name: str, stage: str) -> None:
    """Time a function or method of hubextrap; AttributeError where it has another name by now."""
    setattr(where, name, timed(stage, getattr(where, name)))


class Hash:
    """A hash whose updates are timed."""

    def __init__(self, stage: str, made: Any) -> None:
        self._made = made
        self.update = timed(stage, made.update)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


def hashing(stage: str, make: Callable[..., Any]) -> Callable[..., Hash]:
    timed_make = timed(stage, make)  # it may be given bytes at once
    return lambda *given, **named: Hash(stage, timed_make(*given, **named))


def mapped(workers: int, function: Callable[[Any], Any], units: Iterable[Any]) -> Any:
    return unwatched(workers, timed("Python between the stages", function), units)


watch(local.LocalSource, "read", "reading")
watch(remote.RemoteSource, "read", "reading")
watch(remote.RemoteSource, "_read_part", "reading")
watch(worker.MergeWorker, "__call__", "sums")
watch(blocks.BlockWriter, "append", "copies to aligned blocks")
watch(blocks.BlockWriter, "_write", "writing")
watch(sinks.LocalShardWriter, "finish", "writing")
watch(sinks, "_reserve", "writing")
watch(run, "run_plan", "Python between the stages")
hubextrap.api.merging.run_plan = run.run_plan  # type: ignore[attr-defined]
unwatched = stream.in_threads
stream.in_threads = mapped  # type: ignore[attr-defined]
for user in (inputs, run):
    user.xxh3_128 = hashing("xxh3 of the inputs", xxhash.xxh3_128)  # type: ignore[attr-defined]
sha256 = hashlib.sha256
hashlib.sha256 = hashing("sha256", sha256)  # type: ignore[assignment]

sys.argv = ["hubextrap", "merge", sys.argv[1], "--out", sys.argv[2]]
started, busy = time.perf_counter(), time.process_time()
try:
    timed("plan, headers, files beside", main)()
except SystemExit as end:
    if end.code:
        raise
whole = time.process_time() - busy
taken["other"] = whole - sum(taken.values())
print(json.dumps({"own": time.perf_counter() - started, "whole": whole, "stages": taken}))
