"""`plan`: what a recipe would do, and every problem that can be known before tensor bytes move."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from hubextrap.api.adapted import adapter_files
from hubextrap.api.beforehand import problems_beforehand
from hubextrap.api.output import target_folders
from hubextrap.api.preparing import MergeOptions, Prepared, opened, prepare
from hubextrap.api.staging import walk_place
from hubextrap.errors import ClockError, HubExtrapError, RecipeError, TrajectoryError
from hubextrap.figures import ONE, said_of_sample, with_stderr
from hubextrap.given import optional_path, recipe_of
from hubextrap.hub import PushTarget, check_target
from hubextrap.hub.earlier import left_by_earlier
from hubextrap.hub.outgoing import stale_files
from hubextrap.hub.provenance_checks import OWN_FILES
from hubextrap.hub.target import clashing, push_targets
from hubextrap.notebooks import counted, html_table, one_line, steps_in_words
from hubextrap.tensors.devices import cuda_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubextrap.api.looking import Ahead
    from hubextrap.hub.target import RemoteState
    from hubextrap.opening import Run
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.statistics import RunVerdict
    from hubextrap.trajectory.checkpoint import Trajectory


_PENDING = (
    "{} of all checkpoints are read once more before the merge: coefficients or the expected error follow "
    "from them (`hubextrap backtest` says what to expect)"
)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a merge would do. ``problems`` is empty when it can start."""

    checkpoints: tuple[tuple[int, str, str | None, int | None], ...]
    """(step, name, commit, bytes of weights), in step order."""
    target_steps: tuple[int, ...]
    horizons: tuple[float | None, ...]
    """(target − last) / (last − first) on the clock, one per target."""
    expected_relative_errors: tuple[float | None, ...]
    """One per target; None where the weights were not scanned, or their past cannot say."""
    expected_relative_error_stderrs: tuple[float | None, ...] = ()
    """Their standard errors, where they come from a sample of the weights; else empty."""
    sampled: int | None = None
    """Weights of each tensor that they come from; None: all."""
    trusted_horizons: tuple[float | None, ...] = ()
    """Up to which the past trusts the method, 0 where nowhere, one per target; None where nothing says it."""
    trusted_up_to: tuple[str | None, ...] = ()
    """The step that lies there, in words: full-rate steps where the clock never gets there."""
    verdicts: tuple[RunVerdict | None, ...] = ()
    """On each target; None where no rule predicts motion, or nothing is known yet."""
    clock: str = "steps"
    """What time is counted by."""
    walks: bool = False
    """Whether a walk is to choose a step, up to the target."""
    rules: tuple[tuple[str, str, tuple[dict[int, float], ...]], ...] = ()
    """(globs, method, one {step: coefficient} per target) without zeros; empty if unread weights decide."""
    files: tuple[tuple[str, int], ...] = ()
    """(name, bytes) of every weight file of one output."""
    bytes_read: int = 0
    bytes_written: int = 0
    peak_memory: int = 0
    outputs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What the past of the run warns of."""
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        observed = counted(len(self.checkpoints), "checkpoint")
        problems = counted(len(self.problems), "problem") if self.problems else "no problems"
        return one_line(
            self, f"{steps_in_words(self.target_steps)} from {observed}", problems, *self.outputs[:1]
        )

    def _repr_html_(self) -> str:
        nothing = [None] * len(self.target_steps)
        both = zip(self.expected_relative_errors or nothing, self.expected_stderrs, strict=False)
        errors = [with_stderr(*one, digits=3) for one in both]
        predicted = zip(
            map(str, self.target_steps), self.horizons, errors, self.trusted_up_to or nothing, strict=False
        )
        problems = counted(len(self.problems), "problem") if self.problems else "no problems found"
        headings = ("predict step", "horizon", "expected relative error", "trusted up to")
        table = html_table(f"plan: {problems}", headings, list(predicted))
        observed = [
            (str(step), name, (commit or "")[:8], size) for step, name, commit, size in self.checkpoints
        ]
        said = (
            *(f"problem: {line}" for line in self.problems),
            *(f"warning: {line}" for line in self.warnings),
            *(f"note: {line}" for line in self.notes),
            *(f"output: {line}" for line in self.outputs),
            *said_of_sample(self.sampled, ONE),
        )
        return table + html_table(
            "observed", ("step", "checkpoint", "commit", "bytes of weights"), observed, said
        )

    @property
    def expected_stderrs(self) -> tuple[float | None, ...]:
        """One per target; None where nothing was sampled."""
        return self.expected_relative_error_stderrs or (None,) * len(self.target_steps)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values; standard errors are in it where there are any."""
        named = {
            "checkpoints": ("step", "name", "commit", "size"),
            "rules": ("match", "method", "coefficients"),
            "files": ("file", "size"),
        }
        verdicts = [None if verdict is None else verdict.as_dict() for verdict in self.verdicts]
        return {
            name: verdicts
            if name == "verdicts"
            else value
            if not isinstance(value, tuple)
            else [dict(zip(named[name], row, strict=True)) for row in value]
            if name in named
            else list(value)
            for name, value in asdict(self).items()
            if value or name not in ("expected_relative_error_stderrs", "sampled")
        }


def plan(
    recipe: Recipe | Path | str,
    *,
    out: Path | str | None = None,
    push: PushTarget | str | Sequence[PushTarget | str] = (),
    check_push: bool = True,
    settings: MergeOptions | None = None,
    scan: Scan | Path | str | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
) -> PlanReport:
    """What `merge`, and `run` after it, would do with the same arguments. Reads headers and small files only,
    and the data of the tasks of an evaluate section where lm-eval is installed; writes nothing.

    Args:
        recipe: it, or its file.
        out: the folder that would be written.
        push: where it would be pushed, also as ``owner/name@branch``; the recipe's own targets when empty.
        check_push: ask the Hub whether the token at hand may push there.
        scan: of the recipe's checkpoints, or its file: coefficients and expected errors are known then.
        run: the recipe's, where it is open; `merge` may be given the same one.

    Raises:
        TrajectoryError: there are no checkpoints to speak of; everything later is a problem in the report.
        CheckpointMismatch, CorruptFile, RecipeError: the scan is of no use.
    """
    recipe, out = recipe_of(recipe), optional_path("out", out)
    push = push_targets(push)
    with opened(recipe, run, settings, scan, progress) as (found_run, how):
        far = found_run.settled(recipe.farthest)
        targets = given_push_targets(recipe, push) or recipe_push_targets(far)
        asked = targets if check_push else []
        known = _beforehand(far, found_run.trajectory, out, targets)
        unmeasurable, said = _evaluation(recipe, found_run)
        known = replace(known, notes=(*known.notes, *said))
        try:
            known = _on_the_clock(known, far, found_run)
            check_destinations(recipe, True, targets)
            ahead = None if recipe.walk is None else _ahead(recipe, found_run, how.force)
            if ahead is not None:
                known = replace(known, walks=True, notes=(*ahead.notes(), *known.notes))
                far, how = ahead.recipes[-1], replace(how, force=True)  # as the walk does
            prepared = prepare(far, found_run, how, read_weights=False)
            states: dict[PushTarget, RemoteState] = {}
            found = problems_beforehand(prepared, out, targets, ask=check_push, states=states)
            if ahead is not None and recipe.space == "weights":
                found += ahead.problems(prepared, walk_place(recipe, out, targets))
            problems = list(dict.fromkeys([*(str(problem) for problem in found), *unmeasurable]))
            removals = _removals(states, prepared)
            return _with_merge(known, prepared, problems, removals)
        except HubExtrapError as error:
            if isinstance(error, TrajectoryError) and not isinstance(error, ClockError):
                raise
            return replace(known, problems=(str(error), *_refusals(asked), *unmeasurable))


def _evaluation(recipe: Recipe, run: Run) -> tuple[list[str], list[str]]:
    """What keeps its predictions from being measured, and what is to be known of that."""
    if recipe.evaluate is None:
        return [], []
    from hubextrap.api.measuring import evaluation_problems  # imports what evaluates

    return evaluation_problems(recipe, run)


def _ahead(recipe: Recipe, run: Run, force: bool) -> Ahead | None:
    from hubextrap.api.looking import look_ahead  # imports what evaluates

    return look_ahead(recipe, run, force=force)


def recipe_push_targets(recipe: Recipe) -> list[PushTarget]:
    """Where the recipe's push section, once it is settled, sends each target step; empty without one."""
    section = recipe.push
    if section is None:
        return []
    return [
        PushTarget(
            section.repo,
            section.revision_for(step),
            private=section.private,
            create_pr=section.create_pr,
            message=section.commit_message,
        )
        for step in recipe.farthest.target_steps
    ]


def given_push_targets(recipe: Recipe, push: Sequence[PushTarget]) -> list[PushTarget]:
    """Targets that take the place of the push section's, as private and as careful as it asks for.

    What the section says of how to push (``private``, ``create_pr``, ``commit_message``) holds for them too,
    so that nobody who wrote ``private: true`` gets a public repo.
    """
    section = recipe.push
    if section is None:
        return list(push)
    return [
        replace(
            target,
            private=target.private or section.private,
            create_pr=target.create_pr or section.create_pr,
            message=section.commit_message if target.message is None else target.message,
        )
        for target in push
    ]


def check_destinations(recipe: Recipe, into_folder: bool, targets: Sequence[PushTarget]) -> None:
    """Refuse a merge that has nowhere to go, or several predictions that would go to one place.

    Raises:
        RecipeError: says what to give.
    """
    if not into_folder and not targets and recipe.push is None:
        raise RecipeError(
            "the recipe has no push section; write one into it, or give an output folder (--out DIR)"
        )
    if targets and len(targets) != recipe.target_count:
        raise RecipeError(
            f"{recipe.target_count} target steps and {len(targets)} push target; write a push section "
            "with {target_step} in its revision"
        )
    for one, other in combinations(targets, 2):
        both = {one.revision, other.revision}
        if one.repo == other.repo and (len(both) == 1 or clashing(one.revision, both)):
            raise RecipeError(
                f"{one.name} and {other.name}: git holds no two such branches; give each target "
                "step one of its own"
            )


def _refusals(targets: Sequence[PushTarget]) -> list[str]:
    """What keeps pushes from going where they should, where nothing is known of what would go there."""
    problems = []
    for target in targets:
        try:
            check_target(target)
        except HubExtrapError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _removals(states: Mapping[PushTarget, RemoteState], prepared: Prepared) -> list[str]:
    """What pushes would remove where they go."""
    shards = [shard.file for shard in prepared.plan.shards]
    beside = {**prepared.beside.files, **prepared.addition.files, **adapter_files(prepared)}
    ours = {*shards, prepared.plan.index_file or "", *beside, *OWN_FILES}
    return [
        f"{target.name}: removes {', '.join(stale)} of the model that is there"
        for target, state in states.items()
        if (stale := stale_files(ours, state.files, left_by_earlier(target, state, ours)))
    ]


def _beforehand(
    recipe: Recipe, trajectory: Trajectory, out: Path | None, targets: Sequence[PushTarget]
) -> PlanReport:
    """What is known before any header is read."""
    wanted = recipe.target_steps
    folders = [str(out / folder) for folder in target_folders(wanted)] if out else []
    return PlanReport(
        checkpoints=tuple((c.step, c.name, c.commit, c.size) for c in trajectory.checkpoints),
        target_steps=wanted,
        horizons=(None,) * len(wanted),
        expected_relative_errors=(None,) * len(wanted),
        trusted_horizons=(None,) * len(wanted),
        trusted_up_to=(None,) * len(wanted),
        verdicts=(None,) * len(wanted),
        outputs=(*folders, *(f"hf://{target.name}" for target in targets)),
        notes=trajectory.notes,
    )


def _on_the_clock(known: PlanReport, recipe: Recipe, run: Run) -> PlanReport:
    """With what time it is at the targets."""
    horizons = tuple(run.horizon_at(time) for time in run.target_times(recipe))
    notes = known.notes
    if (target := recipe.parameters.target) is not None:
        counts = " and ".join(map(str, target.full_rate_steps))
        said = (
            f"predicts {counts} full-rate steps after step {run.steps[-1]}, as if the learning rate had "
            "stayed at its peak; the run itself has no such step"
        )
        notes = (*notes, said)
    return replace(known, horizons=horizons, clock=run.clock.in_words(), notes=notes)


def _with_merge(
    known: PlanReport, prepared: Prepared, problems: Sequence[str], removals: Sequence[str]
) -> PlanReport:
    """All that is known when a merge is ready to run, or logits are to be mixed."""
    fitted, plan, steps = prepared.fitted, prepared.plan, prepared.run.steps
    trusted = [outlook.trusted for outlook in fitted.outlooks]
    stderrs = tuple(outlook.expected.stderr for outlook in fitted.outlooks)
    sampled = next((outlook.sampled for outlook in fitted.outlooks), None)
    known = replace(
        known,
        expected_relative_errors=tuple(one.expected.relative_error for one in fitted.outlooks),
        expected_relative_error_stderrs=() if sampled is None else stderrs,
        sampled=sampled,
        trusted_horizons=tuple(None if one is None else one.horizon for one in trusted),
        trusted_up_to=tuple(None if one is None else one.said for one in trusted),
        verdicts=tuple(outlook.verdict for outlook in fitted.outlooks),
        warnings=prepared.warnings,
        rules=tuple(
            (
                ", ".join(rule.match),
                rule.method,
                tuple(
                    {}
                    if fitted.pending and rule.needs_gram_matrix
                    else {step: float(c) for step, c in zip(steps, row, strict=True) if c}
                    for row in rows
                ),
            )
            for rule, rows in fitted.rules
        ),
        problems=tuple(problems),
    )
    if prepared.recipe.space == "logits":
        mixed = "space: logits loads the checkpoints with a coefficient and mixes them while decoding"
        if known.outputs:
            problems = (*problems, "space: logits writes no weights; leave --out and --push out")
        return replace(known, outputs=(), notes=(mixed, *known.notes), problems=tuple(problems))
    size = prepared.recipe.fit_sample
    read = "the weights" if size is None else f"{size:,} weights of each tensor"
    pending = (_PENDING.format(read),) if fitted.pending else prepared.unknown
    return replace(
        known,
        files=tuple((shard.file, shard.size) for shard in plan.shards),
        bytes_read=plan.total_bytes_read,
        bytes_written=plan.total_bytes_written,
        peak_memory=plan.peak_memory + cuda_libraries(prepared.settings.device),
        notes=(*known.notes, *plan.notes, *plan.caveats, *prepared.notes, *removals, *pending),
    )
