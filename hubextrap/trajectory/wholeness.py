"""Whether the newest checkpoints of a run are whole: a trainer, or an upload, may be at them just now.

Only what lies behind the last whole one is let be; what is broken before that is an error where it is read.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import open_regular
from hubextrap.errors import CorruptFile, StepError
from hubextrap.foreign_data import parse_json
from hubextrap.foreign_text import own_lines
from hubextrap.trajectory.checkpoint import ADAPTER, PassedOver, is_untouched_base
from hubextrap.trajectory.leaving_out import refuse_unreadable
from hubextrap.trajectory.local_files import entries_of_checkpoint
from hubextrap.trajectory.weights import (
    ADAPTER_CONFIG,
    DCP,
    DCP_METADATA,
    DCP_SUFFIX,
    FSDP,
    FSDP_FILE,
    INDEX,
    INNER_FOLDERS,
    OTHER,
    SHARD,
    SHARDED,
    SHARDED_FILE,
    SINGLE,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from hubextrap.containment import Entry
    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Checkpoint, Series, Trajectory

CONFIG = "config.json"
_MARK = r"(?:tmp|temp|temporary|partial|incomplete|unfinished)"
_BEGUN = re.compile(rf"(?i)(?:^|(?<=/))\.?{_MARK}[-_.]+|(?<![-_.])[-_.]+{_MARK}(?:[-_.]?\d+)?(?=/|$)")
"""What the name of a folder has for as long as a trainer writes to it."""
_OF_SO_MANY = re.compile(r"model-\d+-of-(\d{1,9})\.safetensors")
_AFTER_THE_WEIGHTS = ("tokenizer.json", "tokenizer_config.json", "trainer_state.json")
"""What trainers write when the weights are there already."""
_ZIP_END, _ZIP_END_LIMIT = b"PK\x05\x06", 22 + 0xFFFF
"""How the last record of a zip file begins, and the bytes from its end among which that lies."""
_HEADER_LIMIT, _MOST_SHARDS = 100 * 2**20, 100_000


def with_begun_ones_passed_over(layout: Sequence[Series]) -> list[Series]:
    """The series without those that another's name stands for once they are whole: ``tmp-checkpoint-500``."""
    patterns = {one.pattern for one in layout}
    kept = [one for one in layout if _named_whole(one.pattern) not in patterns - {one.pattern}]
    for one in layout:
        if one in kept:
            continue
        why = "its name says that it is not whole yet"
        over = tuple(PassedOver(checkpoint, why) for checkpoint in one.checkpoints)
        kept = [
            replace(other, passed_over=(*other.passed_over, *over))
            if other.pattern == _named_whole(one.pattern)
            else other
            for other in kept
        ]
    return kept


def _named_whole(pattern: str) -> str:
    return _BEGUN.sub("", pattern)


def without_unfinished(
    checkpoints: tuple[Checkpoint, ...],
    reference: str,
    files_of: Callable[[Checkpoint], Mapping[str, int]],
    progress: Progress,
    *,
    named: bool,
) -> tuple[tuple[Checkpoint, ...], tuple[PassedOver, ...]]:
    """Checkpoints without those at the end that are not whole, and these, each told of; all where none is.

    Args:
        files_of: names and bytes of the files in a checkpoint's folder.
        named: whether the user named the steps.

    Raises:
        StepError: one that the user named is not whole.
    """
    kept, left_out = list(checkpoints), []
    while kept:
        newest = kept[-1]
        why = unfinished(newest, files_of(newest), partial(_names_before, kept, files_of))
        if why is None:
            break
        over = PassedOver(newest, why)
        left_out.append(over)
        kept.pop()
    if not kept:  # nothing is half-written: they lie so, and who reads them says what is wrong with that
        return checkpoints, ()
    if named and left_out:
        step = left_out[-1].checkpoint.step
        raise StepError(f"{reference}: step {step} cannot be taken, {left_out[-1]}", step=step)
    for over in reversed(left_out):
        progress.warn(f"left out step {over.checkpoint.step}, which is not whole yet: {over}")
    return tuple(kept), tuple(left_out)


def _names_before(
    checkpoints: Sequence[Checkpoint], files_of: Callable[[Checkpoint], Mapping[str, int]]
) -> Collection[str]:
    return files_of(checkpoints[-2]).keys() if len(checkpoints) > 1 else ()


def unfinished(
    checkpoint: Checkpoint, files: Mapping[str, int], before: Callable[[], Collection[str]]
) -> str | None:
    """What a checkpoint lacks of a whole one; None where nothing is seen to be missing.

    Args:
        files: names and bytes of those in its folder.
        before: says the names of those in the folder of the checkpoint before it.
    """
    weights = weights_of(files.items())
    if weights is None or weights.kind == OTHER:
        return None
    in_slices = weights.kind in (SHARDED, FSDP, DCP)
    tensors = [name for name in weights.files if in_slices or name.endswith(".safetensors")]
    config = ADAPTER_CONFIG if weights.kind == ADAPTER else CONFIG
    here: Mapping[str, Entry] | None = None  # on the Hub a file is there as a whole, or not at all
    if checkpoint.repo is None:
        here = _sound_entries(Path(checkpoint.path), (*tensors, INDEX, config))
        if here is None:
            return None
    if empty := next((name for name in tensors if not files[name]), None):
        return f"{empty} is empty"
    if in_slices:
        return _unfinished_slices(weights.files, files, before(), here)
    if SINGLE not in files and (missing := _missing_shard(tensors)):
        return f"{missing} is not there, and other shards are"
    if INDEX not in files and any(SHARD.fullmatch(name) for name in tensors):
        return f"has {tensors[0]} and no {INDEX}"
    if SINGLE not in files and files.get(INDEX) == 0:
        return f"{INDEX} is empty"
    if not files.get(config) and config in before():
        return f"has no {config}, which the checkpoint before it has"
    return None if here is None else _cut_short(here, tensors)


def _unfinished_slices(
    names: Sequence[str], files: Collection[str], before: Collection[str], here: Mapping[str, Entry] | None
) -> str | None:
    """The same of weights that lie in slices: a rank's file is missing, or what is written after them.

    How many ranks the checkpoint before it had says nothing: a run may go on with more, or with fewer.

    Args:
        here: where the files lie, on a disk.
    """
    sliced = any(name.endswith(DCP_SUFFIX) for name in names)
    if sliced and not any(name.rpartition("/")[2] == DCP_METADATA for name in names):
        return f"has {names[0]} and no {DCP_METADATA}, which is written last"
    if missing := _missing_rank(names):
        return f"{missing} is not there, and other ranks' files are"
    configs = (CONFIG, *(f"{inner}/{CONFIG}" for inner in INNER_FOLDERS))
    if config := next((config for config in configs if config in before and config not in files), None):
        return f"has no {config}, which the checkpoint before it has"
    if here is None:
        return None
    whole = _cut_short(here, [name for name in names if name.endswith(".safetensors")])
    return whole or _cut_zip(here, [name for name in names if FSDP_FILE.fullmatch(name)])


def still_to_come(files: Collection[str], before: Collection[str]) -> str | None:
    """What the newest checkpoint lacks that follows the weights, where the one before it has it.

    Its weights are whole without that, so nobody has to wait for it; but what is beside them may change yet.
    """
    missing = next((name for name in _AFTER_THE_WEIGHTS if name in before and name not in files), None)
    return missing and f"has no {missing} yet, which the checkpoint before it has"


def _missing_shard(names: Sequence[str]) -> str | None:
    """The first of so many shards as the others' names say there are."""
    for count in sorted({match[1] for name in names if (match := _OF_SO_MANY.fullmatch(name))}):
        for number in range(1, min(int(count), _MOST_SHARDS) + 1):
            name = f"model-{number:0{len(count)}}-of-{count}.safetensors"
            if name not in names:
                return name
    return None


def _missing_rank(names: Sequence[str]) -> str | None:
    """The first file of a rank that others' names say there is; None where all of one save are there."""
    ranks: dict[int, set[int]] = {}
    for found in filter(None, map(FSDP_FILE.fullmatch, names)):
        ranks.setdefault(int(found[1]), set()).add(int(found[2]))
    if ranks and not any(len(there) == world for world, there in ranks.items()):
        world = max(ranks, key=lambda world: len(ranks[world]))
        rank = next(rank for rank in range(world) if rank not in ranks[world])
        return f"model_world_size_{world}_rank_{rank}.pt"
    shards = {int(match[1]): name for name in names if (match := SHARDED_FILE.fullmatch(name))}
    for number in range(1, min(max(shards, default=0), _MOST_SHARDS)):
        if number not in shards:
            return f"shard {number} of {max(shards)}"
    return None


def _sound_entries(folder: Path, names: Sequence[str]) -> Mapping[str, Entry] | None:
    """The files there; None where one of these is no plain file, as who reads it will say."""
    try:
        entries = entries_of_checkpoint(folder)
    except OSError:
        return None
    return entries if all(entries[name].problem is None for name in names if name in entries) else None


def _cut_short(entries: Mapping[str, Entry], names: Sequence[str]) -> str | None:
    """The first of these safetensors files that ends before what its header describes."""
    try:
        for name in names:
            size = entries[name].size
            with os.fdopen(open_regular(entries[name].path), "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _HEADER_LIMIT:
                    return None
                if length == 0 or size < 8 + length:
                    return f"{name} is cut short in its header"
                header = parse_json(file.read(length), name, error=ValueError, limit=_HEADER_LIMIT)
            ends = [info["data_offsets"][1] for key, info in header.items() if key != "__metadata__"]
            if size < (whole := 8 + length + max(ends, default=0)):
                return f"{name} is cut short: {size:,} of {whole:,} bytes are there"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # who reads it will say it
        return None
    return None


def _cut_zip(entries: Mapping[str, Entry], names: Sequence[str]) -> str | None:
    """The first of these zip files whose end, the directory of what is in it, is not there."""
    try:
        for name in names:
            with os.fdopen(open_regular(entries[name].path), "rb") as file:
                file.seek(max(0, entries[name].size - _ZIP_END_LIMIT))
                if _ZIP_END not in file.read(_ZIP_END_LIMIT):
                    return f"{name} is cut short: the end of the zip file is not there"
    except (OSError, LookupError):  # who reads it will say it
        return None
    return None


@contextmanager
def said_how_to_go_on(trajectory: Trajectory) -> Iterator[None]:
    """Where one checkpoint turns out to be broken, say how the others can be used without it.

    Raises:
        UnsupportedCheckpoint: some are of a form that is not read; before anything of them is.
    """
    refuse_unreadable(trajectory)
    try:
        yield
    except CorruptFile as error:
        if advice := _how_to_leave_out(trajectory, str(error)):
            said = own_lines(*f"{error}{advice}".split("\n"))
            raise CorruptFile(said, file=error.file, step=error.step, repo=error.repo) from error
        raise


def _how_to_leave_out(trajectory: Trajectory, said: str) -> str:
    """What a message that names one broken checkpoint can advise beside its repair; "" where nothing."""
    if trajectory.whole is None:
        return ""  # the recipe lists them
    found = [one for one in trajectory.checkpoints if f"{one.name}/" in said or f"{one.name}:" in said]
    steps = trajectory.steps
    if len(found) != 1 or len(steps) < 3:
        return ""
    step = found[0].step
    ways = []
    if step != steps[0] and not is_untouched_base(trajectory.checkpoints[steps.index(step) - 1]):
        before = steps[steps.index(step) - 1]
        ways.append(f"up to step {before} (--max-step {before}, or trajectory.steps.max in a recipe)")
    if step != steps[-1]:
        after = steps[steps.index(step) + 1]
        ways.append(f"from step {after} on (--min-step {after}, or trajectory.steps.min)")
    return (
        f"; or leave step {step} out: take the run {' or '.join(ways)}; trajectory.steps.only lists any steps"
    )
