"""`reground`: a trainer's command and a jump in turn; the loop with the engine, the Hub and the lock."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.api.extrapolating import extrapolate, scan_folders
from hubextrap.api.guarding import check_prompts, likelihoods, read_prompts
from hubextrap.api.preparing import MergeOptions, check_settings, merge_options
from hubextrap.api.staging import remove_leftover
from hubextrap.api.verifying import verify
from hubextrap.durable.atomic import is_new_name
from hubextrap.engine.kernels import check_device
from hubextrap.errors import CorruptFile, OutputError, PushError, RecipeError
from hubextrap.given import path_of, reground_recipe_of
from hubextrap.hub import OutgoingFile, PushTarget, check_target, commit_files, push_folder
from hubextrap.hub.side_files import read_side_files
from hubextrap.notebooks import counted, one_line
from hubextrap.progress import Progress, SilentProgress
from hubextrap.regrounding import Decision
from hubextrap.regrounding.checkpoint import check_model, holds_adapter, snapshot
from hubextrap.regrounding.command import CommandRunner
from hubextrap.regrounding.ending import GramOfSnapshots
from hubextrap.regrounding.holding import held_run
from hubextrap.regrounding.loop import Loop
from hubextrap.regrounding.round_rates import stated_clock
from hubextrap.regrounding.state import RunState, StartModel, load_state, save_state
from hubextrap.tensors import LocalSource
from hubextrap.tensors.cache import cached_source
from hubextrap.trajectory import Checkpoint, resolve_checkpoint
from hubextrap.trajectory.checkpoint import ADAPTER

if TYPE_CHECKING:
    from hubextrap.recipe import RegroundRecipe

MAY_CHANGE = (
    "reground.checkpoint",
    "reground.iterations",
    "reground.max_rl_steps",
    "reground.max_represented_steps",
    "reground.max_skipped",
    "reground.keep",
    "reground.clock",  # each decision says its own
)
"""Keys that do not decide what the rounds behind a run were, with those below them."""
_BELOW_A_ROUND = re.compile(r"(real|extrapolated)-rl\d+-step\d+/")
_ADDED = {"reground.guard.apply_chat_template": False}
"""What a run went by that was begun before these keys were there."""


@dataclass(frozen=True, slots=True)
class RegroundResult:
    """What a finished run left behind."""

    model: Path
    """The model that the run has come to: the last one that was trained."""
    decisions: tuple[Decision, ...]
    """One per round."""
    reason: str
    """Why it ended."""

    def __repr__(self) -> str:
        return one_line(self, counted(len(self.decisions), "round"), self.reason, str(self.model))

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self) | {"model": str(self.model)}


def reground(
    recipe: RegroundRecipe | Path | str,
    out: Path | str,
    *,
    settings: MergeOptions | None = None,
    progress: Progress | None = None,
    output: BinaryIO | None = None,
) -> RegroundResult:
    """Train ``window`` steps by the recipe's command, jump over ``jump`` steps, and so on, in ``out``.

    Called again alike after a stop of any kind, it goes on with the phase that it was in.

    Args:
        recipe: it, or its file.
        output: where the commands' own output goes besides the logs in ``out``.

    Raises:
        RecipeError: ``out`` holds a run of another recipe.
        MethodError: the settings' device cannot be used.
        ClockError: the recipe's file of rates, or its schedule, is none; or a round's rates are not known.
        EvaluationError: the guard's prompts do not serve. MissingExtra: torch or transformers is missing.
        CommandFailed: the trainer or the probe did not end well.
        CheckpointError: the start, or what the trainer left behind, cannot be used.
        OutputError: another run is at it, or the disk did not take something.
        PushError: the Hub did not take a checkpoint.
    """
    progress = progress or SilentProgress()
    settings, recipe, out = merge_options(settings), reground_recipe_of(recipe), path_of("out", out)
    check_device(settings.device)  # not only after the first round
    stated_clock(recipe.reground.clock)
    folder = out.resolve()
    if os.path.lexists(out) and not folder.is_dir():
        raise OutputError(f"{out}: is there already and leads to no folder; choose another --out", file=out)
    state = load_state(folder)
    if state is None and folder.exists() and not _is_empty(folder):
        raise OutputError(
            f"{out}: is there already and holds no run; remove it, or choose another --out", file=out
        )
    read_prompts(recipe.reground.guard)
    _check_push(recipe)  # before the start is downloaded
    with held_run(folder, str(out), progress) as lock:
        state = _resumed(load_state(folder), recipe, folder, progress) or _begun(recipe, folder, progress)
        if holds_adapter(folder / state.model):
            check_settings(settings)
        check_prompts(recipe.reground.guard, folder / state.model)
        engine = _Engine(recipe, settings, progress)
        loop = Loop(recipe, folder, state, engine, CommandRunner(lock, progress.say, output), progress)
        state = loop.run()
    return RegroundResult(model=folder / state.model, decisions=state.decisions, reason=state.finished or "")


def _check_push(recipe: RegroundRecipe) -> None:
    """Refuse a repo that cannot take the rounds' branches.

    Raises:
        PushError: says why.
    """
    if recipe.push is None:
        return
    there = check_target(PushTarget(recipe.push.repo, private=recipe.push.private)).branches
    if other := next((name for name in sorted(there) if _BELOW_A_ROUND.match(name)), None):
        raise PushError(
            f"{recipe.push.repo}: the repo has a branch {other}, and git holds no branch of a round beside "
            "it; delete it on the Hub, or push to another repo",
            repo=recipe.push.repo,
        )


def _is_empty(folder: Path) -> bool:
    """Whether at most a run's first moments left something in it."""
    return folder.is_dir() and all(path.name == "lock" or is_new_name(path.name) for path in folder.iterdir())


def _begun(recipe: RegroundRecipe, folder: Path, progress: Progress) -> RunState:
    section = recipe.reground
    checkpoint = resolve_checkpoint(section.model, step=0)
    place = _local(checkpoint)
    with progress.stage("check the start", checkpoint.size) as stage:
        checked = check_model(place, None, stage)
    start = StartModel(
        reference=section.model,
        folder=str(place),
        repo=checkpoint.repo,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        path=checkpoint.path if checkpoint.repo else "",
    )
    state = RunState(
        recipe=recipe.values(),
        start=start,
        size=checked.size,
        n=section.jump,
        model=str(place),
        snapshots={0: str(place)},
    )
    save_state(folder, state)
    return state


def _local(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint; one on the Hub is downloaded into the Hub cache, as trainers do."""
    if checkpoint.repo is None:
        return Path(checkpoint.path)
    with closing(cached_source(checkpoint)) as source:
        return source.folder.resolve()


def _resumed(
    state: RunState | None, recipe: RegroundRecipe, folder: Path, progress: Progress
) -> RunState | None:
    """The state to go on from; None where the run has to begin."""
    if state is None:
        return None
    values, before = recipe.values(), _ADDED | state.recipe
    changed = [
        f"{key} was {_shown(before.get(key))} and is {_shown(values.get(key))}"
        for key in sorted(before.keys() | values.keys())
        if not f"{key}.".startswith(tuple(f"{one}." for one in MAY_CHANGE))
        and before.get(key) != values.get(key)
    ]
    if changed:
        if state.round == 1 and not state.is_done("checked"):
            progress.say(f"{folder}: starting over, as {'; '.join(changed)}")
            return None
        done = state.round - 1 + state.is_done("checked")
        raise RecipeError(
            f"{folder}: its {done} trained round{'s' * (done > 1)} had another recipe: {'; '.join(changed)}. "
            "Put that back to go on, or give another --out; with "
            f"reground.model: {folder / state.model} it starts where this run is",
            file=folder,
        )
    if state.finished is not None:
        state = state.after("begun", finished=None)  # a later end may have been set
    elif state.round > 1 or state.phase != "begun":
        progress.say(f"{folder}: going on in round {state.round}, after: {state.phase}")
    start = state.start
    if (
        start.repo is not None
        and start.folder in state.snapshots.values()
        and not Path(start.folder).is_dir()
    ):
        _local(Checkpoint(0, start.repo, start.revision, start.commit, start.path))
    return state.model_copy(update={"recipe": values})


def _shown(value: object) -> str:
    return "not there" if value is None else repr(value)


@dataclass(frozen=True, slots=True)
class _Engine:
    """What the loop needs: see `hubextrap.regrounding.loop.Engine`."""

    recipe: RegroundRecipe
    settings: MergeOptions
    progress: Progress

    def scan(self, snapshots: Mapping[int, Path]) -> GramOfSnapshots:
        checkpoints = self._checkpoints(snapshots)
        if any(one.kind == ADAPTER for one in checkpoints):
            check_settings(self.settings)
        return scan_folders(checkpoints, self.settings.reading, self.progress)

    def extrapolate(
        self, snapshots: Mapping[int, Path], decision: Decision, target_step: int, out: Path
    ) -> None:
        if out.exists():  # its rename is the last that happens, so a stop came between it and the journal
            remove_leftover(out)
            with contextlib.suppress(CorruptFile):
                if not verify(out, progress=self.progress).problems:
                    return
            raise OutputError(
                f"{out}: is not what was extrapolated there; remove it, then run the same again", file=out
            )
        used = self._checkpoints({step: snapshots[step] for step in decision.snapshot_steps})
        extrapolate(used, decision, target_step, self.recipe, out, self.settings, self.progress)

    def own_answers(self, before: Path, after: Path) -> tuple[float, float]:
        return likelihoods(self.recipe.reground.guard, before, after, self.progress)

    def push(self, model: Path, weights: Mapping[str, str], kind: str, rl_steps: int, step: int) -> None:
        assert self.recipe.push is not None
        target = PushTarget(
            self.recipe.push.repo, f"{kind}-rl{rl_steps}-step{step}", private=self.recipe.push.private
        )
        if kind == "extrapolated":
            result = push_folder(model, target, self.progress)
        else:
            with closing(LocalSource(model)) as source:
                files = [
                    OutgoingFile(name, source.place(name), weights.get(name))
                    for name in sorted(source.files())
                    if name in weights or name.endswith((".safetensors.index.json", CONFIG_FILE))
                ]
                beside = read_side_files(source, None, whole_model=not holds_adapter(model))[1]
                files += [OutgoingFile(name, data) for name, data in beside.items()]
            message = f"Step {step} of a re-grounded run: trained, RL step {rl_steps}"
            result = commit_files(target, files, message=message, progress=self.progress)
        there = "is there already" if result.unchanged else "pushed"
        self.progress.say(f"{target.name}: {there}, {result.url}")

    def _checkpoints(self, snapshots: Mapping[int, Path]) -> list[Checkpoint]:
        return [snapshot(folder, step) for step, folder in sorted(snapshots.items())]
