"""Units of a plan on a Ray cluster: a task each, started, placed and watched over by Ray."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from hubextrap.errors import AccessDenied, HubExtrapError, OutputError, ReferenceNotFound, SourceError
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.ray_cluster import PARTING, connected, first_line, is_ending, is_there
from hubextrap.extras import require
from hubextrap.foreign_data import parse_json
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.records import Record, Records, error_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.executors.ray_cluster import Connection
    from hubextrap.progress import Progress, Stage
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place

HANG = 1800.0
"""Seconds without any progress after which a unit is cancelled and done again elsewhere: longer than a read
waits for a Hub that is away (900 s), and than a shard of 5 GB takes to go up at 3 MB/s."""
LOOK = 0.5
"""Seconds from one look at the board to the next."""
BOARD_PATIENCE = 60.0
"""Seconds for which the board may give no answer before Ray starts it anew."""
RAY_MEMORY = 100 * 2**20
"""Bytes that Ray itself takes in a worker's process."""
_OF_THE_NODE = (AccessDenied, ReferenceNotFound, SourceError, OutputError)
"""Errors that one node may meet and another may not."""


class RayExecutor:
    """Has units done by Ray: each takes one CPU and the plan's memory of some node.

    Ray's own retries are off: they know no hang, and have no end where workers are killed for their memory.
    """

    name = "ray"

    def __init__(self, *, hang: float = HANG, processors: int | None = None) -> None:
        """
        Args:
            hang: seconds without progress after which a unit is done again.
            processors: of a cluster that is started for it; all of this machine where None.

        Raises:
            MissingExtra: Ray is not installed or too old.
        """
        require("ray", "--executor ray", load=False)
        self.hang = hang
        self.processors = processors

    def gpus(self) -> int:
        """How many the cluster has, or this machine where there is no cluster yet.

        Raises:
            MissingExtra, SourceError: as `ray_cluster.connected`.
        """
        if is_there():
            with connected(0) as connection:
                return int(connection.ray.cluster_resources().get("GPU", 0))
        import torch

        return torch.cuda.device_count()

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        """As `Executor.run` says; there is one connection to a cluster from the first task to the last.

        Raises:
            MissingExtra, SourceError: as `ray_cluster.connected`.
        """
        plan.check_units(units)
        records = Records(place, plan.digest)
        known = records.found()
        wanted = dict.fromkeys(units)
        yield from (known[unit] for unit in wanted if unit in known)
        todo = [unit for unit in wanted if unit not in known]
        if not todo:
            return
        data = place.read(PLAN_FILE) or plan.to_bytes()
        with (
            connected(len(data), self.processors) as connection,
            progress.stage(plan.kind, sum(plan.bytes_of(unit) for unit in todo)) as stage,
        ):
            work = _Work(connection, plan, _Shown(plan, progress, stage), self.hang)
            try:
                for record in work.records_of(todo, known, place.name, data):
                    if records.get(record.unit) is None:  # its node does not see the place
                        records.put(record)
                    yield record
            except ConnectionError as error:
                raise SourceError(
                    f"the Ray cluster is lost: {first_line(error)}; run the same command again: it goes on "
                    "where this one stopped"
                ) from error
            finally:
                if not is_ending():
                    with suppress(Exception):  # of a cluster that is lost
                        work.cancel()


class _Shown:
    """What the user sees of the units: bytes that were read again after an attempt was lost count once."""

    def __init__(self, plan: Work, progress: Progress, stage: Stage) -> None:
        self._plan, self.progress, self._stage = plan, progress, stage
        self._bytes: Counter[int] = Counter()

    def read(self, unit: int, count: int) -> None:
        """Note that an attempt at a unit has read so many bytes."""
        more = min(count, self._plan.bytes_of(unit)) - self._bytes[unit]
        if more > 0:
            self._stage.advance(more)
            self._bytes[unit] += more

    def done(self, unit: int) -> None:
        self.read(unit, self._plan.bytes_of(unit))


@dataclass
class _Attempt:
    """A task that Ray was given."""

    unit: int
    name: str
    """On the board."""
    heard: float
    """When it was started, or told of progress last."""
    moved: int = -1
    """The count of its progress that it told then; -1 until it is known to have begun."""
    node_id: str = ""
    node: str = "a node"


class _Work:
    """The units that one `RayExecutor.run` has done."""

    def __init__(self, connection: Connection, plan: Work, shown: _Shown, hang: float) -> None:
        from hubextrap.executors.ray_worker import Board, do_unit

        self._ray = ray = connection.ray
        self._own, self._plan, self._shown, self._hang = connection.own, plan, shown, hang
        self._memory = self._room(plan.one_thread().peak_memory + RAY_MEMORY)
        self._board = _BoardReader(ray, ray.remote(num_cpus=0, max_restarts=-1)(Board).remote())
        self._task = ray.remote(max_retries=0, num_cpus=1, num_gpus=plan.gpus, memory=self._memory)(do_unit)
        self._lost: Counter[int] = Counter()
        self._busy = 0.0
        """When any unit told of progress last."""
        self._names = count()
        self._avoided: dict[int, set[str]] = {}
        """The nodes on which attempts at a unit were lost, by their ids."""
        self._under_way: dict[Any, _Attempt] = {}
        """By Ray's reference to what the task returns."""

    def records_of(
        self, units: Sequence[int], known: dict[int, Record], place: str, data: bytes
    ) -> Iterator[Record]:
        """Have units done; yields the record of each as it ends.

        Args:
            known: what is on record already; grows.
            place: the name of the plan's.
            data: the plan as it lies there.
        """
        self._known, self._given = known, ([self._ray.put(data)], self._plan.digest, place)
        waiting = list(units)
        while waiting or self._under_way:
            for unit in waiting[:]:
                if all(needed in known for needed in self._plan.needs(unit)):
                    waiting.remove(unit)
                    self._start(unit)
            if not self._under_way:
                raise OutputError(
                    f"{self._plan.labels[waiting[0]]}: is compared once the units that read it are done; "
                    "have those done too"
                )
            ready, _ = self._ray.wait([*self._under_way, *self._board.asked()], timeout=LOOK)
            for ref in self._under_way.keys() & ready:
                if (record := self._ended(ref)) is not None:
                    yield record
            self._look()

    def cancel(self) -> None:
        """End what is under way, wherever it is; a worker has a moment to remove what it has half made."""
        refs = list(self._under_way)
        for force in (False, True):
            for ref in refs:
                self._ray.cancel(ref, force=force)
            if refs and not force:
                _, refs = self._ray.wait(refs, num_returns=len(refs), timeout=PARTING)
        self._under_way.clear()
        self._ray.kill(self._board.actor)

    def _start(self, unit: int) -> None:
        attempt = _Attempt(unit, f"{unit}/{next(self._names)}", time.monotonic())
        needed = [self._known[one].to_bytes() for one in self._plan.needs(unit)]
        task = self._task.options(scheduling_strategy=self._where(unit))
        ref = task.remote(*self._given, unit, needed, self._board.actor, attempt.name)
        self._under_way[ref] = attempt

    def _where(self, unit: int) -> Any:
        """Another node than those where it was lost, if there is one; else wherever the fewest tasks are."""
        if avoided := self._avoided.get(unit):
            others = [one["NodeID"] for one in self._roomy(self._memory) if one["NodeID"] not in avoided]
            if others:
                strategies = self._ray.util.scheduling_strategies
                return strategies.NodeAffinitySchedulingStrategy(random.choice(others), soft=True)
        return "SPREAD"

    def _room(self, memory: int) -> int:
        """Bytes that a task asks for, of those that it takes; warns where no node has them, or no GPU.

        Raises:
            SourceError: there will be none, as the cluster is this machine.
        """
        if self._roomy(memory):
            return memory
        there = self._ray.cluster_resources()
        if self._own and self._plan.gpus > there.get("GPU", 0):
            raise SourceError("Ray finds no GPU on this machine; measure on the CPU (--device cpu)")
        if self._own:  # it does what a merge without Ray would do here
            return int(there["memory"])
        gpu, less = (", a GPU", "") if self._plan.gpus else ("", ", and less --memory asks for less")
        self._shown.progress.warn(
            f"no node of the Ray cluster has a CPU{gpu} and {memory / 1e9:.1f} GB of memory, which "
            f"each unit takes; this waits for one{less}"
        )
        return memory

    def _roomy(self, memory: int) -> list[dict[str, Any]]:
        """The nodes that a task of so many bytes fits on when nothing else is there."""
        return [
            node
            for node in self._ray.nodes()
            if node["Alive"]
            and node["Resources"].get("CPU", 0) >= 1
            and node["Resources"].get("GPU", 0) >= self._plan.gpus
            and node["Resources"].get("memory", 0) >= memory
        ]

    def _ended(self, ref: Any) -> Record | None:
        """The record that a task came to; None where its unit was started again.

        Raises:
            HubExtrapError: it failed for good.
        """
        attempt = self._under_way.pop(ref)
        label = self._plan.labels[attempt.unit]
        try:
            kind, data = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:  # it did not come as far as our code
            said = str(error).strip().split("\n")[-1]
            raise HubExtrapError(
                f"node {error.ip} of the Ray cluster cannot do {label}: {said}; install hubextrap "
                f"{self._plan.versions['hubextrap']} in the Python that Ray runs there"
            ) from None
        except self._ray.exceptions.RayError as error:
            self._again(attempt, first_line(error))
            return None
        if kind == "record":
            record = Record.from_bytes(data, label)
            self._known[attempt.unit] = record
            self._shown.done(attempt.unit)
            return record
        stated = parse_json(data, label, error=OutputError)
        failure = error_from_json(self._located(stated["error"], stated["node"]))
        if not stated["may_pass"]:
            raise failure
        self._again(attempt, str(failure), failure)
        return None

    def _located(self, stated: dict[str, Any], node: str) -> dict[str, Any]:
        """An error with the node that it is of, where another one may not meet it."""
        if self._own or not isinstance(error_from_json(stated), _OF_THE_NODE) or node in stated["message"]:
            return stated
        remedy = (
            "no token travels with the work: give the node its own, by HF_TOKEN where `ray start` runs there "
            "or by `hf auth login`"
            if stated["kind"] == AccessDenied.__name__ or "HF_TOKEN" in stated["message"]
            else "what this machine reads and writes by a path, every node has to see under the same path"
        )
        return {**stated, "message": f"on node {node} of the Ray cluster: {stated['message']} ({remedy})"}

    def _again(self, attempt: _Attempt, why: str, error: HubExtrapError | None = None) -> None:
        """Start a unit again, elsewhere if there is an elsewhere.

        Raises:
            HubExtrapError: it was lost too often; ``error``, if there is one.
        """
        unit, label = attempt.unit, self._plan.labels[attempt.unit]
        self._lost[unit] += 1
        if self._lost[unit] > RETRIES:
            raise error or HubExtrapError(
                f"{label}: its worker was lost {self._lost[unit]} times, last on {attempt.node}: {why}; when "
                "that is put right, run the same command again: it goes on where this one stopped",
                file=label,
            )
        told = why if error is not None else f"the worker on {attempt.node} was lost: {why}"
        self._shown.progress.say(f"{label}: {told}; it is done again")
        if attempt.node_id:
            self._avoided.setdefault(unit, set()).add(attempt.node_id)
        self._start(unit)

    def _look(self) -> None:
        """Show what the board says, and start again what hangs."""
        answer = self._board.answer()
        if answer is None:
            return
        told, warnings = answer
        for line in warnings:
            self._shown.progress.warn(line)
        now = time.monotonic()
        for attempt in self._under_way.values():
            read, moved, node_id, node = told.get(attempt.name, (0, attempt.moved, "", ""))
            if moved != attempt.moved:
                attempt.moved, attempt.heard, attempt.node_id, attempt.node = moved, now, node_id, node
                self._busy = now
                self._shown.read(attempt.unit, read)
        for ref, attempt in list(self._under_way.items()):
            # One that has not told of its begin may wait for a CPU, as long as others hold them.
            heard = max(attempt.heard, self._board.since, self._busy if attempt.moved < 0 else 0.0)
            if now - heard > self._hang:
                del self._under_way[ref]
                self._ray.cancel(ref, force=True)
                if attempt.moved < 0:
                    self._start(attempt.unit)
                else:
                    self._again(attempt, f"no progress for {self._hang:.0f} s")


class _BoardReader:
    """Asks the board now and then, without waiting for it: it may be lost or hang as any worker may."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self.actor = ray, actor
        self.since = self._when = time.monotonic()
        """From when on it has answered each time: before, silence of a worker means nothing."""
        self._asked: list[Any] = []

    def asked(self) -> list[Any]:
        """Ask, if it is time to; the reference to the answer that is waited for, if any."""
        now = time.monotonic()
        if not self._asked and now - self._when >= LOOK:
            self._asked, self._when = [self.actor.told.remote()], now
        elif self._asked and now - self._when > BOARD_PATIENCE:
            self._ray.kill(self.actor, no_restart=False)
            self._asked, self.since = [], now
        return self._asked

    def answer(self) -> tuple[dict[str, tuple[int, int, str, str]], list[str]] | None:
        """The answer, if there is one by now."""
        if not self._asked or not self._ray.wait(self._asked, timeout=0)[0]:
            return None
        asked, self._asked = self._asked[0], []
        try:
            answer: tuple[dict[str, tuple[int, int, str, str]], list[str]] = self._ray.get(asked)
        except self._ray.exceptions.RayError:  # Ray starts it anew
            self.since = time.monotonic()
            return None
        return answer
