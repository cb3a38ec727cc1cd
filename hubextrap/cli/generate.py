"""`hubextrap generate`: complete prompts with a mixture of logits, as the pieces come."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from hubextrap.cli.options import ChatTemplate, Placing, Said, ScanFile, Seed, grouped, refuse_idle
from hubextrap.cli.terminal import tell_json
from hubextrap.containment import INPUT_LIMIT, read_named
from hubextrap.foreign_text import terminal_output


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn."""

    max_new_tokens: int = typer.Option(256, min=1, metavar="N", help="Longest completion, in tokens.")
    temperature: float = typer.Option(
        0.0, min=0.0, metavar="X", help="How freely tokens are drawn. 0 always takes the likeliest one."
    )
    top_p: float = typer.Option(
        1.0,
        min=0.0,
        max=1.0,
        metavar="P",
        help="Draw only from the likeliest tokens, whose probabilities add up to P.",
    )
    top_k: int = typer.Option(
        0, min=0, metavar="N", help="Draw only from the N likeliest tokens. 0: from all."
    )
    seed: Seed = 0


@grouped
def generate(
    ctx: typer.Context,
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="A recipe that says space: logits."),
    prompt: list[str] | None = typer.Argument(None, metavar="[PROMPT...]", help="Prompts to complete."),
    *,
    prompts: Path | None = typer.Option(
        None, "--prompts", metavar="FILE", help="Text file with one prompt per line. - reads stdin."
    ),
    scan: ScanFile = None,
    target_step: int | None = typer.Option(
        None, min=0, metavar="STEP", help="Which target step, if the recipe has several."
    ),
    drawing: Drawing,
    chat_template: ChatTemplate = False,
    placing: Placing,
    said: Said,
) -> None:
    """Complete prompts with the predicted model, without writing it: the checkpoints' logits are mixed."""
    from hubextrap import api
    from hubextrap.recipe import load_recipe

    if drawing.temperature == 0:
        why = "goes with a --temperature above 0: at 0 nothing is drawn"
        refuse_idle(ctx, ("top_p", "top_k", "seed"), why)
    asked = [*(prompt or []), *(_lines(prompts) if prompts else [])]
    if not asked:
        raise typer.BadParameter("give prompts, or a file of them with --prompts")

    def show(text: str) -> None:
        typer.echo(terminal_output(text), nl=False)

    loaded = load_recipe(recipe)
    from hubextrap.logits.completing import Sampling

    completions = api.complete(
        loaded,
        asked,
        target_step=target_step,
        sampling=Sampling(**asdict(drawing)),
        how=api.Completing(
            chat_template,
            **asdict(placing),
            on_prompt=None if said.as_json else show,
            on_text=None if said.as_json else show,
            on_end=None if said.as_json else typer.echo,
        ),
        scan=scan,
        progress=said.progress,
    )
    if said.as_json:
        pairs = zip(asked, completions, strict=True)
        tell_json([{"prompt": one, "completion": other} for one, other in pairs])


def _lines(path: Path) -> list[str]:
    try:
        if str(path) == "-":
            text = typer.get_text_stream("stdin").read(INPUT_LIMIT + 1)
            if len(text) > INPUT_LIMIT:
                raise typer.BadParameter(f"{path}: holds more than the {INPUT_LIMIT:,} that are read")
        else:
            text = read_named(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "UnicodeDecodeError"
        raise typer.BadParameter(f"{path}: cannot be read as text ({said})") from error
    return [line for line in text.splitlines() if line.strip()]
