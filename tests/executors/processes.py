"""An executor as simple as one can be that has workers: a process for each unit, two at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hubextrap.errors import HubExtrapError
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.testing_run import state_of
from hubextrap.progress import Progress
from hubextrap.work.doing import do_units, may_pass
from hubextrap.work.places import Place, open_place
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import Record, Records, error_as_json, error_from_json

PASSING = 75
STEPS = ("open", "os.rename", "os.remove", "os.mkdir")
"""Audit events of what changes a folder."""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["hubextrap.work.doing", "hubextrap.engine.run"])


def work(place_name: str, unit: int, says: Connection) -> None:
    """What a worker does: no more than `hubextrap worker PLACE UNIT`."""
    place = open_place(place_name)
    try:
        list(do_units(WorkPlan.load(place), [unit], place))
    except HubExtrapError as error:
        says.send(error_as_json(error))
        sys.exit(PASSING if may_pass(error) else 1)


def work_until(place_name: str, units: Sequence[int], dies_at: int | None) -> None:
    """Do units, or be killed just before a step of those that change the output or its place."""
    place = open_place(place_name)
    plan = WorkPlan.load(place)
    inside, step = str(Path(place_name).parent), 0

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal step
        if event in STEPS and str(given[0]).startswith(inside):
            step += event != "open" or bool(given[2] & (os.O_WRONLY | os.O_RDWR))
            if step == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    list(do_units(plan, units, place))


class ProcessExecutor:
    name = "processes"
    workers = 2
    hang = 4.0
    """Seconds for which a worker may stand still; how long it takes depends on what else the machine does."""

    def __init__(self) -> None:
        self.running: dict[BaseProcess, tuple[int, Connection]] = {}
        self.still: dict[BaseProcess, float] = {}
        """Since when a worker has been seen to stand still."""

    def run(self, plan: WorkPlan, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        plan.check_units(units)
        records, running = Records(place, plan.digest), self.running
        known = {unit: record for unit in units if (record := records.get(unit)) is not None}
        yield from known.values()
        waiting, times = [unit for unit in units if unit not in known], Counter[int]()
        mine: set[BaseProcess] = set()
        try:
            with progress.stage("merge", sum(map(plan.bytes_of, waiting))) as stage:
                while waiting or mine:
                    while waiting and len(mine) < self.workers:
                        mine.add(self.start(place, waiting.pop(0)))
                    self.watch(mine)
                    for process in [one for one in mine if one.exitcode is not None]:
                        mine.remove(process)
                        unit, said = running.pop(process)
                        if (record := records.get(unit)) is not None:
                            stage.advance(plan.bytes_of(unit))
                            yield record
                        elif process.exitcode == 1:
                            raise error_from_json(said.recv())
                        else:
                            times[unit] += 1
                            if times[unit] > RETRIES:
                                raise HubExtrapError(f"{plan.labels[unit]}: its workers are lost")
                            waiting.append(unit)
        finally:
            for process in mine:
                process.kill()
                process.join()
                running.pop(process, None)

    def start(self, place: Place, unit: int) -> BaseProcess:
        said, says = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=work, args=(place.name, unit, says), daemon=True)
        process.start()
        self.running[process] = unit, said
        return process

    def watch(self, processes: set[BaseProcess]) -> None:
        """Return when one has ended, or after a moment; kill those that stand still for too long."""
        wait([process.sentinel for process in processes], timeout=0.5)
        now = time.monotonic()
        for process in processes:
            if process.pid is None or state_of(process.pid) != "T":
                self.still.pop(process, None)
            elif now - self.still.setdefault(process, now) > self.hang:
                process.kill()
