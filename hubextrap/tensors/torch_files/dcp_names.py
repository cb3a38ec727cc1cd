"""Which entries of a distributed checkpoint are a model's tensors, and what they are called in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.foreign_data import shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODEL = "model"
"""The key that a model's state dict lies under, at the top or one or two keys below it."""
_BELOW = 3
_STATE = re.compile(
    r"optim|opt_state|lr_sched|sched|dataload|train_state|trainer|rng|random|scaler|progress|sampler|ema\b|step|epoch"
)
"""How keys begin that lie beside a model's tensors at the top, as torchtitan has them."""
_MEGATRON = re.compile(
    r"(?:^|\.)(?:decoder|encoder|transformer)\.layers\.(?:\d+\.)?(?:self_attention\.linear_|mlp\.(?:linear_fc|experts\.))"
    r"|(?:^|\.)embedding\.word_embeddings\.weight$"
)


def model_names(keys: Sequence[str], paths: Any, where: str, file: str) -> dict[str, str]:
    """The model's tensors: their keys in the checkpoint, and their names in the model.

    Args:
        keys: of all tensors, flattened.
        paths: the keys that each was flattened from, by the flattened one; may be anything.

    Raises:
        UnsupportedCheckpoint: a Megatron checkpoint, one of several models, or of none.
    """
    if any(_MEGATRON.search(key) for key in keys):
        raise UnsupportedCheckpoint(
            f"{where}: holds Megatron's tensors, whose names and shapes are not those of transformers; "
            "convert it: with slime, python tools/convert_torch_dist_to_hf.py --input-dir FOLDER --output-dir"
            " OUTPUT --origin-hf-dir BASE; with verl, python -m verl.model_merger merge --backend megatron "
            "--local_dir FOLDER --target_dir OUTPUT",
            file=file,
        )
    by_key = paths if type(paths) is dict else {}
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    top: dict[str, str] = {}
    for key in keys:
        path = _path(by_key.get(key), key)
        if any(_STATE.match(part) for part in path[:_BELOW] if part != path[-1]):
            continue
        place = path.index(_MODEL) if _MODEL in path[: min(_BELOW, len(path) - 1)] else None
        if place is not None:
            groups.setdefault(path[: place + 1], {})[key] = ".".join(path[place + 1 :])
        elif not _STATE.match(path[0]):
            top[key] = ".".join(path)
    if len(groups) > 1:
        those = ", ".join(shorten(".".join(group)) for group in sorted(groups)[:5])
        what = f"holds several models ({those}); save the one that is trained by itself"
        raise UnsupportedCheckpoint(f"{where}: {what}", file=file)
    found = next(iter(groups.values()), top)
    if not found:
        what = "holds no tensors of a model, only of an optimizer or a trainer"
        raise UnsupportedCheckpoint(f"{where}: {what}; name the folder of the model", file=file)
    if len(set(found.values())) < len(found):
        raise UnsupportedCheckpoint(f"{where}: holds two tensors of one name", file=file)
    return found


def _path(path: Any, key: str) -> tuple[str, ...]:
    """The keys that a flattened one stands for; it itself where that is not said."""
    if type(path) is tuple and path and all(type(part) in (str, int) for part in path):
        return tuple(map(str, path))
    return (key,)
