"""What answers the questions: transformers, or vLLM by lm-eval's own model for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import EvaluationError
from hubextrap.hub_access import hub_api, hub_errors, reason
from hubextrap.logits import Mixture
from hubextrap.tensors.cache import check_download
from hubextrap.tensors.local import check_folder
from hubextrap.tensors.unloadable import refuse_pieces
from hubextrap.trajectory.checkpoint import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.evaluation.options import Backend
    from hubextrap.evaluation.table import MeasurementSettings
    from hubextrap.logits.loading import Models
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Checkpoint


def check_backend(backend: Backend, device: str, batch_size: int | None) -> None:
    """Refuse a backend that is not installed, and what it would not look at.

    Raises:
        EvaluationError: with the remedy.
    """
    if backend != "vllm":
        return
    for name, idle in (("device", device != "auto"), ("batch_size", batch_size is not None)):
        if idle:
            raise EvaluationError(f"{name} has no effect with vLLM, which chooses it by itself; leave it out")
    if find_spec("vllm") is None:
        raise EvaluationError("vLLM is not installed; install it with: pip install 'lm-eval[vllm]'")


def check_adapters(items: Iterable[Checkpoint | Mixture], backend: Backend, executor: str) -> None:
    """Refuse adapters, also those that are mixed, where only whole models are evaluated.

    Raises:
        EvaluationError: with the remedy.
    """
    if backend == "vllm":
        why = "vLLM gets whole models here: merge it (--as merged), or leave out --backend"
    elif executor != "local":
        why = "adapters are evaluated by this process, on one base: leave out --executor"
    else:
        return
    for item in items:
        for one in item.checkpoints if isinstance(item, Mixture) else (item,):
            if one.kind == ADAPTER:
                raise EvaluationError(f"{one.name} is an adapter, and {why}", step=one.step, repo=one.repo)


def load_model(
    label: str,
    checkpoint: Checkpoint | Mixture,
    settings: MeasurementSettings,
    models: Models,
    progress: Progress,
) -> Any:
    """A checkpoint as a model that lm-eval can question.

    Args:
        models: load it where transformers answers.

    Raises:
        EvaluationError: it cannot be loaded.
    """
    if settings.backend != "vllm":
        from hubextrap.evaluation.model import load_checkpoint

        return load_checkpoint(label, checkpoint, settings, models, progress)
    import lm_eval.models  # noqa: F401  it registers lm-eval's models
    from lm_eval.api.registry import get_model

    if isinstance(checkpoint, Mixture):
        said = "vLLM cannot mix logits of checkpoints; leave out --backend"
        raise EvaluationError(f"{checkpoint.name}: {said}")
    arguments = vllm_arguments(checkpoint, settings)
    try:
        return get_model("vllm")(**arguments)
    except Exception as error:  # vLLM raises nearly anything
        said = f"{checkpoint.name}: vLLM cannot load it: {reason(error)}"
        raise EvaluationError(said, repo=checkpoint.repo) from error


def vllm_arguments(checkpoint: Checkpoint, settings: MeasurementSettings) -> dict[str, Any]:
    """The arguments of lm-eval's vLLM model for a checkpoint, pinned; no code from the Hub runs.

    A subfolder of a repo is downloaded into the Hub cache first, as vLLM knows no subfolders.

    Raises:
        TrajectoryError, SourceError: a subfolder cannot be downloaded.
    """
    refuse_pieces(checkpoint)
    check_download(checkpoint, weights=True)
    pinned: dict[str, Any] = {}
    if checkpoint.repo is None:
        check_folder(place := checkpoint.path)
    elif checkpoint.path:
        with hub_errors(checkpoint.name):
            copy = hub_api().snapshot_download(
                checkpoint.repo, revision=checkpoint.commit, allow_patterns=f"{checkpoint.path}/*"
            )
        place = str(Path(copy, checkpoint.path))
    else:
        place = checkpoint.repo
        pinned = {"revision": checkpoint.commit, "tokenizer_revision": checkpoint.commit}
    return {
        "pretrained": place,
        **pinned,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "batch_size": "auto",  # vLLM schedules by itself
        "trust_remote_code": False,
    }
