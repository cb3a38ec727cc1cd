"""However tokens are generated, they are those of the definition: no cache, no padding, a text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from hubextrap.logits.cache import CACHE

ARCHITECTURES = ("gemma3", "gpt2", "llama", "mistral", "qwen2", "qwen3")
PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17])
COUNT = 8
PairOf = Callable[[str], Any]


def left_padded(prompts: Sequence[Sequence[int]] = PROMPTS) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        ),
    }


def completions(model: Any, prompts: Sequence[Sequence[int]] = PROMPTS, **settings: Any) -> list[list[int]]:
    batch = left_padded(prompts)
    output = model.generate(**batch, **{"max_new_tokens": COUNT, "do_sample": False} | settings)
    return output[:, batch["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_teacher_forced_log_probabilities(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    tokens = torch.randint(1, 61, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = pair.naive.logits(tokens).log_softmax(-1)
    with torch.no_grad():
        output = pair.mixed(tokens)
    assert output.logits.dtype == torch.float32
    assert (output.logits.log_softmax(-1) - expected).abs().max() < 1e-4
    # left padding shifts nothing
    batch = left_padded([row.tolist()[:length] for row, length in zip(tokens, (12, 7), strict=True)])
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = pair.mixed(**batch, position_ids=positions).logits[1, -7:].log_softmax(-1)
    assert (padded - expected[1, :7]).abs().max() < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_with_left_padding(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    expected = pair.naive.generate(PROMPTS, COUNT)
    assert len({tuple(text) for text in expected}) == 3
    assert completions(pair.mixed) == expected
    assert completions(pair.mixed, cache_implementation="static") == expected
    assert completions(pair.mixed, use_cache=False) == expected


@pytest.mark.parametrize(
    "architecture",
    [
        "mixtral",
        pytest.param("mamba", marks=pytest.mark.skipif(CACHE != "cache", reason="refused before 5.24")),
    ],
)
def test_greedy_with_experts_or_a_recurrent_state(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    prompts = [PROMPTS[0], PROMPTS[0][::-1]]
    assert completions(pair.mixed, prompts) == pair.naive.generate(prompts, COUNT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_at_the_same_seed(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    expected = pair.naive.generate(PROMPTS, COUNT, seed=3)
    assert expected != pair.naive.generate(PROMPTS, COUNT)
    torch.manual_seed(3)
    assert completions(pair.mixed, do_sample=True, top_k=0) == expected


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])
def test_several_samples_of_a_prompt(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    expected = pair.naive.generate([prompt for prompt in PROMPTS for _ in range(3)], COUNT, seed=5)
    torch.manual_seed(5)
    assert completions(pair.mixed, do_sample=True, top_k=0, num_return_sequences=3) == expected


@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "llama"])
def test_beams(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    cached = completions(pair.mixed, num_beams=3, num_return_sequences=2)
    assert cached == completions(pair.mixed, num_beams=3, num_return_sequences=2, use_cache=False)
    assert cached == completions(
        pair.mixed, num_beams=3, num_return_sequences=2, cache_implementation="static"
    )
    # as many beams as there are tokens find the likeliest two tokens for certain
    (found,) = completions(pair.mixed, PROMPTS[:1], num_beams=61, max_new_tokens=2)
    prompt = torch.tensor(PROMPTS[0])
    first = pair.naive.logits(prompt)[-1].log_softmax(-1)
    second = pair.naive.logits(torch.stack([torch.cat([prompt, torch.tensor([one])]) for one in range(61)]))
    total = first[:, None] + second[:, -1].log_softmax(-1)
    best = max(product(range(61), repeat=2), key=lambda two: float(total[two]))
    assert tuple(found) == best


@pytest.mark.parametrize("architecture", ["mistral", "gpt2"])
def test_a_prompt_in_chunks_and_with_an_assistant(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    expected = pair.naive.generate(PROMPTS, COUNT)
    assert completions(pair.mixed, prefill_chunk_size=3) == expected
    assert completions(pair.mixed, PROMPTS[:1], assistant_model=pair.naive.models[1]) == expected[:1]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_conversation_goes_on_from_its_cache(pairs: PairOf, architecture: str) -> None:
    pair = pairs(architecture)
    prompt = torch.tensor([PROMPTS[0]])
    first = pair.mixed.generate(prompt, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, torch.tensor([[20, 21]])], dim=1)
    second = pair.mixed.generate(longer, max_new_tokens=4, do_sample=False, **{CACHE: first[CACHE]})
    assert second[0, longer.shape[1] :].tolist() == pair.naive.generate(longer.tolist(), 4)[0]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_same_as_classifier_free_guidance(pairs: PairOf, architecture: str) -> None:
    """transformers' processor has scale·(last − base) + base; it is right for one unpadded RoPE prompt."""
    pair = pairs(architecture)
    base, last = pair.naive.models
    prompt = torch.tensor([PROMPTS[0]])
    processor: Any = UnbatchedClassifierFreeGuidanceLogitsProcessor
    guidance = processor(
        1.75, base, unconditional_ids=prompt, unconditional_attention_mask=torch.ones_like(prompt)
    )
    settings = {
        "max_new_tokens": COUNT,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    guided = last.generate(prompt, logits_processor=[guidance], **settings)
    mixed = pair.mixed.generate(prompt, **settings)
    assert torch.equal(guided.sequences, mixed.sequences)
    for ours, theirs in zip(mixed.scores, guided.scores, strict=True):
        assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 1e-4


def test_a_repetition_penalty_applies_to_the_mixture(pairs: PairOf) -> None:
    """Once, to the mixed logits, as it would to those of one model."""
    pair = pairs("llama")
    text = list(PROMPTS[0])
    for _ in range(COUNT):
        logits = pair.naive.logits(torch.tensor(text))[-1]
        seen = torch.tensor(sorted(set(text)))
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.5, logits[seen] / 1.5)
        text.append(int(logits.argmax()))
    assert completions(pair.mixed, PROMPTS[:1], repetition_penalty=1.5) == [text[len(PROMPTS[0]) :]]
