"""`scan`: one pass over a trajectory into a small file that answers every later question."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.api.fingerprint import changed
from hubextrap.errors import CheckpointError, OutputError, RecipeError
from hubextrap.evaluation import check_writable
from hubextrap.evaluation.run import chosen_device
from hubextrap.extras import require
from hubextrap.given import numbers_of, one_of, optional_path, run_of
from hubextrap.logits import LogProbRequest, measure_logprobs
from hubextrap.logits.loading import check_loadable
from hubextrap.logits.logprobs import checkpoint_at
from hubextrap.opening import ReadingOptions, Run
from hubextrap.scans import Scan
from hubextrap.scans.tensor_scan import ScanJournal

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory import Trajectory, TrajectoryOptions


def scan(
    trajectory: Trajectory | Recipe | Path | str,
    *,
    out: Path | str | None = None,
    options: TrajectoryOptions | None = None,
    sample: float | None = None,
    logprobs: LogProbRequest | None = None,
    settings: ReadingOptions | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Read every checkpoint once; save what was found in ``out``.

    A scan of the same checkpoints that is there already is not made again, only what it lacks is added, and
    nothing that it holds is ever lost: a file holds one sample and one set of responses. A scan that was
    stopped goes on at the tensor where it was, from ``.NAME.partial`` beside the output.

    Args:
        trajectory: the checkpoints, a recipe that observes them, its file, or the reference of a run.
        options: which checkpoints of a reference.
        sample: share of the weights to draw for the reference protocol as well (0.001 in arXiv 2601.04537).
        logprobs: responses to score under every checkpoint.

    Raises:
        OutputError: ``out`` cannot be written, or holds a scan of other checkpoints, another sample or other
            log-probabilities.
        MissingExtra: log-probabilities are asked for, and torch or transformers cannot be imported.
        HubExtrapError: see ``engine.scan.scan_trajectory`` and ``logits.measure_logprobs``.
    """
    out = optional_path("out", out)
    if sample is not None and not 0 < numbers_of("sample", sample)[0] <= 1:
        raise RecipeError(f"--sample {sample}: has to be a share of the weights, above 0 and at most 1")
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
        return scan_run(run, out=out, sample=sample, logprobs=logprobs)


def scan_run(
    run: Run,
    *,
    out: Path | None = None,
    sample: float | None = None,
    logprobs: LogProbRequest | None = None,
    afterwards: int = 0,
) -> Scan:
    """`scan` of an open run, where what is done with it takes ``afterwards`` bytes of memory more."""
    if out is not None:
        check_writable(out)
    found = None if out is None else _existing(out, run)
    if out is not None and found is not None:
        _refuse_to_lose(out, found, sample, logprobs)
    if logprobs is not None and (found is None or found.logprobs is None):
        for checkpoint in run.trajectory.checkpoints:  # the last one's tokenizer serves all
            own = checkpoint == run.trajectory.last
            chat = own and logprobs.apply_chat_template
            check_loadable(checkpoint, tokenizer=own, chat=chat, bases=run.bases)
    if found is None or (sample is not None and found.sample is None):
        kept = None if found is None else found.logprobs
        found = replace(_scan_weights(run, out, sample, afterwards), logprobs=kept)
        if out is not None:
            found.save(out)
            _journal_path(out).unlink(missing_ok=True)
    else:
        run.progress.say(f"{out}: holds a scan of these checkpoints already")
        if out is not None and found.rates != run.rate_history:  # an older hubextrap read none
            found = replace(found, rates=run.rate_history)
            found.save(out)
    if logprobs is not None and found.logprobs is None:
        found = replace(
            found, logprobs=measure_logprobs(run.trajectory, logprobs, run.progress, bases=run.bases)
        )
        with Run(run.trajectory) as again:
            for checkpoint, before, now in zip(
                run.trajectory.checkpoints, run.fingerprints, again.fingerprints, strict=True
            ):
                if now != before:
                    raise changed(checkpoint)
        if out is not None:
            found.save(out)
    return found


def _existing(path: Path, run: Run) -> Scan | None:
    """The scan at ``path``, if there is one."""
    if not path.exists():
        return None
    found = Scan.load(path)
    wanted = dict(zip(run.steps, run.fingerprints, strict=True))
    there = dict(found.pins)
    differing = sorted(step for step in wanted.keys() | there.keys() if wanted.get(step) != there.get(step))
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


def _refuse_to_lose(path: Path, found: Scan, sample: float | None, logprobs: LogProbRequest | None) -> None:
    """Refuse what would take the place of a sample or of log-probabilities that the file holds."""
    if sample is not None and found.sample is not None and found.sample.fraction != sample:
        raise OutputError(
            f"{path}: holds a sample of {found.sample.fraction:g} already, and there is room for one; leave "
            "--sample out to keep it, remove the file, or choose another --out",
            file=path,
        )
    if logprobs is not None and found.logprobs is not None:
        there, asked = found.logprobs.source, logprobs.source()
        if replace(asked, prompts=there.prompts) != there:  # the file's name may have changed
            raise OutputError(
                f"{path}: holds log-probabilities of other responses already ({there}), and there is room "
                "for one set; leave --logprobs out to keep them, remove the file, or choose another --out",
                file=path,
            )


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _scan_weights(run: Run, path: Path | None, sample: float | None, afterwards: int) -> Scan:
    """One pass, which goes on where the one that was stopped had come to, and can be stopped itself."""
    journal = None if path is None else _journal(path, run, sample)
    try:
        return run.scan_weights(afterwards=afterwards, sample=sample, journal=journal)
    except BaseException as error:
        # what is wrong with a checkpoint is so at every run, so nothing is to be gained from keeping
        if journal is not None and (isinstance(error, CheckpointError) or not journal.finished):
            journal.remove()
        raise
    finally:
        if journal is not None:
            journal.close()


def _journal(path: Path, run: Run, sample: float | None) -> ScanJournal:
    fingerprint = {
        f"the checkpoint of step {step}": pin for step, pin in zip(run.steps, run.fingerprints, strict=True)
    } | {
        "--sample": str(sample),
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
