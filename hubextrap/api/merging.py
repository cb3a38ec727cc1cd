"""`merge`: run a recipe into folders, or straight onto the Hub."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.api.fingerprint import merge_fingerprint
from hubextrap.api.mixing import check_weights
from hubextrap.api.output import check_output, check_scratch, target_folders, write_files
from hubextrap.api.planning import check_destinations, given_push_targets, recipe_push_targets
from hubextrap.api.prepare import Prepared, Settings, prepare
from hubextrap.api.staging import push_state, remove_leftover, staged
from hubextrap.engine import run_plan
from hubextrap.engine.inputs import read_as
from hubextrap.engine.plan import REMOTE_READERS
from hubextrap.errors import PushError
from hubextrap.hub import (
    PROVENANCE_FILE,
    CoefficientRule,
    HubSink,
    InputFile,
    OutputShard,
    PushResult,
    PushTarget,
    build_provenance,
    check_target,
    commit_message,
    model_card,
    push_folder,
)
from hubextrap.hub.card import with_target
from hubextrap.hub.side_files import side_files
from hubextrap.progress import Progress, SilentProgress
from hubextrap.tensors import Journal, LocalSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.engine import MergeOutput
    from hubextrap.engine.plan import MergePlan
    from hubextrap.hub import Provenance
    from hubextrap.recipe import Recipe
    from hubextrap.tensors.interfaces import FinishedShard, Sink, Source
    from hubextrap.trajectory import Trajectory


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


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What `merge` made, one prediction a target step."""

    predictions: tuple[Prediction, ...]


def merge(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    push: Sequence[PushTarget] = (),
    settings: Settings | None = None,
    trajectory: Trajectory | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Predict the recipe's target steps.

    With ``out``, each prediction becomes a folder, and is pushed from there if targets are given. Without,
    it goes straight to the Hub, and at most two of its shards lie on this disk.

    A merge that was stopped, by whatever, goes on at the shard where it was when it is called again alike.

    Args:
        out: the folder to write; with several target steps, they go into its subfolders ``step_<n>``.
        push: where each target step goes, at least as private as the recipe's push section says; where
            both are left out, the section says it.
        trajectory: the recipe's, where it was found before.

    Raises:
        RecipeError: neither ``out`` nor any push target is given, or not one for each target step.
        HubExtrapError: see `prepare`; the output cannot be written, or the Hub did not take it.
    """
    progress = progress or SilentProgress()
    check_weights(recipe)
    targets = given_push_targets(recipe, push)
    if out is None and not targets:
        targets = recipe_push_targets(recipe)
    check_destinations(recipe, out is not None, targets)
    with prepare(recipe, settings, progress, trajectory=trajectory) as prepared:
        for line in prepared.notes:
            progress.say(line)
        if out is not None:
            return _merge_into_folders(prepared, Path(out), targets, progress)
        return _merge_onto_hub(prepared, targets, progress)


def _merge_into_folders(
    prepared: Prepared, out: Path, targets: list[PushTarget], progress: Progress
) -> MergeResult:
    steps = prepared.recipe.target_steps
    folders = target_folders(steps)
    remove_leftover(out)
    check_output(out, prepared.plan)
    for target in targets:
        check_target(target)
    with staged(out, folders, merge_fingerprint(prepared), progress) as staging:
        sinks = [
            LocalSink(staging.folder / folder, journal)
            for folder, journal in zip(folders, staging.journals, strict=True)
        ]
        outputs = run_prepared(prepared, sinks, staging.journals, progress)
        provenances = []
        for index, folder in enumerate(folders):
            provenance, files = _companions(prepared, index, outputs[index].shards)
            write_files(staging.folder / folder, files)
            provenances.append(provenance)
    pushed = [_push(out / folder, target, progress) for folder, target in zip(folders, targets, strict=False)]
    return MergeResult(
        tuple(
            Prediction(
                step,
                out / folder,
                pushed[index] if pushed else None,
                targets[index] if targets else None,
                provenances[index],
                prepared.caveats,
                outputs[index].identical_to_last,
            )
            for index, (step, folder) in enumerate(zip(steps, folders, strict=True))
        )
    )


def _push(folder: Path, target: PushTarget, progress: Progress) -> PushResult:
    """Push a finished output; an error says how to go on without merging again."""
    options = " --private" * target.private + " --create-pr" * target.create_pr
    command = f"hubextrap push {folder} {target.name}{options}"
    try:
        return push_folder(folder, target, progress)
    except PushError as error:
        raise PushError(f"{error}\n{folder} is whole; `{command}` pushes it") from error
    except (KeyboardInterrupt, SystemExit):
        progress.say(f"{folder} is whole; `{command}` pushes it")
        raise


def _merge_onto_hub(prepared: Prepared, targets: list[PushTarget], progress: Progress) -> MergeResult:
    steps = prepared.recipe.target_steps
    fingerprint = merge_fingerprint(prepared)
    with ExitStack() as stack:
        stagings = [stack.enter_context(push_state(target, fingerprint, progress)) for target in targets]
        check_scratch(targets, prepared.plan)
        journals = [journal for staging in stagings for journal in staging.journals]
        sinks = [
            stack.enter_context(HubSink(target, scratch=staging.folder, journal=journal, progress=progress))
            for target, staging, journal in zip(targets, stagings, journals, strict=True)
        ]
        outputs = run_prepared(prepared, sinks, journals, progress)
        predictions = []
        for index, (step, sink, target) in enumerate(zip(steps, sinks, targets, strict=True)):
            provenance, files = _companions(prepared, index, outputs[index].shards)
            files["README.md"] = with_target(
                files["README.md"].decode(), target.repo, target.revision
            ).encode()
            result = sink.commit(files, commit_message(provenance))
            predictions.append(
                Prediction(
                    step, None, result, target, provenance, prepared.caveats, outputs[index].identical_to_last
                )
            )
    return MergeResult(tuple(predictions))


def run_prepared(
    prepared: Prepared, sinks: Sequence[Sink], journals: Sequence[Journal], progress: Progress
) -> list[MergeOutput]:
    return run_plan(
        prepared.plan,
        prepared.sources,
        sinks,
        journals=journals,
        progress=progress,
        readers=REMOTE_READERS if prepared.remote else 0,
        device=prepared.settings.device,
        allow_non_finite=prepared.settings.allow_non_finite,
    )


def _companions(
    prepared: Prepared, index: int, shards: Sequence[FinishedShard]
) -> tuple[Provenance, dict[str, bytes]]:
    """All files of one target beside its shards, by name."""
    recipe, last = prepared.recipe, prepared.sources[-1]
    rules = [
        CoefficientRule(
            match=glob,
            method=rule.method,
            coefficients=dict(zip(prepared.trajectory.steps, row, strict=True)),
        )
        for rule, rows in prepared.rules
        for glob, row in ((glob, rows[index].tolist()) for glob in rule.match)
    ]
    provenance = build_provenance(
        checkpoints=prepared.trajectory.checkpoints,
        merge_method=recipe.merge_method,
        parameters=recipe.parameters.model_dump(mode="json", exclude={"target_step"}, exclude_defaults=True),
        target_step=recipe.target_steps[index],
        coefficients=rules,
        shards=[OutputShard(file=shard.file, size=shard.size, sha256=shard.sha256) for shard in shards],
        dtype=recipe.dtype,
        out_dtype=recipe.out_dtype,
        recipe=recipe.text,
        expected_relative_error=prepared.expected[index].relative_error,
        files=input_files(prepared.plan, prepared.sources),
    )
    files = side_files(last, recipe.out_dtype)
    if prepared.plan.index_file is not None:
        files[prepared.plan.index_file] = prepared.plan.index
    files[PROVENANCE_FILE] = provenance.to_bytes()
    card = model_card(provenance, _card_of(last), side_files=files, caveats=prepared.caveats)
    files["README.md"] = card.encode()
    return provenance, files


def input_files(plan: MergePlan, sources: Sequence[Source]) -> list[list[InputFile]]:
    """The weight files of each checkpoint, as the provenance names them once a merge has gone well."""
    how, found = read_as(plan), []
    for k, (layout, source) in enumerate(zip(plan.layouts, sources, strict=True)):
        listed = source.files()
        found.append(
            [
                InputFile(
                    file=one.file,
                    size=one.size,
                    read=how[k, one.file],
                    listed=listed[one.file].digest,
                    compared=how[k, one.file] == "whole" and listed[one.file].digest is not None,
                )
                for one in layout.shards
            ]
        )
    return found


def _card_of(source: Source) -> str | None:
    """The checkpoint's own model card, from which licence and language are taken over."""
    if "README.md" not in source.files():
        return None
    return source.read_file("README.md").decode(errors="replace")
