"""Which devices there are here: known before anything is read. Only the CPU is known without torch."""

from __future__ import annotations

import re

from hubextrap.errors import MissingExtra
from hubextrap.extras import require

CUDA_LIBRARIES = 500 * 2**20
"""Bytes that torch built for CUDA takes, be there a GPU or not (185 MiB for torch 2.13 and 283 MiB for its
CUDA 13 were measured); ``memory`` settings leave them out."""
_REMEDY = "choose cpu, or cuda where there is a GPU"
_NAME = re.compile(r"(?P<type>[a-z_]\w*)(?::(?:0|[1-9]\d*))?", re.ASCII)
"""How torch names devices."""


def cuda_libraries(device: str) -> int:
    """Bytes that the build of torch takes for ``device``, beside what ``memory`` settings bound."""
    if device == "cpu":
        return 0  # a merge on the CPU loads no torch
    try:
        require("cuda", f"device {device}")
    except MissingExtra:
        return 0  # nothing is merged there: `device_problem`
    import torch

    return CUDA_LIBRARIES if torch.version.cuda else 0


def device_problem(device: str) -> str | None:
    """What keeps torch from computing on ``device``; None where nothing does.

    A GPU is only counted, as using it would take its memory and spoil it for processes that are forked.

    Raises:
        MissingExtra: torch is needed to know, and cannot be imported.
    """
    if device == "cpu":
        return None
    name = _NAME.fullmatch(device)
    if name is None:
        return f"device {device[:100]!r}: there is no such device; {_REMEDY}"
    if name["type"] == "meta":
        return f"device {device[:100]}: holds no numbers; {_REMEDY}"
    require("cuda", f"device {device[:100]}")
    import torch

    try:
        named = torch.device(device)
    except (RuntimeError, ValueError):
        return f"device {device[:100]!r}: there is no such device; {_REMEDY}"
    if named.type == "cpu":
        return None
    if named.type != "cuda":
        try:
            torch.empty(1, device=named)
        except Exception as error:  # each backend has errors of its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return f"device {device}: cannot be used here ({reason}); {_REMEDY}"
        return None
    if not torch.cuda.is_available():
        return f"device {device}: there is no CUDA device here, or torch is built without CUDA; choose cpu"
    if (named.index or 0) >= (count := torch.cuda.device_count()):
        return f"device {device}: there are {count} CUDA devices here, counted from 0; choose one of them"
    return None
