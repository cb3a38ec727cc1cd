"""The last step of work that was submitted: all records are looked at, and the output appears."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.api.beforehand import card_for
from hubextrap.api.beside import read_beside
from hubextrap.api.merging import MergeResult, Prediction, push_finished
from hubextrap.api.output import target_folders, write_files
from hubextrap.api.preparing import CARD
from hubextrap.api.recorded import in_queue, queue_of
from hubextrap.api.staging import place_of, push_place, remove_unless_held, staged
from hubextrap.api.starts import STARTS, gone, read_starts, start_of
from hubextrap.containment import read_named
from hubextrap.durable.lock import open_held
from hubextrap.durable.places import is_marked
from hubextrap.engine import MergeOutput
from hubextrap.errors import HubExtrapError, OutputError, ReferenceNotFound
from hubextrap.executors.driving import do_all
from hubextrap.executors.local import LocalExecutor
from hubextrap.executors.submission import Submission
from hubextrap.hub import PROVENANCE_FILE, HubSink, PushTarget, commit_message
from hubextrap.progress import SilentProgress
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.merging import strike, target_shards
from hubextrap.work.places import FolderPlace, open_place
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import Records

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from hubextrap.api.companions import Companions
    from hubextrap.executors.watching import Watching
    from hubextrap.hub import PushResult
    from hubextrap.progress import Progress
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place
    from hubextrap.work.records import Record

ENDING = 10.0
"""Seconds for which another process may be at the end of the last step."""
PAUSE = 5.0
"""Seconds between two looks at the records of those who work."""


def finish(
    place: Path | str, *, wait: bool = False, if_last: bool = False, progress: Progress | None = None
) -> MergeResult | None:
    """Do the last step of work that `submit` has handed out, once all shards are on record.

    The files that went into several shards are compared with the Hub's hashes, unless that is done; then the
    folder gets its name, or the one commit is made. Whoever does it twice changes nothing.

    Args:
        place: where the plan lies: a folder, or ``hf://buckets/OWNER/NAME/PATH``.
        wait: until all shards are on record and no job is left, or one cannot be made.
        if_last: return None where shards are missing, or where another has done the last step.

    Returns:
        None, too, where this is a queue's own last step, and has had what was lost submitted again.

    Raises:
        ReferenceNotFound: no plan lies there: it is finished, or was never submitted.
        OutputError: shards are missing; says which. HubExtrapError: a unit cannot be done, or as `merge`.
    """
    progress, where = progress or SilentProgress(), open_place(place)
    try:
        plan = WorkPlan.load(where)
    except ReferenceNotFound:
        if if_last:
            return None
        raise
    try:
        return _last_step(plan, where, progress, wait=wait, if_last=if_last)
    except HubExtrapError:
        if if_last and was_finished(plan, where):
            return None
        raise


def was_finished(plan: Work, place: Place) -> bool:
    """Whether another process has done the last step: the plan has gone, or goes while it is waited for."""
    deadline = time.monotonic() + ENDING
    while place.read(PLAN_FILE) is not None:
        named = not all(Path(folder).is_dir() for folder in plan.folders)
        if time.monotonic() > deadline or not (named or _is_held(place)):
            return False
        time.sleep(0.05)
    return True


def _is_held(place: Place) -> bool:
    """Whether a process holds what a place for shards on this machine lies in."""
    try:
        if isinstance(place, FolderPlace):
            os.close(open_held(place.folder.parent / "lock", os.O_RDWR, or_fail=True))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last_step(
    plan: WorkPlan, where: Place, progress: Progress, *, wait: bool, if_last: bool
) -> MergeResult | None:
    kept = Records(where, plan.digest)
    if wait:
        _await_shards(plan, where, kept, progress)
        if where.read(PLAN_FILE) is None:
            progress.say(f"{where.name}: the last step is done")
            return None
    for unit in sorted(kept.failed()):
        if (failure := kept.failure(unit)) is not None and not if_last:
            raise failure
    found = kept.found(plan.shard_units)
    if len(found) == len(plan.shard_units) and _is_named(plan, where, found):
        return _finished(plan, where, found, progress)  # a last step was ended after that
    found = {unit: one for unit, one in found.items() if plan.is_there(one)}
    missing = [unit for unit in plan.shard_units if unit not in found]
    if missing and if_last:
        return None
    if missing:
        if _submitted_again(plan, where, missing, progress):
            return None
        raise _not_done(plan, where, missing)
    do_all(plan, where, LocalExecutor(), found | kept.found(plan.compare_units), progress)
    if not _is_its_turn(plan, where):
        progress.say(f"{where.name}: the last step is done")
        return None
    return _finished(plan, where, found, progress)


def _is_its_turn(plan: WorkPlan, place: Place) -> bool:
    """Whether the last step is left to this process, once those before it have ended.

    A commit's parent lets only one of two be made. A pull request has nothing like that: who finds all on
    record waits for the jobs that may be opening it, and they for one another.
    """
    if not any(one["create_pr"] for one in plan.finish["targets"]):
        return True
    while place.read(PLAN_FILE) is not None:
        queue, jobs = _jobs_of(place)
        if queue is None or not queue.before_this(place, jobs):
            return True
        time.sleep(PAUSE)
    return False


def _finished(plan: WorkPlan, place: Place, records: Mapping[int, Record], progress: Progress) -> MergeResult:
    said = plan.finish
    made = target_shards(plan, records)
    outputs, whole = _made(plan, place, records)
    targets = [PushTarget(**one) for one in said["targets"]]
    if said["out"] is None:
        pushed: list[PushResult | None] = []
        lost = partial(_lost, plan, place)
        starts = read_starts(place)
        if len(starts) != len(targets):
            raise gone(place, STARTS)
        for target, start, shards, one in zip(targets, starts, made, whole, strict=True):
            with HubSink(target, progress=progress, start=start_of(target, start)) as sink:
                sink.adopt(shards.shards.values(), shards.small, lost)
                card = {CARD: card_for(one, target)}
                pushed.append(sink.commit(one.files | card, commit_message(one.provenance)))
    else:
        pushed = _into_folders(plan, records, whole, targets, progress, named=_is_named(plan, place, records))
    places = (
        [None] * len(whole) if said["out"] is None else [Path(said["out"], one) for one in said["folders"]]
    )
    result = MergeResult(
        tuple(
            Prediction(
                said["steps"][number],
                places[number],
                pushed[number],
                targets[number] if targets else None,
                one.provenance,
                tuple(said["caveats"]),
                outputs[number].identical_to_last,
            )
            for number, one in enumerate(whole)
        )
    )
    _clear(place, targets)
    return result


def _lost(plan: WorkPlan, place: Place, files: Collection[str]) -> str:
    """Take shards off the record that the Hub has not kept; returns what makes them again."""
    strike(plan, Records(place, plan.digest), files)
    where = shlex.quote(place.name)
    return (
        f"submit the recipe again, which makes them anew; or `hubextrap worker {where}`, then "
        f"`hubextrap finish {where}`"
    )


def _into_folders(
    plan: WorkPlan,
    records: Mapping[int, Record],
    whole: Sequence[Companions],
    targets: Sequence[PushTarget],
    progress: Progress,
    named: bool,
) -> list[PushResult | None]:
    out, folders = Path(plan.finish["out"]), plan.finish["folders"]
    kept = {"keep": bool(targets), "hashed": False, "detached": True}
    if not named:
        with staged(out, folders, plan.fingerprint, progress, **kept) as staging:
            if gone := [plan.labels[unit] for unit in plan.shard_units if not plan.is_there(records[unit])]:
                # nobody could take them away since this process holds the place
                raise OutputError(f"{out}: {gone[0]} was taken away meanwhile; run the same command again")
            for folder, one in zip(staging.folders, whole, strict=True):
                write_files(folder, one.files)
    pushed: list[PushResult | None] = [
        push_finished(out / folder, target, progress)
        for folder, target in zip(folders, targets, strict=False)
    ]
    if targets or named:
        remove_unless_held(place_of(out))
    return pushed or [None] * len(whole)


def _clear(place: Place, targets: Sequence[PushTarget]) -> None:
    """Remove what served the work alone; the place of an output's folder went with its rename."""
    if not isinstance(place, FolderPlace):
        place.remove()
    for one in map(push_place, targets):
        if is_marked(one):
            remove_unless_held(one)


def _is_named(plan: WorkPlan, place: Place, records: Mapping[int, Record]) -> bool:
    """Whether the output's folder has its name: what it says of itself is what the records come to."""
    if plan.finish["out"] is None:
        return False
    folders = [Path(plan.finish["out"], one) for one in plan.finish["folders"]]
    if not all((folder / PROVENANCE_FILE).is_file() for folder in folders):
        return False
    _, whole = _made(plan, place, records)
    return all(
        read_named(folder / PROVENANCE_FILE) == one.files[PROVENANCE_FILE]
        for folder, one in zip(folders, whole, strict=True)
    )


def _made(
    plan: WorkPlan, place: Place, records: Mapping[int, Record]
) -> tuple[list[MergeOutput], list[Companions]]:
    """The output of each target, and what goes beside its shards."""
    beside = [read_beside(place, plan, number, one) for number, one in enumerate(plan.finish["beside"])]
    files = [shard.file for shard in plan.merge.shards]
    outputs = [
        MergeOutput(tuple(one.shards[file] for file in files), one.identical)
        for one in target_shards(plan, records)
    ]
    return outputs, [one.with_shards(output.shards) for one, output in zip(beside, outputs, strict=True)]


def _await_shards(plan: WorkPlan, place: Place, kept: Records, progress: Progress) -> None:
    """Return when all shards are on record and nobody is at work, one cannot be made, or all is finished."""
    total = sum(plan.bytes_of(unit) for unit in plan.shard_units)
    seen: set[int] = set()
    idle_since: float | None = None
    with progress.stage("merge", total) as stage:
        while place.read(PLAN_FILE) is not None:
            for unit in kept.done() & set(plan.shard_units) - seen:
                if kept.get(unit) is None:  # damaged, or of another plan: it is done again
                    continue
                stage.advance(plan.bytes_of(unit))
                seen.add(unit)
            queue, jobs = _jobs_of(place)
            at_work = queue is not None and bool(queue.alive(jobs) - {queue.here()})
            if kept.failed() or (len(seen) == len(plan.shard_units) and not at_work):
                return  # else the last step is theirs
            idle_since = (idle_since or time.monotonic()) if queue and not at_work else None
            if queue and idle_since is not None and time.monotonic() - idle_since > queue.settle:
                return
            time.sleep(PAUSE)


def _jobs_of(place: Place) -> tuple[Watching | None, list[str]]:
    """The queue that may still be at work there, and its jobs."""
    others = Submission.load(place)
    if others is None:
        return None, []
    return queue_of(others), others.every_job


def _submitted_again(plan: WorkPlan, place: Place, missing: Sequence[int], progress: Progress) -> bool:
    """Whether this is the queue's own last step, which has what was lost done again, and then itself."""
    others = Submission.load(place)
    if others is None or (queue := queue_of(others)).here() is None:
        return False
    again = queue.resubmit(plan, place, missing)
    if again is not None:
        progress.say(f"{len(missing)} lost shards are submitted again: {', '.join(again.ids)}")
    return again is not None


def _not_done(plan: WorkPlan, place: Place, missing: Sequence[int]) -> OutputError:
    names = ", ".join(plan.labels[unit] for unit in missing[:5]) + (" …" if len(missing) > 5 else "")
    others = Submission.load(place)
    where = shlex.quote(place.name)
    who = f"make them here: `hubextrap worker {where}`"
    if others is not None:
        watch = in_queue(place, others).how_to_watch
        who = (
            f"`{watch}` shows the jobs that make them; `hubextrap finish {where} --wait` waits for those. If "
            f"none is left, submit again, or {who}"
        )
    total = len(plan.shard_units)
    return OutputError(f"{place.name}: {len(missing)} of {total} shards are not made yet ({names}); {who}")


def said_to_finish(
    out: Path | None,
    steps: Sequence[int],
    targets: Sequence[PushTarget],
    beside: Sequence[Companions],
    caveats: Sequence[str],
) -> dict[str, Any]:
    """`WorkPlan.finish`: what the last step has to know beside the plan."""
    return {
        "out": None if out is None else str(out.absolute()),
        "steps": list(steps),
        "folders": target_folders(steps),
        "targets": [asdict(target) for target in targets],
        "beside": [sorted(one.files) for one in beside],
        "caveats": list(caveats),
    }
