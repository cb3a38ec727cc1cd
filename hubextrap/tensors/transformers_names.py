"""What the transformers that is installed calls the tensors of a model, whatever a checkpoint called them.

Its conversion mapping belongs to models, not to files, so the model is built, without weights, in a process
of its own: neither torch nor transformers takes of the memory of a merge, and whatever happens there is no
more than an answer that does not come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError
from hubextrap.foreign_data import parse_json
from hubextrap.tensors.configuration import leads_of, read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.tensors.interfaces import Source

SECONDS = 90
"""How long building a model may take: imports are some seconds, a model of 100 layers is some more."""
ANSWER_LIMIT = 64_000_000
_CHILD = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from hubextrap.tensors.transformers_names import answer; answer(sys.stdin.buffer, sys.stdout)"
)
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")


def names_in_transformers(source: Source, names: Sequence[str]) -> Sequence[str]:
    """The names that each tensor has in the model of a checkpoint's config.json, in the order given.

    Themselves, where transformers is not installed, has no such model or is too old. No code but its own
    runs: a configuration that leads to other code is not asked about.
    """
    if not all(map(_is_there, ("torch", "transformers"))):
        return names
    config = read_config(source)
    if not config.get("architectures") or any(leads_of(config)):
        return names
    asked = json.dumps({"config": {**config, "quantization_config": None}, "names": list(names)}).encode()
    return list(_answered(asked, len(names)) or names)


@lru_cache(maxsize=2)  # a command that plans and then merges asks twice
def _answered(asked: bytes, count: int) -> tuple[str, ...]:
    """The names, so many; none where no answer comes."""
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    try:
        ran = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, *sys.path],
            input=asked,
            capture_output=True,
            env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            timeout=SECONDS,
            check=False,
        )
        found = (
            parse_json(ran.stdout, "transformers' names", limit=ANSWER_LIMIT) if not ran.returncode else None
        )
    except (OSError, subprocess.TimeoutExpired, HubExtrapError):
        return ()
    fits = isinstance(found, list) and len(found) == count and all(isinstance(one, str) for one in found)
    return tuple(found) if found and fits else ()


def answer(asked: Any, told: Any) -> None:
    """What the other process does: the names of a question in JSON, as JSON."""
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    question = parse_json(asked.read(), "the question", limit=ANSWER_LIMIT)
    config = {key: value for key, value in question["config"].items() if value is not None}
    model_class = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(config))
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    found = {}
    for name in sorted(question["names"]):  # some begin only behind a name that sorts before the others
        new = name
        for renaming in renamings:
            new, _ = renaming.rename_source_key(new)
        found[name] = new
    json.dump([found[name] for name in question["names"]], told)


def _is_there(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
