"""What an output has beside its shards: provenance, card, index, side files, all built before the first.

Only two things follow from the shards themselves, the sizes and the sha256 in hubextrap.json; their place is
taken until then by stand-ins of the same length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

from hubextrap.api.adapted import adapter_files, adapter_inputs, adapter_record, losses_in_words
from hubextrap.api.preparing import CARD
from hubextrap.engine.inputs import read_as
from hubextrap.errors import HubExtrapError, RecipeError, SourceError
from hubextrap.hub import (
    PROVENANCE_FILE,
    CoefficientRule,
    InputFile,
    OutputShard,
    Provenance,
    build_provenance,
    model_card,
)
from hubextrap.hub.provenance import ClockRecord, HowRead, SampleRecord, TrustRecord
from hubextrap.hub.side_files import is_utf8
from hubextrap.tensors.assembled import beneath
from hubextrap.tensors.interfaces import SMALL_FILE
from hubextrap.trajectory import paths_in_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hubextrap.api.preparing import Beside, Prepared
    from hubextrap.engine import MergePlan
    from hubextrap.opening import Run
    from hubextrap.tensors.interfaces import FinishedShard, Source
    from hubextrap.trajectory import Checkpoint

_STAND_IN = "0" * 64
"""For a sha256 that nobody knows yet."""


@dataclass(frozen=True, slots=True)
class Companions:
    """All files of one target beside its shards."""

    provenance: Provenance
    files: dict[str, bytes]
    """By path; hubextrap.json as ``provenance`` has it."""

    def with_shards(self, shards: Sequence[FinishedShard]) -> Companions:
        """The same, once the shards are there: hubextrap.json says their sha256."""
        made = tuple(OutputShard(file=one.file, size=one.size, sha256=one.sha256) for one in shards)
        provenance = self.provenance.model_copy(
            update={"shards": tuple(sorted(made, key=lambda one: one.file))}
        )
        return Companions(provenance, self.files | {PROVENANCE_FILE: provenance.to_bytes()})


def companions(prepared: Prepared) -> Iterator[Companions]:
    """Those of each of a merge's targets, stand-ins in the place of what only its shards can tell.

    Raises:
        HubExtrapError: they cannot be made, or not be read again; says why.
    """
    recipe, run, plan = prepared.recipe, prepared.run, prepared.plan
    adapters = run.adapters
    read = input_files(plan, prepared.sources) if adapters is None else adapter_inputs(run, adapters)
    caveats = (*prepared.caveats, *prepared.addition.caveats)
    files = {**prepared.beside.files, **prepared.addition.files, **adapter_files(prepared)}
    beside = replace(prepared.beside, files=files)
    both = zip(recipe.target_steps, run.target_times(recipe), strict=True)
    for index, (target_step, time) in enumerate(both):
        outlook = prepared.fitted.outlooks[index]
        describe = partial(
            build_provenance,
            merge_method=recipe.merge_method,
            parameters=recipe.parameters.model_dump(
                mode="json", exclude={"target_step"}, exclude_defaults=True
            )
            | prepared.addition.parameters,
            target_step=target_step,
            dtype=recipe.dtype,
            out_dtype=recipe.out_dtype,
            recipe=recipe.text,
            expected_relative_error=outlook.expected.relative_error,
            expected_relative_error_stderr=outlook.expected.stderr,
            sample=None if outlook.sampled is None else SampleRecord(weights_per_tensor=outlook.sampled),
            trusted=TrustRecord.of(outlook.trusted),
            input_files=read,
            clock=ClockRecord.of(run.clock, run.times, time),
            adapter=None if adapters is None else adapter_record(prepared, adapters, index),
        )
        rules = [
            (glob, rule.method, rows[index].tolist())
            for rule, rows in prepared.fitted.rules
            for glob in rule.match
        ]
        lost = (line for line, _ in losses_in_words(prepared, index))
        said = _without_folders(
            (*outlook.warnings, *outlook.notes, *caveats, *lost), run.trajectory.checkpoints
        )
        line = None if outlook.verdict is None else outlook.verdict.line
        yield companions_of(run, plan, beside, describe, rules, said, line)


def input_files(plan: MergePlan, sources: Sequence[Source]) -> list[list[InputFile]]:
    """The weight files of each checkpoint, as the provenance names them once a merge has gone well.

    Where they are not plain safetensors they are those that are stored; of these no hash is made.
    """
    how, found = read_as(plan), []
    for k, (source, layout) in enumerate(zip(sources, plan.layouts, strict=True)):
        names = [shard.file for shard in layout.shards]
        stored, files = beneath(source, names)
        there, reads = stored.files(), {how[k, name] for name in names}
        in_parts: HowRead = "header" if reads == {"header"} else "part"
        found.append(
            [
                InputFile.of(file, there[file], how[k, file] if stored is source else in_parts)
                for file in files
            ]
        )
    return found


def _without_folders(lines: Iterable[str], checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """What a card says, with the folders of this disk as the record names them: it is read elsewhere."""
    names = [one.name for one in checkpoints]
    places = dict(zip(names, paths_in_run(checkpoints), strict=True))
    local = sorted((one.name for one in checkpoints if one.repo is None), key=len, reverse=True)
    return tuple(reduce(lambda line, name: line.replace(name, places[name]), local, line) for line in lines)


def _check_names(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse names that no JSON can hold."""
    for checkpoint, place in zip(checkpoints, paths_in_run(checkpoints), strict=True):
        if not is_utf8(place + checkpoint.revision):
            raise SourceError(
                f"{checkpoint.name}: its name is not UTF-8 text, so hubextrap.json cannot hold it; rename it",
                file=checkpoint.path,
                step=checkpoint.step,
                repo=checkpoint.repo,
            )


def companions_of(
    run: Run,
    plan: MergePlan,
    beside: Beside,
    describe: Callable[..., Provenance],
    rules: Sequence[tuple[str, str, Sequence[float]]],
    caveats: Sequence[str],
    verdict: str | None = None,
) -> Companions:
    """Those of any prediction.

    Args:
        describe: `build_provenance`, given what follows from none of the other arguments.
        rules: (glob, method, coefficients) each.

    Raises:
        SourceError: a checkpoint's name cannot be written into a file.
        RecipeError: something of the recipe cannot be.
        HubExtrapError: a file would be larger than this program reads.
    """
    checkpoints = run.trajectory.checkpoints
    _check_names(checkpoints)
    files = dict(beside.files)
    if plan.index_file is not None:
        files[plan.index_file] = plan.index
    try:
        provenance = describe(
            checkpoints=checkpoints,
            coefficients=[
                CoefficientRule(
                    match=match, method=method, coefficients=dict(zip(run.steps, row, strict=True))
                )
                for match, method, row in rules
            ],
            shards=[OutputShard(file=shard.file, size=shard.size, sha256=_STAND_IN) for shard in plan.shards],
            files=files,
        )
        files[PROVENANCE_FILE] = provenance.to_bytes()
        card = model_card(provenance, beside.card, side_files=files, caveats=caveats, verdict=verdict)
        files[CARD] = card.encode()
    except ValueError as error:  # a lone surrogate in a pattern, say, which a YAML text can spell
        raise RecipeError(
            f"the recipe cannot be written into hubextrap.json and the card ({error}); write it as UTF-8 text"
        ) from error
    for file in (PROVENANCE_FILE, CARD, plan.index_file):
        if file is not None and (size := len(files[file])) > SMALL_FILE:
            raise HubExtrapError(
                f"{file} would have {size:,} bytes, more than the {SMALL_FILE:,} that can be read again; "
                "take fewer checkpoints, or a method without coefficients for each tensor",
                file=file,
            )
    return Companions(provenance, files)
