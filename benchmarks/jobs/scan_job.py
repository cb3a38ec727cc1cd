"""One scan; the last line has its seconds, without imports and compilation: `scan_job TINY FOLDER`.

A scan of the run TINY, a small one of the same dtype, comes first: it compiles the loops, or loads them.
"""

from __future__ import annotations

import json
import sys
import time

import hubextrap
from hubextrap import api

api.scan(hubextrap.find_trajectory(sys.argv[1]))
trajectory = hubextrap.find_trajectory(sys.argv[2])
started, busy = time.perf_counter(), time.process_time()
api.scan(trajectory)
print(json.dumps({"own": time.perf_counter() - started, "processors": time.process_time() - busy}))
