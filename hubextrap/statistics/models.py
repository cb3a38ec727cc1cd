"""The models that log-probabilities are taken from, as transformers loads them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hubextrap.errors import EvaluationError
from hubextrap.hub_access import keep_to_the_endpoint, reason, redact_logs
from hubextrap.tensors.cache import check_download
from hubextrap.tensors.local import check_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.trajectory.checkpoint import Checkpoint


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Its tokenizer.

    Raises:
        CorruptFile: a file is not what the Hub lists.
        EvaluationError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    check_download(checkpoint, weights=False)
    where, place = _place(checkpoint)
    try:
        return AutoTokenizer.from_pretrained(where, **place)
    except Exception as error:  # transformers raises nearly anything
        raise EvaluationError(
            f"{checkpoint.name}: its tokenizer cannot be loaded: {reason(error)}"
        ) from error


def load_model(checkpoint: Checkpoint, device: str) -> Any:
    """Its causal language model in float32, ready to score.

    Raises:
        CorruptFile: a file is not what the Hub lists.
        EvaluationError: transformers cannot load it, or makes up some of its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_download(checkpoint, weights=True)
    where, place = _place(checkpoint)
    try:
        made: Any = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **place
        )
        model, info = made
        model.to(device).eval()
    except Exception as error:  # transformers raises nearly anything
        raise EvaluationError(f"{checkpoint.name}: transformers cannot load it: {reason(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise EvaluationError(
            f"{checkpoint.name}: is no whole language model: {len(missing)} of its weights, as {missing[0]}, "
            "are not in it, and transformers makes them up"
        )
    return model


def _place(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Its pinned commit or its folder; no code from the Hub runs."""
    if checkpoint.repo is None:
        check_folder(checkpoint.path)
        return checkpoint.path, {"trust_remote_code": False}
    return checkpoint.repo, {
        "trust_remote_code": False,
        "revision": checkpoint.commit,
        "subfolder": checkpoint.path,
    }


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors get through, and no bars; everything is as before afterwards."""
    from transformers.utils import logging

    redact_logs()
    keep_to_the_endpoint()
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
