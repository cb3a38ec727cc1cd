"""One `hubextrap merge`: `merge_job RECIPE OUT`. The last line has its seconds, imports left out."""

from __future__ import annotations

import json
import sys
import time

import hubextrap.api.merging  # all that a merge needs is imported here, not while the clock runs
import hubextrap.cli.app
import hubextrap.cli.summaries
import hubextrap.engine.run  # noqa: F401
from hubextrap.cli.main import main

sys.argv = ["hubextrap", "merge", sys.argv[1], "--out", sys.argv[2]]
started = time.perf_counter()
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print(json.dumps({"own": time.perf_counter() - started}))
