"""What executors share that hand units to a queue (Slurm, HF Jobs) and watch the records that appear.

A queue knows jobs, and whether each may still end; records say what is done. Everything else follows: a unit
without a record, whose jobs have all left the queue, was lost, and is submitted again. `Submission` notes the
jobs in the plan's place, so that a later process goes on with those that are still there.

To make one, write the abstract methods; they know the queue, and nothing else. See `executors.slurm`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError, OutputError, SourceError
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.submission import SUBMITTED, Submission
from hubextrap.notebooks import and_more
from hubextrap.work.kinds import PLAN_FILE, load_work
from hubextrap.work.records import FAILED, Records

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import FolderPlace, Place
    from hubextrap.work.plan import WorkPlan
    from hubextrap.work.records import Record

Jobs = dict[str, tuple[int, ...]]
"""The units of each job, by the name that the queue has for the job."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What was handed to the queue, the last step included."""

    ids: tuple[str, ...]
    """As the queue's own commands take them; the last step is the last."""
    how_to_watch: str
    """A command."""
    how_to_cancel: str
    """A command."""


class Watching(ABC):
    """Hands units to a queue; `run` watches them, `submit` leaves them alone with a last step."""

    name: str
    """What messages, ``--executor`` and `Submission` call it."""
    interval: float = 10.0
    """Seconds from one look to the next."""
    settle: float = 30.0
    """Seconds from the end of a job until its records are seen here at the latest: shared folders cache."""
    patience: float = 900.0
    """Seconds for which a queue may give no answer."""

    def place(self, plan: WorkPlan, local: FolderPlace) -> Place:
        """Where the plan is to lie, so that all workers see it: ``local`` where they see that.

        Raises:
            HubExtrapError: there is no such place.
        """
        return local

    @abstractmethod
    def start(self, plan: Work, place: Place, units: Sequence[int]) -> Jobs:
        """Put jobs into the queue that do the units between them, each ``hubextrap worker PLACE UNIT…``.

        Raises:
            HubExtrapError: the queue does not take them; none of them is in it then.
        """

    @abstractmethod
    def start_last(self, plan: Work, place: Place, after: Collection[str]) -> str:
        """Put ``hubextrap finish PLACE`` into the queue, to begin when these jobs have ended in any way.

        Raises:
            HubExtrapError: the queue does not take it.
        """

    @abstractmethod
    def dry_run(self, plan: Work, place: Place, units: Sequence[int]) -> str:
        """What `submit` would hand to the queue, as text. Nothing is written, and no queue needed."""

    @abstractmethod
    def alive(self, jobs: Collection[str]) -> frozenset[str]:
        """Which of these jobs wait, run, or are being ended; what the queue does not know has ended.

        Raises:
            SourceError: the queue gives no answer now.
        """

    @abstractmethod
    def cancel(self, jobs: Collection[str]) -> None:
        """Have these jobs ended; those that have ended already are no error.

        Raises:
            HubExtrapError: the queue does not do it.
        """

    @abstractmethod
    def logs(self, place: Place, job: str) -> str:
        """Where to read what a job printed, and how that ends if it can be read here: part of a sentence."""

    @abstractmethod
    def commands(self, place: Place, jobs: Collection[str]) -> Submitted:
        """The jobs' ids, and how a user watches and cancels them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON values, no secret among them, that make an equal executor as keyword arguments."""

    def here(self) -> str | None:
        """The job that this process runs in, if it is one of the queue's."""
        return None

    def before_this(self, place: Place, jobs: Collection[str]) -> frozenset[str]:
        """Which jobs of a place may do its last step, and come before this process, where only one may.

        Raises:
            SourceError: the queue gives no answer now.
        """
        return self.alive(jobs) - {self.here()}

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        """As `Executor.run` says. Jobs of an earlier process that are still there are watched too."""
        plan.check_units(units)
        if load_work(place).digest != plan.digest:
            raise OutputError(f"{place.name}: {PLAN_FILE} is of another plan; run the same command again")
        records = Records(place, plan.digest)
        waiting = set(units)
        jobs = self._going(Submission.load(place), plan)
        try:
            yield from _ended(records, waiting)
            if not waiting:
                return
            _forgive(records, waiting)
            with progress.stage(plan.kind, sum(map(plan.bytes_of, waiting))) as stage:
                for record in self._watch(plan, records, waiting, jobs, progress):
                    stage.advance(plan.bytes_of(record.unit))
                    yield record
        finally:
            self._leave(
                place, [job for job, theirs in jobs.items() if waiting.intersection(theirs)], progress
            )

    def _leave(self, place: Place, jobs: Sequence[str], progress: Progress) -> None:
        """Have those jobs end that nobody waits for any more."""
        try:
            self.cancel(jobs)
            if place.read(SUBMITTED):
                Submission.forget(place)
        except HubExtrapError as error:
            how = f"; cancel them: `{self.commands(place, jobs).how_to_cancel}`" if jobs else ""
            progress.warn(f"jobs may be left in the queue ({error}){how}")

    def _watch(
        self, plan: Work, records: Records, waiting: set[int], jobs: Jobs, progress: Progress
    ) -> Iterator[Record]:
        place = records.place
        times: Counter[int] = Counter()
        look = _Look(self)
        new = waiting - _units_of(jobs)
        while waiting:
            if new:
                jobs |= self.start(plan, place, sorted(new))
                Submission(self.name, self.settings(), plan.digest, jobs, None, len(waiting)).save(place)
            # The queue is asked first: a job that has left it by now has written its records before.
            theirs = look.of_queue(jobs)
            yield from _ended(records, waiting)
            for job in [job for job, units in jobs.items() if not waiting.intersection(units)]:
                del jobs[job]
            for unit in sorted(records.failed() & waiting):
                if (failure := records.failure(unit)) is not None:
                    raise failure
            new = look.lost(waiting - theirs)
            times.update(new)
            for unit in sorted(new):
                if times[unit] > RETRIES:
                    raise self._given_up(plan, place, unit, jobs)
            if new:
                progress.say(f"{_named(plan, new)}: the worker was lost; another one is started")
                left = [job for job, theirs in jobs.items() if new.intersection(theirs)]
                self.cancel(left)  # a queue may hold a job that will not run
                for job in left:
                    del jobs[job]
            elif waiting:
                time.sleep(self.interval)

    def _given_up(self, plan: Work, place: Place, unit: int, jobs: Jobs) -> HubExtrapError:
        job = [job for job, theirs in jobs.items() if unit in theirs][-1]
        return OutputError(
            f"{plan.labels[unit]}: its worker was lost {RETRIES + 1} times; see {self.logs(place, job)}; "
            "when that is put right, run the same command again: it goes on where this one stopped",
            file=plan.labels[unit],
        )

    def submit(self, plan: Work, place: Place, units: Sequence[int]) -> Submitted:
        """Start everything, the last step included, and return. What is in the queue already stays there.

        Args:
            units: those that have no record yet.

        Raises:
            HubExtrapError: the queue does not take it.
        """
        _forgive(Records(place, plan.digest), units)
        return self._submit(plan, place, units, in_vain=0)

    def resubmit(self, plan: Work, place: Place, units: Sequence[int]) -> Submitted | None:
        """What the last step calls where units have no record: start those that were lost and a last step.

        Args:
            units: those that have no record; those whose failure is on record are not started again.

        Returns:
            None: nothing was lost, all that is missing failed.

        Raises:
            HubExtrapError: `RETRIES` times in a row nothing was gained, or the queue does not take them.
        """
        records = Records(place, plan.digest)
        lost = [unit for unit in units if records.failure(unit) is None]
        if not lost:
            return None
        before = Submission.load(place)
        in_vain = 0
        if before is not None and before.plan == plan.digest and before.missing:
            in_vain = before.in_vain + 1 if len(lost) >= before.missing else 0
            if in_vain > RETRIES:
                job = next((job for job, theirs in before.jobs.items() if lost[0] in theirs), None)
                seen = f"; see {self.logs(place, job)}" if job else ""
                raise OutputError(
                    f"{_named(plan, lost)}: {RETRIES + 1} times the workers were lost"
                    f"{seen}; when that is put right, run `hubextrap submit` as before: it goes on from here",
                    file=plan.labels[lost[0]],
                )
        return self._submit(plan, place, lost, in_vain)

    def _submit(self, plan: Work, place: Place, units: Sequence[int], in_vain: int) -> Submitted:
        """Whatever step this is killed at, doing it again leaves one last step after all jobs."""
        before = Submission.load(place)
        if before is not None and before.executor != self.name:
            before = None
        asked = before.every_job if before else []
        alive = self.alive(asked) - {self.here()} if asked else frozenset()
        jobs = self._going(before, plan, alive)
        now = Submission(self.name, self.settings(), plan.digest, jobs, None, len(units), in_vain)
        rest = sorted(set(units) - _units_of(jobs))
        last = before.last if before and before.last in alive else None
        if rest:
            if last is not None:  # it would begin before these have ended
                self.cancel([last])
                last = None
            jobs |= self.start(plan, place, rest)
            now.save(place)
        if last is None:
            try:
                last = self.start_last(plan, place, sorted(jobs))
            except BaseException:  # with nobody to end it, it is not left half done
                with suppress(HubExtrapError):
                    self.cancel(jobs)
                raise
            replace(now, last=last).save(place)
        return self.commands(place, [*jobs, last])

    def _going(self, before: Submission | None, plan: Work, alive: frozenset[str] | None = None) -> Jobs:
        """The jobs of an earlier process that do units of this plan and are still in this queue."""
        if before is None or (before.executor, before.plan) != (self.name, plan.digest) or not before.jobs:
            return {}
        alive = self.alive(before.jobs) - {self.here()} if alive is None else alive
        return {job: units for job, units in before.jobs.items() if job in alive}


class _Look:
    """What the queue and the records say together, and for how long they have."""

    def __init__(self, queue: Watching) -> None:
        self._queue = queue
        self._answered = time.monotonic()
        self._gone: dict[int, float] = {}

    def of_queue(self, jobs: Jobs) -> set[int]:
        """The units that may still end; all of them where the queue gives no answer, for a while.

        Raises:
            SourceError: it has given none for too long.
        """
        try:
            alive = self._queue.alive(jobs)
        except SourceError:
            if time.monotonic() - self._answered > self._queue.patience:
                raise
            return _units_of(jobs)
        self._answered = time.monotonic()
        return _units_of({job: jobs[job] for job in alive if job in jobs})

    def lost(self, gone: set[int]) -> set[int]:
        """Which of the units that are neither done nor in the queue have been so for long enough."""
        now = time.monotonic()
        self._gone = {unit: self._gone.get(unit, now) for unit in gone}
        lost = {unit for unit, since in self._gone.items() if now - since >= self._queue.settle}
        for unit in lost:
            del self._gone[unit]
        return lost


def _ended(records: Records, waiting: set[int]) -> Iterator[Record]:
    """The records that are there of the units that are waited for, which are taken out of ``waiting``."""
    for unit in sorted(records.done() & waiting):
        if (record := records.get(unit)) is not None:
            waiting.discard(unit)
            yield record


def _forgive(records: Records, units: Iterable[int]) -> None:
    """Forget why units could not be done before: what was put right since is tried again."""
    for unit in records.failed().intersection(units):
        records.place.write(f"{FAILED}/{unit}.json", b"")


def _units_of(jobs: Mapping[str, Collection[int]]) -> set[int]:
    return {unit for units in jobs.values() for unit in units}


def _named(plan: Work, units: Collection[int]) -> str:
    """The first of some units, and how many more there are."""
    return f"{plan.labels[min(units)]}{and_more(len(units))}"
