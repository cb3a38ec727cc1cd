"""A worker: `worker_job PLACE UNIT…` does units of the plan in a place, as `hubextrap worker` does."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from hubextrap.work.doing import do_units
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import WorkPlan

place = FolderPlace(Path(sys.argv[1]))
plan = WorkPlan.load(place)
started, busy = time.perf_counter(), time.process_time()
done = list(do_units(plan, [int(unit) for unit in sys.argv[2:]], place))
print(
    json.dumps(
        {"own": time.perf_counter() - started, "processors": time.process_time() - busy, "units": len(done)}
    )
)
