"""The units of a merge: one output shard each, for all targets at once."""

from __future__ import annotations

import os
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import OutputError
from hubextrap.hub.sink import HubSink
from hubextrap.tensors import LocalSink
from hubextrap.work.hands import ReadingHands, left_as_json, read_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.engine.run import ShardOutput
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Sink
    from hubextrap.work.plan import Output, WorkPlan


class MergeHands(ReadingHands):
    """Makes shards, and puts each where the plan has it."""

    def __init__(self, plan: WorkPlan, progress: Progress) -> None:
        checkpoints = read_in(plan.checkpoints, plan.stamps, plan.forms)
        super().__init__(plan, checkpoints, plan.merge.layouts, progress, cache=plan.cache)
        self._plan = plan
        self._sinks: list[Sink] | None = None

    def make(self, unit: int) -> dict[str, Any]:
        from hubextrap.engine.run import run_shard  # imports numba

        plan, sources = self._plan, self.sources
        if self._sinks is None:  # a Hub is asked once about its repos
            self._sinks = [self._sink(output) for output in plan.outputs]
        made = run_shard(
            plan.merge,
            sources,
            self._sinks,
            plan.merge.shards[unit].file,
            shared=self.shared,
            progress=self._progress,
            device=plan.device,
            allow_non_finite=plan.allow_non_finite,
        )
        return _shard_content(made, [_way(sink) for sink in self._sinks])

    def _sink(self, output: Output) -> Sink:
        if output.push is not None:
            sink = HubSink(output.push, commits=False, progress=self._progress)
            return self._resources.enter_context(sink)
        folder = Path(output.folder or "")
        if not folder.is_dir():
            raise OutputError(
                f"{folder}: is not there on this machine ({os.uname().nodename}); an output folder has to "
                "lie where every worker sees it under the same path, or push straight to the Hub",
                file=folder,
            )
        return LocalSink(folder, among_others=True)


def _way(sink: Sink) -> dict[str, str]:
    """How a shard reached the Hub, where it did: the small files that go in the commit are held in full."""
    if not isinstance(sink, HubSink):
        return {}
    return {file: b64encode(content).decode() for file, content in sink.uploaded().items()}


def _shard_content(made: ShardOutput, small: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What is on record of a shard, as `work.merging` reads it."""
    return {
        "shards": [
            {**asdict(shard), "identical": same, "small": held.get(shard.file)}
            for shard, same, held in zip(made.shards, made.identical, small, strict=True)
        ],
        "inputs": list(made.inputs.digests),
        "compared": made.inputs.compared,
        "left": left_as_json(made.left),
    }
