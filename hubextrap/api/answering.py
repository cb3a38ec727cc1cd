"""The last checkpoint's answers, drawn once and kept, and what other models make of them, one at a time."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.base import Bases
from hubextrap.api.fingerprint import check_unchanged, with_bases
from hubextrap.digests import sha256_of_json
from hubextrap.evaluation.own_answers import OwnAnswers, mean_logprob
from hubextrap.logits import load_tokenizer
from hubextrap.logits.loading import Models

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubextrap.api.grid import Kept
    from hubextrap.evaluation.asking import Questions
    from hubextrap.logits import Mixture
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Checkpoint


@dataclass(frozen=True, slots=True)
class Scoring:
    """Where the models that answer run."""

    device: str = "auto"
    """``auto`` takes the first CUDA device where there is one; else as torch names it."""
    dtype: str = "auto"
    """``auto`` for each checkpoint's own, or as torch names it."""


@dataclass
class LastAnswers:
    """The answers of a run's last checkpoint to questions."""

    last: Checkpoint
    pin: str
    """What stands for it."""
    questions: Questions
    kept: Kept
    scoring: Scoring
    """With a device that is there."""
    progress: Progress
    samples: int | None = None
    """Answers to each prompt; None is one that is greedy."""
    seed: int = 0
    bases: Bases = field(default_factory=Bases)
    """What is known of the bases of adapters."""
    _before: weakref.ref[Any] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that the answers, and what is found with them, depend on beside the weights."""
        packages = [(name, version(name)) for name in ("hubextrap", "torch", "transformers")]
        how = [self.samples, self.seed, self.scoring.device, self.scoring.dtype]
        return with_bases(sha256_of_json([self.questions.fingerprint(), how, packages]), self.bases)

    @cached_property
    def _models(self) -> Models:
        return Models(self.bases, dtype=self.scoring.dtype, device=self.scoring.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The last checkpoint's."""
        return load_tokenizer(self.last, bases=self.bases)

    @property
    def count(self) -> int:
        """Answers that are drawn from one model."""
        return self.questions.count * (self.samples or 1)

    def draw(self) -> tuple[OwnAnswers, list[float] | None]:
        """All answers and, of samples, what each is worth; drawn unless they are kept.

        Raises:
            HubExtrapError: the model cannot be loaded, or cannot answer; a task cannot judge an answer.
        """
        key = sha256_of_json([self.fingerprint, self.pin, "answers"])
        found = self.kept.get(key)
        if found is None:
            with self.progress.stage("draw answers", self.count, "answers") as stage:
                model = self.load(self.last)
                drawn = self.drawn_from(model, stage.advance)
                del model
            grades = None if self.samples is None else self.questions.grades(drawn, self.tokenizer)
            found = {"answers": [list(answer) for answer in drawn.answers], "grades": grades}
            check_unchanged(self.last, self.pin)
            self.kept.put(key, found)
        each = range(self.samples or 1)
        prompts = tuple(prompt for part in self.questions.parts for prompt in part.prompts for _ in each)
        answers = tuple(map(tuple, found["answers"]))
        return OwnAnswers(prompts, answers, self.questions.chat), found["grades"]

    def drawn_from(self, model: Any, advance: Callable[[int], None] | None = None) -> OwnAnswers:
        """Another model's answers to the same questions."""
        return self.questions.draw(
            model, self.tokenizer, samples=self.samples, seed=self.seed, advance=advance
        )

    def logprob_under(
        self, model: Any, answers: OwnAnswers, advance: Callable[[int], None] | None = None
    ) -> float:
        """`mean_logprob` of answers under a model."""
        return mean_logprob(model, self.tokenizer, answers, advance=advance)

    def load(self, which: Checkpoint | Mixture) -> Any:
        """A model, once nothing of the one before it is held any more.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        import torch

        from hubextrap.logits import ExtrapolatedForCausalLM, Mixture

        if self._before is not None and self._before() is not None:
            gc.collect()  # it holds itself by a circle
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model: Any
        if isinstance(which, Mixture):
            self._models.release()  # a mixture holds a base of its own
            model = ExtrapolatedForCausalLM.from_mixture(
                which, dtype=self.scoring.dtype, device=self.scoring.device
            )
        else:
            model = self._models.load(which)
        self._before = weakref.ref(model)
        return model
