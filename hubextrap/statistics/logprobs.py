"""Log-probabilities of fixed responses under every checkpoint, and how straight they run against the step.

A token counts when its log-probability at the last step differs from that at the first by more than
``MIN_CHANGE``, and R² is Pearson's, squared, against the step: the protocol of the released code of
arXiv 2601.04537. `logits.logprobs` measures them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.statistics.linearity import LINEAR, r_squared

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_CHANGE = 0.2
"""Change of a log-probability from the first to the last step below which a token is left out."""


@dataclass(frozen=True, slots=True)
class LogProbSource:
    """Where the responses came from."""

    prompts: str
    """Name of the file."""
    sha256: str
    """Of its content."""
    sampled_from: int | None
    """Step of the checkpoint that the responses were sampled from; None when the file held them."""
    max_new_tokens: int | None
    apply_chat_template: bool

    def __str__(self) -> str:
        drawn = "" if self.sampled_from is None else f", sampled from step {self.sampled_from}"
        most = "" if self.max_new_tokens is None else f", {self.max_new_tokens} tokens at most"
        chat = ", in the chat template" if self.apply_chat_template else ""
        return f"{self.prompts} with sha256 {self.sha256[:8]}…{drawn}{most}{chat}"


@dataclass(frozen=True, slots=True)
class LogProbs:
    """T response tokens under K checkpoints."""

    steps: tuple[int, ...]
    source: LogProbSource
    texts: tuple[str, ...]
    """T: each token as text."""
    responses: NDArray[np.int64]
    """(T,): which response it belongs to."""
    tokens: NDArray[np.int64]
    """(T,): token ids."""
    values: NDArray[np.float32]
    """(T, K): log-probability of the token, given the prompt and the response so far."""

    def moved(self) -> NDArray[np.bool_]:
        """(T,): which tokens the reference filter keeps."""
        return np.asarray(np.abs(self.values[:, -1] - self.values[:, 0]) > MIN_CHANGE)

    def r_squared(self) -> NDArray[np.float64]:
        """R² of each kept token against the step."""
        return r_squared(self.steps, self.values[self.moved()])

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        fits = self.r_squared()
        return {
            **asdict(self.source),
            "responses": int(self.responses.max(initial=-1)) + 1,
            "tokens": len(self.texts),
            "tokens_kept": len(fits),
            "median_r_squared": float(np.median(fits)) if len(fits) else None,
            "share_r_squared_above_0.7": float((fits > LINEAR).mean()) if len(fits) else None,
        }
