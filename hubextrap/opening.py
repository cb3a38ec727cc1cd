"""What one command knows of a run: looked for and opened once, and handed to all that the command does."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

from hubextrap import clocks
from hubextrap.adapters.base import Bases
from hubextrap.adapters.run import open_adapters
from hubextrap.engine.budget import NO_LIMIT, Budget
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS
from hubextrap.errors import RecipeError, SourceError, wrong_argument
from hubextrap.given import check_by_this_process, check_executor
from hubextrap.lazy import by_name
from hubextrap.methods.checking import MAX_STEP, check_steps
from hubextrap.progress import Progress, SilentProgress, StagesOnly
from hubextrap.recipe import Recipe
from hubextrap.recipe.targets import FullRateTarget
from hubextrap.scans import Scan
from hubextrap.scans.given import check_counts, check_same_checkpoints, part_of_scan
from hubextrap.statistics import GramTable
from hubextrap.tensors import open_source, read_combinable, read_layouts, ties_embeddings
from hubextrap.tensors.fingerprints import commit_fingerprint, files_fingerprint
from hubextrap.timing import chosen_clock, rates_beside
from hubextrap.trajectory import Pins, Trajectory, find_recipe_trajectory
from hubextrap.trajectory.checkpoint import ADAPTER, is_untouched_base
from hubextrap.trajectory.wholeness import said_how_to_go_on

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from hubextrap.adapters.run import AdapterRun
    from hubextrap.clocks import Clock, ClockChoice, RateHistory
    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.recipe import TrajectorySection
    from hubextrap.scans.tensor_scan import ScanJournal
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.timing import Beside


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How weights are read; nothing here changes what is found in them."""

    memory: int = DEFAULT_MEMORY
    """Bytes of memory that the process may take, python included."""
    workers: int = DEFAULT_WORKERS
    """Threads that read, compute and write."""
    cache: bool = False
    """Download Hub checkpoints into the Hub cache first, instead of reading ranges of them."""
    executor: str = "local"
    """Who reads them: ``local`` for this process, ``ray`` for a Ray cluster."""

    def __post_init__(self) -> None:
        check_executor(self.executor, None if self.workers == DEFAULT_WORKERS else self.workers)
        for name in ("memory", "workers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise RecipeError(f"{name}: has to be a whole number of at least 1, not {value!r}")


class Run:
    """The checkpoints of one run as a command found them, pinned; a context manager that closes the sources.

    Sources are opened, headers read and weights scanned when they are first asked for, and once at most. What
    is written to a local checkpoint after that is an error where it is read. Once closed, it reads no more.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        reading: ReadingOptions | None = None,
        *,
        pins: Pins | None = None,
        clock: ClockChoice = "auto",
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            pins: with which the checkpoints were found.
            clock: what time is counted by; see `timing.chosen_clock`.

        Raises:
            RecipeError: ``reading`` is of a merge.
        """
        if reading is not None and type(reading) is not ReadingOptions:
            raise RecipeError(
                f"settings: {type(reading).__name__} says more than how to read, which has no effect on what "
                "only reads; give ReadingOptions"
            )
        self.trajectory = trajectory
        self.section: TrajectorySection | None = None
        """What a recipe says of the checkpoints, where they were found for one."""
        self.reading = reading or ReadingOptions()
        self.pins = pins or Pins()
        self._clock_choice = clock
        self.progress = progress or SilentProgress()
        self._opened: dict[int, Source] = {}
        self._closed = False
        self._warned: set[str] = set()
        self._resources = ExitStack()
        self._scan: tuple[Scan, str] | None = None
        self._table: GramTable | None = None

    @classmethod
    def of(
        cls,
        what: Recipe | Trajectory,
        reading: ReadingOptions | None = None,
        *,
        scan: Scan | Path | str | None = None,
        clock: ClockChoice | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """The run that a recipe observes, looked for; or one that was found before.

        Args:
            scan: of these checkpoints and maybe of later ones, or its file: it spares a pass over them.
            clock: what time is counted by, instead of what the recipe says of it.

        Raises:
            TrajectoryError: the checkpoints cannot be found, pinned or put in order.
            RecipeError: the recipe needs no scan.
            CheckpointMismatch: the scan is of other checkpoints.
            CorruptFile, ReferenceNotFound, SourceError: the scan cannot be read.
        """
        if not isinstance(what, Trajectory) and not isinstance(what, Recipe):
            raise wrong_argument("what", "a Trajectory or a Recipe", what)
        given = None
        if scan is not None:  # before the Hub is asked anything
            given = (scan, "the scan") if isinstance(scan, Scan) else (Scan.load(scan), str(scan))
            if not isinstance(what, Trajectory):
                check_counts(given[1], [what])
        pins = Pins()
        found = what if isinstance(what, Trajectory) else find_recipe_trajectory(what, progress, pins=pins)
        section = None if isinstance(what, Trajectory) else what.trajectory
        if clock is None:
            clock = "auto" if section is None else section.clock
        run = cls(found, reading, pins=pins, clock=clock, progress=progress)
        run.section = section
        if given is not None:
            run._use(*given)
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._resources.close()

    @property
    def steps(self) -> tuple[int, ...]:
        return self.trajectory.steps

    @property
    def rate_history(self) -> RateHistory | None:
        """What lies beside the last checkpoint says of the learning rate; None where nothing does."""
        return self.rates_beside[0]

    @cached_property
    def rates_beside(self) -> Beside:
        """`rate_history`; where there is none though the rate may have changed, why."""
        return rates_beside(self.trajectory, self._source)

    @cached_property
    def clock(self) -> Clock:
        """What time is counted by; told of where it is not the step.

        Raises:
            ClockError: there is no such clock, or it does not go with these checkpoints.
        """
        last = self.trajectory.last.name
        return chosen_clock(self._clock_choice, last, lambda: self.rates_beside, self.progress)

    @cached_property
    def times(self) -> tuple[float, ...]:
        """Of the checkpoints: what methods take for steps.

        Raises:
            ClockError: as `clock`, or nothing was trained between two of them.
        """
        return self.clock.times(self.steps)

    def target_times(self, recipe: Recipe) -> tuple[float, ...]:
        """Those of a recipe's targets, which is `settled`.

        Raises:
            StepError: a target lies before the last checkpoint.
            ClockError: the rate up to a target is not known, or is 0 before that.
        """
        times = self.times  # what is wrong with the checkpoints' own is said first
        if (target := recipe.parameters.target) is not None:
            return tuple(times[-1] + count for count in target.full_rate_steps)
        for step in recipe.target_steps:
            check_steps(self.steps, step)
        return tuple(self.clock.time_of(step) for step in recipe.target_steps)

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with the steps that its predictions are called by, where it says full-rate steps too."""
        return recipe.settled_at(self.steps[-1])

    def horizon_at(self, time: float) -> float | None:
        """(target − last)/(last − first) on the clock; None where nothing was observed but one checkpoint."""
        return clocks.horizon_of(self.times, time)

    def step_in_words(self, time: float) -> str:
        """The step at which it is that time, as `clocks.step_in_words` has it."""
        return clocks.step_in_words(self.clock, self.steps, time)

    def warn(self, *lines: str) -> None:
        """Tell of problems, each once however often it is met."""
        for line in lines:
            if line not in self._warned:
                self._warned.add(line)
                self.progress.warn(line)

    @contextmanager
    def unsaid(self) -> Iterator[None]:
        """Nothing but stages is told meanwhile, and what was warned of counts as not told."""
        told, warned = self.progress, set(self._warned)
        self.progress = StagesOnly(told)
        try:
            yield
        finally:
            self.progress, self._warned = told, warned

    def target_at(self, horizon: float, what: str) -> dict[str, Any]:
        """A target so far ahead, as ``parameters`` say it: the nearest step; full-rate steps where the clock
        never gets there.

        Raises:
            RecipeError: it is behind the last checkpoint, or too far for a step; ``what`` asked for it.
        """
        times, last = self.times, self.steps[-1]
        time = times[-1] + horizon * (times[-1] - times[0])
        if not horizon >= 0 or not time <= MAX_STEP:
            raise RecipeError(
                f"{what} {horizon:g}: a horizon is (target − last)/(last − first), so 0 is step {last}, 1 as "
                f"far again as was observed, and the step at most {MAX_STEP}; give one from 0 on"
            )
        step = self.clock.step_at(time)
        if step is not None:
            return {"target_step": (max(round(step), last),), "target": None}
        count = max(1, round(time - times[-1]))
        return {"target_step": (last + count,), "target": FullRateTarget(full_rate_steps=(count,))}

    @property
    def remote(self) -> bool:
        """Whether weights are read over the network."""
        whole = (one for one in self.trajectory.checkpoints if one.kind != ADAPTER)
        return not self.reading.cache and any(one.repo for one in whole)

    @property
    def has_scan(self) -> bool:
        """Whether a scan was given, so that no weight has to be read for fitting."""
        return self._scan is not None

    @property
    def sources(self) -> tuple[Source, ...]:
        """One per checkpoint, in step order; of whole models."""
        return tuple(self._source(k) for k in range(len(self.steps)))

    @property
    def last_source(self) -> Source:
        """The last checkpoint's."""
        return self._source(len(self.steps) - 1)

    @cached_property
    def adapters(self) -> AdapterRun | None:
        """What the checkpoints hold, where they are adapters.

        Raises:
            CheckpointError: as `adapters.run.AdapterRun`.
        """
        if not self.trajectory.of_adapters:
            return None
        with said_how_to_go_on(self.trajectory):
            run, cache, told = self.trajectory, self.reading.cache, self.progress
            return open_adapters(
                run, self._source, self._resources, bases=lambda: self.bases, cache=cache, progress=told
            )

    @cached_property
    def bases(self) -> Bases:
        """What is known of the bases of adapters, its own and of predictions beside them."""
        return Bases.of_run(self.trajectory, self.pins)

    @cached_property
    def layouts(self) -> list[CheckpointLayout]:
        """What the checkpoints hold: plain weights, see `read_combinable`, or what adapters change."""
        if self.adapters is not None:
            return self.adapters.layouts
        with said_how_to_go_on(self.trajectory):
            return read_combinable(self.sources, self.progress)

    @cached_property
    def any_layouts(self) -> list[CheckpointLayout]:
        """The same of checkpoints that may be quantised, as their logits can be mixed all the same."""
        with said_how_to_go_on(self.trajectory):
            return read_layouts(self.sources, self.progress)

    @cached_property
    def tied(self) -> bool:
        """The last checkpoint's tie_word_embeddings; an adapter changes what it names."""
        return self.adapters is None and ties_embeddings(self.last_source)

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """What stands for the bytes of each checkpoint's weights, as long as nobody writes to a local one."""
        return tuple(
            self.adapters.base_fingerprint
            if self.adapters is not None and is_untouched_base(one)
            else commit_fingerprint(one)
            or files_fingerprint(one, self._source(k))  # a commit needs no source
            for k, one in enumerate(self.trajectory.checkpoints)
        )

    @cached_property
    def scan_plan(self) -> ScanPlan:
        """What a scan would read, and the memory that it needs at least."""
        from hubextrap.engine.scan_plan import plan_scan

        budget = Budget(NO_LIMIT, self.reading.workers, self.remote)
        return plan_scan(self.steps, self.layouts, tied=self.tied, budget=budget)

    def scan_weights(
        self,
        *,
        held: int = 0,
        afterwards: int = 0,
        sample: float | None = None,
        journal: ScanJournal | None = None,
    ) -> Scan:
        """Read every checkpoint once; see `engine.scan.scan_trajectory`.

        Args:
            held: bytes of the memory that something else takes at the same time.
        """
        rates, how = self.rate_history, self.reading  # what cannot be read should not cost a pass
        run, pins, told = self.trajectory, self.fingerprints, self.progress
        if self.adapters is not None:
            from hubextrap.adapters.scanning import scan_adapters

            check_by_this_process(how.executor)
            memory = how.memory - held - afterwards
            within = partial(scan_adapters, self.adapters, run, memory=memory, workers=how.workers)
            found: Scan = within(sample=sample, pins=pins, journal=journal, progress=told)
            return replace(found, rates=rates)
        plan = self.scan_plan.within(Budget(how.memory - held, how.workers, self.remote, reserve=afterwards))
        if how.executor != "local":
            found = by_name("hubextrap.api.elsewhere:scan_elsewhere")(self, plan, sample)
        else:
            from hubextrap.engine.scan import scan_trajectory  # imports numba, once nothing is wrong any more

            found = scan_trajectory(
                run, self.sources, plan, sample=sample, pins=pins, journal=journal, progress=told
            )
        return replace(found, rates=rates)

    def known_table(self) -> GramTable | None:
        """The Gram matrices, where they are known without a pass over the weights.

        Raises:
            CheckpointMismatch: the scan that was given is not of these weights.
        """
        if self._table is None and self._scan is not None:
            sizes = {tensor.name: tensor.elements for tensor in self.scan_plan.tensors}
            self._table = part_of_scan(*self._scan, sizes, self.steps, self.clock)
        return self._table

    def gram_table(self, why: str, *, held: int = 0, afterwards: int = 0) -> GramTable:
        """The Gram matrices; where they are not known, every checkpoint is read once.

        Args:
            why: told before that.
            held, afterwards: as for `scan_weights`.
        """
        found = self.known_table()
        if found is None:
            self.progress.say(why)
            table = self.scan_weights(held=held, afterwards=afterwards).gram_table
            found = self._table = replace(table, clock=self.clock)
        return found

    def check_scan_counts(self, recipes: Iterable[Recipe]) -> None:
        """Refuse a scan that was given although nothing follows from it.

        Raises:
            RecipeError: says so.
        """
        if self._scan is not None:
            check_counts(self._scan[1], recipes)

    def _source(self, k: int) -> Source:
        if self._closed:
            raise SourceError("this run is closed, and reads no more; open another one with Run.of")
        if k not in self._opened:
            checkpoint = self.trajectory.checkpoints[k]
            # an adapter is read more than once, and is small
            source = open_source(checkpoint, cache=self.reading.cache or checkpoint.kind == ADAPTER)
            self._opened[k] = self._resources.enter_context(closing(source))
        return self._opened[k]

    def _use(self, scan: Scan, name: str) -> None:
        """Take what a scan knows, after a look at the checkpoints that it is of."""
        check_same_checkpoints(scan, name, self.trajectory.checkpoints, self.fingerprints)
        self._scan = scan, name
