"""What `predict` puts together before it makes anything: the method, the target, the recipe and its place."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.base import reference_of_base
from hubextrap.containment import read_named
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import MethodError, OutputError
from hubextrap.methods import Rule
from hubextrap.output_files import file_problem
from hubextrap.recipe import DRAWN_UP, draw_up
from hubextrap.scans.given import sample_of
from hubextrap.statistics import (
    HORIZONS,
    brief_backtest,
    candidates,
    horizon_means,
    is_rounded,
    judge_run,
    plain_name,
)
from hubextrap.trajectory import Trajectory, run_name
from hubextrap.trajectory.checkpoint import is_untouched_base

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.clocks import ClockChoice
    from hubextrap.hub import PushTarget
    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest, GramTable, RunVerdict
    from hubextrap.trajectory import TrajectoryOptions


NEAR = 0.25
"""A horizon at which all can be checked that does not depend on the target."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is asked for beside a method and a target."""

    name: str
    """Of the run."""
    trajectory: dict[str, Any]
    """The section of the recipe."""
    out: Path | None = None
    push: PushTarget | None = None
    walk: dict[str, Any] | None = None
    """How the step is chosen, beside how far to look."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """The section of the recipe."""
    output: dict[str, Any] = field(default_factory=dict)
    """The section of the recipe."""
    sample: int | None = None
    """From how many weights of each tensor the method was chosen, and is fitted; None: from all."""

    @classmethod
    def of_reference(
        cls, reference: str, options: TrajectoryOptions, found: Trajectory, clock: ClockChoice | None
    ) -> Draft:
        """Of a run that was found there; what lands later takes no part, as the last step is named."""
        steps: dict[str, Any] = {
            "pattern": options.pattern,
            "series": options.series,
            "min": options.min_step,
            "max": found.steps[-1],
            "only": options.steps,
        }
        if options.step_scale != 1:
            steps["scale"] = options.step_scale
        section = {"repo": reference, "steps": steps, "base": options.base, "clock": clock}
        return cls(run_name(found.checkpoints) or "run", section)

    @classmethod
    def of_trajectory(cls, found: Trajectory, clock: ClockChoice | None) -> Draft:
        """Of checkpoints that are at hand, listed one by one.

        Raises:
            HubExtrapError: they are adapters, and nothing says which base is their step 0.
        """
        there = [one for one in found.checkpoints if not is_untouched_base(one)]
        listed = [{"model": one.name, "step": one.step} for one in there]
        base = found.base_model
        if base is None and len(there) < len(found.checkpoints):
            base = reference_of_base(found.last)
        named = base if base is None or isinstance(base, str) else base.name
        section = {"checkpoints": listed, "base": named, "clock": clock}
        return cls(run_name(found.checkpoints) or "run", section)

    @classmethod
    def of(
        cls,
        run: Trajectory | Recipe,
        reference: str,
        options: TrajectoryOptions,
        clock: ClockChoice | None,
    ) -> Draft:
        """Of what a command's REF|RECIPE led to."""
        if isinstance(run, Trajectory):
            return cls.of_reference(reference, options, run, clock)
        return cls.of_recipe(run.with_clock(clock))

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Draft:
        """Of what a recipe observes."""
        return cls("run", recipe.trajectory.model_dump(mode="json", exclude_defaults=True, by_alias=True))

    @classmethod
    def of_scan(cls, scan: Scan) -> Draft:
        """Of the checkpoints that it read, listed one by one."""
        listed = [{"model": read.name, "step": read.step} for read in scan.checkpoints]
        return cls("run", {"checkpoints": listed}, sample=sample_of(scan))

    def folder(self, step: int) -> Path | None:
        """The folder to write; None where all goes to the Hub."""
        if self.out is None and self.push is None:
            return self._folder_here(step)
        return self.out

    def recipe_file(self, step: int) -> Path:
        """Where the recipe lies: beside the output."""
        folder = self.folder(step) or self._folder_here(step)
        return folder.with_name(f"{folder.name}.yaml")

    def _folder_here(self, step: int) -> Path:
        """Named by the step, or by how far a walk looks, whatever it will choose."""
        return Path(f"{self.name}-{'up_to' if self.walk else 'step'}_{step}")

    def recipe(self, rule: Rule, target: dict[str, Any], *why: str) -> Recipe:
        """The recipe of one method and target.

        Args:
            target: ``target_step`` or ``target``, as the parameters of a recipe have them.
        """
        if self.walk is not None:
            step, section = target.get("target_step"), target.get("target")
            up_to = step[0] if step and section is None else section
            target = {"target_step": {"up_to": up_to, **self.walk}}
        if self.sample is not None and rule.needs_gram_matrix:
            target = {**target, "fit": {"sample": self.sample}}
        push = self.push
        sections: dict[str, Any] = {"output": self.output, "evaluate": self.evaluate}
        if push is not None:
            sections["push"] = {
                "repo": push.repo,
                "revision": push.revision,
                "private": push.private or None,
                "create_pr": push.create_pr or None,
                "commit_message": push.message,
            }
        return draw_up(self.trajectory, rule, target, sections=sections, why=why)


@dataclass(frozen=True, slots=True)
class Choice:
    """A method, and why."""

    name: str
    """As a backtest calls it."""
    rule: Rule
    why: str


def rule_without_weights(steps: tuple[int, ...]) -> Rule:
    """What predicts with nothing known of the weights: the fixed rule; with two checkpoints, their line."""
    return Rule(("*",), "late_lines" if len(steps) > 2 else "two_point")


def choose_method(found: Backtest | None, steps: tuple[int, ...], times: tuple[float, ...]) -> Choice:
    """The best of those that were rehearsed; where too few rehearsals say which, the fixed rule."""
    fixed = rule_without_weights(steps)
    named = plain_name(fixed.method)
    if found is None:
        return Choice(fixed.method, fixed, f"{named}: {len(steps)} checkpoints allow nothing else")
    verdict = judge_run(found)
    near = verdict.rehearsals.near
    if verdict.level == "unknown":
        why = f"{named}: too few rehearsals ({near}) to compare methods; this rule was fitted on other runs"
        return Choice(fixed.method, fixed, why)
    later = 2 * times[-1] - times[0]
    by_name = {one.name: one.rules[0] for one in candidates() if one.rules[0].predicts_motion(times, later)}
    best = next(entry.method for entry in horizon_means(found) if entry.method in by_name)
    compared = sum(name in by_name for name in found.methods)
    # of the method judged there may be more: here count those that all methods could make
    rehearsed = f"in {near} shared rehearsals within a horizon of 1"
    why = f"{plain_name(best)}: the best of {compared} methods {rehearsed}"
    return Choice(best, by_name[best], why)


def farthest_target(
    run: Run, choice: Choice, table: GramTable, dtypes: Iterable[str]
) -> tuple[dict[str, Any] | None, RunVerdict]:
    """The farthest target that the past supports, as parameters say it; None with the verdict on the run."""
    rounded = is_rounded(table, dtypes)
    past = brief_backtest([choice.rule], table, rounded, HORIZONS[-1])
    verdict = judge_run(past, method=choice.name)
    if verdict.reach is None:
        return None, verdict
    return target_as_written(run, verdict.reach), verdict


def target_as_written(run: Run, horizon: float) -> dict[str, Any]:
    """A target so far ahead, as a recipe's parameters have it: full-rate steps where no step lies there."""
    target = run.target_at(horizon, "a horizon of")
    if target["target"] is not None:
        return {"target": target["target"].model_dump(mode="json")}
    return {"target_step": (max(target["target_step"][0], run.steps[-1] + 1),)}


def advised_recipe(found: Backtest, draft: Draft) -> Recipe | None:
    """The recipe of the method that a backtest advises, as far as it trusts it; None where it trusts none."""
    verdict, times = judge_run(found), found.clock.times(found.steps)
    if found.sampled is None:
        draft = replace(draft, sample=None)
    elif draft.sample is None:
        draft = replace(draft, sample=found.sampled)
    choice = choose_method(found, found.steps, times)
    if verdict.reach is None or verdict.method != choice.name:
        return None
    target: dict[str, Any] = {"target_step": (verdict.reach_step,)}
    if verdict.reach_step is None:
        count = round(verdict.reach * (times[-1] - times[0]))
        target = {"target": {"full_rate_steps": max(1, count)}}
    return draft.recipe(choice.rule, target, choice.why, verdict.line)


def save_recipe(recipe: Recipe | None, verdict: RunVerdict, path: Path, *, parents: bool = False) -> None:
    """Write it.

    Args:
        parents: make the folder too.

    Raises:
        MethodError: there is none, as the past supports no step.
        OutputError: it cannot be written.
    """
    if recipe is None:
        raise MethodError(
            f"{verdict.line}. The past of this run supports no later step, so no recipe was written to "
            f"{path}; for a step that you name: hubextrap predict RUN --to STEP --dry-run --write-recipe FILE"
        )
    write_whole(path, recipe.text.encode(), remedy="choose another --write-recipe", parents=parents)


def check_recipe_place(path: Path, *, parents: bool = False) -> None:
    """Refuse to write a recipe where it cannot be, or over what is not an earlier one of ours.

    Args:
        parents: its folder will be made, if it is not there.

    Raises:
        OutputError: says what is there.
    """
    folder = path.absolute().parent
    problem = file_problem(path)
    if problem is None and not parents and not folder.is_dir():
        problem = f"there is no folder {path.parent}"
    if problem is None and folder.is_dir() and not os.access(folder, os.W_OK):
        problem = f"nothing may be written in {path.parent}"
    if problem is not None:
        raise OutputError(f"{path}: cannot be written: {problem}; choose another --write-recipe", file=path)
    if os.path.lexists(path) and not read_named(path, 2**20).decode(errors="replace").startswith(DRAWN_UP):
        raise OutputError(
            f"{path}: is there already and was not written by hubextrap; choose another --write-recipe",
            file=path,
        )
