"""A merge submitted to nobody, so that workers can be run one by one: `submit_job RECIPE TARGET MEMORY`.

TARGET is a repo on the Hub. The last line has the place of the plan, and the plan's bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hubextrap import api
from hubextrap.executors.watching import Submitted
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.plan import WorkPlan


class Nobody:
    """Takes the units, and does nothing with them."""

    def place(self, plan: WorkPlan, local: FolderPlace) -> Place:
        return local

    def submit(self, plan: WorkPlan, place: Place, units: Sequence[int]) -> Submitted:
        return Submitted((), "", "")

    def dry_run(self, place: Place, units: Sequence[int]) -> str:
        return ""


recipe, target, memory = sys.argv[1:]
done = api.submit(recipe, Nobody(), push=target, settings=api.MergeOptions(memory=int(memory)))
plan = FolderPlace(Path(done.place)).read(PLAN_FILE)
print(json.dumps({"place": done.place, "bytes": len(plan or b"")}))
