"""A model's own answers: drawn once from one model, and how likely another makes them.

The drop of their log-probability tells where a prediction breaks. On 216 predictions of five runs of GRPO, of
which 55 were worse at the task than the last checkpoint, it told these apart better than the horizon or the
true error of the weights did (AUC .984, .852 and .935).

Imports torch and transformers inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.errors import EvaluationError
from hubextrap.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

FALL = 0.5
"""A prediction that gives the last checkpoint's own greedy answers so much less log-probability, in nats per
answer, was worse at the task than that checkpoint in all 36 cases seen of short answers. With long ones it
is not always."""
MAX_ANSWER_TOKENS = 512
BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class OwnAnswers:
    """Answers to prompts, as token ids; the i-th answer is to the i-th prompt."""

    prompts: tuple[str, ...]
    """As they were put; one that was answered several times is there as often."""
    answers: tuple[tuple[int, ...], ...]
    """With the token that ended an answer, where one did."""
    chat: bool = False
    """The prompts were put as a user's messages, in the tokenizer's chat template."""

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.answers):
            counts = f"{len(self.prompts)} prompts and {len(self.answers)} answers"
            raise EvaluationError(f"{counts}; give one answer per prompt")

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.answers))

    def only(self, keep: Sequence[bool]) -> OwnAnswers:
        """Those whose place is True in ``keep``."""
        kept = [pair for pair, stays in zip(self._pairs, keep, strict=True) if stays]
        return OwnAnswers(tuple(pair[0] for pair in kept), tuple(pair[1] for pair in kept), self.chat)

    def texts(self, tokenizer: Any) -> list[str]:
        """The answers as text, without special tokens."""
        return [tokenizer.decode(answer, skip_special_tokens=True) for answer in self.answers]

    @property
    def _pairs(self) -> zip[tuple[str, tuple[int, ...]]]:
        return zip(self.prompts, self.answers, strict=True)


def draw_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    samples: int | None = None,
    max_tokens: int = MAX_ANSWER_TOKENS,
    seed: int = 0,
    stops: Sequence[str] = (),
    chat: bool = False,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
) -> OwnAnswers:
    """Answers of a model to prompts: the same ones at each call, for the same model and settings.

    The model's mode, its generation settings and the random generators are as before afterwards.

    Args:
        samples: answers to each prompt, drawn at temperature 1 with nothing cut off, one after the other;
            None takes one greedy answer.
        max_tokens: of one answer, at most.
        stops: texts that end an answer, beside the tokens that the model and the tokenizer end texts with.
        chat: put each prompt into the tokenizer's chat template, as the user's message.
        advance: told how many answers came to be there.

    Raises:
        MissingExtra: torch or transformers cannot be imported.
        EvaluationError: a prompt has no tokens, or the model cannot answer.
        UnsupportedCheckpoint: there is no chat template that takes the prompts.
    """
    require("logits", "drawing answers")
    from hubextrap.logits.responses import Draw, draw_responses, encode_prompt, model_errors

    each = 1 if samples is None else samples
    asked = [prompt for prompt in prompts for _ in range(each)]
    how = Draw(max_tokens, _ends(model, tokenizer), tuple(stops), samples is None, seed, batch_size)
    with model_errors("the model cannot answer these prompts"), _Answering(model):
        encoded = [encode_prompt(tokenizer, prompt, chat=chat) for prompt in asked]
        drawn = draw_responses(model, tokenizer, encoded, how, advance or _unheard)
    return OwnAnswers(tuple(asked), tuple(entry.response for entry in drawn), chat)


def answer_logprobs(
    model: Any,
    tokenizer: Any,
    answers: OwnAnswers,
    *,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """The log-probability of each answer after its prompt under a model, in nats; the sum over its tokens.

    log-softmax is taken in float32. What is no number counts as −∞: a model that has broken.

    Raises:
        MissingExtra: torch or transformers cannot be imported.
        EvaluationError: there are no answers, or the model cannot score them.
    """
    require("logits", "scoring answers")
    from hubextrap.logits.responses import Encoded, encode_prompt, model_errors, score

    if not answers.answers:
        raise EvaluationError("there are no answers to score")
    with model_errors("the model cannot score these answers"), _Answering(model):
        encoded = [
            Encoded(encode_prompt(tokenizer, prompt, chat=answers.chat), answer)
            for prompt, answer in answers._pairs
        ]
        tokens = score(model, encoded, batch_size, advance or _unheard).astype(np.float64)
    ends = np.cumsum([len(answer) for answer in answers.answers])
    sums = np.array([part.sum() for part in np.split(tokens, ends[:-1])])
    return np.where(np.isnan(sums), -np.inf, sums)


def mean_logprob(
    model: Any,
    tokenizer: Any,
    answers: OwnAnswers,
    *,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
) -> float:
    """The mean over answers of `answer_logprobs`: nats per answer.

    Raises:
        MissingExtra, EvaluationError: as there.
    """
    found = answer_logprobs(model, tokenizer, answers, batch_size=batch_size, advance=advance)
    return float(found.mean())


class _Answering:
    """The model in eval mode, and as it was afterwards: one in training may be asked."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._training = [module for module in model.modules() if module.training]

    def __enter__(self) -> None:
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            module.training = True


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's own, and those of the model's generation settings."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    listed = own if isinstance(own, (list, tuple)) else [own]
    found = dict.fromkeys(end for end in (tokenizer.eos_token_id, *listed) if end is not None)
    return tuple(found)


def _unheard(count: int) -> None:
    """Nobody asked."""
