"""A model's own answers, held to one sequence at a time without batches, padding or caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.own_answers import OwnAnswers, answer_logprobs, draw_answers, mean_logprob
from hubextrap.logits import load_tokenizer
from hubextrap.logits.loading import load_causal_lm
from hubextrap.trajectory import resolve_checkpoint

LONGEST = 8


@pytest.fixture(scope="module")
def asked() -> tuple[Any, Any, list[str]]:
    """The bundled run's step 200, its tokenizer, and problems of several lengths."""
    folder = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
    checkpoint = resolve_checkpoint(str(folder / "step_200"))
    lines = (folder / "problems.jsonl").read_text().splitlines()[:12]
    prompts = [json.loads(line)["question"] for line in lines] + ["1+9=", "7+15="]
    return load_causal_lm(checkpoint, dtype="float32"), load_tokenizer(checkpoint), prompts


def alone(model: Any, tokenizer: Any, prompt: str, count: int) -> tuple[int, ...]:
    """The greedy answer by the definition."""
    tokens: list[int] = tokenizer(prompt).input_ids
    start = len(tokens)
    for _ in range(count):
        with torch.no_grad():
            tokens = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return tuple(tokens[start:])


def scored(model: Any, tokenizer: Any, prompt: str, answer: tuple[int, ...]) -> float:
    context = tokenizer(prompt).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *answer]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(context) - 1 + place, token] for place, token in enumerate(answer)))


def test_greedy_answers_and_their_log_probabilities(asked: tuple[Any, Any, list[str]]) -> None:
    model, tokenizer, prompts = asked
    drawn = draw_answers(model, tokenizer, prompts, max_tokens=LONGEST, batch_size=5)
    assert drawn.prompts == tuple(prompts)
    assert drawn.answers == tuple(alone(model, tokenizer, prompt, LONGEST) for prompt in prompts)
    assert any(answer[-1] == tokenizer.eos_token_id for answer in drawn.answers)
    wanted = [scored(model, tokenizer, *pair) for pair in zip(drawn.prompts, drawn.answers, strict=True)]
    for batch_size in (1, 5):
        found = answer_logprobs(model, tokenizer, drawn, batch_size=batch_size)
        assert found == pytest.approx(wanted, abs=1e-4)  # float32 logits, summed in another order
    assert mean_logprob(model, tokenizer, drawn) == pytest.approx(np.mean(wanted), abs=1e-4)
    assert drawn.tokens == sum(map(len, drawn.answers))


def test_samples_are_the_same_each_time_and_leave_nothing_behind(
    asked: tuple[Any, Any, list[str]],
) -> None:
    model, tokenizer, prompts = asked
    model.train()
    before, settings = torch.random.get_rng_state(), model.generation_config
    first, again, other = (
        draw_answers(model, tokenizer, prompts[:4], samples=3, max_tokens=LONGEST, seed=seed)
        for seed in (5, 5, 6)
    )
    assert first == again != other
    assert first.prompts == tuple(prompt for prompt in prompts[:4] for _ in range(3))
    assert len(set(first.answers)) > 4, "samples of one prompt are alike"
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.generation_config is settings
    assert model.training
    model.eval()
    kept = first.only([True] + [False] * 11)
    assert kept == OwnAnswers(first.prompts[:1], first.answers[:1])


def test_what_ends_an_answer(asked: tuple[Any, Any, list[str]]) -> None:
    """A text, and tokens of the model's generation settings; their penalties do not count."""
    model, tokenizer, prompts = asked
    whole = draw_answers(model, tokenizer, prompts[:1], max_tokens=LONGEST)
    second = tokenizer.decode(whole.answers[0][1])
    first = tokenizer.decode(whole.answers[0][0])
    assert first != second
    stopped = draw_answers(model, tokenizer, prompts[:1], max_tokens=LONGEST, stops=[second])
    assert stopped.answers == (whole.answers[0][:2],)
    settings = model.generation_config
    model.generation_config = type(settings)(eos_token_id=[whole.answers[0][0]], repetition_penalty=9.0)
    try:
        ended = draw_answers(model, tokenizer, prompts[:1], max_tokens=LONGEST)
    finally:
        model.generation_config = settings
    assert ended.answers == (whole.answers[0][:1],)
    assert draw_answers(model, tokenizer, prompts[:1], max_tokens=1).answers == (whole.answers[0][:1],)


def test_a_model_that_has_broken_is_no_better_than_any(asked: tuple[Any, Any, list[str]]) -> None:
    model, tokenizer, prompts = asked
    drawn = draw_answers(model, tokenizer, prompts[:3], max_tokens=LONGEST)
    weight = model.model.norm.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        assert mean_logprob(model, tokenizer, drawn) == -np.inf
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_what_cannot_be_scored(asked: tuple[Any, Any, list[str]]) -> None:
    model, tokenizer, _ = asked
    with pytest.raises(EvaluationError, match="one answer per prompt"):
        OwnAnswers(("a",), ())
    with pytest.raises(EvaluationError, match="no answers to score"):
        mean_logprob(model, tokenizer, OwnAnswers((), ()))
    with pytest.raises(EvaluationError, match="the model cannot score these answers"):
        mean_logprob(model, tokenizer, OwnAnswers(("1+1=",), ((9999,),)))
