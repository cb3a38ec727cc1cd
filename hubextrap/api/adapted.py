"""What is said of a prediction of adapters: what its rank cut off, and what it was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.adapters.base import is_folder
from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.adapters.predicted import PredictedSource
from hubextrap.adapters.recompress import MOST_LOST
from hubextrap.engine.inputs import read_as
from hubextrap.errors import ReferenceNotFound
from hubextrap.hub.provenance import AdapterRecord, HowRead, InputCheckpoint, InputFile
from hubextrap.trajectory import Checkpoint, parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.adapters.run import AdapterRun
    from hubextrap.api.preparing import Prepared
    from hubextrap.opening import Run

_NAMED = 3


def with_losses(prepared: Prepared) -> Prepared:
    """The same, once it is known what the cut to an adapter's rank loses; warns where that is much."""
    lost = tuple(one.lost for one in _predicted(prepared))
    found = replace(prepared, lost=lost)
    for target, step in enumerate(prepared.recipe.target_steps):
        warned = [line for line, warns in losses_in_words(found, target) if warns]
        prepared.run.warn(*(f"step {step}: {line}" for line in warned))
    return found


def losses_in_words(prepared: Prepared, target: int) -> list[tuple[str, bool]]:
    """What the cut loses of a target's changes, and whether that is a warning; nothing where it is nothing
    or not known."""
    lost = prepared.lost[target] if prepared.lost else {}
    if not any(lost.values()):
        return []
    worst = sorted(lost, key=lambda name: -lost[name])[:_NAMED]
    shown = ", ".join(f"{name} {100 * lost[name]:.2g}%" for name in worst)
    warns = lost[worst[0]] > MOST_LOST
    more = "; a higher rank loses less (output.rank, --rank)" if warns else ""
    rank = _predicted(prepared)[target].rank
    return [(f"the cut to rank {rank} loses of a change's energy at most: {shown}{more}", warns)]


def adapter_files(prepared: Prepared) -> dict[str, bytes]:
    """The configuration that goes beside a predicted adapter, the same for each target."""
    return next(({CONFIG_FILE: one.config} for one in _predicted(prepared)), {})


def adapter_inputs(run: Run, adapters: AdapterRun) -> list[list[InputFile]]:
    """The files of each checkpoint, read whole; those of the Hub were compared when they were opened."""
    return [
        []
        if adapter is None or source is None
        else [InputFile.of(one.file, source.files()[one.file], "whole") for one in adapter.layout.shards]
        for adapter, source in zip(adapters.adapters, adapters.sources, strict=True)
    ]


def adapter_record(prepared: Prepared, adapters: AdapterRun, target: int) -> AdapterRecord:
    """What the provenance says of one target."""
    base_name = published_base(prepared.run, adapters)
    for one in _predicted(prepared):
        lost = dict(prepared.lost[target]) if prepared.lost else {}
        cut = lost if any(lost.values()) else None
        base = _base_record(adapters, _read_whole(adapters)) if adapters.needs_base else None
        return AdapterRecord(output="adapter", rank=one.rank, lost=cut, base=base, base_name=base_name)
    last = len(prepared.plan.layouts) - 1
    how = {file: read for (k, file), read in read_as(prepared.plan).items() if k == last}
    return AdapterRecord(output="merged", base=_base_record(adapters, how), base_name=base_name)


def _base_record(adapters: AdapterRun, how: Mapping[str, HowRead]) -> InputCheckpoint:
    """The base among what went in; ``how``: how much of each file is read."""
    base, there = adapters.base, adapters.base.source.files()
    files = [InputFile.of(one.file, there[one.file], how[one.file]) for one in base.layout.shards]
    return InputCheckpoint.of(base.checkpoint, files)


def _read_whole(adapters: AdapterRun) -> dict[str, HowRead]:
    """How much of the base's files an adapter needs, in which it begins what was trained whole."""
    layout = adapters.base.layout
    needed = {layout.tensors[name].file for name in adapters.last.whole}
    return {one.file: "part" if one.file in needed else "header" for one in layout.shards}


def published_base(run: Run, adapters: AdapterRun) -> str | None:
    """What others may call the base: the repo that the user gave or the adapters name; None of a folder."""
    trajectory = run.trajectory
    given = trajectory.base_model
    if isinstance(given, Checkpoint):
        return given.repo
    if given is not None:
        try:
            where = parse_reference(given)
        except ReferenceNotFound:  # no folder, or not this one's: an adapter needs none
            return None
        return where.repo if where.folder is None else None
    named = adapters.last.config.base
    return None if named is None or is_folder(trajectory.last, named) else named


def _predicted(prepared: Prepared) -> list[PredictedSource]:
    return [one for one in prepared.sources if isinstance(one, PredictedSource)]
