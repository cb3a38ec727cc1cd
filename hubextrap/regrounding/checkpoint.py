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

from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.adapters.reading import read_adapters
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
from hubextrap.trajectory import Checkpoint
from hubextrap.trajectory.checkpoint import ADAPTER
from hubextrap.trajectory.local_files import files_in
from hubextrap.trajectory.weights import weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.adapters.reading import Adapter
    from hubextrap.progress import Stage
    from hubextrap.tensors import CheckpointLayout, ShardInfo

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


def snapshot(folder: Path, step: int) -> Checkpoint:
    """A folder as a checkpoint of the kind that it holds; of a whole model and an adapter, the model."""
    checkpoint, weights = Checkpoint(step, None, "", None, str(folder)), weights_of(files_in(folder))
    return checkpoint if weights is None else weights.of(checkpoint)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no whole model."""
    return snapshot(folder, 0).kind == ADAPTER


def check_model(folder: Path, like: Path | None, stage: Stage) -> CheckedModel:
    """Read a whole model or adapter: headers, configuration, every weight; all has to be there and finite.

    Args:
        like: a model of which it has to have the tensors and shapes; of an adapter, another one or its base.
        stage: told of the bytes read.

    Raises:
        CheckpointError: something is missing, cut short, not finite or of another shape.
        SourceError: it cannot be read.
    """
    with closing(LocalSource(folder)) as source:
        layout = _checked_adapter(source, like) if holds_adapter(folder) else _checked_whole(source, like)
        weights = {shard.file: _read_shard(source, shard, stage) for shard in layout.shards}
        return CheckedModel(folder, weights, sum(shard.size for shard in layout.shards))


def _checked_whole(source: LocalSource, like: Path | None) -> CheckpointLayout:
    if like is not None and holds_adapter(like):
        raise CheckpointMismatch(
            f"{source.name} is a whole model, but the round started from the adapter {like}; have the "
            "trainer save the adapter that it trains on",
            file=source.name,
        )
    models = read_combinable([source])
    if models.sources[0] is not source:  # read as floats
        raise UnsupportedCheckpoint(
            f"{source.name}: its weights are quantised, and what is predicted of them are floats, so a "
            "trainer cannot go on with them as they were; save the model in bf16",
            file=source.name,
        )
    side_files(source, None)
    if like is not None:
        _check_like(source, like)
    return models.layouts[0]


def _checked_adapter(source: LocalSource, like: Path | None) -> CheckpointLayout:
    """The layout of an adapter's own file."""
    if like is None or not holds_adapter(like):
        (adapter,) = read_adapters([source])
        if like is not None:
            _check_on_base(adapter, like)
        return adapter.layout
    with closing(LocalSource(like)) as other:
        return read_adapters([other, source])[1].layout


def _check_on_base(adapter: Adapter, base: Path) -> None:
    """Refuse an adapter that did not begin as the model that the round started from."""
    if not adapter.config.starts_at_base:
        raise CheckpointMismatch(
            f"{adapter.name}/{CONFIG_FILE}: its init_lora_weights begin away from the base, so {base} is not "
            "the run's step 0; save the untrained adapter, and give it as reground.model",
            file=CONFIG_FILE,
        )
    with closing(LocalSource(base)) as source:
        there = read_layout(source).tensors
    for info in adapter.deltas.tensors.values():
        if info.name not in there or sorted(there[info.name].shape) != sorted(info.shape):
            raise CheckpointMismatch(
                f"{adapter.name} is no adapter of the model that the round started from: {base} has no "
                f"tensor {info.name} of shape {list(info.shape)}; have the trainer train on it",
                file=adapter.name,
                tensor=info.name,
            )


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
