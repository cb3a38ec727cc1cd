"""A scan's file that is there already: whether it is of this run, and what must not take its place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import OutputError
from hubextrap.scans import Scan
from hubextrap.scans.given import sample_of

if TYPE_CHECKING:
    from pathlib import Path

    from hubextrap.logits import LogProbRequest
    from hubextrap.opening import Run


def existing_scan(path: Path, run: Run) -> Scan | None:
    """The scan at ``path``, if there is one; that of a sample may lack checkpoints, which will be added.

    Raises:
        OutputError: it is of other checkpoints; names the steps.
        CorruptFile, SourceError: it is no scan, or cannot be read.
    """
    if not path.exists():
        return None
    found = Scan.load(path)
    pinned = zip(run.trajectory.checkpoints, run.fingerprints, strict=True)
    same = {one.step for one, pin in pinned if found.holds(one.step, pin, one.digest)}
    compared = {*run.steps, *found.steps} if found.weights is None else {*found.steps}
    differing = sorted(compared - same)
    if differing:
        steps = ", ".join(map(str, differing[:5])) + (" …" if len(differing) > 5 else "")
        local = any(one.repo is None for one in run.trajectory.checkpoints if one.step in differing)
        since = ", or of files that were written to since, or by an older hubextrap," if local else ""
        raise OutputError(
            f"{path}: holds a scan of other checkpoints{since} (step {steps} differs); remove it, or choose "
            "another --out",
            file=path,
        )
    return found


def refuse_to_lose(
    path: Path,
    found: Scan,
    run: Run,
    size: int | None,
    reference_share: float | None,
    logprobs: LogProbRequest | None,
) -> None:
    """Refuse what would take the place of weights, of a share or of log-probabilities that the file holds.

    Args:
        size: of the sample that is asked for; None: all weights.

    Raises:
        OutputError: says what works.
    """
    if (held := sample_of(found)) != size:
        raise OutputError(f"{path}: {_of_other_weights(held, size)}, or choose another --out", file=path)
    if (
        reference_share is not None
        and found.reference is not None
        and found.reference.fraction != reference_share
    ):
        raise OutputError(
            f"{path}: holds a sample of {found.reference.fraction:g} already, and there is room for one; "
            "leave --reference-share out to keep it, remove the file, or choose another --out",
            file=path,
        )
    if found.logprobs is None:
        return
    there = found.logprobs.source
    if logprobs is None:
        if found.steps == run.steps:
            return
        raise OutputError(
            f"{path}: holds log-probabilities under its {len(found.steps)} checkpoints, not under new "
            f"ones; give --logprobs {there.prompts} to score them under all {len(run.steps)}, or choose "
            "another --out",
            file=path,
        )
    if replace(logprobs.source(), prompts=there.prompts) != there:  # the file's name may have changed
        raise OutputError(
            f"{path}: holds log-probabilities of other responses already ({there}), and there is room "
            "for one set; leave --logprobs out to keep them, remove the file, or choose another --out",
            file=path,
        )


def _of_other_weights(held: int | None, asked: int | None) -> str:
    if held is None:
        return "holds a scan of all weights, which says more than a sample; leave --sample out to keep it"
    holds = f"holds a sample of {held:,} weights per tensor"
    if asked is None:
        return f"{holds}, which a scan of all would take the place of; leave --exact out to go on with it"
    return f"{holds}, and there is room for one; leave --sample out to go on with it"


def share_of_a_sample(size: int) -> str:
    """Why a sample has no share for the reference protocol."""
    return (
        f"--reference-share draws from all weights, and a sample of {size:,} per tensor reads few of them; "
        "give --exact too, or leave it out"
    )
