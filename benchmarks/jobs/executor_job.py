"""A merge by an executor: `executor_job EXECUTOR RECIPE OUT`. The last line has its seconds.

Before the clock runs, Ray is started, and its workers have made the same once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from shutil import rmtree

from hubextrap.api import MergeOptions, merge
from hubextrap.executors.ray_cluster import connected

executor, recipe, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
settings = MergeOptions(executor=executor, workers=2)
os.environ.pop("RAY_ADDRESS", None)
with connected(0, 2) if executor == "ray" else nullcontext():
    merge(recipe, out=out, settings=settings)
    rmtree(out)
    started = time.perf_counter()
    merge(recipe, out=out, settings=settings)
    seconds = time.perf_counter() - started
print(json.dumps({"own": seconds}))
