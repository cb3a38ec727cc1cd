"""The checkpoint that a round's trainer left behind: found, and every byte of it checked."""

from __future__ import annotations

import glob
import hashlib
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.durable.atomic import write_whole
from hubextrap.engine.comparison import compare
from hubextrap.engine.kernels import count_non_finite
from hubextrap.errors import CheckpointError, CheckpointMismatch, NonFinite, UnsupportedCheckpoint
from hubextrap.foreign_text import own_lines
from hubextrap.hub.side_files import is_side_file, side_files
from hubextrap.recipe.commands import filled
from hubextrap.regrounding.history import REMEDY
from hubextrap.step_names import pattern_reader
from hubextrap.step_pattern import STEP
from hubextrap.tensors import DTYPES, LocalSource, read_combinable, read_layout, sha256_of, ties_embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.progress import Stage
    from hubextrap.tensors import ShardInfo

_BLOCK = 16 * 2**20
_NAMES_SHOWN = 8
_LAST_OF_A_TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A folder with a whole, finite model in it."""

    folder: Path
    weights: dict[str, str]
    """sha256 of each weight file, by name."""
    size: int
    """Bytes of the weight files."""


def find_checkpoint(output: Path, pattern: str, start_step: int, steps: int) -> Path:
    """The folder in ``output`` that ``pattern`` names; with ``{step}`` in it, the one of the last step.

    Raises:
        UnsupportedCheckpoint: there is none, or the last one is not of the round's last step.
    """
    escaped = {"steps": steps, "start_step": start_step, "step": STEP}
    wanted = filled(pattern, escaped)
    if STEP not in wanted:
        folder = output / wanted
        if not folder.is_dir():
            raise UnsupportedCheckpoint(
                f"no checkpoint {wanted} in {output}; there is: {_listed(output)}", file=folder
            )
        return folder
    read = pattern_reader(wanted)
    found = {
        name.step: path
        for path in sorted(output.glob(glob.escape(wanted).replace(STEP, "*")))
        if path.is_dir() and (name := read(path.relative_to(output).as_posix())) is not None
    }
    if not found:
        raise UnsupportedCheckpoint(
            f"no checkpoint like {wanted} in {output}; there is: {_listed(output)}", file=output
        )
    last = max(found)
    if last not in (steps, start_step + steps):
        raise UnsupportedCheckpoint(
            f"the last checkpoint in {output} is {found[last].relative_to(output)}, but the round "
            f"had to end at step {' or '.join(map(str, sorted({steps, start_step + steps})))}; make "
            "the trainer save one there",
            file=found[last],
            step=last,
        )
    return found[last]


def check_model(folder: Path, like: Path | None, stage: Stage) -> CheckedModel:
    """Read a whole model: headers, configuration, every weight; all of it has to be there and finite.

    Args:
        like: a model of which it has to have the tensors and shapes.
        stage: told of the bytes read.

    Raises:
        CheckpointError: something is missing, cut short, not finite or of another shape.
        SourceError: it cannot be read.
    """
    with closing(LocalSource(folder)) as source:
        (layout,) = read_combinable([source])
        side_files(source, None)
        if like is not None:
            _check_like(source, like)
        weights = {shard.file: _read_shard(source, shard, stage) for shard in layout.shards}
        return CheckedModel(folder, weights, sum(shard.size for shard in layout.shards))


def _check_like(source: LocalSource, like: Path) -> None:
    with closing(LocalSource(like)) as other:
        layouts = [read_layout(other), read_layout(source)]
        _, problems, _ = compare((0, 1), layouts, tied=ties_embeddings(source))
    if problems:
        what = f"{source.name} is not a checkpoint of the model that the round started from:"
        raise CheckpointMismatch(own_lines(what, *_some([one.text for one in problems])), file=source.name)


def _read_shard(source: LocalSource, shard: ShardInfo, stage: Stage) -> str:
    """The file's sha256, in one pass that also looks for what is not finite."""
    digest = hashlib.sha256()
    head = bytearray(shard.tensors[0].offset if shard.tensors else shard.size)
    source.read(shard.file, 0, memoryview(head))
    digest.update(head)
    for tensor in shard.tensors:  # contiguous, as reading the header has checked
        step = _BLOCK - _BLOCK % DTYPES[tensor.dtype].itemsize
        bad = 0
        for start in range(0, tensor.nbytes, step):
            data = bytearray(min(step, tensor.nbytes - start))
            source.read(shard.file, tensor.offset + start, memoryview(data))
            digest.update(data)
            stage.advance(len(data))
            bad += count_non_finite(np.frombuffer(data, np.uint8), tensor.dtype)
        if bad:
            raise NonFinite(
                f"{source.name}/{shard.file}: {bad:,} weights of {tensor.name} are NaN or infinite: training "
                "diverged or the file is damaged",
                file=shard.file,
                tensor=tensor.name,
            )
    return digest.hexdigest()


def complete_tokenizer(folder: Path, start: Path) -> None:
    """Give ``folder`` the start's tokenizer where the trainer saved none, for the next round to find.

    Raises:
        SourceError: the start's cannot be read. OutputError: it cannot be written.
    """
    if (folder / _LAST_OF_A_TOKENIZER).exists() or not (start / _LAST_OF_A_TOKENIZER).exists():
        return
    with closing(LocalSource(start)) as source:
        missing = {
            file: source.read_file(file)
            for file in sorted(source.files())
            if is_side_file(file) and file != "config.json" and not os.path.lexists(folder / file)
        }
    # The one that says that a tokenizer is there comes last: a kill in between is not taken for the whole.
    for file in sorted(missing, key=lambda file: file == _LAST_OF_A_TOKENIZER):
        write_whole(folder / file, missing[file], remedy=REMEDY, parents=True)


def check_unchanged(folder: Path, weights: dict[str, str], stage: Stage) -> None:
    """Refuse a model whose weights are no longer those that were checked.

    Raises:
        CheckpointError: a file is gone or has other bytes.
    """
    with closing(LocalSource(folder)) as source:
        for file, sha256 in weights.items():
            if file not in source.files() or sha256_of(source, file, stage.advance) != sha256:
                raise CheckpointError(
                    f"{folder / file}: changed after it was checked; restore it, or remove {folder} "
                    "to train the round again",
                    file=folder / file,
                )


def _listed(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(_some(names)) or "nothing"


def _some(lines: Sequence[str]) -> list[str]:
    return [*lines[:_NAMES_SHOWN], *(["…"] if len(lines) > _NAMES_SHOWN else [])]
