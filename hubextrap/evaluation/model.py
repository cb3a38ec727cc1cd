"""One checkpoint as a model that lm-eval can question, with progress through our own channel.

Imports transformers and lm-eval's Hugging Face model (3-5 s): import this module inside functions only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from hubextrap.errors import CheckpointError, EvaluationError
from hubextrap.logits import ExtrapolatedForCausalLM, Mixture, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hubextrap.evaluation.table import MeasurementSettings
    from hubextrap.logits.loading import Models
    from hubextrap.progress import Progress, Stage
    from hubextrap.trajectory.checkpoint import Checkpoint

_SHAPES_COMPLETIONS = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
    "no_repeat_ngram_size", "num_beams", "length_penalty", "bad_words_ids", "suppress_tokens",
)  # fmt: skip


class CheckpointModel(HFLM):  # type: ignore[misc]
    """lm-eval's model for transformers; each kind of request is a stage of ``progress``."""

    def __init__(
        self, label: str, model: Any, tokenizer: Any, *, batch_size: int, progress: Progress
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self._label = label
        self._progress = progress

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        with self._stage("generate", requests):
            return super().generate_until(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        with self._stage("score", requests):
            return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        with self._stage("score", requests):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def generation_defaults(self) -> dict[str, Any]:
        """What the checkpoint's own generation config says about how completions are drawn."""
        config: dict[str, Any] = self.model.generation_config.to_diff_dict()
        return {key: config[key] for key in _SHAPES_COMPLETIONS if key in config}

    @contextmanager
    def _stage(self, verb: str, requests: list[Any]) -> Iterator[None]:
        with self._progress.stage(f"{self._label}: {verb}", len(requests), "answers") as stage:
            self.set_cache_hook(_AnswerCount(stage))
            yield


class _AnswerCount(CacheHook):  # type: ignore[misc]
    """lm-eval tells its cache of every answer; here the answers are only counted."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(None)
        self._answers = stage

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._answers.advance(1)


def load_checkpoint(
    label: str,
    checkpoint: Checkpoint | Mixture,
    settings: MeasurementSettings,
    models: Models,
    progress: Progress,
) -> CheckpointModel:
    """Load a checkpoint, or a mixture, from pinned commits or folders; no code from the Hub, no pickle.

    Args:
        models: load it, and may hold the base of an adapter from before.

    Raises:
        EvaluationError: transformers cannot load its model or its tokenizer, or it does not fit the device.
    """
    try:
        if isinstance(checkpoint, Mixture):
            models.release()  # a mixture holds a base of its own
            model: Any = ExtrapolatedForCausalLM.from_mixture(
                checkpoint, dtype=settings.dtype, device=settings.device
            )
            tokenizer = model.tokenizer
        else:
            tokenizer = load_tokenizer(checkpoint, bases=models.bases)
            model = models.load(checkpoint)
    except CheckpointError as error:
        raise EvaluationError(str(error), file=error.file, repo=error.repo) from error
    # a checkpoint's own max_new_tokens would come before the task's max_gen_toks
    model.generation_config.max_new_tokens = None
    return CheckpointModel(label, model, tokenizer, batch_size=settings.batch_size, progress=progress)
