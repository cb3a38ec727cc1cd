"""`watch`: follow a run that is still training, and do what is due for each new checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hubextrap.api.preparing import MergeOptions, merge_options
from hubextrap.api.taking import Taking
from hubextrap.api.watcher import Watcher, WatchLook
from hubextrap.durable.atomic import is_new_name
from hubextrap.engine.kernels import check_device
from hubextrap.errors import HubExtrapError, OutputError, RecipeError
from hubextrap.extras import require
from hubextrap.given import path_of, sample_choice, watch_recipe_of
from hubextrap.patience import is_passing
from hubextrap.polling import EVERY
from hubextrap.progress import Progress, SilentProgress
from hubextrap.regrounding.command import CommandRunner
from hubextrap.regrounding.holding import held_run
from hubextrap.trajectory import parse_reference
from hubextrap.watching import HISTORY_NAME, read_history

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.recipe import WatchRecipe
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.trajectory import TrajectoryOptions
    from hubextrap.trajectory.reference import Reference

_LOOKS = 3
"""Looks in a row that may fail by what does not pass by itself: a checkpoint may go while it is read."""


def watch(
    run: WatchRecipe | Path | str,
    out: Path | str,
    *,
    options: TrajectoryOptions | None = None,
    every: float | None = EVERY,
    sample: SampleChoice = "auto",
    settings: MergeOptions | None = None,
    progress: Progress | None = None,
    output: BinaryIO | None = None,
) -> Iterator[WatchLook]:
    """Follow a run: each new checkpoint is read, the page rewritten, and what the recipe says is done.

    A checkpoint is taken as if the run ended there, one after the other in step order, and each thing that is
    done is on record. So what is there in the end does not depend on when checkpoints were seen, nor on where
    this was stopped, by whatever: called again alike it goes on.

    Args:
        run: a recipe with a watch section, its file, or the reference of a run, of which a page is kept.
        out: the folder of the scan, the page, the history and the predictions.
        options: which checkpoints of a reference.
        every: seconds between two looks at first; None to look once. More where nothing happens.
        sample: how many weights of each tensor to look at; ``exact`` for all; ``auto`` for a sample of large
            runs on the Hub and all weights of others. A scan that is there already says it.
        output: where the output of the recipe's command goes besides its log.

    Returns:
        What each look found at which something had changed; of one look alone, whatever it found.

    Raises:
        RecipeError: ``out`` belongs to another run; predictions are to be pushed among the run's checkpoints;
            or options, which have no effect on a recipe.
        OutputError: another process watches in ``out``, or it holds something else.
        MissingExtra: matplotlib is not installed.
        ReferenceNotFound, AccessDenied: there is no such run, or it is not open to this token.
        HubExtrapError: see `scan` and `predict`; where it may pass it is told, and looked again.
    """
    progress, settings, out = progress or SilentProgress(), merge_options(settings), path_of("out", out)
    recipe, sample = watch_recipe_of(run, options), sample_choice(sample)
    check_device(settings.device)
    require("report", "the page of a watched run")
    folder = out.resolve()
    if os.path.lexists(out) and not folder.is_dir():
        raise OutputError(f"{out}: is there already and leads to no folder; choose another --out", file=out)
    if not (folder / HISTORY_NAME).exists() and folder.exists() and not _is_empty(folder):
        raise OutputError(
            f"{out}: is there already and holds no watched run; choose another --out, new or empty", file=out
        )
    assert recipe.trajectory.repo is not None
    _check_apart(recipe, parse_reference(recipe.trajectory.repo))  # what is not there is said first
    read_history(folder).check_same_run(recipe.identity(), folder)
    return _looks(recipe, folder, out, every, sample, settings, progress, output)


def _check_apart(recipe: WatchRecipe, run: Reference) -> None:
    """Refuse to push predictions among the run's own checkpoints.

    Raises:
        RecipeError: they would go there.
    """
    push = recipe.watch.push
    if push is None or push.create_pr or run.folder is not None or run.in_bucket:
        return
    if push.repo.lower() == run.repo.lower():
        raise RecipeError(
            f"watch.push.repo: {push.repo} is the run's own, and predictions would lie among its "
            "checkpoints; give another repo, or say create_pr: true",
            repo=push.repo,
        )


def _is_empty(folder: Path) -> bool:
    """Whether at most the first moments of a watch left something in it."""
    return all(path.name == "lock" or is_new_name(path.name) for path in folder.iterdir())


def _looks(
    recipe: WatchRecipe,
    folder: Path,
    out: Path,
    every: float | None,
    sample: SampleChoice,
    settings: MergeOptions,
    progress: Progress,
    output: BinaryIO | None,
) -> Iterator[WatchLook]:
    with held_run(folder, str(out), progress) as lock:
        history = read_history(folder)
        history.check_same_run(recipe.identity(), folder)
        runner = CommandRunner(lock, progress.say, output)
        taking = Taking(recipe.watch, folder, recipe.trajectory.clock, settings, progress, runner)
        watcher = Watcher(recipe, folder, history, sample, taking)
        if every is None:
            yield _one_look(watcher)
        else:
            yield from _following(watcher, every)


def _one_look(watcher: Watcher) -> WatchLook:
    poller = watcher.poller(watcher.known_state())
    if not poller.look():
        return WatchLook(())
    look = watcher.look()
    watcher.keep_state(poller.seen)
    return look


def _following(watcher: Watcher, every: float) -> Iterator[WatchLook]:
    """A look whenever something changed, until somebody ends it."""
    seen: Any = None
    failed = 0
    poller, layout = watcher.poller(None, every), watcher.layout
    while poller.wait():
        try:
            look = watcher.look()
        except HubExtrapError as error:
            failed = 0 if _may_pass(error) else failed + 1
            if failed == _LOOKS:
                raise
            watcher.progress.warn(f"{error}; it is looked at again in {every:g} s")
            poller.seen = seen  # so that it counts as changed then
            continue
        failed, seen = 0, poller.seen
        watcher.keep_state(seen)
        yield look
        if watcher.layout != layout:  # it has its first checkpoints
            poller, layout = watcher.poller(seen, every), watcher.layout


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error came of what may be gone at another attempt."""
    while error is not None:
        if not isinstance(error, HubExtrapError) and is_passing(error):
            return True
        error = error.__cause__
    return False
