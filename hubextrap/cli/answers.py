"""What `predict` answers, as text for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.cli.terminal import as_argument, tell
from hubextrap.figures import ONE, sample_in_words
from hubextrap.foreign_text import OwnLines

if TYPE_CHECKING:
    from hubextrap.api import PredictResult


def print_answer(found: PredictResult) -> None:
    """The verdict first, then what was made and by what, then what stands behind it."""
    from hubextrap.cli.summaries import push_line

    verdict, made = found.verdict, found.prediction
    tell(verdict.line)
    for name, text in answer_rows(found):
        tell(f"  {name:<10} {text}")
    if made is not None and made.pushed is not None and made.target is not None:
        tell(f"  {'push':<10} {push_line(made.target, made.pushed)}")
    for sentence in verdict.sentences:
        tell(f"  {sentence}")
    for note in () if made is None else (*made.notes, *made.caveats):
        tell(OwnLines(f"note: {note}") if isinstance(note, OwnLines) else f"note: {note}")
    if made is None and found.recipe is not None and found.recipe_file is None:
        tell("")
        for line in found.recipe.text.splitlines():
            tell(line, whole=not line.startswith("#"))


def answer_rows(found: PredictResult) -> list[tuple[str, str]]:
    """Short lines: what was predicted, by which method and why, how far to trust it, where it lies."""
    from hubextrap.statistics.wording import TOO_FEW

    verdict, made = found.verdict, found.prediction
    rows = []
    if found.target_step is not None:
        looks = made is None and found.recipe is not None and found.recipe.walk is not None
        verb = "looks" if looks else "predicts" if made is None else "predicted"
        target, how_far = verdict.target, "up to " if looks else ""
        named = f"step {found.target_step}" if target is None else target.named
        far = "" if target is None or target.horizon is None else f" (horizon {target.horizon:.3g})"
        adapter = None if made is None else made.provenance.adapter
        kind = "" if adapter is None else f", as {adapter.in_words}"
        rows.append((verb, f"{how_far}{named}{far}{kind}"))
    else:
        rows.append(("predicts", "no step, as the run's past supports none; name one with --to STEP"))
    rows.append(("method", found.why))
    if verdict.reach_in_words is not None:
        rows.append(("trust", f"up to {verdict.reach_in_words} (horizon {verdict.reach:g})"))
    elif verdict.rehearsals.near >= TOO_FEW:
        rows.append(("trust", "at no horizon that was rehearsed"))
    if found.backtest is not None and found.backtest.sampled is not None:
        rows.append(("sample", f"figures are {sample_in_words(found.backtest.sampled)}; {ONE}"))
    if made is not None and made.folder is not None:
        rows.append(("written", str(made.folder)))
    if found.recipe_file is not None:
        again = ""
        if made is not None:
            where = "" if made.folder is None else " --out DIR"
            again = f"; `hubextrap run {as_argument(found.recipe_file)}{where}` makes it again"
        rows.append(("recipe", f"{found.recipe_file}{again}"))
    return rows


def answer_as_json(found: PredictResult) -> dict[str, Any]:
    """The answer as JSON values."""
    from hubextrap.cli.summaries import prediction_as_json

    sampled = None if found.backtest is None else found.backtest.sampled
    return {
        "verdict": found.verdict.as_dict(),
        "target_step": found.target_step,
        "method": found.chosen,
        "why": found.why,
        "recipe": None if found.recipe is None else found.recipe.text,
        "recipe_file": None if found.recipe_file is None else str(found.recipe_file),
        "prediction": None if found.prediction is None else prediction_as_json(found.prediction),
        "evaluations": [table.model_dump(mode="json") for table in found.tables],
        "walk": None if found.walk is None else found.walk.model_dump(mode="json"),
        **({} if sampled is None else {"sampled": sampled}),
    } | ({} if found.gate is None else {"gate": found.gate.as_dict()})
