"""From a recipe and the run that it observes to a merge plan: headers read, coefficients computed."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from warnings import warn

from hubextrap.api.adapting import plan_adapter_outputs, section_of
from hubextrap.api.fitting import FittedRules, fit_rules, stacked
from hubextrap.api.outlook import check_rehearsable, check_sayable
from hubextrap.engine.budget import BASELINE, Budget
from hubextrap.engine.defaults import MiB
from hubextrap.engine.plan import MergePlan, plan_merge
from hubextrap.engine.twins import check_twins
from hubextrap.errors import RecipeError
from hubextrap.given import check_by_this_process, one_of, recipe_of
from hubextrap.hub.carried_over import unreadable
from hubextrap.hub.side_files import SideFiles, read_side_files
from hubextrap.opening import ReadingOptions, Run
from hubextrap.recipe import check_output_section
from hubextrap.tensors.assembled import AssembledSource
from hubextrap.tensors.configuration import read_config, stated_dtype
from hubextrap.tensors.interfaces import SMALL_FILE
from hubextrap.tensors.tied import said_untied
from hubextrap.trajectory.checkpoint import say_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.statistics import GramTable
    from hubextrap.tensors import Combinable
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout

CARD = "README.md"
_NAMES_SHOWN = 12
DOWNLOADS, DOWNLOAD_CHUNK = 8, 10 * MiB
"""Files that huggingface_hub downloads at the same time, and bytes of each that it holds, at times twice."""
BESIDE_IN_BASELINE = 8 * MiB
"""How much of what the process takes anyway is for the files beside the weights; larger ones come on top."""
_WHY = "reading every checkpoint once before the merge: coefficients follow from the weights"
_WHY_SOME = "reading a sample of every checkpoint before the merge: coefficients follow from the weights"


@dataclass(frozen=True, slots=True)
class MergeOptions(ReadingOptions):
    """How a merge runs; nothing here changes a byte of a finite output."""

    device: str = "cpu"
    """Where the sums are computed: ``cpu`` or a CUDA device."""
    allow_non_finite: bool = False
    """Write NaN and infinite results instead of refusing them."""
    force: bool = False
    """Predict beyond what the past of the run can rehearse, with a warning, instead of refusing it."""

    @property
    def reading(self) -> ReadingOptions:
        """The part that is about reading."""
        return ReadingOptions(self.memory, self.workers, self.cache, self.executor)


def merge_options(settings: MergeOptions | None) -> MergeOptions:
    """These options, or the defaults.

    Raises:
        RecipeError: they are of something else.
    """
    if settings is None:
        return MergeOptions()
    if not isinstance(settings, MergeOptions):
        raise RecipeError(f"settings: {type(settings).__name__} does not say how to merge; give MergeOptions")
    return settings


def old_settings() -> type[MergeOptions]:
    """What ``Settings`` was, for a module's ``__getattr__``; warns whoever asks that for it."""
    warn(
        "Settings is called MergeOptions now; what only reads takes ReadingOptions",
        DeprecationWarning,
        stacklevel=3,
    )
    return MergeOptions


@contextmanager
def opened(
    recipe: Recipe,
    run: Run | None,
    settings: MergeOptions | None,
    scan: Scan | Path | str | None,
    progress: Progress | None,
) -> Iterator[tuple[Run, MergeOptions]]:
    """The run that was handed over, or else the recipe's, opened here and closed again; and how to merge.

    Raises:
        RecipeError: an open run of another recipe, or beside it what it should have been opened with.
        HubExtrapError: as `Run.of`.
    """
    run = one_of("run", Run, run)
    if run is None:
        settings = merge_options(settings)
        with Run.of(recipe, settings.reading, scan=scan, progress=progress) as own:
            yield own, settings
        return
    reading = run.reading
    settings = merge_options(settings or MergeOptions(**asdict(reading)))
    if run.section not in (None, recipe.trajectory):
        raise RecipeError("the run is open for another trajectory; open one with Run.of(recipe)")
    if scan is not None or settings.reading != reading:
        raise RecipeError(
            "scan, and memory, workers, cache and executor of settings, have no effect on a run that is "
            "open; give them to Run.of"
        )
    yield run, settings


@dataclass(frozen=True, slots=True)
class Beside:
    """What the last checkpoint gives to every output beside the weights."""

    names: SideFiles
    files: Mapping[str, bytes]
    """The side files as they are written, by path."""
    card: str | None
    """Its model card, from which licence and language are taken over; None without one that can be read."""
    note: str | None
    """Why its card, or the metadata in it, gives nothing."""

    @classmethod
    def of(cls, run: Run, recipe: Recipe, check_memory: Callable[[int], object]) -> Beside:
        """Read a recipe's: those of the last checkpoint; under a merged adapter lie the base's.

        Args:
            check_memory: as `hub.side_files.read_side_files` has it.

        Raises:
            HubExtrapError: as `hub.side_files.read_side_files`.
        """
        if run.adapters is None and recipe.space == "weights":
            return cls.read(run.sources[-1], recipe.out_dtype, check_memory)
        last = run.last_source
        if run.adapters is None or recipe.space == "logits":
            return cls.read(last, recipe.out_dtype, check_memory)
        own = cls.read(last, None, check_memory, whole_model=False)
        if section_of(recipe).as_ == "adapter":
            return own
        under = cls.read(run.adapters.base.source, recipe.out_dtype, lambda count: None)
        taken = tuple(sorted({*under.names.taken, *own.names.taken}))
        names = SideFiles(taken, own.names.left_out)
        return cls(names, {**under.files, **own.files}, own.card or under.card, own.note)

    @classmethod
    def read(
        cls,
        last: Source,
        out_dtype: str | None,
        check_memory: Callable[[int], object],
        *,
        whole_model: bool = True,
    ) -> Beside:
        """Read a source's; ``whole_model``: config.json has to be among them."""
        names, files = read_side_files(last, out_dtype, check_memory, whole_model=whole_model)
        info = last.files().get(CARD)
        card, wrong = None, None
        if info is not None and info.size > SMALL_FILE:
            wrong = f"its {info.size:,} bytes are more than {SMALL_FILE:,}"
        elif info is not None:
            card = last.read_file(CARD).decode(errors="replace")
            wrong = unreadable(card)
            card = None if wrong else card
        note = f"{CARD} of the last checkpoint: nothing of its metadata is taken over: {wrong}"
        return cls(names, files, card, note if wrong else None)


@dataclass(frozen=True, slots=True)
class Addition:
    """What goes with an output because of how its step was chosen."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Beside the weights, by path."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """In the provenance, beside the method's."""
    caveats: tuple[str, ...] = ()
    """In the card."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that is ready to run, while its run is open."""

    recipe: Recipe
    run: Run
    settings: MergeOptions
    fitted: FittedRules
    plan: MergePlan
    sources: tuple[Source, ...]
    """What the plan reads: the checkpoints, or what is computed of adapters."""
    beside: Beside
    """What of the last checkpoint goes beside the weights."""
    lost: tuple[Mapping[str, float], ...] = ()
    """For each target, what the cut to a rank loses of each tensor's change, once that is known."""
    addition: Addition = field(default_factory=Addition)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the checkpoints' files, one line per fact."""
        of_weights = say_notes(self.run.trajectory.checkpoints)
        files = self.beside.names.left_out
        more = f" and {len(files) - _NAMES_SHOWN} more" if len(files) > _NAMES_SHOWN else ""
        shown = ", ".join(files[:_NAMES_SHOWN]) + more
        left_out = f"left out: {shown} of the last checkpoint; copy what the prediction needs of them"
        note = self.beside.note
        return (*of_weights, *([left_out] if files else []), *([note] if note else []))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the past of the run warns of, at any target."""
        return tuple(dict.fromkeys(line for one in self.fitted.outlooks for line in one.warnings))

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the past of the run could not be asked, and how it can."""
        return tuple(dict.fromkeys(line for one in self.fitted.outlooks for line in one.notes))

    @property
    def caveats(self) -> tuple[str, ...]:
        """What whoever uses the output should know."""
        return (*self.run.trajectory.notes, *self.plan.caveats)


def _wider_than_loaded(last: Source, plan: MergePlan) -> list[str]:
    """That a trainer's float32 master weights are written, where transformers loads half of their bits."""
    stated = stated_dtype(read_config(last)) if isinstance(last, AssembledSource) else None
    written: Counter[str] = Counter()
    for tensor in (tensor for shard in plan.shards for tensor in shard.tensors):
        written[tensor.dtype] += tensor.elements
    if stated not in ("bfloat16", "float16") or written.most_common(1)[0][0] != "F32":
        return []
    what = f"the last checkpoint stores float32, and config.json has it loaded as {stated}"
    return [f"{what}: the output is written in float32; out_dtype: {stated} in the recipe halves it"]


def prepare(
    recipe: Recipe | Path | str,
    run: Run,
    settings: MergeOptions,
    *,
    read_weights: bool = True,
    variants: Sequence[Recipe] = (),
    check: Callable[[Prepared], object] | None = None,
) -> Prepared:
    """Do everything that comes before the merge.

    Some kilobytes per checkpoint are read; where coefficients follow from the weights, or the recipe limits
    the expected error, and no scan says it, every checkpoint is read once more, or a sample of it.

    Args:
        run: the recipe's.
        read_weights: False leaves that out; stand-ins take the place of what the weights decide.
        variants: settled recipes that differ from ``recipe`` in parameters alone; their targets, one after
            the other, take the place of its own.
        check: looks at all that is known before a weight is read, and raises if it will not do; called with
            stand-ins for what the weights decide, and again when that is known.

    Raises:
        CheckpointError: a checkpoint cannot be used, or they do not fit together; all findings at once.
        MethodError, StepError: a method cannot serve these steps, or the past cannot rehearse a target.
        RecipeError: the run was opened with a scan that has no effect.
        SourceError: the headers cannot be read.
        OutputError: the memory setting is too small.
    """
    recipe = run.settled(recipe_of(recipe))
    recipes = tuple(variants) or (recipe,)
    _check_rules(recipes, run)  # before any header is read
    check_output_section(recipe, run.trajectory.of_adapters)
    if run.trajectory.of_adapters:
        check_settings(settings)
    held, first = 0, list[_Planned]()  # bytes that what goes beside the weights takes
    # logits are mixed of whatever transformers loads, quantised or not
    combined = recipe.space == "weights" or any(each.needs_scan for each in recipes)
    models = run.models if combined else run.any_models
    check_rehearsable(recipes, run, settings.force)  # what keeps all targets from being made came first
    known = run.known_table(*recipes) if combined else None

    def hold(count: int) -> None:
        nonlocal held
        held = max(0, count - BESIDE_IN_BASELINE)
        first.append(_planned(recipes, run, models, settings, known, held))

    beside = Beside.of(run, recipe, hold)

    def ready(planned: _Planned) -> Prepared:
        prepared = Prepared(recipe, run, settings, *planned, beside)
        if check is not None:
            check(prepared)
        return prepared

    prepared = ready(first[0])
    if prepared.fitted.pending and read_weights:
        prepared = ready(_planned(recipes, run, models, settings, _read(recipes, run, held), held))
    run.warn(*prepared.warnings)
    return prepared


def _read(recipes: Sequence[Recipe], run: Run, held: int) -> GramTable:
    """What the weights say that the recipes fit to; they differ in nothing that decides which."""
    sample = next(each.fit_sample for each in recipes if each.needs_scan)
    return run.gram_table(_WHY if sample is None else _WHY_SOME, sample=sample, held=held)


def check_settings(settings: MergeOptions) -> None:
    """Refuse ways to merge that have no effect on adapters.

    Raises:
        RecipeError: names the option.
    """
    check_by_this_process(settings.executor)
    if settings.device != "cpu":
        raise RecipeError(
            f"--device {settings.device}: products of adapters are computed on the CPU; leave it out"
        )


def _check_rules(recipes: Sequence[Recipe], run: Run) -> None:
    """Refuse what steps alone say that a method cannot do, and a scan that nothing follows from."""
    for each in recipes:
        targets = run.target_times(each)
        for rule in each.rules:
            rule.check(run.times, targets)
        check_sayable(each, run)
    run.check_scan_counts(recipes)


class _Planned(NamedTuple):
    fitted: FittedRules
    plan: MergePlan
    sources: tuple[Source, ...]


def _planned(
    recipes: Sequence[Recipe],
    run: Run,
    models: Combinable,
    settings: MergeOptions,
    table: GramTable | None,
    held: int,
) -> _Planned:
    """The targets of all recipes in one plan; ``held``: bytes that something else takes at the same time."""
    layouts, reserve, other_pass = models.layouts, 0, 0
    if run.has_scan or any(each.needs_scan for each in recipes):
        from hubextrap.engine.scan_plan import fitting_memory

        targets = [time for each in recipes for time in run.target_times(each)]
        reserve = fitting_memory(run.times, layouts, targets)
        other_pass = 0 if run.has_scan else run.scan_plan.buffers.least_memory
    if settings.cache:
        other_pass = max(other_pass, BASELINE + _download_memory(run, layouts))
    fitted = stacked([fit_rules(each, run, layouts, table) for each in recipes])
    rows_for = fitted.by_tensor.__getitem__
    budget = Budget(
        settings.memory,
        settings.workers,
        run.remote,
        reserve=reserve + held,
        other_pass=other_pass + held if other_pass else 0,
    )
    if run.adapters is not None:
        made = plan_adapter_outputs(recipes, run.adapters, rows_for, budget, cache=settings.cache)
        return _Planned(fitted, *made)
    plan = plan_outputs(run, models, rows_for, budget, out_dtype=recipes[0].out_dtype)
    check_twins(plan, models.sources)
    notes = (*models.notes, *plan.notes, *_wider_than_loaded(models.sources[-1], plan))
    caveats = (*models.caveats, *said_untied(models.sources[-1], models.tied), *plan.caveats)
    return _Planned(fitted, replace(plan, notes=notes, caveats=caveats), models.sources)


def plan_outputs(
    run: Run,
    models: Combinable,
    coefficients_for: Callable[[str], NDArray[np.float64]],
    budget: Budget,
    *,
    out_dtype: str | None = None,
) -> MergePlan:
    """`plan_merge` for a run's checkpoints."""
    return plan_merge(
        run.steps,
        models.layouts,
        coefficients_for,
        out_dtype=out_dtype,
        tied=models.tied,
        budget=budget,
    )


def _download_memory(run: Run, layouts: Sequence[CheckpointLayout]) -> int:
    """Bytes that downloading the weight files takes: huggingface_hub fetches several, in chunks."""
    pairs = zip(run.trajectory.checkpoints, layouts, strict=True)
    sizes = sorted(shard.size for one, layout in pairs if one.repo for shard in layout.shards)
    return sum(2 * min(size, DOWNLOAD_CHUNK) for size in sizes[-DOWNLOADS:])
