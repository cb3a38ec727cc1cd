"""Whether what an earlier run finished was made from what the checkpoints hold now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_128

from hubextrap.digests import sha256_of_json
from hubextrap.tensors.assembled import beneath
from hubextrap.tensors.local import LocalSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hubextrap.engine.inputs import Key
    from hubextrap.engine.plan import MergePlan, ShardPlan
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import ShardInputs, Source
    from hubextrap.tensors.journal import Journal
    from hubextrap.tensors.layout import TensorInfo

HASHED_AT_ONCE = 4 * 2**20
"""Bytes that are held of what finished shards were made from, while that is read once more."""


def check_inputs(
    plan: MergePlan,
    sources: Sequence[Source],
    journals: Sequence[Journal],
    progress: Progress,
    *,
    ended: bool = False,
) -> None:
    """Have the journals start over where a finished shard was made from other bytes than are there now.

    Files that look as they did are trusted, and so is what was compared with the Hub's hashes; the rest of
    what the finished shards were made from is read again.

    Args:
        ended: the run came to its end, so that all of the Hub's has been compared.

    Raises:
        SourceError: it could not be read. OutputError: a journal could not be written.
    """
    if not journals:
        return
    stamps = input_stamps(plan, sources)
    shards = [shard for shard in plan.shards if all(shard.file in one.finished for one in journals)]
    doubted = [
        (shard, k)
        for shard in shards
        for k in range(len(sources))
        if any(
            one.stamps.get(str(k)) != stamps[str(k)]
            if stamps[str(k)]
            else not (ended or one.inputs[shard.file].compared)
            for one in journals
        )
    ]
    if doubted:
        inputs: tuple[ShardPlan, dict[int, list[TensorInfo]]] | None = None
        with progress.stage("check inputs", len(doubted), "shards") as stage:
            for shard, k in doubted:
                if inputs is None or inputs[0] is not shard:
                    inputs = shard, _inputs_of(shard)
                found = _digest_of(inputs[1].get(k, ()), sources[k])
                if any(one.inputs[shard.file].digests[k : k + 1] != (found,) for one in journals):
                    for one in journals:
                        one.start_over()
                    what = f"the checkpoint of step {plan.steps[k]}"
                    progress.say(f"starting over, as {what} changed since the run that was stopped")
                    break
                stage.advance(1)
    for one in journals:
        one.note_stamps(stamps)


def input_stamps(plan: MergePlan, sources: Sequence[Source]) -> dict[str, str]:
    """What the weight files of each local checkpoint look like, for its journal."""
    found = {}
    for k, (source, layout) in enumerate(zip(sources, plan.layouts, strict=True)):
        stored, files = beneath(source, [shard.file for shard in layout.shards])
        found[str(k)] = ""
        if isinstance(stored, LocalSource):
            found[str(k)] = sha256_of_json([(file, stored.stamp(file)) for file in files])
    return found


def made_from(shards: Iterable[ShardPlan]) -> dict[Key, list[str]]:
    """The output's files, of these, that are made from each file, in order."""
    found: dict[Key, list[str]] = {}
    for shard in shards:
        for tensor in shard.tensors:
            for k, info in zip(tensor.checkpoints, tensor.inputs, strict=True):
                if info.nbytes and shard.file not in (files := found.setdefault((k, info.file), []))[-1:]:
                    files.append(shard.file)
    return found


def resumed(plan: MergePlan, done: Mapping[str, ShardInputs]) -> tuple[set[Key], set[Key]]:
    """The files that ``done`` shards were made from: those that were compared and are done with, and all."""
    begun = {key: made for key, made in made_from(plan.shards).items() if any(one in done for one in made)}
    compared = {key for key, made in begun.items() if all(one in done and done[one].compared for one in made)}
    return compared, set(begun)


def _inputs_of(shard: ShardPlan) -> dict[int, list[TensorInfo]]:
    """What is read of each checkpoint for a shard, in the order in which it is."""
    found: dict[int, list[TensorInfo]] = {}
    for tensor in shard.tensors:
        for k, info in zip(tensor.checkpoints, tensor.inputs, strict=True):
            if info.nbytes:
                found.setdefault(k, []).append(info)
    return found


def _digest_of(inputs: Iterable[TensorInfo], source: Source) -> str:
    """A digest in `ShardInputs`, from what the checkpoint's files hold now."""
    found = xxh3_128()
    for info in inputs:
        of_tensor = xxh3_128()
        for start in range(0, info.nbytes, HASHED_AT_ONCE):
            block = memoryview(bytearray(min(HASHED_AT_ONCE, info.nbytes - start)))
            source.read(info.file, info.offset + start, block)
            of_tensor.update(block)
        found.update(of_tensor.digest())
    return found.hexdigest()
