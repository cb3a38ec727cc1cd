"""A run of adapters as one command opened it: their factors, and the base that they belong to."""

from __future__ import annotations

from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.adapters.fitting import fitted
from hubextrap.adapters.reading import fresh_bytes, read_adapters, read_pair
from hubextrap.errors import NonFinite, UnsupportedCheckpoint
from hubextrap.tensors import open_source, read_combinable, ties_embeddings
from hubextrap.tensors.configuration import read_config
from hubextrap.tensors.fingerprints import commit_fingerprint, files_fingerprint
from hubextrap.tensors.hashing import check_file
from hubextrap.tensors.layout import CheckpointLayout
from hubextrap.trajectory.checkpoint import BASE, BASE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.adapters.base import Bases
    from hubextrap.adapters.reading import Adapter, Room
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Checkpoint, Trajectory


@dataclass(frozen=True)
class BaseModel:
    """The model that adapters are put on, opened."""

    checkpoint: Checkpoint
    source: Source
    layout: CheckpointLayout
    tied: bool
    """Its tie_word_embeddings."""
    fingerprint: str
    """What stands for the bytes of its weights."""


class Term(NamedTuple):
    """What one checkpoint gives to a sum over products."""

    scale: float
    """Its coefficient times the scaling of its product."""
    left: NDArray[np.floating]
    """(E, rows, r)"""
    right: NDArray[np.floating]
    """(E, r, cols); E is 1 but for fused experts."""


class AdapterRun:
    """K checkpoints of one run, in step order: adapters, and at step 0 maybe the base as it is.

    Attributes:
        adapters: None for the base.
        layouts: of the deltas, one per checkpoint: what each changes of the base, by the base's names.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        sources: Sequence[Source | None],
        open_base: Callable[[], BaseModel],
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            sources: None for the base.
            open_base: called once at most, where the base is needed.

        Raises:
            CheckpointError: one is no LoRA adapter, or they do not fit together.
            SourceError: headers could not be read.
        """
        self.checkpoints = trajectory.checkpoints
        self.steps = trajectory.steps
        self.sources = tuple(sources)
        self._open_base = open_base
        found = iter(read_adapters([one for one in sources if one is not None], progress))
        self.adapters: tuple[Adapter | None, ...] = tuple(
            None if source is None else next(found) for source in sources
        )
        self.layouts = _delta_layouts(self.adapters)

    @property
    def last(self) -> Adapter:
        found = self.adapters[-1]
        assert found is not None
        return found

    @property
    def largest_rank(self) -> int:
        """Of all modules of all checkpoints; 1 where only whole tensors are trained."""
        every = (one for one in self.adapters if one is not None)
        return max((factors.rank for one in every for factors in one.factors.values()), default=1)

    @cached_property
    def base(self) -> BaseModel:
        """The base, opened.

        Raises:
            HubExtrapError: it cannot be had, or is of another shape; says what to do.
        """
        base = self._open_base()
        fitted(self.last, base.layout, read_config(base.source))
        return base

    @cached_property
    def beside_base(self) -> AdapterRun:
        """The same run with each product the way in which the base keeps its tensor, see `fitting`.

        Raises:
            HubExtrapError: as `base`.
        """
        base, config = self.base, read_config(self.base.source)
        run = copy(self)
        run.adapters = tuple(one and fitted(one, base.layout, config) for one in self.adapters)
        run.layouts = _delta_layouts(run.adapters)
        return run

    @property
    def needs_base(self) -> bool:
        """Whether a tensor is trained whole, while step 0 is the base: its values there are the base's."""
        return self.adapters[0] is None and bool(self.last.whole)

    @property
    def base_fingerprint(self) -> str:
        """What stands for step 0, the base as it is: whatever its bytes are, where none of them counts."""
        return self.base.fingerprint if self.needs_base else BASE_NAME

    def terms(self, name: str, coefficients: Sequence[float]) -> list[Term]:
        """What Σ c_k·s_k·B_k·A_k consists of; nothing of the base, and nothing where a coefficient is 0.

        Args:
            name: of the base's tensor, one that has factors.
            coefficients: (K,)
        """
        used = [k for k, coefficient in enumerate(coefficients) if coefficient and self.adapters[k]]
        terms = [self.term(k, name) for k in used]
        return [one._replace(scale=coefficients[k] * one.scale) for k, one in zip(used, terms, strict=True)]

    def term(self, k: int, name: str, room: Room = fresh_bytes) -> Term:
        """The product of one tensor in an adapter, checkpoint k.

        Args:
            room: gives the memory that its factors lie in.
        """
        adapter, source = self.adapters[k], self.sources[k]
        assert adapter is not None
        assert source is not None
        factors = adapter.factors[name]
        return Term(factors.scaling, *read_pair(source, factors, room))

    def non_finite(self, k: int, name: str) -> NonFinite:
        """The error that says that checkpoint k's factors of a tensor are NaN or infinite."""
        step, where = self.steps[k], self.checkpoints[k].name
        what = f"the adapter of step {step} ({where}) holds NaN or infinity; leave that checkpoint out"
        return NonFinite(f"{name}: {what}", tensor=name, step=step)


def open_adapters(
    trajectory: Trajectory,
    source_at: Callable[[int], Source],
    resources: ExitStack,
    *,
    bases: Callable[[], Bases],
    cache: bool,
    progress: Progress,
) -> AdapterRun:
    """The adapters of a run; those of the Hub compared with the hashes that it lists.

    Args:
        source_at: opens a checkpoint's source.
        resources: closes the base's, if that is needed.
        bases: what is known of the base, asked if that is needed.
        cache: download a base on the Hub first.

    Raises:
        UnsupportedCheckpoint: the run did not start at its base, which would be its step 0.
        CorruptFile: a file is not what the Hub lists.
        HubExtrapError: as `AdapterRun`.
    """

    def open_base() -> BaseModel:
        checkpoint = bases().common()
        stored = resources.enter_context(closing(open_source(checkpoint, cache=cache)))
        models = read_combinable([stored], progress)
        ((source,), (layout,)) = models.sources, models.layouts
        fingerprint = commit_fingerprint(checkpoint) or files_fingerprint(checkpoint, stored)
        return BaseModel(checkpoint, source, layout, ties_embeddings(source), fingerprint)

    checkpoints = trajectory.checkpoints
    sources = [None if one.kind == BASE else source_at(k) for k, one in enumerate(checkpoints)]
    found = AdapterRun(trajectory, sources, open_base, progress)
    if sources[0] is None and not found.last.config.starts_at_base:
        raise UnsupportedCheckpoint(
            f"{checkpoints[-1].name}/{CONFIG_FILE}: with its init_lora_weights, training does not start at "
            "the base, so step 0 is not known; leave it out (--min-step 1, or trajectory.steps.min)",
            step=checkpoints[0].step,
        )
    for source, adapter in zip(sources, found.adapters, strict=True):
        if source is not None and adapter is not None:
            for shard in adapter.layout.shards:
                check_file(source, shard.file)
    return found


def _delta_layouts(adapters: Sequence[Adapter | None]) -> list[CheckpointLayout]:
    """One per checkpoint; those alike share their tensors, and the base is like the one behind it."""
    first = next(one for one in adapters if one is not None).deltas
    known: dict[tuple[tuple[str, str, tuple[int, ...]], ...], CheckpointLayout] = {}
    layouts = []
    for adapter in adapters:
        found = replace(first, name="the base model") if adapter is None else adapter.deltas
        key = tuple((info.name, info.dtype, info.shape) for info in found.tensors.values())
        like = known.setdefault(key, found)
        if like is not found:
            found = replace(like, name=found.name)
            vars(found)["tensors"] = like.tensors
        layouts.append(found)
    return layouts
