"""`hubextrap walk`: predict as far as the model's own answers go along, and no farther."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from hubextrap.cli.options import (
    ChatTemplate,
    Clock,
    CreatePr,
    IncludePath,
    Out,
    Placing,
    Private,
    PushTo,
    Reading,
    RecipeFile,
    Said,
    ScanFile,
    Seed,
    Tasks,
    grouped,
    names,
    push_targets,
    refuse_idle,
    split_list,
)
from hubextrap.cli.outputting import Outputting
from hubextrap.cli.terminal import tell, tell_json


@dataclass(frozen=True)
class Asking:
    """What the last checkpoint is asked, and what the step is chosen by."""

    prompts: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Prompts, one JSON object per line, in the field question or prompt. 64 are enough.",
    )
    tasks: Tasks = None
    include_path: IncludePath = None
    by: str | None = typer.Option(
        None,
        metavar="RULE",
        help="How the step is chosen. own_answers: where the last checkpoint's greedy answers are likeliest; "
        "it needs no labels. correct_answers: the same for its samples that are right. score: where new "
        "answers score best. Default: correct_answers with --samples, else own_answers.",
    )
    samples: int | None = typer.Option(
        None, min=1, metavar="N", help="Answers drawn per prompt, at temperature 1."
    )
    answer_format: str | None = typer.Option(
        None,
        "--format",
        metavar="exact|math",
        help="How answers to --prompts are judged, for correct_answers and score. Default: the recipe's "
        "evaluate.format.",
    )
    max_tokens: int | None = typer.Option(None, min=1, metavar="N", help="Longest answer, in tokens.")
    limit: int | None = typer.Option(
        None, min=1, metavar="N", help="Use only the first N prompts of the file or task."
    )
    seed: Seed = 0
    chat_template: ChatTemplate = False

    def arguments(self, ctx: typer.Context) -> dict[str, Any]:
        """Those that were given, as the API calls them."""
        called = {"answer_format": "format", "chat_template": "apply_chat_template"}
        given = {
            called.get(name, name): getattr(self, name)
            for name in names(Asking)
            if ctx.get_parameter_source(name) is not None and ctx.get_parameter_source(name).name != "DEFAULT"  # type: ignore[union-attr]
        }
        if "tasks" in given:
            given["tasks"] = split_list("--tasks", self.tasks)
        return given


@grouped
def walk(
    ctx: typer.Context,
    recipe: RecipeFile,
    *,
    asking: Asking,
    out: Out = None,
    push: PushTo = None,
    private: Private = False,
    create_pr: CreatePr = False,
    outputting: Outputting,
    scan: ScanFile = None,
    clock: Clock = None,
    reading: Reading,
    placing: Placing,
    said: Said,
) -> None:
    """Choose the step to predict by the model's own answers, and predict it.

    It tries steps up to the recipe's target step, and takes the one where the answers are likeliest.
    """
    from hubextrap import api
    from hubextrap.cli.summaries import prediction_as_json, print_prediction, print_walk
    from hubextrap.recipe import load_recipe

    if push is None:
        why = "goes with --push REPO; of the recipe's push section, private and create_pr say it"
        refuse_idle(ctx, ("private", "create_pr"), why)
    how = asking.arguments(ctx) | ({} if clock is None else {"clock": clock})
    loaded = outputting.on(load_recipe(recipe))
    result = api.walk(
        loaded,
        how.pop("prompts", None),
        out=out,
        push=push_targets(push, private, create_pr),
        settings=reading.merge_options(),
        scan=scan,
        progress=said.progress,
        **how,
        device=placing.device,
        dtype=placing.dtype,
    )
    if said.as_json:
        made = None if result.prediction is None else prediction_as_json(result.prediction)
        folder = None if result.folder is None else str(result.folder)
        walked = result.walk.model_dump(mode="json") | {"gained": result.walk.gained}
        tell_json({"walk": walked, "prediction": made, "folder": folder})
        return
    print_walk(result.walk)
    if result.prediction is not None:
        print_prediction(result.prediction)
    elif result.folder is not None:
        tell(f"written to {result.folder}")
