"""Log-probabilities of fixed responses, measured under every checkpoint.

The protocol is that of the released code of arXiv 2601.04537: responses are teacher-forced through every
checkpoint, and log-softmax is taken in float32. Imports torch and transformers inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.adapters.base import Bases
from hubextrap.containment import read_named
from hubextrap.digests import sha256_hex
from hubextrap.errors import EvaluationError, ReferenceNotFound, wrong_argument
from hubextrap.extras import require
from hubextrap.foreign_data import parse_json
from hubextrap.logits.loading import Models, load_tokenizer
from hubextrap.logits.responses import (
    Draw,
    Encoded,
    draw_responses,
    encode_prompt,
    model_errors,
    quiet_transformers,
    score,
)
from hubextrap.progress import SilentProgress
from hubextrap.scans.logprobs import LogProbs, LogProbSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.progress import Progress
    from hubextrap.trajectory.checkpoint import Checkpoint, Trajectory

MAX_NEW_TOKENS = 512
FIELDS = (("prompt", "response"), ("question", "answer"))


@dataclass(frozen=True, slots=True)
class LogProbRequest:
    """What to measure, and how."""

    prompts: Path
    """A JSONL file; its name will do."""
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
        if not isinstance(self.prompts, (str, PathLike)):
            raise wrong_argument("prompts", "the path of a file", self.prompts)
        object.__setattr__(self, "prompts", Path(self.prompts))
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
            raise EvaluationError(f"{where}: {fields[0]} is not text", file=path)
        if responses and (not isinstance(response, str) or not response):
            raise EvaluationError(
                f"{where}: {fields[1]} is not text; add the responses, or let a checkpoint give "
                "them (--sample-from STEP)",
                file=path,
            )
        prompts.append(Prompt(prompt, response if responses else None))
    if not prompts:
        raise EvaluationError(f"{path}: holds no prompts", file=path)
    return prompts, sha256_hex(content)


def measure_logprobs(
    trajectory: Trajectory,
    request: LogProbRequest,
    progress: Progress | None = None,
    *,
    bases: Bases | None = None,
) -> LogProbs:
    """Teacher-force fixed responses through every checkpoint, one model in memory at a time; of a run of
    adapters the base, which is read once.

    The last checkpoint's tokenizer serves all. A response follows its prompt with nothing between and ends
    with the end-of-sequence token, if the tokenizer has one; both parts are tokenized by themselves. Models
    run in float32.

    Args:
        bases: what is known of the bases of adapters.

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
    with quiet_transformers(), model_errors("--logprobs: the models cannot score these responses"):
        bases = bases or Bases(trajectory.base_model)
        loading = Models(bases, dtype="float32", device=request.device)
        loading.bases.find(trajectory.checkpoints)
        tokenizer: Any = load_tokenizer(trajectory.last, bases=loading.bases)
        encoded = [_encode(tokenizer, prompt, request) for prompt in prompts]
        if sampler is not None:
            encoded = _sample(loading, sampler, tokenizer, encoded, request, progress)
        columns = []
        with progress.stage("log-probs", len(trajectory.checkpoints) * len(encoded), "responses") as stage:
            for checkpoint in trajectory.checkpoints:
                model = loading.load(checkpoint)
                columns.append(score(model, encoded, request.batch_size, stage.advance))
                if not np.isfinite(columns[-1]).all():
                    raise EvaluationError(
                        f"--logprobs: the checkpoint of step {checkpoint.step} gives some token of "
                        "the responses no finite log-probability; leave the checkpoint out, or use "
                        "other responses",
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


def _encode(tokenizer: Any, prompt: Prompt, request: LogProbRequest) -> Encoded:
    try:
        context = encode_prompt(tokenizer, prompt.prompt, chat=request.apply_chat_template)
    except EvaluationError as error:
        raise EvaluationError(f"{request.prompts}: {error}", file=request.prompts) from error
    response: list[int] = []
    if prompt.response is not None:
        response = tokenizer(prompt.response, add_special_tokens=False).input_ids
        if tokenizer.eos_token_id is not None:
            response = [*response, tokenizer.eos_token_id]
    return Encoded(context, tuple(response))


def _sample(
    loading: Models,
    checkpoint: Checkpoint,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    request: LogProbRequest,
    progress: Progress,
) -> list[Encoded]:
    """One response each, drawn from the checkpoint's own distribution."""
    model: Any = loading.load(checkpoint)
    end = tokenizer.eos_token_id
    how = Draw(request.max_new_tokens, () if end is None else (end,), batch_size=request.batch_size)
    with progress.stage(f"sample from step {checkpoint.step}", len(encoded), "responses") as stage:
        return draw_responses(model, tokenizer, [entry.prompt for entry in encoded], how, stage.advance)


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
