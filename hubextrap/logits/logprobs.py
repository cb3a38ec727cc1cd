"""Log-probabilities of fixed responses, measured under every checkpoint.

The protocol is that of the released code of arXiv 2601.04537: responses are teacher-forced through every
checkpoint, and log-softmax is taken in float32. Imports torch and transformers inside functions.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.containment import read_named
from hubextrap.digests import sha256_hex
from hubextrap.errors import EvaluationError, ReferenceNotFound, UnsupportedCheckpoint
from hubextrap.extras import require
from hubextrap.foreign_data import parse_json
from hubextrap.hub_access import reason
from hubextrap.logits.loading import load_causal_lm, load_tokenizer
from hubextrap.progress import SilentProgress
from hubextrap.scans.logprobs import LogProbs, LogProbSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Checkpoint, Trajectory

MAX_NEW_TOKENS = 512
FIELDS = (("prompt", "response"), ("question", "answer"))


@dataclass(frozen=True, slots=True)
class LogProbRequest:
    """What to measure, and how."""

    prompts: Path
    """A JSONL file."""
    sample_from: int | None = None
    """Step of the checkpoint that gives the responses (temperature 1, nothing cut off, a fixed seed); None
    takes them from the file."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Length of a sampled response at most."""
    apply_chat_template: bool = False
    """Put each prompt into the tokenizer's chat template as the user's message."""
    batch_size: int = 8
    """Responses at a time."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.sample_from is None and self.max_new_tokens != MAX_NEW_TOKENS:
            raise EvaluationError(
                "max_new_tokens has no effect without sample_from: the file holds the responses"
            )

    def source(self) -> LogProbSource:
        """What a scan's file says of it.

        Raises:
            ReferenceNotFound, EvaluationError: the file does not serve.
        """
        sampled = self.sample_from is not None
        return LogProbSource(
            self.prompts.name,
            read_prompts(self.prompts, responses=not sampled)[1],
            self.sample_from,
            self.max_new_tokens if sampled else None,
            self.apply_chat_template,
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompts file."""

    prompt: str
    response: str | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def read_prompts(path: Path, *, responses: bool) -> tuple[list[Prompt], str]:
    """Prompts of a JSONL file with ``prompt`` and ``response``, or ``question`` and ``answer``; its sha256.

    Args:
        responses: whether each line has to hold a response.

    Raises:
        ReferenceNotFound: no such file.
        EvaluationError: a line that holds something else; names it.
    """
    try:
        content = read_named(path)
    except FileNotFoundError:
        raise ReferenceNotFound(f"--logprobs: no such file: {path}", file=path) from None
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}", file=path) from error
    prompts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = parse_json(line, where, error=EvaluationError, remedy="write one object per line")
        fields = next((pair for pair in FIELDS if isinstance(entry, dict) and pair[0] in entry), None)
        if fields is None:
            what = f"{where}: holds neither prompt and response nor question and answer"
            raise EvaluationError(what, file=path)
        prompt, response = entry[fields[0]], entry.get(fields[1])
        if not isinstance(prompt, str) or not prompt:
            raise EvaluationError(f"{where}: {fields[0]} is no text", file=path)
        if responses and (not isinstance(response, str) or not response):
            raise EvaluationError(
                f"{where}: {fields[1]} is no text; add the responses, or let a checkpoint give them "
                "(--sample-from STEP)",
                file=path,
            )
        prompts.append(Prompt(prompt, response if responses else None))
    if not prompts:
        raise EvaluationError(f"{path}: holds no prompts", file=path)
    return prompts, sha256_hex(content)


def measure_logprobs(
    trajectory: Trajectory, request: LogProbRequest, progress: Progress | None = None
) -> LogProbs:
    """Teacher-force fixed responses through every checkpoint, one model in memory at a time.

    The last checkpoint's tokenizer serves all. A response follows its prompt with nothing between and ends
    with the end-of-sequence token, if the tokenizer has one; both parts are tokenized by themselves. Models
    run in float32.

    Raises:
        ReferenceNotFound, EvaluationError: the file or the step does not serve, or a model cannot score it.
        MissingExtra: torch or transformers cannot be imported.
        UnsupportedCheckpoint: a model, or the tokenizer, cannot be loaded.
    """
    progress = progress or SilentProgress()
    source = request.source()
    prompts, _ = read_prompts(request.prompts, responses=request.sample_from is None)
    sampler = None if request.sample_from is None else checkpoint_at(trajectory, request.sample_from)
    require("logits", "--logprobs")
    with _quiet_transformers(), _model_errors():
        tokenizer: Any = load_tokenizer(trajectory.last)
        encoded = [_encode(tokenizer, prompt, request) for prompt in prompts]
        if sampler is not None:
            encoded = _sample(sampler, tokenizer, encoded, request, progress)
        columns = []
        with progress.stage("log-probs", len(trajectory.checkpoints) * len(encoded), "responses") as stage:
            for checkpoint in trajectory.checkpoints:
                model = load_causal_lm(checkpoint, dtype="float32", device=request.device)
                columns.append(score(model, encoded, request.batch_size, stage.advance))
                if not np.isfinite(columns[-1]).all():
                    raise EvaluationError(
                        f"--logprobs: the checkpoint of step {checkpoint.step} gives some token of the "
                        "responses no finite log-probability; leave it out, or take other responses",
                        step=checkpoint.step,
                    )
                del model  # before the next one is loaded
    tokens = [token for entry in encoded for token in entry.response]
    return LogProbs(
        trajectory.steps,
        source,
        tuple(tokenizer.decode([token]) for token in tokens),
        np.repeat(np.arange(len(encoded)), [len(entry.response) for entry in encoded]).astype(np.int64),
        np.asarray(tokens, dtype=np.int64),
        np.stack(columns, axis=1),
    )


def score(
    model: Any, encoded: Sequence[Encoded], batch_size: int, advance: Callable[[int], None]
) -> NDArray[np.float32]:
    """Log-probabilities of all response tokens, in their order, (T,) float32."""
    import torch

    results: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(encoded)
    for batch in _batches(encoded, batch_size):
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


def _batches(encoded: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Entries of similar length together."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].prompt) + len(encoded[i].response))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


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


def _encode(tokenizer: Any, prompt: Prompt, request: LogProbRequest) -> Encoded:
    if request.apply_chat_template:
        context = tokenizer(as_chat(tokenizer, prompt.prompt), add_special_tokens=False).input_ids
    else:
        context = tokenizer(prompt.prompt).input_ids
        if context and context[-1] == tokenizer.eos_token_id:
            context = context[:-1]  # some tokenizers close every text; a response is to follow this one
    if not context:
        raise EvaluationError(f"{request.prompts}: the prompt {prompt.prompt!r} has no tokens")
    response: list[int] = []
    if prompt.response is not None:
        response = tokenizer(prompt.response, add_special_tokens=False).input_ids
        if tokenizer.eos_token_id is not None:
            response = [*response, tokenizer.eos_token_id]
    return Encoded(tuple(context), tuple(response))


def as_chat(tokenizer: Any, prompt: str) -> str:
    """``prompt`` as a user's message in the tokenizer's chat template, up to where the answer begins.

    Raises:
        UnsupportedCheckpoint: it has no template, or one that cannot take such a message.
    """
    if tokenizer.chat_template is None:
        raise UnsupportedCheckpoint("the tokenizer has no chat template; leave --apply-chat-template out")
    message = [{"role": "user", "content": prompt}]
    try:
        text: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program that came with the checkpoint
        raise UnsupportedCheckpoint(
            f"the tokenizer's chat template cannot take a user's message ({reason(error)}); leave "
            "--apply-chat-template out"
        ) from error
    return text


def _sample(
    checkpoint: Checkpoint,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    request: LogProbRequest,
    progress: Progress,
) -> list[Encoded]:
    """One response each, drawn from the checkpoint's own distribution."""
    import torch

    model: Any = load_causal_lm(checkpoint, dtype="float32", device=request.device)
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end or 0
    results = list(encoded)
    with (
        progress.stage(f"sample from step {checkpoint.step}", len(encoded), "responses") as stage,
        torch.random.fork_rng(),
        torch.inference_mode(),
    ):
        torch.manual_seed(0)
        for batch in _batches(encoded, request.batch_size):
            ids, mask = _padded([encoded[i].prompt for i in batch], pad, "left")
            drawn = model.generate(
                input_ids=ids.to(request.device),
                attention_mask=mask.to(request.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=request.max_new_tokens,
                eos_token_id=end,
                pad_token_id=pad,
            )
            for row, i in enumerate(batch):
                response = drawn[row, ids.shape[1] :].tolist()
                if end in response:
                    response = response[: response.index(end) + 1]
                results[i] = Encoded(encoded[i].prompt, tuple(response))
            stage.advance(len(batch))
    return results


def checkpoint_at(trajectory: Trajectory, step: int) -> Checkpoint:
    """The checkpoint to sample from.

    Raises:
        EvaluationError: there is none at this step.
    """
    for checkpoint in trajectory.checkpoints:
        if checkpoint.step == step:
            return checkpoint
    steps = ", ".join(map(str, trajectory.steps))
    raise EvaluationError(f"--sample-from {step}: no such step; choose one of {steps}", step=step)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Only errors get through; everything is as before afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _model_errors() -> Iterator[None]:
    """What goes wrong in models and tokenizers, on a device that cannot for one, as an error of ours."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise EvaluationError(
            f"--logprobs: the models cannot score these responses: {reason(error)}"
        ) from error
