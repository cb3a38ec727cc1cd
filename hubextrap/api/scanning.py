"""`scan`: one pass over a trajectory into a small file that answers every later question."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.api.fingerprint import input_fingerprint
from hubextrap.api.prepare import Settings, refuse_merge_settings
from hubextrap.api.unchanged import changed
from hubextrap.engine import Budget
from hubextrap.errors import CheckpointError, OutputError, RecipeError
from hubextrap.evaluate import check_writable
from hubextrap.evaluate.run import chosen_device
from hubextrap.logits import LogProbRequest, measure_logprobs
from hubextrap.logits.logprobs import checkpoint_at
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans import Scan
from hubextrap.scans.tensor_scan import ScanJournal
from hubextrap.tensors import open_source, read_combinable, ties_embeddings

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.checkpoint import Trajectory


def scan(
    trajectory: Trajectory,
    *,
    out: Path | str | None = None,
    sample: float | None = None,
    logprobs: LogProbRequest | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Read every checkpoint once; save what was found in ``out``.

    A scan of the same checkpoints that is there already is not made again, only what it lacks is added, and
    nothing that it holds is ever lost: a file holds one sample and one set of responses. A scan that was
    stopped goes on at the tensor where it was, from ``.NAME.partial`` beside the output.

    Args:
        sample: share of the weights to draw for the reference protocol as well (0.001 in arXiv 2601.04537).
        logprobs: responses to score under every checkpoint.

    Raises:
        OutputError: ``out`` cannot be written, or holds a scan of other checkpoints, another sample or other
            log-probabilities.
        HubExtrapError: see ``engine.scan.scan_trajectory`` and ``logits.measure_logprobs``.
    """
    refuse_merge_settings(settings, "a scan")
    return scan_for(
        trajectory, 0, out=out, sample=sample, logprobs=logprobs, settings=settings, progress=progress
    )


def scan_for(
    trajectory: Trajectory,
    afterwards: int,
    *,
    out: Path | str | None = None,
    sample: float | None = None,
    logprobs: LogProbRequest | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Scan:
    """`scan`, where what is done with it takes ``afterwards`` bytes of memory more.

    Raises:
        HubExtrapError: as `scan`.
    """
    settings = settings or Settings()
    progress = progress or SilentProgress()
    if sample is not None and not 0 < sample <= 1:
        raise RecipeError(f"--sample {sample}: has to be a share of the weights, above 0 and at most 1")
    if logprobs is not None:  # what is wrong with the prompts should not cost a scan
        logprobs.source()
        if logprobs.sample_from is not None:
            checkpoint_at(trajectory, logprobs.sample_from)
        chosen_device(logprobs.device)
    path = None if out is None else Path(out)
    if path is not None:
        check_writable(path)
    with ExitStack() as stack:
        sources = [
            stack.enter_context(closing(open_source(checkpoint, cache=settings.cache)))
            for checkpoint in trajectory.checkpoints
        ]
        pins = [
            input_fingerprint(checkpoint, source)
            for checkpoint, source in zip(trajectory.checkpoints, sources, strict=True)
        ]
        found = None if path is None else _existing(path, trajectory, pins)
        if path is not None and found is not None:
            _refuse_to_lose(path, found, sample, logprobs)
        if found is None or (sample is not None and found.sample is None):
            kept = None if found is None else found.logprobs
            found = _scan_weights(trajectory, sources, pins, path, sample, settings, progress, afterwards)
            found = replace(found, logprobs=kept)
            if path is not None:
                found.save(path)
                _journal_path(path).unlink(missing_ok=True)
        else:
            progress.say(f"{path}: holds a scan of these checkpoints already")
    if logprobs is not None and found.logprobs is None:
        found = replace(found, logprobs=measure_logprobs(trajectory, logprobs, progress))
        for checkpoint, pin in zip(trajectory.checkpoints, pins, strict=True):
            with closing(open_source(checkpoint)) as source:
                if input_fingerprint(checkpoint, source) != pin:
                    raise changed(checkpoint)
        if path is not None:
            found.save(path)
    return found


def _existing(path: Path, trajectory: Trajectory, pins: list[str]) -> Scan | None:
    """The scan at ``path``, if there is one."""
    if not path.exists():
        return None
    found = Scan.load(path)
    wanted = dict(zip(trajectory.steps, pins, strict=True))
    there = dict(found.pins)
    differing = sorted(step for step in wanted.keys() | there.keys() if wanted.get(step) != there.get(step))
    if differing:
        steps = ", ".join(map(str, differing[:5])) + (" …" if len(differing) > 5 else "")
        local = any(one.repo is None for one in trajectory.checkpoints if one.step in differing)
        since = ", or of files that were written to since, or by an older hubextrap," if local else ""
        raise OutputError(
            f"{path}: holds a scan of other checkpoints{since} (step {steps} differs); remove it, or choose "
            "another --out"
        )
    return found


def _refuse_to_lose(path: Path, found: Scan, sample: float | None, logprobs: LogProbRequest | None) -> None:
    """Refuse what would take the place of a sample or of log-probabilities that the file holds."""
    if sample is not None and found.sample is not None and found.sample.fraction != sample:
        raise OutputError(
            f"{path}: holds a sample of {found.sample.fraction:g} already, and there is room for one; leave "
            "--sample out to keep it, remove the file, or choose another --out"
        )
    if logprobs is not None and found.logprobs is not None:
        there, asked = found.logprobs.source, logprobs.source()
        if replace(asked, prompts=there.prompts) != there:  # the file's name may have changed
            raise OutputError(
                f"{path}: holds log-probabilities of other responses already ({there}), and there is room "
                "for one set; leave --logprobs out to keep them, remove the file, or choose another --out"
            )


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _check_room(path: Path, tensors: int, checkpoints: int) -> None:
    """Refuse a disk without room for the inner products: most of a scan, and as much again of its journal."""
    needed = 2 * 8 * tensors * checkpoints**2
    free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise OutputError(
            f"{path}: {needed:,} bytes are needed and {free:,} are free; make room, or choose another --out"
        )


def _scan_weights(
    trajectory: Trajectory,
    sources: list[Source],
    pins: list[str],
    path: Path | None,
    sample: float | None,
    settings: Settings,
    progress: Progress,
    afterwards: int,
) -> Scan:
    from hubextrap.engine.scan import scan_trajectory  # imports numba
    from hubextrap.engine.scan_plan import plan_scan

    layouts = read_combinable(sources, progress)
    remote = not settings.cache and any(checkpoint.repo for checkpoint in trajectory.checkpoints)
    journal = None
    if path is not None:
        fingerprint = {
            f"the checkpoint of step {step}": pin for step, pin in zip(trajectory.steps, pins, strict=True)
        } | {
            "--sample": str(sample),
            "the version of hubextrap": __version__,
            "the version of numba": version("numba"),
        }
        _check_room(path, len(layouts[-1].tensors), len(trajectory.steps))
        journal = ScanJournal(_journal_path(path), fingerprint)
        if journal.changed:
            progress.say(
                f"{path}: starting over, as {', '.join(journal.changed[:4])} changed since the scan that was "
                "stopped"
            )
        elif journal.finished:
            progress.say(
                f"{path}: going on after {len(journal.finished)} tensors of the scan that was stopped"
            )
    try:
        plan = plan_scan(
            trajectory.steps,
            layouts,
            tied=ties_embeddings(sources[-1]),
            budget=Budget(settings.memory, settings.workers, remote, reserve=afterwards),
        )
        return scan_trajectory(
            trajectory,
            sources,
            plan,
            sample=sample,
            pins=pins,
            journal=journal,
            progress=progress,
        )
    except BaseException as error:
        # what is wrong with a checkpoint is so at every run, so nothing is to be gained from keeping
        if journal is not None and (isinstance(error, CheckpointError) or not journal.finished):
            journal.remove()
        raise
    finally:
        if journal is not None:
            journal.close()
