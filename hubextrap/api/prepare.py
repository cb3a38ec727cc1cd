"""From a recipe to a merge plan: checkpoints found and pinned, headers read, coefficients computed."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.api.companions import Beside
from hubextrap.api.fitting import FittedRules, fit_rules, needs_scan, stacked
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS, MiB
from hubextrap.engine.plan import (
    BASELINE,
    LOCAL_READ_SIZE,
    NO_LIMIT,
    REMOTE_READ_SIZE,
    MergePlan,
    plan_merge,
)
from hubextrap.errors import RecipeError
from hubextrap.progress import Progress, SilentProgress
from hubextrap.tensors import open_source, read_combinable, read_layouts, ties_embeddings
from hubextrap.trajectory import find_recipe_trajectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.methods import Rule
    from hubextrap.recipe import Recipe
    from hubextrap.statistics import Expectation, GramTable
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.trajectory.checkpoint import Trajectory

_NAMES_SHOWN = 12
DOWNLOADS, DOWNLOAD_CHUNK = 8, 10 * MiB
"""Files that huggingface_hub downloads at the same time, and bytes of each that it holds, at times twice."""
BESIDE_IN_BASELINE = 8 * MiB
"""How much of what the process takes anyway is for the files beside the weights; larger ones come on top."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a merge runs; nothing here changes a byte of a finite output."""

    memory: int = DEFAULT_MEMORY
    """Bytes of memory that the process may take, python and torch included."""
    workers: int = DEFAULT_WORKERS
    """Threads that read, compute and write."""
    cache: bool = False
    """Download Hub checkpoints into the Hub cache first, instead of reading ranges of them."""
    device: str = "cpu"
    """Where the sums are computed: ``cpu`` or a CUDA device."""
    allow_non_finite: bool = False
    """Write NaN and infinite results instead of refusing them."""


def refuse_merge_settings(settings: Settings | None, what: str) -> None:
    """Refuse settings that only a merge looks at, where there is none.

    Raises:
        RecipeError: says which.
    """
    plain = Settings()
    for name in ("device", "allow_non_finite"):
        if settings is not None and getattr(settings, name) != getattr(plain, name):
            raise RecipeError(
                f"settings.{name} has no effect on {what}, which merges no weights; leave it out"
            )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that is ready to run. Its sources are open."""

    recipe: Recipe
    trajectory: Trajectory
    sources: tuple[Source, ...]
    settings: Settings
    remote: bool
    """Whether weights are read over the network."""
    rules: tuple[tuple[Rule, NDArray[np.float64]], ...]
    """Every rule with its coefficients, (targets, checkpoints); one a tensor where weights decide."""
    plan: MergePlan
    expected: tuple[Expectation, ...]
    """What error to expect, one a target; unknown where the weights were not scanned."""
    pending: bool
    """Whether stand-ins take the place of coefficients that follow from the weights."""
    beside: Beside
    """What of the last checkpoint goes beside the weights."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the checkpoints' files, a line each."""
        of_weights = [f"step {one.step} {one.note}" for one in self.trajectory.checkpoints if one.note]
        files = self.beside.names.left_out
        more = f" and {len(files) - _NAMES_SHOWN} more" if len(files) > _NAMES_SHOWN else ""
        shown = ", ".join(files[:_NAMES_SHOWN]) + more
        left_out = f"left out: {shown} of the last checkpoint; copy what the prediction needs of them"
        note = self.beside.note
        return (*of_weights, *([left_out] if files else []), *([note] if note else []))

    @property
    def caveats(self) -> tuple[str, ...]:
        """What whoever uses the output should know."""
        return (*self.trajectory.notes, *self.plan.caveats)


def _download_memory(trajectory: Trajectory, layouts: Sequence[CheckpointLayout]) -> int:
    """Bytes that downloading the weight files takes: huggingface_hub fetches several, in chunks."""
    pairs = zip(trajectory.checkpoints, layouts, strict=True)
    sizes = sorted(shard.size for one, layout in pairs if one.repo for shard in layout.shards)
    return sum(2 * min(size, DOWNLOAD_CHUNK) for size in sizes[-DOWNLOADS:])


@contextmanager
def prepare(
    recipe: Recipe,
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    read_weights: bool = True,
    variants: Sequence[Recipe] = (),
    trajectory: Trajectory | None = None,
    check: Callable[[Prepared], object] | None = None,
) -> Iterator[Prepared]:
    """Do everything that comes before the merge.

    Some kilobytes a checkpoint are read; where coefficients follow from the weights, or the recipe limits the
    expected error, every checkpoint is read once more.

    Args:
        read_weights: False leaves that out; stand-ins take the place of what the weights decide.
        variants: recipes that differ from ``recipe`` in parameters alone; their targets, one after the other,
            take the place of its own.
        trajectory: the recipe's, where it was found before.
        check: looks at all that is known before a weight is read, and raises if it will not do; called with
            stand-ins for what the weights decide, and again when that is known.

    Raises:
        TrajectoryError: the checkpoints cannot be found, pinned or put in order.
        CheckpointError: one of them cannot be used, or they do not fit together; all findings at once.
        MethodError: a method cannot serve these steps.
        SourceError: the headers cannot be read.
        OutputError: the memory setting is too small.
    """
    settings = settings or Settings()
    progress = progress or SilentProgress()
    trajectory = trajectory or find_recipe_trajectory(recipe, progress)
    # Before any header: a step or target that does not fit should not cost a request a checkpoint.
    recipes = tuple(variants) or (recipe,)
    for each in recipes:
        for rule in each.rules:
            rule.check(trajectory.steps, each.target_steps)
    with ExitStack() as stack:
        sources = tuple(
            stack.enter_context(closing(open_source(checkpoint, cache=settings.cache)))
            for checkpoint in trajectory.checkpoints
        )
        # logits are mixed of whatever transformers loads, quantised or not
        combined = recipe.space == "weights" or needs_scan(recipe)
        layouts = (read_combinable if combined else read_layouts)(sources, progress)
        remote = not settings.cache and any(checkpoint.repo for checkpoint in trajectory.checkpoints)
        tied = ties_embeddings(sources[-1])
        held = 0  # by what goes beside the weights

        def scan() -> GramTable:
            from hubextrap.engine.scan import scan_trajectory  # imports numba

            return scan_trajectory(
                trajectory,
                sources,
                layouts,
                tied=tied,
                memory=settings.memory - held,
                workers=settings.workers,
                remote=remote,
                progress=progress,
            ).gram_table

        scanned = any(needs_scan(each) for each in recipes)
        reserve = other_pass = 0
        if scanned:
            from hubextrap.engine.scan_plan import fitting_memory, plan_scan

            reserve = fitting_memory(
                trajectory.steps, layouts, [step for each in recipes for step in each.target_steps]
            )
            scanning = plan_scan(
                trajectory.steps, layouts, tied=tied, memory=NO_LIMIT, workers=settings.workers, remote=remote
            )
            other_pass = scanning.least_memory

        if settings.cache:
            other_pass = max(other_pass, BASELINE + _download_memory(trajectory, layouts))

        def planned(scan: Callable[[], GramTable] | None) -> tuple[FittedRules, MergePlan]:
            fitted = stacked(
                [fit_rules(each, trajectory, sources, layouts, scan, progress) for each in recipes]
            )
            return fitted, plan_merge(
                trajectory.steps,
                layouts,
                fitted.by_tensor.__getitem__,
                out_dtype=recipe.out_dtype,
                tied=tied,
                memory=settings.memory,
                workers=settings.workers,
                read_size=REMOTE_READ_SIZE if remote else LOCAL_READ_SIZE,
                reserve=reserve + held,
                other_pass=other_pass + held if other_pass else 0,
            )

        first: list[tuple[FittedRules, MergePlan]] = []

        def hold(count: int) -> None:
            nonlocal held
            held = max(0, count - BESIDE_IN_BASELINE)
            first.append(planned(None))

        beside = Beside.of(sources[-1], recipe.out_dtype, hold)

        def ready(fitted: FittedRules, plan: MergePlan) -> Prepared:
            prepared = Prepared(
                recipe,
                trajectory,
                sources,
                settings,
                remote,
                fitted.rules,
                plan,
                fitted.expected,
                fitted.pending,
                beside,
            )
            if check is not None:
                check(prepared)
            return prepared

        prepared = ready(*first[0])
        yield ready(*planned(scan)) if prepared.pending and read_weights else prepared
