"""Where the learning rate changes, windows and jumps go by the rates of the optimizer's own updates."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hubextrap.claims import unsealed
from hubextrap.durable.atomic import write_sealed
from hubextrap.errors import CheckpointMismatch, MethodError
from hubextrap.methods import coefficients
from hubextrap.regrounding import HISTORY_NAME, ExtrapolationCallback, read_history
from hubextrap.regrounding.rates import Rates, rate_of, rate_of_update

M, N = 4, 6
KEPT = {"two_point": 2, "anchored": 4, "calibrated": 6}
WARM = {"lr_scheduler_type": "linear", "warmup_steps": 4}


class Applied(TrainerCallback):  # type: ignore[misc]
    """The rates as the optimizer's step finds them: what each update really used, and what comes next."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.next: dict[int, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.next[state.global_step] = max(group["lr"] for group in kwargs["optimizer"].param_groups)

    def sum_of(self, start: int, stop: int) -> float:
        return float(sum(max(rates) for rates in self.rates[start:stop]))


def trained(build: Any, callback: ExtrapolationCallback, **options: Any) -> tuple[Any, Applied]:
    applied = Applied()
    return build(callback, extra=(applied,), **options).train(), applied


def landing(rule: str, points: np.ndarray, times: list[float], ahead: float) -> np.ndarray:
    """Where the rule leads from (w + 1, size) points of training at these times."""
    here = points[-1]
    if rule == "two_point":
        return here + ahead / (times[-1] - times[-2]) * (here - points[-2])
    if rule == "anchored":
        way = np.array(times) - times[-1]
        return here + ahead * (way[:, None] * (points - here)).sum(axis=0) / (way @ way)
    deltas = points - points[0]
    row = coefficients("calibrated", times, times[-1] + ahead, gram_matrix=deltas @ deltas.T)
    return row @ points


@pytest.mark.slow
@pytest.mark.parametrize("rule", KEPT)
@pytest.mark.parametrize("schedule", [WARM, {"lr_scheduler_type": "cosine"}])
def test_every_jump_goes_along_the_rates_of_the_updates(
    build: Any, rule: Any, schedule: dict[str, Any]
) -> None:
    callback = ExtrapolationCallback(M, N, rule=rule, max_error=None)
    run, applied = trained(build, callback, **schedule)
    jumps = [decision for decision in callback.decisions if decision.action == "jumped"]
    assert len(jumps) >= 2
    for decision in jumps:
        assert decision.clock == "learning_rate"
        step = decision.rl_steps
        ends = range(max(M, step - M * (KEPT[rule] - 1)), step + 1, M)
        times = np.cumsum([0.0, *(applied.sum_of(end - M, end) for end in ends)]).tolist()
        here, after = run.trained.states[step], run.left.states[step]
        for name in here:
            moves = [
                (run.trained.states[end][name].double() - run.left.states[end - M][name].double()).numpy()
                for end in ends
            ]
            last = here[name].double().numpy()
            points = np.stack([last - sum(moves[index:]) for index in range(len(moves))] + [last])
            flat = points.reshape(len(points), -1)
            expected = landing(rule, flat, times, N * applied.next[step]).reshape(last.shape)
            np.testing.assert_allclose(after[name].double(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        WARM,  # the first update is made at a rate of 0
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 6},
    ],
    ids=lambda schedule: schedule["lr_scheduler_type"],
)
def test_full_rate_steps_are_those_of_the_updates(build: Any, tmp_path: Path, schedule: Any) -> None:
    callback = ExtrapolationCallback(M, N, max_error=None)
    _, applied = trained(build, callback, **schedule)
    passed = 0.0
    for decision in callback.decisions:
        step = decision.rl_steps
        passed += applied.sum_of(step - M, step) + decision.n_used * applied.next[step]
        seen = [max(rates) for rates in applied.rates[:step]]
        seen += [applied.next[d.rl_steps] for d in callback.decisions if d.rl_steps <= step and d.n_used]
        assert decision.full_rate_steps == pytest.approx(passed / max(seen), rel=1e-12)
    lines = [json.loads(line) for line in (tmp_path / "run" / HISTORY_NAME).read_text().splitlines()]
    assert [line["full_rate_steps"] for line in lines] == [d.full_rate_steps for d in callback.decisions]
    assert read_history(tmp_path / "run" / HISTORY_NAME) == callback.decisions
    jumped = next(line for line in lines if line["action"] == "jumped")
    assert jumped["clock"] == "learning_rate"
    assert "6 steps at the current learning rate are " in jumped["reason"]


@pytest.mark.slow
def test_auto_goes_by_steps_again_once_a_warm_up_is_over(build: Any) -> None:
    """Its windows kept are two: the warm-up's six updates are in the first two."""
    callback = ExtrapolationCallback(M, N, max_error=None)
    trained(build, callback, lr_scheduler_type="constant_with_warmup", warmup_steps=6, max_steps=24)
    clocks = [decision.clock for decision in callback.decisions]
    assert clocks == ["learning_rate"] * 3 + ["steps"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["two_point", pytest.param("calibrated", marks=pytest.mark.slow)])
def test_at_a_constant_rate_no_clock_makes_a_difference(build: Any, assert_same: Any, rule: Any) -> None:
    found = []
    for clock in ("steps", "auto", "learning_rate"):
        callback = ExtrapolationCallback(M, N, rule=rule, max_error=5.0, clock=clock)  # type: ignore[arg-type]
        run = build(callback, out=clock, max_steps=20).train()
        assert "jumped" in [decision.action for decision in callback.decisions]
        found.append((run.final, callback.decisions))
    (by_steps, decisions), *others = found
    for final, other in others:
        assert_same(by_steps, final)
        assert [(d.action, d.coefficients, d.backtest_error, d.expected_relative_error) for d in other] == [
            (d.action, d.coefficients, d.backtest_error, d.expected_relative_error) for d in decisions
        ]
    assert found[1][1] == decisions, "auto says that it went by steps"
    assert all(decision.full_rate_steps == decision.represented_steps for decision in decisions)


def test_steps_are_the_clock_where_they_are_asked_for(build: Any) -> None:
    callback = ExtrapolationCallback(M, N, max_error=None, clock="steps")
    trained(build, callback, **WARM)
    assert {decision.clock for decision in callback.decisions} == {"steps"}
    first = callback.decisions[0]
    assert first.coefficients == {"*": (-1.5, 2.5)}
    assert first.full_rate_steps is not None
    assert first.full_rate_steps < 4 + 6


def rates_by(*values: float) -> Any:
    """Optimizer and schedule of a model: the n-th update at 3e-3 times the n-th value, the last one stays."""

    def made(model: Any) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        scale = lambda step: values[min(step, len(values) - 1)]  # noqa: E731
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)

    return made


def test_no_jump_where_the_rate_is_0(build: Any, assert_same: Any, caplog: Any) -> None:
    """It is 0 from the ninth update on: at the end of the second window there is nothing to stand for."""
    callback = ExtrapolationCallback(M, N, max_error=None)
    run = build(callback)
    run.trainer.optimizer, run.trainer.lr_scheduler = rates_by(*[1.0] * 8, 0.0)(run.trainer.model)
    with caplog.at_level(logging.WARNING, "hubextrap.regrounding"):
        run.train()
    assert [decision.action for decision in callback.decisions] == ["jumped", "skipped", "skipped", "skipped"]
    assert (
        callback.decisions[1].reason == "the learning rate is 0 now, so a jump of 6 steps would move nothing"
    )
    assert callback.decisions[2].reason.startswith("the learning rate was 0 throughout the window")
    assert_same(run.trained.states[8], run.final)
    found = [decision.full_rate_steps for decision in callback.decisions]
    assert found == pytest.approx([10.0, 14.0, 14.0, 14.0])


@pytest.mark.slow
def test_a_window_at_a_rate_of_0_is_no_part_of_the_line(build: Any) -> None:
    """The rates begin with 0, and a window is one update long."""
    callback = ExtrapolationCallback(1, 2, max_error=None, rule="anchored")
    trained(build, callback, lr_scheduler_type="linear", warmup_steps=4, max_steps=8)
    first, second, third, *_ = callback.decisions
    assert first.reason.startswith("the learning rate was 0 throughout the window")
    assert (first.coefficients, first.full_rate_steps) == (None, 0.0)
    assert (second.action, second.snapshot_steps) == ("jumped", (1, 2))
    # 1/4 of the rate was trained at, two steps at 2/4 of it are ahead
    assert second.coefficients == {"*": (-4.0, 5.0)}
    assert third.action == "jumped"


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.0, 3e-3), pytest.param((3e-3, 3e-2), marks=pytest.mark.slow)])
def test_groups_at_rates_of_their_own_have_one_clock(build: Any, rates: tuple[float, float]) -> None:
    """One is ten times the other, or frozen."""
    found = []
    for groups in (rates, (3e-3, 3e-3)):
        callback = ExtrapolationCallback(M, N, max_error=None)
        run = build(callback)
        named = dict(run.trainer.model.named_parameters())
        norms = [parameter for name, parameter in named.items() if "norm" in name]
        others = [parameter for name, parameter in named.items() if "norm" not in name]
        optimizer = torch.optim.AdamW(
            [{"params": norms, "lr": groups[0]}, {"params": others, "lr": groups[1]}]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 16)
        run.trainer.optimizer, run.trainer.lr_scheduler = optimizer, schedule
        run.train()
        found.append([(d.action, d.clock, d.full_rate_steps) for d in callback.decisions])
    for one, other in zip(*found, strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-12)
    assert ("jumped", "learning_rate") in [one[:2] for one in found[0]]


OPTIONS: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 18, **WARM}


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, pytest.param(10, marks=pytest.mark.slow)])
def test_a_resumed_run_knows_what_time_it_is(
    build: Any, stop_at: Any, assert_same: Any, step: int, tmp_path: Path
) -> None:
    whole, cut, resumed = (ExtrapolationCallback(M, N, max_error=5.0) for _ in range(3))
    expected = build(whole, out="whole", **OPTIONS).train()
    assert "jumped" in [decision.action for decision in whole.decisions if decision.rl_steps > step]
    with pytest.raises(KeyboardInterrupt):
        build(cut, last=(stop_at(step),), out="cut", **OPTIONS).train()
    run = build(resumed, out="cut", **OPTIONS).train(resume_from_checkpoint=True)
    assert resumed.decisions == whole.decisions
    assert_same(run.final, expected.final)


def as_older(checkpoint: Path) -> None:
    """As a version wrote it that knew of no rates."""
    path = checkpoint / "reground" / "state.json"
    state = unsealed(json.loads(path.read_text()))
    for key in ("rates", "passed"):
        del state[key]
    del state["settings"]["clock"]
    for window in state["windows"]:
        del window["rates"]
    write_sealed(path, state, indent=1, remedy="")


@pytest.mark.slow
def test_a_checkpoint_of_an_older_version_goes_on_by_steps(build: Any, tmp_path: Path) -> None:
    options = OPTIONS | {"max_steps": 26}
    build(
        ExtrapolationCallback(M, N, max_error=5.0), **(options | {"max_steps": 10, "save_steps": 10})
    ).train()
    as_older(tmp_path / "run" / "checkpoint-10")
    resumed = ExtrapolationCallback(M, N, max_error=5.0)
    resume = {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-10")}
    build(resumed, **options).train(**resume)
    after = [decision for decision in resumed.decisions if decision.rl_steps > 10]
    # the window that it was in, and the one kept from before, until both are behind the line
    assert [decision.clock for decision in after] == ["steps", "steps", "learning_rate", "learning_rate"]
    assert {decision.full_rate_steps for decision in after} == {None}
    with pytest.raises(CheckpointMismatch, match="give clock='steps'"):
        build(ExtrapolationCallback(M, N, max_error=5.0, clock="learning_rate"), **options).train(**resume)


@pytest.mark.slow
def test_another_clock_is_refused_on_resuming(build: Any, tmp_path: Path) -> None:
    build(ExtrapolationCallback(M, N), max_steps=5, save_strategy="steps", save_steps=5).train()
    other = ExtrapolationCallback(M, N, clock="steps")
    with pytest.raises(CheckpointMismatch, match="saved with clock = 'auto', but the callback has 'steps'"):
        build(other).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))


def test_what_an_optimizer_says_of_its_rates() -> None:
    groups = [{"lr": 0.0}, {"lr": torch.tensor(0.5)}]
    assert rate_of(SimpleNamespace(param_groups=groups)) == 0.5
    assert rate_of_update(SimpleNamespace(param_groups=groups, step_was_skipped=True)) == 0.0
    for none in (None, SimpleNamespace(param_groups=[]), SimpleNamespace(param_groups=[{"lr": None}])):
        assert rate_of(none) is None
        assert rate_of_update(none) is None
    assert rate_of(SimpleNamespace(param_groups=[{"lr": float("nan")}])) is None


class OwnRates(torch.optim.Optimizer):
    """One that makes up its rates in every step, and says nothing of them."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {"lr": None})
        self.inner = inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step(closure)


@pytest.mark.slow
def test_an_optimizer_without_rates_goes_by_steps_or_is_refused(build: Any) -> None:
    for clock in ("auto", "learning_rate"):
        callback = ExtrapolationCallback(M, N, max_error=None, clock=clock)  # type: ignore[arg-type]
        run = build(callback)
        inner = torch.optim.SGD(run.trainer.model.parameters(), lr=1e-3)
        run.trainer.optimizer = OwnRates(inner)
        run.trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 1 - step / 16)
        if clock == "auto":
            run.train()
            assert {(d.clock, d.full_rate_steps) for d in callback.decisions} == {("steps", None)}
        else:
            with pytest.raises(MethodError, match=r"no learning rates of its own; choose steps"):
                run.train()


def test_rates_add_up_whatever_their_order() -> None:
    constant = Rates()
    for _ in range(20):
        constant = constant.plus(2e-6)
    assert not constant.changed
    assert constant.in_full_rate_steps == 20.0
    assert Rates().in_full_rate_steps == 0.0
    rising = Rates().plus(0.0).plus(1.0).plus(2.0, 3)
    assert (rising.steps, rising.total, rising.least, rising.largest) == (5, 7.0, 0.0, 2.0)
    assert rising.changed
    assert rising.in_full_rate_steps == 3.5
