"""`merge`: run a recipe into folders, or straight onto the Hub."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap import engine
from hubextrap.api.adapted import losses_in_words, with_losses
from hubextrap.api.beforehand import card_for, check_weights, problems_beforehand, refuse
from hubextrap.api.companions import companions
from hubextrap.api.fingerprint import merge_fingerprint
from hubextrap.api.making import make_in, make_outputs
from hubextrap.api.output import (
    check_output,
    check_scratch,
    fill_in,
    has_bytes,
    output_sizes,
    target_folders,
)
from hubextrap.api.planning import check_destinations, given_push_targets, recipe_push_targets
from hubextrap.api.preparing import CARD, Addition, MergeOptions, Prepared, opened, prepare
from hubextrap.api.staging import (
    finished_before,
    may_be_finished,
    place_of,
    push_place,
    push_state,
    remove_leftover,
    remove_unless_held,
    staged,
)
from hubextrap.durable.places import is_marked
from hubextrap.engine.resuming import check_inputs
from hubextrap.errors import PushError
from hubextrap.figures import with_stderr
from hubextrap.foreign_text import own_lines
from hubextrap.given import optional_path, recipe_of
from hubextrap.hub import PROVENANCE_FILE, HubSink, PushResult, PushTarget, commit_message, push_folder
from hubextrap.hub.target import push_targets
from hubextrap.notebooks import counted, one_line, steps_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.api.answering import Scoring
    from hubextrap.api.companions import Companions
    from hubextrap.engine import MergeOutput
    from hubextrap.evaluation.walk_report import WalkReport
    from hubextrap.hub import Provenance
    from hubextrap.opening import Run
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.statistics import RunVerdict
    from hubextrap.tensors import Journal


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predicted model."""

    step: int
    folder: Path | None
    """Where it lies on disk; None when it went straight to the Hub."""
    pushed: PushResult | None
    target: PushTarget | None
    provenance: Provenance
    caveats: tuple[str, ...]
    """What was not predicted, what is stored otherwise, which inputs hold the same weights."""
    identical_to_last: bool
    """Every byte of its weights is the last checkpoint's: nothing was predicted."""
    warnings: tuple[str, ...] = ()
    """What the past of the run warns of at this target, and what the cut to an adapter's rank loses, where
    that is much; the card says it too."""
    notes: tuple[str, ...] = ()
    """What the past could not be asked, and how it can; what a cut loses, where that is little."""
    verdict: RunVerdict | None = None
    """On this prediction by the weights alone; None where no rule predicts motion."""

    def __repr__(self) -> str:
        found = self.provenance
        error = with_stderr(found.expected_relative_error, found.expected_relative_error_stderr, 3)
        where = [*([str(self.folder)] if self.folder else []), *([self.target.name] if self.target else [])]
        said = "" if found.expected_relative_error is None else f"expected relative error {error}"
        return one_line(self, f"step {self.step}", *where, said)


def places_of(predictions: Sequence[Prediction]) -> list[str]:
    """What was predicted and where it lies, in a few words."""
    steps = steps_in_words([prediction.step for prediction in predictions])
    where = [
        str(one.folder) if one.folder else one.target.name if one.target else "" for one in predictions[:1]
    ]
    return [counted(len(predictions), "prediction"), steps, *where]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What `merge` made, one prediction per target step."""

    predictions: tuple[Prediction, ...]
    walk: WalkReport | None = None
    """How the step was chosen, where the recipe does not name it."""

    def __repr__(self) -> str:
        return one_line(self, *places_of(self.predictions))


def merge(
    recipe: Recipe | Path | str,
    *,
    out: Path | str | None = None,
    push: PushTarget | str | Sequence[PushTarget | str] = (),
    settings: MergeOptions | None = None,
    scan: Scan | Path | str | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Predict the recipe's target steps.

    With ``out``, each prediction becomes a folder, and is pushed from there if targets are given. Without,
    it goes straight to the Hub, and at most two of its shards lie on this disk.

    A merge that was stopped, by whatever, goes on at the shard where it was when it is called again alike.

    Args:
        recipe: it, or its file.
        out: the folder to write; with several target steps, they go into its subfolders ``step_<n>``.
        push: where each target step goes, also as ``owner/name@branch``, at least as private as the
            recipe's push section says; where both are left out, the section says it.
        scan: of the recipe's checkpoints, or its file: what it knows is not read again.
        run: the recipe's, where it is open.

    Raises:
        RecipeError: neither ``out`` nor any push target is given, or not one for each target step.
        HubExtrapError: see `prepare`; the output cannot be written, or the Hub did not take it.
    """
    recipe, out = recipe_of(recipe), optional_path("out", out)
    targets = destinations(recipe, out, push)
    with opened(recipe, run, settings, scan, progress) as (found, how):
        if out is None and not targets:
            targets = recipe_push_targets(found.settled(recipe.farthest))
        made = make(recipe, found, how, out=out, targets=targets)
    made.settle()
    return made.result


def destinations(
    recipe: Recipe, out: Path | None, push: PushTarget | str | Sequence[PushTarget | str]
) -> list[PushTarget]:
    """Where ``push`` sends a recipe's predictions, once what does not go with one another is refused.

    Raises:
        RecipeError: as `merge`.
    """
    check_weights(recipe)
    targets = given_push_targets(recipe, push_targets(push))
    check_destinations(recipe, out is not None, targets)
    return targets


@dataclass(frozen=True, slots=True)
class Made:
    """A merge that is done. What follows it may fail: until `settle`, the same merge goes on from there."""

    result: MergeResult
    places: tuple[Path, ...]

    def settle(self) -> None:
        """Forget how it was made: all is done."""
        for place in filter(is_marked, self.places):
            remove_unless_held(place)


def make(
    recipe: Recipe,
    run: Run,
    settings: MergeOptions,
    *,
    out: Path | str | None,
    targets: Sequence[PushTarget],
    scoring: Scoring | None = None,
    hold: bool = False,
) -> Made:
    """`merge`, with what was made kept until it is settled.

    Args:
        scoring: of the walk that chooses the recipe's step, if one does.
        hold: push nothing of ``out``: `push_made` does.
    """
    out = None if out is None else Path(out)
    if recipe.walk is None:
        return _make(run.settled(recipe), run, settings, out, targets, hold=hold)
    from hubextrap.api.choosing import choose_step  # imports what evaluates

    chosen = choose_step(recipe, run, settings, out=out, targets=targets, scoring=scoring)
    if targets == recipe_push_targets(
        run.settled(recipe.farthest)
    ):  # its branch may be called after the step
        targets = recipe_push_targets(chosen.recipe)
    forced = replace(settings, force=True)  # what the past cannot rehearse, the walk has judged
    made = _make(chosen.recipe, run, forced, out, targets, chosen.addition, hold=hold)
    places = made.places if chosen.place is None else (*made.places, chosen.place)
    return Made(replace(made.result, walk=chosen.report), places)


def _make(
    recipe: Recipe,
    run: Run,
    settings: MergeOptions,
    out: Path | None,
    targets: Sequence[PushTarget],
    addition: Addition | None = None,
    *,
    hold: bool = False,
) -> Made:
    addition = addition or Addition()
    if out is not None and not may_be_finished(out):
        remove_leftover(out)
    asked = False

    def check(prepared: Prepared) -> None:
        nonlocal asked
        prepared = replace(prepared, addition=addition)
        refuse(problems_beforehand(prepared, out, targets, ask=not asked))
        asked = True

    prepared = with_losses(replace(prepare(recipe, run, settings, check=check), addition=addition))
    for line in prepared.notes:
        run.progress.say(line)
    if out is not None:
        return _merge_into_folders(prepared, out, targets, hold=hold)
    return _merge_onto_hub(prepared, targets)


def push_made(prediction: Prediction, progress: Progress) -> Prediction:
    """A prediction that lies in a folder, pushed: just the bytes that were made.

    Raises:
        PushError: somebody has changed them since, or the Hub did not take them.
    """
    assert prediction.folder is not None
    assert prediction.target is not None
    pushed = push_finished(prediction.folder, prediction.target, progress, prediction.provenance)
    return replace(prediction, pushed=pushed)


def _merge_into_folders(prepared: Prepared, out: Path, targets: Sequence[PushTarget], *, hold: bool) -> Made:
    run, progress = prepared.run, prepared.run.progress
    steps = prepared.recipe.target_steps
    folders = target_folders(steps)
    fingerprint = merge_fingerprint(prepared)
    beside = list(companions(prepared))
    if (before := _made_before(prepared, out, fingerprint, beside)) is not None:
        outputs, whole = before
    else:
        remove_leftover(out)
        check_output(
            out, dict(zip(folders, (output_sizes(prepared.plan, one.files) for one in beside), strict=True))
        )
        with staged(
            out, folders, fingerprint, progress, keep=True, hashed=prepared.settings.executor == "local"
        ) as staging:
            files = [one.files for one in beside]
            outputs = make_in(staging, files, prepared.plan, prepared.sources, run, prepared.settings)
            whole = [one.with_shards(output.shards) for one, output in zip(beside, outputs, strict=True)]
            for place, one in zip(staging.folders, whole, strict=True):
                fill_in(place / PROVENANCE_FILE, one.files[PROVENANCE_FILE])
    predictions = []
    for index, (step, folder) in enumerate(zip(steps, folders, strict=True)):
        target = targets[index] if targets else None
        pushed = None if target is None or hold else push_finished(out / folder, target, progress)
        provenance, identical = whole[index].provenance, outputs[index].identical_to_last
        predictions.append(
            Prediction(
                step,
                out / folder,
                pushed,
                target,
                provenance,
                prepared.caveats,
                identical,
                *_said(prepared, index),
            )
        )
    return Made(MergeResult(tuple(predictions)), (place_of(out),))


def _made_before(
    prepared: Prepared, out: Path, fingerprint: Mapping[str, str], beside: list[Companions]
) -> tuple[list[MergeOutput], list[Companions]] | None:
    """What lies in ``out``, if it is just what this merge would write there."""
    folders, progress = target_folders(prepared.recipe.target_steps), prepared.run.progress
    files = [shard.file for shard in prepared.plan.shards]

    def check(journals: Sequence[Journal]) -> None:
        check_inputs(prepared.plan, prepared.sources, journals, progress, ended=True)

    journals = finished_before(out, folders, fingerprint, files, check, progress)
    if journals is None:
        return None
    outputs = [
        engine.MergeOutput(
            tuple(journal.finished[file] for file in files), prepared.plan.same_layout and journal.identical
        )
        for journal in journals
    ]
    whole = [one.with_shards(output.shards) for one, output in zip(beside, outputs, strict=True)]
    for folder, one in zip(folders, whole, strict=True):
        for name, content in one.files.items():
            if name != CARD and not has_bytes(out / folder / name, content):
                progress.say(f"{out / folder / name}: is not what this merge writes")
                return None
    progress.say(f"{out}: is whole since an earlier run; going on with what was to follow")
    return outputs, whole


def push_command(folder: Path, target: PushTarget) -> str:
    """The command line that pushes a finished output."""
    options = " --private" * target.private + " --create-pr" * target.create_pr
    return f"hubextrap push {folder} {target.name}{options}"


def push_finished(
    folder: Path, target: PushTarget, progress: Progress, made: Provenance | None = None
) -> PushResult:
    """Push a finished output; an error says how to go on without merging again.

    Raises:
        PushError: the Hub did not take it.
    """
    command = push_command(folder, target)
    try:
        return push_folder(folder, target, progress, made=made)
    except PushError as error:
        said = own_lines(str(error), f"{folder} is whole; `{command}` pushes it")
        raise PushError(said, repo=target.repo) from error
    except (KeyboardInterrupt, SystemExit):
        progress.say(f"{folder} is whole; `{command}` pushes it")
        raise


def _merge_onto_hub(prepared: Prepared, targets: Sequence[PushTarget]) -> Made:
    run, progress = prepared.run, prepared.run.progress
    steps = prepared.recipe.target_steps
    fingerprint = merge_fingerprint(prepared)
    beside = list(companions(prepared))
    with ExitStack() as stack:
        stagings = [stack.enter_context(push_state(target, fingerprint, progress)) for target in targets]
        check_scratch(targets, prepared.plan)
        places = [(staging.folders[0], staging.journals[0]) for staging in stagings]
        sinks = [
            stack.enter_context(HubSink(target, scratch=scratch, journal=journal, progress=progress))
            for target, (scratch, journal) in zip(targets, places, strict=True)
        ]
        together = replace(
            stagings[0],
            folders=tuple(scratch for scratch, _ in places),
            journals=tuple(journal for _, journal in places),
        )
        outputs = make_outputs(together, prepared.plan, prepared.sources, run, prepared.settings, sinks)
        predictions = []
        made = zip(steps, sinks, targets, beside, outputs, strict=True)
        for index, (step, sink, target, one, output) in enumerate(made):
            whole = one.with_shards(output.shards)
            files = whole.files | {CARD: card_for(whole, target)}
            result = sink.commit(files, commit_message(whole.provenance))
            identical = output.identical_to_last
            predictions.append(
                Prediction(
                    step,
                    None,
                    result,
                    target,
                    whole.provenance,
                    prepared.caveats,
                    identical,
                    *_said(prepared, index),
                )
            )
    return Made(MergeResult(tuple(predictions)), tuple(push_place(target) for target in targets))


def _said(prepared: Prepared, target: int) -> tuple[tuple[str, ...], tuple[str, ...], RunVerdict | None]:
    """Warnings, notes and verdict of one target, as a `Prediction` has them."""
    outlook, lost = prepared.fitted.outlooks[target], losses_in_words(prepared, target)
    warnings, notes = ([line for line, warns in lost if warns is much] for much in (True, False))
    return (*outlook.warnings, *warnings), (*outlook.notes, *notes), outlook.verdict
