"""`predict`: from a run to a predicted model and one honest answer, with the recipe that made it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hubextrap.api.chain import run as run_chain
from hubextrap.api.drafting import (
    NEAR,
    Draft,
    check_recipe_place,
    choose_method,
    farthest_target,
    rule_without_weights,
    save_recipe,
    target_as_written,
)
from hubextrap.api.merging import places_of
from hubextrap.api.outlook import outlooks_of
from hubextrap.api.planning import plan
from hubextrap.api.preparing import MergeOptions, merge_options
from hubextrap.api.scanning import chosen_size
from hubextrap.engine.findings import TENSORS_SECTION
from hubextrap.errors import MethodError, RecipeError, StepError, wrong_argument
from hubextrap.evaluation import Gate, check_writable
from hubextrap.evaluation.outcomes import outcomes_of
from hubextrap.evaluation.table import LAST, PREDICTION, TARGET
from hubextrap.foreign_text import OwnLines, own_lines
from hubextrap.given import check_names, check_reads, one_of, optional_path, paths_of, sample_choice, texts_of
from hubextrap.hub.target import one_target
from hubextrap.notebooks import one_line
from hubextrap.opening import Run
from hubextrap.progress import SilentProgress
from hubextrap.recipe import OutputSection
from hubextrap.statistics import backtest_memory, backtest_table, candidates, with_scores
from hubextrap.trajectory import Trajectory, TrajectoryOptions, find_trajectory
from hubextrap.trajectory.reference import reference_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from hubextrap.api.merging import Prediction
    from hubextrap.clocks import ClockChoice
    from hubextrap.evaluation import EvaluationTable, GateResult
    from hubextrap.evaluation.walk_report import WalkReport
    from hubextrap.hub import PushTarget
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest, RunVerdict

_AGAINST = (LAST, "base", TARGET)
_OF_A_SECTION = re.compile(r"^(?:evaluate\.(\w+)|output) \(line \d+\)")
"""Begins a problem of the recipe that is drawn up here, which nobody has seen."""
_NO_SECTION = (
    "predict has no option for it: write a recipe with that line (`hubextrap recipes cp` gives one to begin "
    "with); `hubextrap backtest RECIPE --write-recipe BEST` chooses the method, `hubextrap merge BEST --out "
    "DIR` predicts"
)
_OPTIONS = {"tasks": "eval", "include_path": "include-path", "batch_size": "batch-size"}


@dataclass(frozen=True, slots=True)
class PredictResult:
    """The answer, and what was made."""

    verdict: RunVerdict
    """On the prediction; on the run, where its past supports no step."""
    chosen: str
    """The method, as a backtest calls it."""
    why: str
    """Why this one."""
    recipe: Recipe | None
    """What was run; None where the past supports no step."""
    recipe_file: Path | None
    """Where it was saved."""
    prediction: Prediction | None
    tables: tuple[EvaluationTable, ...]
    walk: WalkReport | None
    backtest: Backtest | None
    """Of every method; None with fewer than three checkpoints."""
    target_step: int | None = None
    """The step that was predicted, or up to which a walk would look; the last one and as many more as there
    are full-rate steps, where the run's schedule ends. None where the past supports no step."""
    gate: GateResult | None = None
    """What the gate said, where there was one."""

    def __repr__(self) -> str:
        step = self.target_step
        places = [] if self.prediction is None else places_of([self.prediction])[-1:]
        return one_line(self, "" if step is None else f"step {step}", self.verdict.line, *places)


class Predicting(TypedDict, total=False):
    """What `predict` takes beside the run, the step and where the prediction goes."""

    options: TrajectoryOptions | None
    """Which of the checkpoints, where the run is named by a reference."""
    walk: Path | str | None
    """A file of prompts, by whose answers the step is chosen, up to ``to``; see `walk`."""
    as_: str | None
    """Of a run of adapters: ``adapter`` or ``merged``; ``adapter`` if not given."""
    rank: int | str | None
    """Of the predicted adapter, or ``exact``; the largest of the run if not given."""
    evaluate: Sequence[str] | str
    """lm-eval tasks, put to the prediction, the last checkpoint, the first, and the real one if there."""
    include_path: Sequence[Path | str]
    """Folders with tasks."""
    limit: int | None
    batch_size: int | None
    gate: Gate | None
    """What the prediction has to reach; the result says whether it does."""
    clock: ClockChoice | None
    """What time is counted by; see `timing.chosen_clock`."""
    scan: Scan | Path | str | None
    """Of these checkpoints, or its file: weights are not read for the rehearsals."""
    sample: SampleChoice
    """How many weights of each tensor to look at for the rehearsals, and to fit to; ``exact`` for all;
    ``auto``, if not given, for a sample of large runs on the Hub and all weights of others."""
    dry_run: bool
    """Give the answer, and write nothing but ``write_recipe``."""
    write_recipe: Path | str | None
    """Where the recipe is saved; beside the output if not given."""
    output: Path | str | None
    """A file for the evaluation, as JSON."""


def predict(
    run: Trajectory | str | Path,
    to: int | None = None,
    *,
    out: Path | str | None = None,
    push: PushTarget | str | None = None,
    settings: MergeOptions | None = None,
    progress: Progress | None = None,
    **how: Unpack[Predicting],
) -> PredictResult:
    """Rehearse every method on a run, predict a later step by the best, and say how far to trust it.

    The weights, or a sample of them, are read once for the rehearsals, unless a scan says what they would;
    and all of them once for the merge.

    Args:
        run: its checkpoints; or where they are, a repo or a folder.
        to: the step; the farthest that the past supports if not given.
        out: the folder to write; ``RUN-step_TO`` in the current one if neither it nor ``push`` is given.
        push: where it goes on the Hub, also as ``owner/name@branch``.
        how: see `Predicting`.

    Raises:
        MethodError: ``to`` is not given and the past supports no step; or it cannot be rehearsed, and is not
            forced; or there are fewer than two checkpoints.
        StepError: ``to`` is not after the last checkpoint.
        RecipeError: what is asked for does not go together.
        HubExtrapError: see `plan`, `merge` and `hubextrap.evaluation.evaluate`.
    """
    check_names("predict", how, Predicting)
    progress, settings = progress or SilentProgress(), merge_options(settings)
    dry_run, clock = how.get("dry_run", False), how.get("clock")
    places = [optional_path("out", out), optional_path("output", how.get("output"))]
    target = one_target(push)
    _check(to, how, settings, places[1])
    _check_gate(how, push=target is not None, out=places[0] is not None)
    found, draft = _found(run, how, progress)
    draft = replace(draft, out=places[0], push=target, walk=_walk(how.get("walk")), evaluate=_evaluation(how))
    draft = replace(draft, output=_output(how.get("as_"), how.get("rank")))
    with Run.of(found, settings.reading, scan=how.get("scan"), clock=clock, progress=progress) as opened:
        _check_ahead(opened.steps, to)
        beside = how.get("write_recipe") is None
        _check_beforehand(opened, draft, to, settings, ask=not dry_run, beside=beside)
        size = opened.given_sample if opened.has_scan else chosen_size(opened, how.get("sample", "auto"))
        draft = replace(draft, sample=size)
        answer = _answered(opened, draft, to)
        if answer.recipe is not None:
            answer = _with_file(answer, draft, how.get("write_recipe"), dry_run)
        if dry_run:
            return answer
        if answer.recipe is None:
            raise MethodError(
                f"{answer.verdict.line}. The past of this run supports no step after {opened.steps[-1]}, so "
                "nothing was written; to predict one all the same, name it with --to STEP (to=)",
                step=opened.steps[-1],
            )
        return _made(answer, opened, draft, settings, places[1], how.get("gate"))


def _check_ahead(steps: tuple[int, ...], to: int | None) -> None:
    """Refuse a run with no past, and a step that was observed or passed already.

    Raises:
        MethodError, StepError: say what to do.
    """
    if len(steps) < 2:
        raise MethodError(
            f"a prediction needs two checkpoints, and only step {steps[0]} is there; observe one more, or "
            "name the model at step 0 with --base REF (base of TrajectoryOptions)"
        )
    if to is not None and to <= steps[-1]:
        earlier = [step for step in steps[1:] if step < to]
        back = ""
        if earlier:
            back = f", or predict from earlier checkpoints: --max-step {earlier[-1]}"
            back += " (max_step of TrajectoryOptions)"
        raise StepError(
            f"step {to} is not after the last checkpoint, step {steps[-1]}; choose a later one{back}"
        )


def _check(to: object, how: Predicting, settings: MergeOptions, output: Path | None) -> None:
    """Refuse what does not go together, and files that cannot be written, before anything is looked for."""
    if to is not None and not isinstance(to, int):
        raise wrong_argument("to", "a step, a whole number", to)
    if how.get("dry_run") and (output is not None or how.get("evaluate")):
        raise RecipeError("evaluate and output have no effect on a dry run, which makes nothing to measure")
    if not how.get("evaluate"):
        for name in ("include_path", "limit", "batch_size", "output"):
            if how.get(name):
                raise RecipeError(f"{name} has no effect without evaluate, which names tasks")
    sample = sample_choice(how.get("sample", "auto"), settings)
    if how.get("scan") is not None:
        check_reads(sample)
    if (place := how.get("write_recipe")) is not None:
        check_recipe_place(Path(place))
    if output is not None:
        check_writable(output)


def _check_gate(how: Predicting, *, push: bool, out: bool) -> None:
    """Refuse what will judge nothing, or would hold back what goes nowhere."""
    if (gate := one_of("gate", Gate, how.get("gate"))) is None:
        return
    tasks = texts_of("evaluate", how.get("evaluate") or ())
    if how.get("dry_run") or not tasks:
        raise RecipeError(f"{gate.option}: has no effect without evaluate (--eval TASKS), or on a dry run")
    if gate.push_if_better and not (push and out):
        raise RecipeError(
            "--push-if-better: the prediction is judged on the disk and pushed from there; give a folder "
            "(--out DIR) and a repo (--push REPO)"
        )
    gate.check([PREDICTION, *_AGAINST], tasks)


def _found(run: Trajectory | str | Path, how: Predicting, progress: Progress) -> tuple[Trajectory, Draft]:
    """The run, looked for where it is not at hand, and how a recipe names it."""
    clock, options = how.get("clock"), how.get("options")
    if isinstance(run, Trajectory):
        if options is not None:
            raise RecipeError("options have no effect on a trajectory, which holds the steps that it holds")
        return run, Draft.of_trajectory(run, clock)
    reference, options = reference_text(run, "run"), options or TrajectoryOptions()
    found = find_trajectory(reference, options, progress=progress)
    return found, Draft.of_reference(reference, options, found, clock)


def _output(as_: str | None, rank: int | str | None) -> dict[str, Any]:
    """The recipe's section; empty where nothing is said of it."""
    if as_ is None and rank is None:
        return {}
    said = OutputSection().said(as_, rank)
    return {"as": said.as_, "rank": said.rank}


def _walk(prompts: Path | str | None) -> dict[str, Any] | None:
    place = optional_path("walk", prompts)
    return None if place is None else {"prompts": str(place)}


def _check_beforehand(
    run: Run, draft: Draft, to: int | None, settings: MergeOptions, *, ask: bool, beside: bool
) -> None:
    """Everything that a plan finds, before a weight is read: by a rule that needs none.

    Args:
        ask: about the output too.
        beside: the recipe will be saved beside it.

    Raises:
        RecipeError: all problems at once.
        OutputError: the recipe cannot be saved.
    """
    target = {"target_step": (to,)} if to is not None else target_as_written(run, NEAR)
    recipe = draft.recipe(rule_without_weights(run.steps), target)
    (step,) = run.settled(recipe.farthest).target_steps
    ahead = to is not None or draft.walk is not None  # a walk is never held back, so nothing is to be forced
    how = settings if ahead else replace(settings, force=True)
    with run.unsaid():
        report = plan(
            recipe,
            out=draft.folder(step) if ask else None,
            push=[] if draft.push is None or not ask else [draft.push],
            settings=how,
            check_push=ask,
            run=run,
        )
    if report.problems:
        problems = [_with_options(problem) for problem in report.problems]
        raise RecipeError(own_lines(*problems), parts=map(RecipeError, problems))
    if ask and beside and (to is not None or draft.out is not None):  # else its name is not known yet
        check_recipe_place(draft.recipe_file(step), parents=True)


def _with_options(problem: str) -> str:
    """A plan's problem as one of this command; its lines stay lines."""
    said = _OF_A_SECTION.sub(_as_an_option, problem)
    if not isinstance(problem, OwnLines):
        return said
    advice = (_NO_SECTION,) if TENSORS_SECTION in problem else ()
    return own_lines(*said.split("\n"), *advice)


def _as_an_option(found: re.Match[str]) -> str:
    if found[1] is None:
        return "--as, --rank (as_ and rank)"
    return f"--{_OPTIONS[found[1]]}" if found[1] in _OPTIONS else "--eval"


def _answered(run: Run, draft: Draft, to: int | None) -> PredictResult:
    """The method, the target and the verdict on it: all that follows from the weights' table."""
    what = "every checkpoint once" if draft.sample is None else "a sample of every checkpoint"
    why = f"reading {what}, to rehearse every method on the run's own past"
    table = run.gram_table(why, sample=draft.sample, afterwards=backtest_memory(run.times))
    dtypes = {info.dtype for layout in run.layouts for info in layout.tensors.values()}
    found = None
    if len(run.steps) > 2:
        found = backtest_table(table, candidates(), dtypes=dtypes)
    choice = choose_method(found, run.steps, run.times)
    target: dict[str, Any] | None = {"target_step": (to,)} if to is not None else None
    if target is None:
        target, verdict = farthest_target(run, choice, table, dtypes)
        if target is None:
            return PredictResult(verdict, choice.name, choice.why, None, None, None, (), None, found)
    recipe = draft.recipe(choice.rule, target)
    far = run.settled(recipe.farthest)
    (outlook,) = outlooks_of(far, run, table, dtypes)
    assert outlook.verdict is not None  # as the target is ahead, and the method predicts motion
    recipe = draft.recipe(choice.rule, target, choice.why, outlook.verdict.line)
    return PredictResult(
        outlook.verdict, choice.name, choice.why, recipe, None, None, (), None, found, far.target_steps[0]
    )


def _with_file(answer: PredictResult, draft: Draft, place: Path | str | None, dry_run: bool) -> PredictResult:
    """The answer with its recipe saved; a dry run saves it where it is told to alone."""
    if place is None and dry_run:
        return answer
    assert answer.recipe is not None
    file = draft.recipe_file(answer.target_step or 0) if place is None else Path(place)
    check_recipe_place(file, parents=place is None)
    save_recipe(answer.recipe, answer.verdict, file, parents=place is None)
    return replace(answer, recipe_file=file)


def _evaluation(how: Predicting) -> dict[str, Any]:
    """The recipe's section; empty where nothing is to be measured."""
    if not (tasks := how.get("evaluate")):
        return {}
    return {
        "tasks": tuple(texts_of("evaluate", tasks)),
        "include_path": tuple(map(str, paths_of("include_path", how.get("include_path") or ()))),
        "against": _AGAINST,
        "limit": how.get("limit"),
        "batch_size": how.get("batch_size"),
    }


def _made(
    answer: PredictResult,
    run: Run,
    draft: Draft,
    settings: MergeOptions,
    output: Path | None,
    gate: Gate | None,
) -> PredictResult:
    """The answer with the prediction made, and what it scored."""
    assert answer.recipe is not None
    done = run_chain(
        answer.recipe,
        out=draft.folder(answer.target_step or 0),
        output=output,
        gate=gate,
        settings=settings,
        opened=run,
    )
    (prediction,) = done.predictions
    verdict = prediction.verdict or replace(
        answer.verdict,
        level="bad",
        headline="Keep the last checkpoint: the walk found no farther step to be better",
        target=None,
    )
    return replace(
        answer,
        verdict=with_scores(verdict, outcomes_of(done.tables)),
        prediction=prediction,
        tables=done.tables,
        walk=done.walk,
        target_step=prediction.step,
        gate=done.gate,
    )
