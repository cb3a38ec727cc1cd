"""Jumps that are refused, undone, shortened and lengthened in a real training, and what is said of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hubextrap.regrounding import HISTORY_NAME, ExtrapolationCallback, read_history

pytestmark = pytest.mark.slow

M = 4
HELD_OUT = torch.tensor([[(5 * i + 3 * j * j) % 32 for j in range(8)] for i in range(50, 58)])


def score(model: Any) -> float:
    """Minus the loss on sequences that training does not see."""
    assert not model.training
    assert not torch.is_grad_enabled()
    return -float(model(input_ids=HELD_OUT, labels=HELD_OUT).loss)


def actions(callback: ExtrapolationCallback) -> list[str]:
    return [decision.action for decision in callback.decisions]


def test_a_harmful_n_is_undone_by_the_probe_to_the_bit(build: Any, assert_same: Any) -> None:
    plain = build(None, out="plain").train()
    callback = ExtrapolationCallback(M, 4000, max_error=None, probe=score, probe_margin=0.5)
    run = build(callback).train()
    assert actions(callback) == ["rolled_back"] * 3 + ["skipped"]
    assert [decision.n_wanted for decision in callback.decisions] == [4000, 2000, 1000, 500]
    assert all(decision.n_used == 0 for decision in callback.decisions)
    assert callback.clocks.represented_steps == callback.clocks.rl_steps == 16
    assert_same(run.final, plain.final)
    first = callback.decisions[0]
    assert first.probe_before is not None
    assert first.probe_after is not None
    assert first.probe_before - first.probe_after > 0.5
    assert "harm above the margin 0.5; n 4000 → 2000" in first.reason
    assert run.trainer.model.training


def test_a_harmful_n_is_refused_by_the_guard(
    build: Any, assert_same: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = build(None, out="plain").train()
    callback = ExtrapolationCallback(M, 4000)
    with caplog.at_level(logging.WARNING, "hubextrap.regrounding"):
        run = build(callback).train()
    assert actions(callback) == ["skipped"] * 4
    assert_same(run.final, plain.final)
    said = [record.getMessage() for record in caplog.records if record.name == "hubextrap.regrounding"]
    assert said[0] == "step 4: skipped: the first window: there is no earlier one to backtest on"
    assert said[1].startswith("step 8: skipped: n = 4000 is 500 times the 8 steps of training at hand")


def test_a_window_that_backtests_badly_is_not_jumped_from(build: Any) -> None:
    lenient, strict = (ExtrapolationCallback(M, 6, max_error=error) for error in (5.0, 0.01))
    build(lenient).train()
    build(strict).train()
    assert actions(lenient) == ["skipped", "jumped", "jumped", "skipped"]
    assert actions(strict) == ["skipped"] * 4
    second = strict.decisions[1]
    assert second.backtest_error is not None
    assert second.backtest_error > 0.01
    assert second.reason.endswith("above 0.01 (1 is standing still)")
    assert second.coefficients == {"*": (0.0, -1.5, 2.5)}


def test_a_jump_that_helps_is_kept_and_lengthened_up_to_the_cap(build: Any) -> None:
    seen = torch.stack([row["input_ids"] for row in build(None).trainer.train_dataset])
    callback = ExtrapolationCallback(
        M,
        2,
        max_error=None,
        probe=lambda model: -float(model(input_ids=seen, labels=seen).loss),
        probe_margin=1e-4,
        max_n=6,
    )
    build(callback).train()
    kept = [decision for decision in callback.decisions if decision.action == "jumped"]
    assert [decision.n_used for decision in kept] == [2, 4, 6]
    assert all(d.probe_after > d.probe_before for d in kept if d.probe_after and d.probe_before)
    assert callback.decisions[-1].represented_steps == 16 + 2 + 4 + 6


def test_a_probe_without_a_number_after_the_jump_undoes_it(build: Any) -> None:
    values = iter([0.5, float("nan")] * 3)
    callback = ExtrapolationCallback(M, 8, max_error=None, probe=lambda model: next(values), probe_margin=0.1)
    build(callback).train()
    assert actions(callback)[:3] == ["rolled_back"] * 3
    assert callback.decisions[0].probe_after is None


def test_the_last_step_is_trained_and_not_jumped(build: Any, assert_same: Any) -> None:
    callback = ExtrapolationCallback(M, 6, max_error=None)
    run = build(callback, max_steps=8).train()
    assert actions(callback) == ["jumped", "skipped"]
    assert callback.decisions[1].reason.startswith("training ends here")
    assert_same(run.trained.states[8], run.final)


def test_every_decision_is_in_file_and_logs(build: Any, tmp_path: Path) -> None:
    class Logger(TrainerCallback):  # type: ignore[misc]
        """Where the trainer's own loggers are: before all callbacks of the user."""

        def __init__(self) -> None:
            self.lines: list[dict[str, Any]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.lines.append({**logs, "step": state.global_step})

    logger = Logger()
    callback = ExtrapolationCallback(M, 6, max_error=5.0)
    run = build(callback, extra=(logger,), logging_strategy="steps", logging_steps=4).train()
    assert read_history(tmp_path / "run" / HISTORY_NAME) == callback.decisions
    ours = [line for line in logger.lines if "reground/n_used" in line]
    assert [(line["step"], line["reground/represented_steps"]) for line in ours] == [
        (4, 4),
        (8, 14),
        (12, 24),
        (16, 28),
    ]
    assert ours[1]["reground/expected_relative_error"] == callback.decisions[1].expected_relative_error
    losses = [line["step"] for line in logger.lines if "loss" in line]
    assert losses == [4, 8, 12, 16], "the trainer's own lines of the same steps are not lost"
    kept = [line for line in run.trainer.state.log_history if "reground/n_used" in line]
    assert [line["reground/reason"] for line in kept] == [
        f"{decision.action}: {decision.reason}" for decision in callback.decisions
    ]
    assert logger.lines[0] == {
        "reground/rl_steps": 0,
        "reground/represented_steps": 0,
        "epoch": 0,
        "step": 0,
    }
