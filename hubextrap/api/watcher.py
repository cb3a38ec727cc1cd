"""One look at a run that is watched: what is there, what became of it, and what is due."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__
from hubextrap.api.reporting import write_page
from hubextrap.api.scanning import scan_run
from hubextrap.api.taking import Past, Taking
from hubextrap.digests import sha256_of_json
from hubextrap.durable.atomic import read_sealed, write_sealed
from hubextrap.errors import AmbiguousTrajectory, OutputError, ReferenceNotFound, TrajectoryError
from hubextrap.notebooks import one_line, steps_in_words
from hubextrap.opening import Run
from hubextrap.polling import EVERY, Poller, place_of_run
from hubextrap.scans import Scan
from hubextrap.scans.given import sample_of
from hubextrap.trajectory import Pins, Trajectory, TrajectoryOptions, find_series, find_trajectory
from hubextrap.trajectory.changes import Changes, SeenCheckpoint, changes_since
from hubextrap.trajectory.selection import scaled_by
from hubextrap.watching import Began, Gone, History, Seen, Taken
from hubextrap.watching.history import REMEDY, as_json

if TYPE_CHECKING:
    from collections.abc import Collection

    from hubextrap.progress import Progress
    from hubextrap.recipe import WatchRecipe
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.statistics import RunVerdict
    from hubextrap.statistics.hindsight import Hindsight
    from hubextrap.watching import Ran

SCAN_NAME, PAGE_NAME, STATE_NAME = "run.scan.safetensors", "index.html", "state.json"
_NEXT_SCAN = "next.scan.safetensors"


@dataclass(frozen=True, slots=True)
class WatchLook:
    """What one look at a run found, and what was done."""

    steps: tuple[int, ...]
    """Of the checkpoints that are there, whole; empty where nothing has changed since the last look."""
    said: tuple[str, ...] = ()
    """What became of checkpoints: new, replaced, gone, waited for."""
    taken: tuple[Taken, ...] = ()
    """The new checkpoints for which something was done, or said."""
    ran: tuple[Ran, ...] = ()
    """The commands that were run."""
    verdict: RunVerdict | None = None
    """On the run as it is; None where too little is there, or nothing has changed."""
    hindsight: Hindsight | None = None
    """How earlier predictions turned out; None as above."""
    page: Path | None = None
    """Where that stands; None as above."""

    def __repr__(self) -> str:
        what = "nothing new" if not self.steps else steps_in_words(self.steps)
        line = "" if self.verdict is None else self.verdict.line
        return one_line(self, what, line)

    def as_dict(self) -> dict[str, Any]:
        """The look as JSON values."""
        return {
            "steps": list(self.steps),
            "said": list(self.said),
            "taken": [as_json(one) for one in self.taken],
            "commands": [{"step": one.step, "ended": one.ended} for one in self.ran],
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
            "hindsight": None if self.hindsight is None else self.hindsight.as_dict(),
            "page": None if self.page is None else str(self.page),
        }


class Watcher:
    """One run, one folder.

    Attributes:
        layout: that of the run's checkpoints, once there are any.
    """

    def __init__(
        self, recipe: WatchRecipe, folder: Path, history: History, sample: SampleChoice, taking: Taking
    ) -> None:
        self.layout: str | None = None
        self.progress = _ToldOnce(taking.progress)
        self._recipe, self._folder, self._history = recipe, folder, history
        self._sample, self._taking = sample, taking
        self._tell = taking.progress.warn  # of what happened, each time that it happens
        assert recipe.trajectory.repo is not None
        self._reference = recipe.trajectory.repo

    def poller(self, seen: Any, every: float = EVERY) -> Poller:
        """What looks whether anything changed since that was seen."""
        pattern = self._recipe.trajectory.steps.pattern
        place = place_of_run(self._reference, self.layout, pattern=pattern, apart=[self._folder])
        return Poller(place, seen, every=every, progress=self._taking.progress)

    def known_state(self) -> Any:
        """What the last look that was finished saw; None where the recipe or the program is another now."""
        try:
            state = read_sealed(self._folder / STATE_NAME)
        except (OSError, ValueError):
            return None
        if not isinstance(state, dict) or state.get("of") != self._fingerprint:
            return None
        self.layout = state.get("layout")
        return state.get("seen")

    def keep_state(self, seen: Any) -> None:
        """Note that a look is finished. OutputError if the disk did not take it."""
        state = {"of": self._fingerprint, "layout": self.layout, "seen": seen}
        write_sealed(self._folder / STATE_NAME, state, remedy=REMEDY)

    @property
    def _fingerprint(self) -> str:
        """Of what a look depends on beside the run: it is another where files were taken away by hand."""
        there = [name for name in (PAGE_NAME, SCAN_NAME) if (self._folder / name).exists()]
        return sha256_of_json([__version__, self._recipe.to_yaml(), self._sample, self._history.size, there])

    def look(self) -> WatchLook:
        """Find what is there, and do what is due. Whoever does it twice changes nothing.

        Raises:
            HubExtrapError: see `watch`.
        """
        self.progress.begin()
        pins = Pins()
        found = self._found(pins)
        self._begin(found)
        if found is None:
            return WatchLook((), ("no checkpoint is there yet",))
        changes = changes_since(self._history.there, found, pins)
        said = changes.lines()
        run = self._usable(found, changes)
        if run is None:
            return WatchLook((), said)
        self._note(changes, run)
        if len(run.steps) < 2:
            return WatchLook(run.steps, (*said, "a page and predictions need two checkpoints"))
        pinned = replace(run, checkpoints=tuple(map(self._history.pinned, run.checkpoints)))
        try:
            return self._done(pinned, said)
        except ReferenceNotFound:
            if pinned.checkpoints == run.checkpoints:
                raise
        self._pin_anew(run)
        return self._done(run, said)

    def _done(self, run: Trajectory, said: tuple[str, ...]) -> WatchLook:
        """The look, once all is done that is due."""
        past = Past.of(self._scanned(run), self._recipe.trajectory.clock)
        taken, ran = self._take(run, past)
        verdict, page = self._show(past), self._folder / PAGE_NAME
        return WatchLook(run.steps, said, taken, ran, verdict, past.hindsight(self._history), page)

    def _found(self, pins: Pins) -> Trajectory | None:
        """The checkpoints; None where there is none yet."""
        said = self._recipe.trajectory.steps
        try:
            found = self._find(said.series, pins)
        except AmbiguousTrajectory:
            if (own := self._own_series(pins)) is None:
                raise
            self.progress.say(f"other series of checkpoints have come; this one is followed: {own}")
            found = self._find(own, pins)
        except TrajectoryError as error:
            there = find_series(self._reference, pattern=said.pattern)
            steps = [one.step for series in there for one in scaled_by(series, said.scale).checkpoints]
            if any(said.min is None or step >= said.min for step in steps):
                raise
            self.progress.say(str(error))  # nothing yet, or the wrong place
            return None
        self.layout = None if found.whole is None else found.whole.layout
        return found

    def _find(self, series: str | None, pins: Pins) -> Trajectory:
        section = self._recipe.trajectory
        said = section.steps
        asked = TrajectoryOptions(said.pattern, series, said.min, said.max, None, section.base, said.scale)
        return find_trajectory(self._reference, asked, pins=pins, progress=self.progress)

    def _own_series(self, pins: Pins) -> str | None:
        """Of several series the one that was followed up to now; None where that is not one of them."""
        known = {one.name for one in self._history.there.values()}
        found = find_series(self._reference, pattern=self._recipe.trajectory.steps.pattern, pins=pins)
        own = [one.label for one in found if any(each.name in known for each in one.checkpoints)]
        return own[0] if len(own) == 1 else None

    def _begin(self, found: Trajectory | None) -> None:
        """At the first look, what is there is history, and something is done from its last checkpoint on."""
        if self._history.began is None:
            since = self._recipe.watch.since
            if since is None:
                since = 0 if found is None else found.steps[-1]
            self._history.add(Began(run=self._recipe.identity(), since=since))

    def _usable(self, found: Trajectory, changes: Changes) -> Trajectory | None:
        """The checkpoints before the first that is being written; None where those behind it are known."""
        first = min((over.checkpoint.step for over in changes.unfinished), default=None)
        if first is not None and max(self._history.there, default=-1) > first:
            return None
        left_out = {over.checkpoint.step for over in changes.given_up}
        kept = [step for step in found.steps if step not in left_out and (first is None or step < first)]
        return _part(found, kept) if kept else None

    def _note(self, changes: Changes, run: Trajectory) -> None:
        """Record which checkpoints are others, gone or new, before anything follows from that."""
        for gone in changes.gone:
            self._history.add(Gone(step=gone.step))
            self._tell(f"step {gone.step} is gone: {gone.name}; the scan goes on without it")
        for one in changes.replaced:
            step = one.now.step
            affected = [each for each in sorted(self._history.taken) if each >= step]
            marked = f"; what was said at step {', '.join(map(str, affected))} is marked" if affected else ""
            self._tell(f"step {step} was replaced: {one}; it is read again{marked}")
        known = {one.now.step for one in changes.replaced} | {one.step for one in changes.new}
        for checkpoint in run.checkpoints:
            if checkpoint.step in known:
                self._history.add(Seen(checkpoint=SeenCheckpoint.of(checkpoint)))

    def _pin_anew(self, run: Trajectory) -> None:
        """Read the same weights where they are now: a commit that was seen is gone, as its history is."""
        moved = [one for one in run.checkpoints if self._history.pinned(one) != one]
        for one in moved:
            self._history.add(Seen(checkpoint=SeenCheckpoint.of(one)))
        listed = ", ".join(str(one.step) for one in moved)
        self._tell(f"commits are gone from the history; the same weights are read at others: step {listed}")

    def _scanned(self, run: Trajectory) -> Scan:
        """The scan of these checkpoints, of which the file keeps what it has of them."""
        path = self._folder / SCAN_NAME
        known = Scan.load(path) if path.exists() else None
        with Run.of(run, self._taking.settings.reading, progress=self.progress) as opened:
            wanted = tuple(zip(opened.steps, opened.fingerprints, strict=True))
            size = opened.sample_size(self._sample) if known is None else _size_of(known, self._sample, path)
            if known is not None and known.pins == wanted:
                return known
            if size is not None:
                found = opened.scan_sample(size, known)
                found.save(path)
                return found
            fresh = self._folder / _NEXT_SCAN
            if fresh.exists() and Scan.load(fresh).pins != wanted:  # whole, and a kill kept it from its name
                fresh.unlink()
            found = scan_run(opened, out=fresh, sample="exact")
            fresh.replace(path)
            return found

    def _take(self, run: Trajectory, past: Past) -> tuple[tuple[Taken, ...], tuple[Ran, ...]]:
        """Take what is due, each as if the run ended there."""
        history, command = self._history, self._recipe.watch.command
        assert history.began is not None
        taken, ran = [], []
        since = self._recipe.watch.since
        since = history.began.since if since is None else since
        for step in (step for step in run.steps if step >= since):
            if step not in history.taken:
                part = _part(run, [each for each in run.steps if each <= step])
                history.add(self._taking.take(part, self._past_of(part, past), len(history.taken)))
                taken.append(history.taken[step])
            found = history.taken[step]
            if command is not None and found.said is not None and step not in history.ran:
                self._show(past)
                places = {"page": str(self._folder / PAGE_NAME), "scan": str(self._folder / SCAN_NAME)}
                history.add(self._taking.run_command(found, past, history, places))
                ran.append(history.ran[step])
        return tuple(taken), tuple(ran)

    def _past_of(self, part: Trajectory, past: Past) -> Past:
        """What a scan of these checkpoints alone says: of adapters, that of more differs in its last bits."""
        if not part.of_adapters or part.steps == past.scan.steps or past.scan.weights is not None:
            return past
        with Run.of(part, self._taking.settings.reading, progress=self.progress) as opened:
            return Past.of(scan_run(opened, sample="exact"), self._recipe.trajectory.clock)

    def _show(self, past: Past) -> RunVerdict:
        """Write the page."""
        return write_page(
            past.scan,
            past.backtest,
            past.hindsight(self._history),
            past.clock,
            self._recipe.trajectory.clock,
            title=Path(self._reference).name,
            out=self._folder / PAGE_NAME,
        )


def _size_of(known: Scan, sample: SampleChoice, path: Path) -> int | None:
    """How many weights of each tensor a scan is of.

    Raises:
        OutputError: another number is asked for.
    """
    size = sample_of(known)
    asked = size if sample == "auto" else None if sample == "exact" else sample
    if asked != size:
        there = "all weights" if size is None else f"{size:,} weights per tensor"
        raise OutputError(
            f"{path}: holds a scan of {there}, and --sample or --exact says otherwise; leave it out, or give "
            "another --out",
            file=path,
        )
    return size


def _part(run: Trajectory, steps: Collection[int]) -> Trajectory:
    """The run as if it had these steps alone."""
    groups = (tuple(step for step in group if step in steps) for group in run.same_weights)
    return replace(
        run,
        checkpoints=tuple(one for one in run.checkpoints if one.step in steps),
        same_weights=tuple(group for group in groups if len(group) > 1),
    )


class _ToldOnce:
    """Tells a line once for as long as each look says it again, and anew when it comes back."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._before: set[str] = set()
        self._now: set[str] = set()
        self.stage = progress.stage

    def begin(self) -> None:
        """A look begins."""
        self._before, self._now = self._now, set()

    def say(self, line: str) -> None:
        if self._is_new(line):
            self._progress.say(line)

    def warn(self, line: str) -> None:
        if self._is_new(line):
            self._progress.warn(line)

    def _is_new(self, line: str) -> bool:
        known = line in self._before or line in self._now
        self._now.add(line)
        return not known
