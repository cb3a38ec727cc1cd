"""Jumps that the model's own answers undo in a real training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llama import DEMO, tiny_llama
from transformers import AutoTokenizer

from hubextrap.errors import MethodError, UnsupportedCheckpoint
from hubextrap.regrounding import ExtrapolationCallback

M = 4
PROMPTS = ("1+2=", "3+4=")


def guarded(n: int, **options: Any) -> ExtrapolationCallback:
    own = {"own_answers": PROMPTS, "max_tokens": 5, "max_error": None}
    return ExtrapolationCallback(M, n, **{**own, **options})


@pytest.fixture
def train(build: Any) -> Any:
    """A run with dropout, so that it would show if the model answered in training mode."""

    def run(callback: ExtrapolationCallback | None, **options: Any) -> Any:
        model = tiny_llama(vocab_size=32, tie_word_embeddings=True, attention_dropout=0.1)
        return build(callback, model=model, tokenizer=AutoTokenizer.from_pretrained(DEMO), **options).train()

    return run


@pytest.mark.slow
def test_a_jump_that_breaks_the_answers_is_undone_to_the_bit(train: Any, assert_same: Any) -> None:
    """And drawing them leaves no trace: not in the weights, the mode, or what dropout draws next."""
    plain = train(None, out="plain")
    callback = guarded(4000)
    run = train(callback)
    assert [decision.action for decision in callback.decisions] == ["rolled_back"] * 3 + ["skipped"]
    assert [decision.n_wanted for decision in callback.decisions] == [4000, 2000, 1000, 500]
    assert_same(run.final, plain.final)
    first = callback.decisions[0]
    assert first.own_answers_before is not None
    assert first.own_answers_after is None or first.own_answers_before - first.own_answers_after >= 0.5
    assert "fallen by 0.5 or more; n 4000 → 2000" in first.reason
    assert run.trainer.model.training


@pytest.mark.slow
def test_a_jump_that_keeps_them_is_kept(train: Any, assert_same: Any) -> None:
    unguarded = train(ExtrapolationCallback(M, 1, max_error=None), out="unguarded")
    callback = guarded(1)
    run = train(callback)
    jumps = [decision for decision in callback.decisions if decision.action == "jumped"]
    assert len(jumps) == 3
    for decision in jumps:
        assert decision.own_answers_before is not None
        assert decision.own_answers_after is not None
        assert decision.own_answers_before - decision.own_answers_after < 0.5
        assert "not fallen by 0.5" in decision.reason
    assert_same(run.final, unguarded.final)


@pytest.mark.slow
def test_the_probe_and_the_answers_undo_each_for_itself(train: Any) -> None:
    values = iter([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    glad = guarded(4000, probe=lambda model: next(values), probe_margin=0.1, max_n=9000)
    train(glad)
    first = glad.decisions[0]
    assert (first.action, first.probe_before, first.probe_after) == ("rolled_back", 0.0, 1.0)
    assert glad.decisions[1].n_wanted == 2000
    falls = iter([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    sad = guarded(8, probe=lambda model: next(falls), probe_margin=0.1)
    train(sad, out="sad")
    assert sad.decisions[0].action == "rolled_back"
    assert "not fallen by 0.5" in sad.decisions[0].reason
    assert sad.decisions[1].n_wanted == 4


@pytest.mark.slow
def test_the_first_window_may_jump_as_something_judges_it(train: Any) -> None:
    callback = guarded(1, max_error=5.0)
    train(callback, max_steps=8)
    assert callback.decisions[0].action == "jumped"
    assert callback.decisions[0].reason.startswith(
        "the first window: only the probe or the own answers judge it"
    )


@pytest.mark.slow
def test_what_cannot_be_asked_is_said_before_training(build: Any, train: Any) -> None:
    with pytest.raises(MethodError, match="give it to the trainer as its processing_class"):
        build(guarded(4)).train()
    with pytest.raises(UnsupportedCheckpoint, match="no chat template"):
        train(guarded(4, apply_chat_template=True), out="chat")


def test_fsdp1_and_own_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from hubextrap.regrounding import training

    monkeypatch.setattr(training, "fsdp1_strategies", lambda model: {"FULL_SHARD"})
    with pytest.raises(MethodError, match="FSDP1"):
        training.refuse_what_cannot_be_served(None, torch.nn.Linear(1, 1), M, True)
