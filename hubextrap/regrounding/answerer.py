"""The model in training, asked for its own answers: drawn before a jump, scored before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hubextrap.errors import MethodError
from hubextrap.evaluation.own_answers import MAX_ANSWER_TOKENS, draw_answers, mean_logprob
from hubextrap.logits.responses import encode_prompt
from hubextrap.regrounding.parameters import reshard

if TYPE_CHECKING:
    from torch import nn

    from hubextrap.evaluation.own_answers import OwnAnswers


class Answerer:
    """Asks a live model; every rank asks its own part of it, with the same prompts.

    Args:
        processing_class: the trainer's: a tokenizer, or a processor that has one.

    Raises:
        MethodError: it has no tokenizer. EvaluationError: a prompt has no tokens.
        UnsupportedCheckpoint: there is no chat template that takes the prompts.
    """

    def __init__(
        self, processing_class: Any, prompts: Sequence[str], max_tokens: int | None, chat: bool
    ) -> None:
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if self._tokenizer is None:
            raise MethodError(
                "own_answers needs the model's tokenizer: give it to the trainer as its processing_class"
            )
        self._prompts, self._chat = tuple(prompts), chat
        self._max_tokens = MAX_ANSWER_TOKENS if max_tokens is None else max_tokens
        for prompt in self._prompts:  # said before training, not at its first jump
            encode_prompt(self._tokenizer, prompt, chat=chat)

    def draw(self, model: nn.Module) -> OwnAnswers:
        """Greedy answers of the weights as they are."""
        try:
            return draw_answers(
                model, self._tokenizer, self._prompts, max_tokens=self._max_tokens, chat=self._chat
            )
        finally:
            reshard(model)

    def score(self, model: nn.Module, answers: OwnAnswers) -> float:
        """The mean log-probability of an answer, in nats."""
        try:
            return mean_logprob(model, self._tokenizer, answers)
        finally:
            reshard(model)
