"""What one command knows of a run: looked for and opened once, and handed to all that the command does."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from hubextrap import clocks
from hubextrap.adapters.base import Bases
from hubextrap.adapters.run import open_adapters
from hubextrap.engine.budget import NO_LIMIT, Budget
from hubextrap.errors import RecipeError, wrong_argument
from hubextrap.given import check_by_this_process
from hubextrap.lazy import by_name
from hubextrap.progress import Progress, SilentProgress, StagesOnly
from hubextrap.reading import ReadingOptions as ReadingOptions
from hubextrap.recipe import Naming, Recipe, naming_of
from hubextrap.sampling import sample_size, scan_of_weights
from hubextrap.scans import Scan
from hubextrap.scans.given import check_counts, check_same_checkpoints, part_of_scan, sample_of
from hubextrap.statistics import GramTable
from hubextrap.tensors import Combinable, read_combinable, read_layouts
from hubextrap.tensors.fingerprints import commit_fingerprint, files_fingerprint
from hubextrap.tensors.opening import OpenSources
from hubextrap.timing import chosen_clock, rates_beside, target_at, target_times
from hubextrap.trajectory import Pins, Trajectory, find_recipe_trajectory
from hubextrap.trajectory.checkpoint import ADAPTER, is_untouched_base
from hubextrap.trajectory.wholeness import said_how_to_go_on

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from hubextrap.adapters.run import AdapterRun
    from hubextrap.clocks import Clock, ClockChoice, RateHistory
    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.recipe import TrajectorySection
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.scans.tensor_scan import ScanJournal
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.timing import Beside


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

        Raises RecipeError: ``reading`` is of a merge.
        """
        if reading is not None and type(reading) is not ReadingOptions:
            raise RecipeError(
                f"settings: {type(reading).__name__} says more than how to read, which has no effect on what "
                "only reads; give ReadingOptions"
            )
        self.trajectory = trajectory
        self.section: TrajectorySection | None = None
        """What a recipe says of the checkpoints, where they were found for one."""
        self.naming = Naming()
        self.reading, self.pins = reading or ReadingOptions(), pins or Pins()
        self._clock_choice = clock
        self.progress = progress or SilentProgress()
        self._opened = OpenSources(trajectory.checkpoints, cache=self.reading.cache)
        self._source = self._opened.of
        self.check_unchanged = self._opened.check_unchanged
        """To be asked when all is read."""
        self._warned: set[str] = set()
        self._resources = ExitStack()
        self._resources.callback(self._opened.close)
        self._scan: tuple[Scan, str] | None = None
        self._tables: dict[int | None, GramTable] = {}

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
            RecipeError: the recipe needs no scan, or one of other weights.
            CheckpointMismatch: the scan is of other checkpoints.
            CorruptFile, ReferenceNotFound, SourceError: the scan cannot be read.
        """
        if not isinstance(what, Trajectory) and not isinstance(what, Recipe):
            raise wrong_argument("what", "a Trajectory or a Recipe", what)
        given = None
        if scan is not None:  # before the Hub is asked anything
            given = (scan, "the scan") if isinstance(scan, Scan) else (Scan.load(scan), str(scan))
            if not isinstance(what, Trajectory):
                check_counts(*given, [what])
        pins = Pins()
        found = what if isinstance(what, Trajectory) else find_recipe_trajectory(what, progress, pins=pins)
        section = None if isinstance(what, Trajectory) else what.trajectory
        if clock is None:
            clock = "auto" if section is None else section.clock
        run = cls(found, reading, pins=pins, clock=clock, progress=progress)
        run.section, run.naming = section, naming_of(what)
        if given is not None:
            run._use(*given)
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
        for found in ("models", "any_models"):
            vars(self).pop(found, None)

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
        return target_times(self.clock, self.steps, recipe)

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
        """A target so far ahead, as ``parameters`` say it: see `timing.target_at`."""
        return target_at(self.clock, self.steps, horizon, what)

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
    def given_sample(self) -> int | None:
        """How many weights of each tensor the scan that was given is of; None: of all, or there is none."""
        return None if self._scan is None else sample_of(self._scan[0])

    @property
    def sources(self) -> tuple[Source, ...]:
        """One per checkpoint, in step order; of whole models, in the form in which they are combined."""
        return self.models.sources

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

    @property
    def layouts(self) -> list[CheckpointLayout]:
        """What the checkpoints hold: plain weights, see `read_combinable`, or what adapters change."""
        return self.models.layouts

    @cached_property
    def models(self) -> Combinable:
        """The checkpoints in the form in which they are combined; raises what `read_combinable` does."""
        if self.adapters is not None:
            self.naming.check_unused("the checkpoints are adapters, whose names are their base's")
            return Combinable((), self.adapters.layouts)
        with said_how_to_go_on(self.trajectory):
            return read_combinable(self._stored(), self.progress, self.naming)

    @cached_property
    def any_models(self) -> Combinable:
        """The same of checkpoints that may be quantised, as their logits can be mixed all the same."""
        with said_how_to_go_on(self.trajectory):
            return Combinable(self._stored(), read_layouts(self._stored(), self.progress))

    @cached_property
    def tied(self) -> bool:
        """Of the last checkpoint, see `is_tied`; an adapter changes what it names."""
        return self.adapters is None and self._models_of([len(self.steps) - 1]).tied

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """What stands for the bytes of each checkpoint's weights, as long as nobody writes to a local one."""
        found = (
            self.adapters.base_fingerprint
            if self.adapters is not None and is_untouched_base(one)
            else commit_fingerprint(one) or files_fingerprint(one, self._source(k))
            for k, one in enumerate(self.trajectory.checkpoints)
        )
        return tuple(one + self.naming.pin for one in found)

    @cached_property
    def scan_plan(self) -> ScanPlan:
        """What a scan would read, and the memory that it needs at least."""
        from hubextrap.engine.scan_plan import plan_scan

        budget = Budget(NO_LIMIT, self.reading.workers, self.remote)
        plan = plan_scan(self.steps, self.layouts, tied=self.tied, budget=budget)
        return replace(plan, notes=(*self.models.notes, *self.models.caveats, *plan.notes))

    def scan_weights(
        self,
        *,
        held: int = 0,
        afterwards: int = 0,
        reference_share: float | None = None,
        journal: ScanJournal | None = None,
    ) -> Scan:
        """Read every checkpoint once; see `engine.scan.scan_trajectory`.

        Args:
            held: bytes of the memory that something else takes at the same time.
        """
        rates, how = self.rate_history, self.reading  # what cannot be read should not cost a pass
        run, pins, told = self.trajectory, self.fingerprints, self.progress
        budget = Budget(how.memory, how.workers, reserve=held + afterwards)
        if self.adapters is not None:
            from hubextrap.adapters.scanning import scan_adapters

            check_by_this_process(how.executor)
            within = partial(scan_adapters, self.adapters, run, budget=budget)
            found: Scan = within(reference_share=reference_share, pins=pins, journal=journal, progress=told)
            return self._ended(found, rates)
        plan = self.scan_plan.within(replace(budget, remote=self.remote))
        if how.executor != "local":
            found = by_name("hubextrap.api.elsewhere:scan_elsewhere")(self, plan, reference_share)
        else:
            from hubextrap.engine.scan import scan_trajectory  # imports numba, once nothing is wrong any more

            one_pass = partial(scan_trajectory, run, self.sources, plan, pins=pins, progress=told)
            found = one_pass(reference_share=reference_share, journal=journal)
        return self._ended(found, rates)

    def sample_size(self, choice: SampleChoice) -> int | None:
        """How many weights of each tensor a sample takes; None: all are read. See `sampling.sample_size`."""
        if choice == "auto" and (self.reading.cache or self.reading.executor != "local"):
            return None
        return sample_size(choice, self.trajectory, self._source)

    def scan_sample(
        self, size: int, known: Scan | None = None, *, held: int = 0, afterwards: int = 0
    ) -> Scan:
        """Read ``size`` weights of each tensor; see `engine.sampling.sample_weights`.

        Args:
            known: a scan of a sample of the same size, whose checkpoints are not read again.
            held, afterwards: as for `scan_weights`.
        """
        rates, run, pins, told = self.rate_history, self.trajectory, self.fingerprints, self.progress
        budget = Budget(self.reading.memory, self.reading.workers, reserve=held + afterwards)
        if self.adapters is not None:
            from hubextrap.adapters.sampling import sample_adapters

            sampled = sample_adapters(self.adapters, run, size, pins=pins, budget=budget, progress=told)
            return self._ended(sampled, rates)
        models, tied, budget = self._models_of, lambda: self.tied, replace(budget, remote=self.remote)
        sampled = scan_of_weights(run, pins, size, known, models, tied, budget=budget, progress=told)
        return self._ended(sampled, rates)

    def known_table(self, *recipes: Recipe) -> GramTable | None:
        """The Gram matrices, where they are known already: of the weights that the recipes fit to, if to any.

        Raises:
            CheckpointMismatch: the scan that was given is not of these weights.
        """
        if self._scan is not None and self.given_sample not in self._tables:
            sizes = {tensor.name: tensor.elements for tensor in self.scan_plan.tensors}
            self._tables[self.given_sample] = part_of_scan(*self._scan, sizes, self.steps, self.clock)
        fitted = [recipe.fit_sample for recipe in recipes if recipe.needs_scan]
        return self._tables.get(fitted[0]) if fitted else next(iter(self._tables.values()), None)

    def gram_table(
        self, why: str, *, sample: int | None = None, held: int = 0, afterwards: int = 0
    ) -> GramTable:
        """The Gram matrices; where they are not known, every checkpoint is read once.

        Args:
            why: told before that.
            sample: how many weights of each tensor they are to be estimated from; None: all.
            held, afterwards: as for `scan_weights`.
        """
        self.known_table()
        if sample not in self._tables:
            self.progress.say(why)
            read = self.scan_weights if sample is None else partial(self.scan_sample, sample)
            table = read(held=held, afterwards=afterwards).gram_table
            self._tables[sample] = replace(table, clock=self.clock)
        return self._tables[sample]

    def check_scan_counts(self, recipes: Iterable[Recipe]) -> None:
        """Refuse a scan that was given although nothing follows from it, with a RecipeError."""
        if self._scan is not None:
            check_counts(*self._scan, recipes)

    def _models_of(self, numbers: Sequence[int]) -> Combinable:
        """Some checkpoints, without a look at the others."""
        if len(numbers) == len(self.steps) or self.naming or "models" in vars(self):
            return self.models.of(numbers)
        with said_how_to_go_on(self.trajectory):
            return read_combinable([self._source(k) for k in numbers], self.progress)

    def _stored(self) -> tuple[Source, ...]:
        return tuple(self._source(k) for k in range(len(self.steps)))

    def _ended(self, scan: Scan, rates: RateHistory | None) -> Scan:
        self.check_unchanged()
        return replace(scan, rates=rates)

    def _use(self, scan: Scan, name: str) -> None:
        """Take what a scan knows, after a look at the checkpoints that it is of."""
        check_same_checkpoints(scan, name, self.trajectory.checkpoints, self.fingerprints)
        self._scan = scan, name
