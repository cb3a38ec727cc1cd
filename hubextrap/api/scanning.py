"""`scan`: one pass over a trajectory into a small file that answers every later question."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.api.existing_scan import existing_scan, refuse_to_lose, share_of_a_sample
from hubextrap.api.fingerprint import changed
from hubextrap.errors import CheckpointError, OutputError, RecipeError
from hubextrap.evaluation import check_writable
from hubextrap.evaluation.run import chosen_device
from hubextrap.extras import require
from hubextrap.given import numbers_of, one_of, optional_path, run_of, sample_choice
from hubextrap.logits import LogProbRequest, measure_logprobs
from hubextrap.logits.loading import check_loadable
from hubextrap.logits.logprobs import checkpoint_at
from hubextrap.opening import ReadingOptions, Run
from hubextrap.scans import Scan
from hubextrap.scans.given import sample_of
from hubextrap.scans.tensor_scan import ScanJournal

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.scans import LogProbs
    from hubextrap.trajectory import Trajectory, TrajectoryOptions


def scan(
    trajectory: Trajectory | Recipe | Path | str,
    *,
    out: Path | str | None = None,
    options: TrajectoryOptions | None = None,
    sample: SampleChoice = "auto",
    reference_share: float | None = None,
    logprobs: LogProbRequest | None = None,
    settings: ReadingOptions | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Read every checkpoint once; save what was found in ``out``.

    A scan of the same checkpoints that is there already is not made again, only what it lacks is added, and
    nothing that it holds is ever lost: a file holds all weights or one sample of them, one share and one set
    of responses. To a scan of a sample new checkpoints are added, and only those are read. A scan of all
    weights that was stopped goes on at the tensor where it was, from ``.NAME.partial`` beside the output.

    Args:
        trajectory: the checkpoints, a recipe that observes them, its file, or the reference of a run.
        options: which checkpoints of a reference.
        sample: how many weights of each tensor to look at; ``exact`` for all; ``auto`` for what ``out``
            holds, else for a sample of large runs on the Hub and all weights of others.
        reference_share: share of the weights to draw for the reference protocol as well (arXiv 2601.04537:
            0.001).
        logprobs: responses to score under every checkpoint.

    Raises:
        OutputError: ``out`` cannot be written, or holds a scan of other checkpoints or other weights of them,
            another share or other log-probabilities.
        RecipeError: a sample is asked for where it has no effect, or a share of one.
        MissingExtra: log-probabilities are asked for, and torch or transformers cannot be imported.
        HubExtrapError: see ``engine.scan.scan_trajectory`` and ``logits.measure_logprobs``.
    """
    out, sample = optional_path("out", out), sample_choice(sample, settings)
    if reference_share is not None and not 0 < numbers_of("reference_share", reference_share)[0] <= 1:
        said = f"--reference-share {reference_share}"
        raise RecipeError(f"{said}: has to be a share of the weights, above 0 and at most 1")
    if reference_share is not None and isinstance(sample, int):
        raise RecipeError(share_of_a_sample(sample))
    logprobs = one_of("logprobs", LogProbRequest, logprobs)
    if logprobs is not None:  # what is wrong with the prompts should not cost a scan
        logprobs.source()
        require("logits", "--logprobs")
        chosen_device(logprobs.device)
    what = run_of("trajectory", trajectory, options, progress)
    with Run.of(what, settings, progress=progress) as run:
        if logprobs is not None and logprobs.sample_from is not None:
            checkpoint_at(run.trajectory, logprobs.sample_from)
        if problem := run.rates_beside[1]:
            run.progress.say(f"warning: {problem}, so the scan holds no learning rates")
        return scan_run(run, out=out, sample=sample, reference_share=reference_share, logprobs=logprobs)


def scan_run(
    run: Run,
    *,
    out: Path | None = None,
    sample: SampleChoice = "exact",
    reference_share: float | None = None,
    logprobs: LogProbRequest | None = None,
    afterwards: int = 0,
) -> Scan:
    """`scan` of an open run, where what is done with it takes ``afterwards`` bytes of memory more."""
    if out is not None:
        check_writable(out)
    there = None if out is None else existing_scan(out, run)
    size = chosen_size(run, sample) if there is None or sample != "auto" else sample_of(there)
    if size is not None and reference_share is not None:
        raise RecipeError(share_of_a_sample(size))
    if out is not None and there is not None:
        refuse_to_lose(out, there, run, size, reference_share, logprobs)
    grows = there is not None and there.steps != run.steps
    known = None if there is None or grows else there.logprobs
    if logprobs is not None and known is None:
        for checkpoint in run.trajectory.checkpoints:  # the last one's tokenizer serves all
            own = checkpoint == run.trajectory.last
            chat = own and logprobs.apply_chat_template
            check_loadable(checkpoint, tokenizer=own, chat=chat, bases=run.bases)
    found = there
    if there is None or grows or (reference_share is not None and there.reference is None):
        if size is None:
            found = _scan_weights(run, out, reference_share, afterwards)
        else:
            found = run.scan_sample(size, there, afterwards=afterwards)
        found = replace(found, logprobs=known)
    else:
        run.progress.say(f"{out}: holds a scan of these checkpoints already")
        if there.rates != run.rate_history:  # an older hubextrap read none
            found = replace(there, rates=run.rate_history)
    assert found is not None
    # what the file says of responses stays there until that is known under all checkpoints
    if out is not None and found is not there and (there is None or there.logprobs is known):
        found.save(out)
        _journal_path(out).unlink(missing_ok=True)
    if logprobs is not None and found.logprobs is None:
        found = replace(found, logprobs=_measured(run, logprobs))
        if out is not None:
            found.save(out)
    return found


def chosen_size(run: Run, sample: SampleChoice) -> int | None:
    """`Run.sample_size`, told of where it is a sample that nobody asked for."""
    size = run.sample_size(sample)
    if size is not None and sample == "auto":
        run.progress.say("a large run on the Hub: a sample of its weights is read; --exact reads all")
    return size


def _measured(run: Run, logprobs: LogProbRequest) -> LogProbs:
    """The log-probabilities under the checkpoints that were found."""
    found = measure_logprobs(run.trajectory, logprobs, run.progress, bases=run.bases)
    with Run(run.trajectory) as again:
        again.naming = run.naming
        for checkpoint, before, now in zip(
            run.trajectory.checkpoints, run.fingerprints, again.fingerprints, strict=True
        ):
            if now != before:
                raise changed(checkpoint)
    return found


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _scan_weights(run: Run, path: Path | None, reference_share: float | None, afterwards: int) -> Scan:
    """One pass, which goes on where the one that was stopped had come to, and can be stopped itself."""
    journal = None if path is None else _journal(path, run, reference_share)
    try:
        return run.scan_weights(afterwards=afterwards, reference_share=reference_share, journal=journal)
    except BaseException as error:
        # what is wrong with a checkpoint is so at every run, so nothing is to be gained from keeping
        if journal is not None and (isinstance(error, CheckpointError) or not journal.finished):
            journal.remove()
        raise
    finally:
        if journal is not None:
            journal.close()


def _journal(path: Path, run: Run, reference_share: float | None) -> ScanJournal:
    fingerprint = {
        f"the checkpoint of step {step}": pin for step, pin in zip(run.steps, run.fingerprints, strict=True)
    } | {
        "--reference-share": str(reference_share),
        "the version of hubextrap": __version__,
        "the version of numba": version("numba"),
    }
    # the inner products are most of a scan, and as much again of its journal
    needed = 2 * 8 * len(run.layouts[-1].tensors) * len(run.steps) ** 2
    if (free := shutil.disk_usage(path.absolute().parent).free) < needed:
        raise OutputError(
            f"{path}: {needed:,} bytes are needed and {free:,} are free; make room, or choose another --out",
            file=path,
        )
    journal = ScanJournal(_journal_path(path), fingerprint)
    if journal.changed:
        run.progress.say(
            f"{path}: starting over, as {', '.join(journal.changed[:4])} changed since the scan that was "
            "stopped"
        )
    elif journal.finished:
        run.progress.say(
            f"{path}: going on after {len(journal.finished)} tensors of the scan that was stopped"
        )
    return journal
