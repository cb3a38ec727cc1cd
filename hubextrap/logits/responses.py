"""Responses as token ids, with one model: drawing them, and scoring fixed ones.

Imports torch and transformers inside functions.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.errors import EvaluationError, UnsupportedCheckpoint
from hubextrap.hub_access import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


LOGITS = 2**30
"""Bytes of float32 logits of one batch: every token has as many as the vocabulary."""

_LEAVE_OUT = "leave apply_chat_template (--apply-chat-template) out"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """How responses are drawn."""

    max_new_tokens: int
    ends: tuple[int, ...]
    """Tokens that end a response; the first of them is its last token."""
    stops: tuple[str, ...] = ()
    """Texts that end it too; the token that completes one is its last."""
    greedy: bool = False
    """The likeliest token, always; else at temperature 1, nothing cut off."""
    seed: int = 0
    """Of the draw; without effect on greedy ones."""
    batch_size: int = 8


def encode_prompt(tokenizer: Any, prompt: str, *, chat: bool = False) -> tuple[int, ...]:
    """The tokens of a prompt that a response is to follow.

    Args:
        chat: put it into the tokenizer's chat template, as the user's message.

    Raises:
        EvaluationError: it has no tokens.
        UnsupportedCheckpoint: there is no chat template that takes it.
    """
    if chat:
        context = tokenizer(as_chat(tokenizer, prompt), add_special_tokens=False).input_ids
    else:
        context = tokenizer(prompt).input_ids
        if context and context[-1] == tokenizer.eos_token_id:
            context = context[:-1]  # some tokenizers close every text; a response is to follow this one
    if not context:
        raise EvaluationError(f"the prompt {prompt!r} has no tokens")
    return tuple(context)


def as_chat(tokenizer: Any, prompt: str) -> str:
    """``prompt`` as a user's message in the tokenizer's chat template, up to where the answer begins.

    Raises:
        UnsupportedCheckpoint: it has no template, or one that cannot take such a message.
    """
    if tokenizer.chat_template is None:
        raise UnsupportedCheckpoint(f"the tokenizer has no chat template; {_LEAVE_OUT}")
    message = [{"role": "user", "content": prompt}]
    try:
        text: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program that came with the checkpoint
        raise UnsupportedCheckpoint(
            f"the tokenizer's chat template cannot take a user's message ({reason(error)}); {_LEAVE_OUT}"
        ) from error
    return text


def score(
    model: Any, encoded: Sequence[Encoded], batch_size: int, advance: Callable[[int], None]
) -> NDArray[np.float32]:
    """Log-probabilities of all response tokens, in their order, (T,) float32."""
    import torch

    results: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(encoded)
    most_tokens = LOGITS // (4 * model.config.get_text_config().vocab_size)
    for batch in _batches(encoded, batch_size, most_tokens):
        sequences = [encoded[i].prompt + encoded[i].response for i in batch]
        ids, mask = _padded(sequences, 0, "right")
        with torch.inference_mode():
            logits = model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
            ).logits
            for row, i in enumerate(batch):
                start, stop = len(encoded[i].prompt), len(sequences[row])
                scores = torch.log_softmax(logits[row, start - 1 : stop - 1].float(), dim=-1)
                chosen = ids[row, start:stop, None].to(scores.device)
                results[i] = scores.gather(1, chosen)[:, 0].cpu().numpy()
        advance(len(batch))
    return np.concatenate(results)


def draw_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    how: Draw,
    advance: Callable[[int], None],
) -> list[Encoded]:
    """One response to each prompt, from the model's own distribution; random generators stay as they were."""
    import torch

    pad = tokenizer.pad_token_id
    if pad is None:
        pad = how.ends[0] if how.ends else 0
    results = [Encoded(prompt, ()) for prompt in prompts]
    with _drawing(model, how, pad), torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(how.seed)
        for batch in _batches(results, how.batch_size):
            ids, mask = _padded([prompts[i] for i in batch], pad, "left")
            width = ids.shape[1]
            drawn = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=model.generation_config,
                stopping_criteria=_stopping(tokenizer, how.stops, width),
            )
            for row, i in enumerate(batch):
                response = _cut(tokenizer, drawn[row, width:].tolist(), how)
                results[i] = Encoded(prompts[i], tuple(response))
            advance(len(batch))
    return results


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors get through; everything is as before afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    """What goes wrong in models and tokenizers, on a device that cannot for one, as an error of ours."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise EvaluationError(f"{what}: {reason(error)}") from error


def _batches(
    encoded: Sequence[Encoded], batch_size: int, most_tokens: int | None = None
) -> Iterator[list[int]]:
    """Entries of similar length together.

    Args:
        most_tokens: of a batch, padding counted, unless one entry alone has more.
    """
    lengths = [len(one.prompt) + len(one.response) for one in encoded]
    batch: list[int] = []
    for i in sorted(range(len(encoded)), key=lengths.__getitem__):
        full = len(batch) == batch_size
        if batch and (full or (most_tokens is not None and (len(batch) + 1) * lengths[i] > most_tokens)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(sequences: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Any, Any]:
    """Token ids and mask, int64 (sequences, longest), with the padding on one ``side``."""
    import torch

    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence) if side == "left" else 0
        ids[row, start : start + len(sequence)] = torch.tensor(sequence)
        mask[row, start : start + len(sequence)] = 1
    return ids, mask


@contextmanager
def _drawing(model: Any, how: Draw, pad: int) -> Iterator[None]:
    """The model with nothing but ``how`` for its generation settings."""
    from transformers import GenerationConfig

    drawn: dict[str, Any] = {"do_sample": False}
    if not how.greedy:
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    before = model.generation_config
    # generate() fills what its configuration leaves open (beams, penalties, …) from the model's
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=how.max_new_tokens,
        bos_token_id=before.bos_token_id,
        eos_token_id=list(how.ends) or None,
        pad_token_id=pad,
        **drawn,
    )
    try:
        yield
    finally:
        model.generation_config = before


def _stopping(tokenizer: Any, stops: Sequence[str], width: int) -> list[Any]:
    """What tells generation which responses one of the texts has ended."""
    if not stops:
        return []
    import torch
    from transformers import StoppingCriteria

    class Stops(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            tails = tokenizer.batch_decode(input_ids[:, width:][:, -(max(map(len, stops)) + 8) :])
            ended = [any(stop in tail for stop in stops) for tail in tails]
            return torch.tensor(ended, device=input_ids.device)

    return [Stops()]


def _cut(tokenizer: Any, response: list[int], how: Draw) -> list[int]:
    """``response`` up to what ends it, that included."""
    if found := [response.index(end) for end in how.ends if end in response]:
        response = response[: min(found) + 1]
    if how.stops and any(stop in tokenizer.decode(response) for stop in how.stops):
        for length in range(1, len(response) + 1):
            text = tokenizer.decode(response[:length])
            if any(stop in text for stop in how.stops):
                return response[:length]
    return response
