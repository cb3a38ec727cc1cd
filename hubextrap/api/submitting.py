"""A merge handed to a queue: all is checked and written here; others do the work, and the last step."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hubextrap.api.beforehand import problems_beforehand, refuse
from hubextrap.api.beside import write_beside
from hubextrap.api.companions import companions
from hubextrap.api.distributing import planned
from hubextrap.api.fingerprint import merge_fingerprint
from hubextrap.api.finishing import said_to_finish
from hubextrap.api.merging import destinations
from hubextrap.api.output import target_folders
from hubextrap.api.planning import recipe_push_targets
from hubextrap.api.preparing import opened, prepare
from hubextrap.api.recorded import add_from_journals, refuse_jobs
from hubextrap.api.staging import WORK, in_place, place_of, push_place, push_state
from hubextrap.api.starts import earlier_starts, write_starts
from hubextrap.errors import RecipeError
from hubextrap.executors.driving import earlier_plan, placed
from hubextrap.given import optional_path, recipe_of
from hubextrap.hub.target import create_repo
from hubextrap.work.places import FolderPlace
from hubextrap.work.plan import Output
from hubextrap.work.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.api.preparing import MergeOptions, Prepared
    from hubextrap.executors.watching import Submitted
    from hubextrap.hub import PushTarget
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.tensors import Journal
    from hubextrap.work.places import Place
    from hubextrap.work.plan import WorkPlan


class Queue(Protocol):
    """What a merge is handed to: `executors.slurm.SlurmExecutor`, `executors.jobs.JobsExecutor`."""

    def place(self, plan: WorkPlan, local: FolderPlace) -> Place:
        """Where the plan is to lie: ``local`` where all workers see that."""

    def submit(self, plan: WorkPlan, place: Place, units: Sequence[int]) -> Submitted:
        """Have the units done, and the last step after them."""

    def dry_run(self, plan: WorkPlan, place: Place, units: Sequence[int]) -> str:
        """What `submit` would hand over, as text."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What was handed over."""

    place: str
    """Where plan and records lie, for `hubextrap finish` and `hubextrap worker`."""
    units: int
    """How many are to be done."""
    queued: Submitted | None
    """None for a dry run."""
    script: str | None = None
    """What a dry run would hand over."""


def submit(
    recipe: Recipe | Path | str,
    queue: Queue,
    *,
    out: Path | str | None = None,
    push: PushTarget | str | Sequence[PushTarget | str] = (),
    settings: MergeOptions | None = None,
    scan: Scan | Path | str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Submission:
    """`merge`, by workers that nobody waits for; their last step makes the output appear, in one commit.

    What an earlier run has made for the same output counts.

    Args:
        queue: who has the work done.
        dry_run: write nothing and hand nothing over.

    Raises:
        RecipeError: the recipe names no step, its checkpoints are adapters, or as `merge`.
        HubExtrapError: as `merge`, before the first byte of a tensor is made; the queue does not take it.
    """
    recipe, out = recipe_of(recipe), optional_path("out", out)
    if recipe.walk is not None:
        raise RecipeError(
            "walk: a walk generates as it goes, so no queue can have it; run `hubextrap walk` first, and "
            "submit a recipe with the step that it chose"
        )
    targets = destinations(recipe, out, push)
    with opened(recipe, None, settings, scan, progress) as (run, how):
        if run.trajectory.of_adapters:
            raise RecipeError(
                "submit: adapters are small, and one process reads and predicts a run of them; use hubextrap "
                "merge or run instead"
            )
        recipe = run.settled(recipe)
        if out is None and not targets:
            targets = recipe_push_targets(recipe)

        def check(prepared: Prepared) -> None:
            refuse(problems_beforehand(prepared, out, targets))

        prepared = prepare(recipe, run, how, check=check)
        for line in prepared.notes:
            run.progress.say(line)
        if dry_run:
            work = place_of(out) if out is not None else push_place(targets[0])
            local = FolderPlace(work.absolute() / WORK)
            outputs = [Output(push=one) for one in targets] if out is None else [Output(folder=str(out))]
            plan = planned(prepared.plan, run, how, outputs, merge_fingerprint(prepared))
            place = queue.place(plan, local)
            units = plan.shard_units
            return Submission(place.name, len(units), None, queue.dry_run(plan, place, units))
        return _handed_over(prepared, queue, out, targets)


def _handed_over(
    prepared: Prepared, queue: Queue, out: Path | None, targets: Sequence[PushTarget]
) -> Submission:
    run, settings = prepared.run, prepared.settings
    steps = prepared.recipe.target_steps
    fingerprint, beside = merge_fingerprint(prepared), list(companions(prepared))
    with _place(prepared, fingerprint, out, targets) as (local, outputs, journals):
        plan = planned(prepared.plan, run, settings, outputs, fingerprint)
        place = queue.place(plan, local)
        finish = said_to_finish(out, steps, targets, beside, prepared.caveats)
        plan = replace(plan, finish=finish)
        if earlier_plan(plan, place) is None:
            refuse_jobs(place)
        before = earlier_starts(place)
        plan, records = placed(plan, place)
        add_from_journals(plan, Records(place, plan.digest), records, journals)
        write_beside(place, plan, beside)
        if out is None:  # repos are made last, when the place is known to take the plan
            write_starts(place, [create_repo(target) for target in targets], before)
        units = [unit for unit in plan.shard_units if unit not in records]
        return Submission(place.name, len(units), queue.submit(plan, place, units))


@contextmanager
def _place(
    prepared: Prepared, fingerprint: Mapping[str, str], out: Path | None, targets: Sequence[PushTarget]
) -> Iterator[tuple[FolderPlace, list[Output], Sequence[Journal]]]:
    """The place on this machine, held while the plan is written; where shards go, and the journals there."""
    progress = prepared.run.progress
    with ExitStack() as stack:
        if out is not None:
            folders = target_folders(prepared.recipe.target_steps)
            staging = stack.enter_context(
                in_place(
                    out, folders, fingerprint, progress, keep=True, hashed=False, detached=True, clean=False
                )
            )
            outputs = [Output(folder=str(one)) for one in staging.folders]
            yield FolderPlace(staging.work), outputs, staging.journals
            return
        stagings = [
            stack.enter_context(push_state(one, fingerprint, progress, detached=True)) for one in targets
        ]
        yield FolderPlace(stagings[0].work.absolute()), [Output(push=one) for one in targets], ()
