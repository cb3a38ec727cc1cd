"""What would refuse a merge's output, found before a weight is read: folder, disk, device, and the Hub."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hubextrap.api.companions import companions
from hubextrap.api.output import check_output, check_scratch, output_sizes, target_folders
from hubextrap.api.preparing import CARD
from hubextrap.api.staging import may_be_finished
from hubextrap.engine.kernels import check_device
from hubextrap.errors import HubExtrapError, RecipeError
from hubextrap.foreign_text import own_lines
from hubextrap.hub import check_target
from hubextrap.hub.card import with_target
from hubextrap.hub.commit import check_card, check_files
from hubextrap.hub.target import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hubextrap.api.companions import Companions
    from hubextrap.api.preparing import Prepared
    from hubextrap.hub import PushTarget
    from hubextrap.hub.target import RemoteState
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory import Checkpoint


def check_weights(recipe: Recipe) -> None:
    """Refuse to merge what is to be mixed while decoding.

    Raises:
        RecipeError: the recipe has ``space: logits``.
    """
    if recipe.space == "logits":
        raise RecipeError(
            "space: logits mixes outputs while decoding, so there are no weights to merge; `hubextrap run` "
            "evaluates the mixture, `hubextrap generate` completes prompts; for weights, remove the line"
        )


def problems_beforehand(
    prepared: Prepared,
    out: Path | None,
    targets: Sequence[PushTarget],
    *,
    ask: bool = True,
    states: dict[PushTarget, RemoteState] | None = None,
) -> list[HubExtrapError]:
    """Everything that would refuse the outputs, most of it found by making them with empty shards.

    Args:
        ask: have the Hub say what it would; False where it has been asked, or is not to be.
        states: gets what is at each target.
    """
    problems: list[HubExtrapError] = []
    states = {} if states is None else states

    def found(check: Callable[[], object]) -> None:
        try:
            check()
        except HubExtrapError as error:
            problems.append(error)

    found(partial(check_device, prepared.settings.device))
    steps = prepared.recipe.target_steps
    made: list[Companions] = []
    found(lambda: made.extend(companions(prepared)))
    outputs = [output_sizes(prepared.plan, one.files) for one in made]
    if out is not None:
        folders = target_folders(steps)
        sizes = dict(zip(folders, outputs, strict=True)) if made else {}
        found(lambda: check_output(out, sizes, may_be_there=may_be_finished(out)))
    elif targets:
        found(partial(check_scratch, targets, prepared.plan))
    for target, files in zip(targets, outputs, strict=False):
        found(partial(check_files, target, files))
    for target in targets:
        found(partial(_check_spares, target, prepared.run.trajectory.checkpoints))
    if ask:
        for target in targets:
            found(partial(_look, target, states))
    for target, one in zip(targets, made, strict=False):
        if target in states:  # a card goes to no repo that is not for it
            found(partial(check_card, target, card_for(one, target)))
    return problems


def _check_spares(target: PushTarget, observed: Sequence[Checkpoint]) -> None:
    """Refuse to put a prediction in the place of a checkpoint of its own run."""
    for one in observed:
        if (one.repo, one.revision, one.path) == (target.repo, target.revision, "") and not target.create_pr:
            raise refusal(
                target,
                f"step {one.step} of the run lies there, and the prediction would take its place; name "
                "another branch",
            )


def refuse(problems: Sequence[HubExtrapError]) -> None:
    """Raise them, all at once.

    Raises:
        HubExtrapError: of their own kind, where there is one.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kinds = {type(problem) for problem in problems}
        kind = kinds.pop() if len(kinds) == 1 else HubExtrapError
        error = kind(own_lines(*dict.fromkeys(str(problem) for problem in problems)))
        error.parts = tuple(problems)
        raise error


def card_for(made: Companions, target: PushTarget) -> bytes:
    """The card as it goes to a repo: its snippet loads that."""
    return with_target(made.files[CARD].decode(), target.repo, target.revision).encode()


def _look(target: PushTarget, states: dict[PushTarget, RemoteState]) -> None:
    states[target] = check_target(target)
