"""What commands print when they are done: plans, predictions, pushes; text for people, JSON for programs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hubextrap.cli.progress import format_bytes, format_memory
from hubextrap.cli.terminal import console, tell
from hubextrap.figures import ONE, said_of_sample, sample_in_words, with_stderr
from hubextrap.foreign_text import OwnLines, terminal_line
from hubextrap.narrow import NARROWEST, columns, without_middle

if TYPE_CHECKING:
    from pathlib import Path

    from hubextrap.api import PlanReport, Prediction
    from hubextrap.evaluation.walk_report import WalkReport
    from hubextrap.hub import PushResult, PushTarget

LISTED = 40
"""Rows of a table, terms of a sum; a summary page holds a megabyte."""


def print_plan(recipe: Path, report: PlanReport) -> None:
    """The report as aligned lines; problems go last, where they are seen."""
    tell(f"plan of {recipe}")
    for verdict in report.verdicts:
        if verdict is not None:
            tell(f"  verdict   {verdict.line}")
    if report.clock != "steps":
        tell(f"  clock     {report.clock}")
    for step, horizon, error, stderr, trusted in zip(
        report.target_steps,
        report.horizons,
        report.expected_relative_errors,
        report.expected_stderrs,
        trusted_in_words(report),
        strict=True,
    ):
        reach = "" if horizon is None else f", horizon {horizon:.3g}"
        what = "walk to" if report.walks else "predict"
        tell(f"  {what}   step {step}{reach}{_expectation(error, stderr)}")
        if trusted:
            tell(f"  trust     {trusted}")
    for said in said_of_sample(report.sampled, ONE):
        _tell_behind("  sample    ", said)
    for match, method, coefficients in report.rules[:LISTED]:
        for target, row in zip(report.target_steps, coefficients, strict=True):
            if not row:
                tell(f"  tensors   {match}: {method}: coefficients follow from the weights")
                continue
            at = f" at {target}" if len(report.target_steps) > 1 else ""
            tell(f"  tensors   {match}{at}: {method}: {as_sum(row)}")
    if len(report.rules) > LISTED:
        tell(f"            … {len(report.rules)} tensors in all")
    for step, name, commit, size in report.checkpoints[:LISTED]:
        pinned = f" ({commit[:8]})" if commit else ""
        behind = f"{pinned}{'' if size is None else ', ' + format_bytes(size)}"
        line = f"  observe   step {step}: "
        tell(f"{line}{_short(name, len(line) + len(behind))}{behind}")
    if len(report.checkpoints) > LISTED:
        tell(f"            … {len(report.checkpoints)} checkpoints in all")
    if report.files:
        files = f"{len(report.files)} file{'s' * (len(report.files) > 1)} per prediction"
        tell(f"  read      {format_bytes(report.bytes_read)}")
        tell(f"  write     {format_bytes(report.bytes_written)}, {files}")
        tell(f"  hold      {format_memory(report.peak_memory)} of memory at most")
    for output in report.outputs:
        tell(f"  output    {output}")
    for warning in report.warnings:
        _tell_behind("  warning   ", warning)
    for note in report.notes:
        _tell_behind("  note      ", note)
    for problem in report.problems:
        _tell_behind("  problem   ", problem)
    if not report.problems:
        tell("  no problems found")


def _short(name: str, beside: int) -> str:
    """A name that leaves room for so many characters beside it, where the terminal is too narrow for both."""
    width = columns(sys.stdout)
    return name if width is None else without_middle(terminal_line(name), max(NARROWEST, width - beside))


def as_sum(row: dict[int, float]) -> str:
    """Coefficients beside their steps, as far as they are listed."""
    shown = ", ".join(f"{value:+.4g} × step {step}" for step, value in list(row.items())[:LISTED])
    return shown + (f", … ({len(row)} in all)" if len(row) > LISTED else "")


def print_prediction(prediction: Prediction) -> None:
    """One prediction: what it is and where it lies."""
    provenance = prediction.provenance
    if prediction.verdict is not None:
        tell(prediction.verdict.line)
    horizon = "" if provenance.horizon is None else f", horizon {provenance.horizon:.3g}"
    expected = _expectation(provenance.expected_relative_error, provenance.expected_relative_error_stderr)
    at = "" if provenance.full_rate_steps is None else " at the peak rate"
    made = "" if provenance.adapter is None else f" as {provenance.adapter.in_words}"
    so_far = f"{at}{made} from steps up to {provenance.steps[-1]}"
    tell(f"predicted step {prediction.step}{so_far}{horizon}{expected}")
    if provenance.sample is not None:
        tell(f"figures {sample_in_words(provenance.sample.weights_per_tensor)}; {ONE}")
    trusted, up_to = provenance.trusted, provenance.trusted_in_words
    if trusted is not None and up_to is not None:
        tell(trust_in_words(trusted.horizon, up_to))
    if provenance.clock is not None:
        tell(f"clock: {provenance.clock.said}")
    if prediction.folder is not None:
        tell(f"written to {prediction.folder}")
    if prediction.pushed is not None and prediction.target is not None:
        tell(push_line(prediction.target, prediction.pushed))
    for caveat in (*prediction.notes, *prediction.caveats):
        _tell_behind("note: ", caveat)
    if prediction.identical_to_last:
        tell("note: every weight is the same as in the last checkpoint; nothing was predicted")


def _tell_behind(word: str, text: str) -> None:
    """An error's message keeps its lines."""
    tell(OwnLines(word + text) if isinstance(text, OwnLines) else word + text)


def _expectation(error: float | None, stderr: float | None) -> str:
    if error is None:
        return ""
    return f", expected relative error {with_stderr(error, stderr, 3)} (1: the last checkpoint as it is)"


def trust_in_words(horizon: float, up_to: str) -> str:
    """Up to where the past of a run trusts a method."""
    if not horizon:
        return f"the past trusts the method nowhere beyond {up_to}"
    return f"the past trusts the method up to {up_to}, horizon {horizon:g}"


def trusted_in_words(report: PlanReport) -> list[str]:
    """The same for each target of a plan; "" where nothing says it."""
    both = zip(report.trusted_horizons, report.trusted_up_to, strict=True)
    said = ["" if up_to is None else trust_in_words(horizon or 0.0, up_to) for horizon, up_to in both]
    return said or [""] * len(report.target_steps)


def print_walk(report: WalkReport) -> None:
    """The curve, and what was chosen."""
    from hubextrap.evaluation.walk_report import walk_rich

    console().print(walk_rich(report))


def push_line(target: PushTarget, result: PushResult) -> str:
    """One push as a line."""
    if result.unchanged:
        return f"nothing to push: {target.name} holds these files already ({result.commit[:8]})"
    files = ", ".join(result.deleted)
    if result.pull_request_url:
        removes = f", which removes {files} of the model that is there" if files else ""
        return f"opened {result.pull_request_url}{removes}"
    removed = f", and removed {files} of the model that was there" if files else ""
    return f"pushed to {target.name} as {result.commit[:8]}: {result.url}{removed}"


def unpushed_line(prediction: Prediction) -> str:
    """Where a prediction is that did not pass, and how it gets to the Hub all the same."""
    from hubextrap.api.merging import push_command

    assert prediction.folder is not None
    assert prediction.target is not None
    command = push_command(prediction.folder, prediction.target)
    return f"not pushed: it stays in {prediction.folder}; `{command}` pushes it all the same"


def prediction_as_json(prediction: Prediction) -> dict[str, Any]:
    """One prediction as JSON values."""
    return {
        "step": prediction.step,
        "verdict": None if prediction.verdict is None else prediction.verdict.as_dict(),
        "folder": str(prediction.folder) if prediction.folder else None,
        "push": push_as_json(prediction.target, prediction.pushed)
        if prediction.target and prediction.pushed
        else None,
        "warnings": list(prediction.warnings),
        "notes": list(prediction.notes),
        "caveats": list(prediction.caveats),
        "identical_to_last": prediction.identical_to_last,
        "provenance": prediction.provenance.model_dump(mode="json"),
    }


def push_as_json(target: PushTarget, result: PushResult) -> dict[str, Any]:
    """One push as JSON values."""
    return {"repo": target.repo, "revision": target.revision, **asdict(result)}
