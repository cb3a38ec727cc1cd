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

from hubextrap.logits import ExtrapolatedForCausalLM

VOCABULARY = 61
PAD = 0
WINDOW = 4
COEFFICIENTS = (-0.75, 1.75)

_SMALL: dict[str, Any] = {
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
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_MAMBA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "expand": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **own: transformers.LlamaConfig(**_SMALL | own),
    "qwen2": lambda **own: transformers.Qwen2Config(**_SMALL | {"tie_word_embeddings": True} | own),
    "qwen3": lambda **own: transformers.Qwen3Config(**_SMALL | own),
    "mistral": lambda **own: transformers.MistralConfig(**_SMALL | {"sliding_window": WINDOW} | own),
    "gemma3": lambda **own: transformers.Gemma3TextConfig(
        **_SMALL | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]} | own
    ),
    "gpt2": lambda **own: transformers.GPT2Config(**_GPT2 | own),
    "mixtral": lambda **own: transformers.MixtralConfig(**_SMALL | {"num_local_experts": 4} | own),
    "mamba": lambda **own: transformers.MambaConfig(**_MAMBA | own),
}


def random_model(architecture: str, seed: int, **config: Any) -> Any:
    """A model in float32 with weights so large that the likeliest token is far from a tie."""
    classes: Any = transformers.AutoModelForCausalLM
    model = classes.from_config(CONFIGS[architecture](**config), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3, generator=generator)
    return model.eval()


@dataclass(frozen=True)
class Naive:
    """The definition, without any cache or padding: each sequence alone and whole at every step."""

    models: Sequence[Any]
    coefficients: Sequence[float]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 (…, positions, vocabulary) of unpadded tokens (…, positions)."""
        rows = tokens if tokens.ndim == 2 else tokens[None]
        with torch.no_grad():
            each = [model(rows, use_cache=False).logits.float() for model in self.models]
        mixed = torch.stack([c * one for c, one in zip(self.coefficients, each, strict=True)]).sum(0)
        return mixed if tokens.ndim == 2 else mixed[0]

    def generate(
        self, prompts: Sequence[Sequence[int]], count: int, seed: int | None = None
    ) -> list[list[int]]:
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
    """Two models of one architecture as a mixture (typed loosely, as transformers is), and its definition."""

    mixed: Any
    naive: Naive


@pytest.fixture(scope="session")
def pairs() -> Callable[[str], Pair]:
    """The pair of an architecture, made once."""
    made: dict[str, Pair] = {}

    def pair(architecture: str) -> Pair:
        if architecture not in made:
            models = [random_model(architecture, seed) for seed in (1, 2)]
            made[architecture] = Pair(
                ExtrapolatedForCausalLM(models, COEFFICIENTS), Naive(models, COEFFICIENTS)
            )
        return made[architecture]

    return pair


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make(architecture, seed, **config)``: a tiny random model."""
    return random_model


@pytest.fixture
def trajectory_c(demo_data: Path) -> Path:
    """Folder of the bundled checkpoints, step_0 … step_400."""
    return demo_data / "rlvr-C"


@pytest.fixture(scope="session")
def mixed_c() -> Any:
    """Steps 0 and 200 of the bundled run, mixed to step 300."""
    folder = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
    return ExtrapolatedForCausalLM.from_checkpoints(
        [str(folder / "step_0"), str(folder / "step_200")], [-0.5, 1.5]
    )
