"""Pairs of tiny random models of several architectures, and a mixture without caches to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import softmax
from transformers import PreTrainedModel

from hubextrap.logits import ExtrapolatedForCausalLM

VOCABULARY = 61
PAD = 0
WINDOW = 4

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**_SMALL, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**_SMALL),
    "mistral": lambda: transformers.MistralConfig(**_SMALL, sliding_window=WINDOW),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_SMALL, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
    ),
}
ARCHITECTURES = sorted(CONFIGS)


def random_model(architecture: str, seed: int) -> PreTrainedModel:
    """A model with weights large enough that greedy choices are far from ties."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed + len(name)))
    return model.eval()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Naive:
    """The definition, without any cache: each sequence alone, unpadded, whole, at every step."""

    models: Sequence[PreTrainedModel]
    coefficients: Sequence[float]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 (positions, vocabulary) of one unpadded sequence."""
        with torch.no_grad():
            each = [model(tokens[None], use_cache=False).logits[0].float() for model in self.models]
        return sum(c * logits for c, logits in zip(self.coefficients, each, strict=True))  # type: ignore[return-value]

    def generate(self, prompts: Sequence[Sequence[int]], count: int, seed: int | None = None) -> list[list[int]]:
        """``count`` tokens after each prompt: greedy, or sampled in the order in which generate draws."""
        texts = [torch.tensor(prompt) for prompt in prompts]
        if seed is not None:
            torch.manual_seed(seed)
        for _ in range(count):
            last = torch.stack([self.logits(text)[-1] for text in texts])
            chosen = last.argmax(-1) if seed is None else torch.multinomial(softmax(last, -1), 1).squeeze(1)
            texts = [torch.cat([text, token[None]]) for text, token in zip(texts, chosen, strict=True)]
        return [text.tolist()[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


@dataclass(frozen=True)
class Pair:
    """Two models of one architecture, their mixture, and its definition."""

    mixed: ExtrapolatedForCausalLM
    naive: Naive


@pytest.fixture(scope="session")
def pairs() -> Callable[[str], Pair]:
    """Pairs with coefficients -0.75 and 1.75, each made once."""
    made: dict[str, Pair] = {}

    def pair(architecture: str) -> Pair:
        if architecture not in made:
            models = [random_model(architecture, seed) for seed in (1, 2)]
            coefficients = (-0.75, 1.75)
            made[architecture] = Pair(
                ExtrapolatedForCausalLM(models, coefficients), Naive(models, coefficients)
            )
        return made[architecture]

    return pair


def left_padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Prompts as one batch: ids and mask, (prompts, longest)."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        ),
    }


@pytest.fixture
def trajectory_c(demo_data: Path) -> Path:
    """Folder of the bundled checkpoints, step_0 … step_400."""
    return demo_data / "rlvr-C"
