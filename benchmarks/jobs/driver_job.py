"""The driver of a merge whose units others do: `driver_job RECIPE TARGET`, TARGET a repo on the Hub.

While units are left, it stops where the work begins; once all are on record, it commits. The last line has the
place of plan and records, and the plan's bytes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from hubextrap import api
from hubextrap.api import distributing
from hubextrap.work.places import Place
from hubextrap.work.plan import WorkPlan

recipe, target = sys.argv[1:]


class NoExecutor:
    """Leaves the units to others."""

    name = "none"

    def run(self, plan: WorkPlan, place: Place, *_: Any) -> Iterator[Any]:
        print(json.dumps({"place": place.name, "bytes": len(plan.to_bytes())}), flush=True)
        os._exit(0)  # as if it were killed: an error would be cleaned up after


distributing.executor_named = lambda name: NoExecutor()  # type: ignore[assignment,return-value]
api.merge(recipe, push=target, settings=api.MergeOptions(executor="ray", memory=2**30))
