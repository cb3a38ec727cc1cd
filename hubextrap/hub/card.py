"""The model card of a prediction: what it was predicted from, how to read it, how to make it again."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from hubextrap.figures import sample_in_words, with_stderr
from hubextrap.foreign_text import markdown_block, markdown_code, markdown_text
from hubextrap.hub.carried_over import carried_over
from hubextrap.hub.loading import loading_snippet, placed_at
from hubextrap.hub.provenance import PROVENANCE_FILE
from hubextrap.redaction import redact
from hubextrap.trajectory.checkpoint import BASE_NAME, place_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.hub.provenance import AdapterRecord, CoefficientRule, InputCheckpoint, Provenance

TAGS = ("hubextrap", "merge", "extrapolation", "rlvr")
_RESULTS_BEGIN, _RESULTS_END = "<!-- hubextrap: results -->", "<!-- hubextrap: end of results -->"
_VERDICT_BEGIN, _VERDICT_END = "<!-- hubextrap: verdict -->", "<!-- hubextrap: end of verdict -->"
_LOAD_BEGIN, _LOAD_END = "<!-- hubextrap: how to load -->", "<!-- hubextrap: end -->"
_REPO = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_FOLDER = "path/to/this/folder"
_SHOWN_RULES = 8
_SHOWN_STEPS = 30


def model_card(
    provenance: Provenance,
    last_card: str | None = None,
    side_files: Mapping[str, bytes] | None = None,
    *,
    caveats: Sequence[str] = (),
    verdict: str | None = None,
) -> str:
    """The README.md of a predicted model, metadata first.

    Args:
        last_card: README.md of the last checkpoint; licence, language, pipeline tag, datasets are taken over.
        side_files: what lies beside the weights, by name: it says how the model is loaded. A language model
            when None.
        caveats: facts about the weights, a sentence each.
        verdict: one line, by the weights alone; `with_verdict` replaces it once there are scores.
    """
    from huggingface_hub import ModelCardData

    adapter = provenance.adapter
    is_adapter = adapter is not None and adapter.output == "adapter"
    metadata: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "tags": [*TAGS, "lora"] if is_adapter else list(TAGS),
        **carried_over(last_card),
    }
    named = [] if adapter is None else [adapter.base_name]
    if not is_adapter:
        named += [repo for repo in provenance.repos if repo not in named]
    if repos := [repo for repo in named if repo and _REPO.fullmatch(repo) and redact(repo) == repo]:
        metadata |= {"base_model": repos, "base_model_relation": "adapter" if is_adapter else "merge"}
    data = ModelCardData(**metadata)
    loading = loading_snippet(side_files or {}, _FOLDER, adapter.base_name if adapter else None)
    sections = [
        _opening(provenance),
        *([_marked_verdict(verdict)] if verdict else []),
        _inputs(provenance),
        _how(provenance),
        *(["\n".join(f"- {markdown_text(caveat)}" for caveat in caveats)] if caveats else []),
        f"## Results\n\n{marked_results(_NOT_MEASURED)}",
        f"## Load it\n\n{_LOAD_BEGIN}\n{loading}\n{_LOAD_END}",
        _reproduction(provenance),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def with_target(card: str, repo: str, revision: str) -> str:
    """``card`` with its snippet loading ``repo`` at ``revision``; without our snippet it stays as it is."""
    found = _marked(card, _LOAD_BEGIN, _LOAD_END)
    if found is None:
        return card
    begin, end = found
    return card[:begin] + placed_at(card[begin:end], repo, revision) + card[end:]


def with_verdict(card: str, verdict: str) -> str:
    """``card`` with another verdict; one without ours stays as it is."""
    found = _marked(card, _VERDICT_BEGIN, _VERDICT_END)
    if found is None:
        return card
    begin, end = found
    return card[:begin] + _marked_verdict(verdict) + card[end:]


def _marked_verdict(verdict: str) -> str:
    return f"{_VERDICT_BEGIN}\n**{markdown_text(verdict)}**\n{_VERDICT_END}"


def with_results(card: str, results: str) -> str:
    """``card`` with its results replaced; where it has none of ours, they come last, under a heading."""
    if found := _marked(card, _RESULTS_BEGIN, _RESULTS_END):
        begin, end = found
        return card[:begin] + marked_results(results) + card[end:]
    if _NOT_MEASURED in card:  # as it was written before there were marks
        return card.replace(_NOT_MEASURED, marked_results(results), 1)
    return f"{card.rstrip()}\n\n## Results\n\n{marked_results(results)}\n".lstrip()


def _marked(card: str, begin: str, end: str) -> tuple[int, int] | None:
    """From the first mark to behind the other, each on a line of its own and in no block of code.

    So a name that holds a mark is none, wherever it stands.
    """
    start, place, fence = None, 0, ""
    for line in card.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        ticks = _FENCE.match(bare)
        if fence:
            if ticks and ticks[1].startswith(fence) and not bare[ticks.end() :].strip():
                fence = ""
        elif ticks:
            fence = ticks[1]
        elif start is None and bare == begin:
            start = place
        elif start is not None and bare == end:
            return start, place + len(bare)
        place += len(line)
    return None


def marked_results(results: str) -> str:
    """Results between the marks by which `with_results` finds them again."""
    return f"{_RESULTS_BEGIN}\n{results.strip()}\n{_RESULTS_END}"


_NOT_MEASURED = (
    "Nothing was measured on this model when the card was written. Compare it with the last "
    "observed checkpoint before any use: `hubextrap eval` does."
)


_WARNING = (
    "> [!WARNING]\n"
    "> **This is a prediction, not a trained checkpoint.** No training step produced these weights:\n"
    "> they are a weighted sum of earlier checkpoints. The prediction can be worse than the last of\n"
    "> them, more so the further it reaches, and neither its abilities nor its safety were trained."
)


def _opening(provenance: Provenance) -> str:
    name = provenance.run_name or "A run"
    at = "" if provenance.target_step is None else f", predicted at step {provenance.target_step}"
    if provenance.full_rate_steps is not None:
        at = f", predicted {provenance.full_rate_steps} full-rate steps after step {provenance.steps[-1]}"
    return "\n\n".join([f"# {markdown_text(name)}{at}", _WARNING])


def _inputs(provenance: Provenance) -> str:
    lines = ["## What it was predicted from", "", "| step | checkpoint | commit |", "|---:|---|---|"]
    lines += [
        f"| {source.step} | {_reference(source)} | {markdown_code(source.commit) if source.commit else ''} |"
        for source in provenance.inputs
    ]
    if provenance.target_step is not None:
        beside = "" if provenance.full_rate_steps is None else " at the peak rate"
        lines.append(f"| **{provenance.target_step}**{beside} | **this model** | |")
    return "\n".join(lines)


def _reference(source: InputCheckpoint) -> str:
    if source.repo is None and source.path == BASE_NAME and not source.files:
        return BASE_NAME
    if source.repo is None:
        return f"local folder {markdown_code(source.path)}"
    return markdown_code(place_name(source.repo, source.revision, source.path))


def _how(provenance: Provenance) -> str:
    parameters = json.dumps(provenance.parameters, ensure_ascii=False)
    rounding = f" to {provenance.out_dtype}" if provenance.out_dtype else ""
    made = f"Every weight is Σ c·W over these steps in {provenance.dtype}, rounded{rounding} once."
    if (adapter := provenance.adapter) is not None:
        made = _how_of_adapters(adapter, rounding)
    parts = [
        f"## How\n\n{made}",
        f"- method: {markdown_code(provenance.merge_method)}, parameters {markdown_code(parameters)}",
    ]
    clock = provenance.clock
    if clock is not None:
        parts[-1] += (
            f"\n- clock: {markdown_text(clock.said)}. Times are full-rate steps: so many updates at the "
            "peak of the learning rate would have moved the weights as far."
        )
    if provenance.full_rate_steps is not None:
        parts[-1] += (
            f"\n- target: {provenance.full_rate_steps} full-rate steps after step {provenance.steps[-1]}, "
            "as if the learning rate had stayed at its peak; the run itself has no such step."
        )
    if provenance.horizon is not None:
        base, last, target = provenance.steps[0], provenance.steps[-1], provenance.target_step
        way = f"({target} − {last}) / ({last} − {base})"
        if clock is not None:
            first, now, then = (
                f"{time:.4g}" for time in (clock.times[0], clock.times[-1], clock.target_time)
            )
            way = f"({then} − {now}) / ({now} − {first})"
        parts[-1] += (
            f"\n- horizon: {way} = **{provenance.horizon:.3g}**: the way "
            "to the predicted step in units of the way that was observed. Below 0.5 is short; beyond 1 "
            "the line reaches further than the evidence, and predictions often fail."
        )
    stderr = provenance.expected_relative_error_stderr
    if provenance.expected_relative_error is not None:
        error = with_stderr(provenance.expected_relative_error, stderr)
        parts[-1] += (
            f"\n- expected error: **{error}**, by the run's own past. "
            "1 is the last checkpoint as it is. It speaks of weights, not of what the model can do."
        )
    if provenance.sample is not None:
        beside = "" if stderr is None else "; ± is one standard error"
        size = provenance.sample.weights_per_tensor
        parts[-1] += f"\n- sample: what was compared and fitted comes {sample_in_words(size)}{beside}."
    if (trusted := provenance.trusted) is not None:
        where = f"up to **{provenance.trusted_in_words}**, horizon {trusted.horizon:g}"
        if not trusted.horizon:
            where = f"**nowhere** beyond {provenance.trusted_in_words}"
        parts[-1] += f"\n- trusted: the run's own past trusts this method {where}."
    if provenance.coefficients:
        parts.append(_coefficients(provenance.coefficients))
    return "\n\n".join(parts)


def _how_of_adapters(adapter: AdapterRecord, rounding: str) -> str:
    change = "Σ c·s·B·A over these steps in float64, s the scaling of each adapter"
    if adapter.output == "adapter":
        how = "in factors" if adapter.lost is None else "cut by SVD to factors"
        return f"The change of every weight is {change}, {how} of rank {adapter.rank}."
    base = "the model" if adapter.base is None else _reference(adapter.base)
    return f"Every weight is that of {base} + {change}, rounded{rounding} once."


def _coefficients(rules: Sequence[CoefficientRule]) -> str:
    """The rules as one table, folded away: a row each, and a column for every step that any of them uses."""
    shown = rules[:_SHOWN_RULES]
    used = sorted({step for rule in shown for step, value in rule.coefficients.items() if value != 0})
    steps, more = used[:_SHOWN_STEPS], used[_SHOWN_STEPS:]
    lines = [
        "<details>\n<summary>The coefficient c of each step</summary>\n",
        "| tensors | method | " + " | ".join(f"step {step}" for step in steps) + " |",
        "|---|---|" + "---:|" * len(steps),
    ]
    for rule in shown:
        values = (rule.coefficients.get(step, 0) for step in steps)
        row = [markdown_code(rule.match), markdown_text(rule.method), *(f"{value:.6g}" for value in values)]
        lines.append("| " + " | ".join(row) + " |")
    if more:
        lines.append(f"\nThe coefficients of the steps after {steps[-1]} are in `{PROVENANCE_FILE}`.")
    if rest := len(rules) - len(shown):
        lines.append(f"\nThe coefficients of {rest} other tensors or rules are in `{PROVENANCE_FILE}`.")
    return "\n".join([*lines, "\n</details>"])


def _reproduction(provenance: Provenance) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return (
        "## Make it again\n\n"
        "Save this recipe as `recipe.yaml`, then `hubextrap merge recipe.yaml --out DIR` "
        f"({markdown_text(versions)}).\n"
        f"`{PROVENANCE_FILE}` holds every input's commit, all coefficients, every weight file's sha256.\n\n"
        + markdown_block(provenance.recipe.strip(), "yaml")
    )
