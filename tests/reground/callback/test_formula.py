"""The weights that a jump lands on, held against the formula in float64 on a real training's snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hubextrap.methods import coefficients
from hubextrap.regrounding import ExtrapolationCallback

pytestmark = pytest.mark.slow

M, N = 4, 6


def float64(state: dict[str, torch.Tensor]) -> dict[str, NDArray[np.float64]]:
    return {name: tensor.double().numpy().ravel() for name, tensor in state.items()}


def motions(run: Any, until: int, m: int = M) -> dict[str, list[NDArray[np.float64]]]:
    """What training did in each window up to a step, by tensor."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for end in range(m, until + 1, m):
        start, last = float64(run.left.states[end - m]), float64(run.trained.states[end])
        for name in last:
            found.setdefault(name, []).append(last[name] - start[name])
    return found


def landing(
    rule: str, here: NDArray[np.float64], moved: list[NDArray[np.float64]], m: int = M
) -> NDArray[np.float64]:
    if rule == "two_point":
        return here + N / m * moved[-1]
    path = [here - sum(moved[index:]) for index in range(len(moved))] + [here]
    times = np.arange(-len(moved), 1) * float(m)
    if rule == "anchored":
        slope = (times[:, None] * (np.stack(path) - here)).sum(axis=0) / (times @ times)
        return here + N * slope
    deltas = np.stack(path) - path[0]
    steps = [int(step - times[0]) for step in times]
    row = coefficients("calibrated", steps, steps[-1] + N, gram_matrix=deltas @ deltas.T)
    return row @ np.stack(path)


@pytest.mark.parametrize(
    ("rule", "snapshots"),
    [("two_point", "cpu"), ("two_point", "disk"), ("anchored", "cpu"), ("calibrated", "cpu")],
)
def test_every_jump_lands_on_the_formula(build: Any, rule: str, snapshots: str) -> None:
    callback = ExtrapolationCallback(M, N, rule=rule, max_error=None, snapshots=snapshots)  # type: ignore[arg-type]
    run = build(callback).train()
    kept = {"two_point": 2, "anchored": 4, "calibrated": 6}[rule]
    jumps = [decision for decision in callback.decisions if decision.action == "jumped"]
    assert len(jumps) == (
        2 if rule == "calibrated" else 3
    )  # calibrated has no past at first; none at the end
    for decision in jumps:
        here, after = (float64(watch.states[decision.rl_steps]) for watch in (run.trained, run.left))
        for name, moved in motions(run, decision.rl_steps).items():
            expected = landing(rule, here[name], moved[-kept:])
            # float32: a rounding of the sum and of each product, in units of the terms
            scale = np.abs(here[name]) + 4 * sum(np.abs(motion) for motion in moved[-kept:])
            assert (np.abs(after[name] - expected) <= 2**-22 * scale + 1e-12).all(), name
            assert not np.array_equal(after[name], here[name]), name


def test_tied_weights_stay_tied_and_frozen_ones_stay(build: Any) -> None:
    run = build(ExtrapolationCallback(M, N, max_error=None))
    model = run.trainer.model
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = frozen.detach().clone()
    run.train()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(frozen, before)
    moved = (
        run.left.states[M]["model.embed_tokens.weight"],
        run.trained.states[M]["model.embed_tokens.weight"],
    )
    assert not torch.equal(*moved)


def test_a_bfloat16_model_is_rounded_once(build: Any, tiny: Any) -> None:
    run = build(ExtrapolationCallback(M, N, max_error=None), model=tiny().bfloat16()).train()
    here, after = float64(run.trained.states[M]), float64(run.left.states[M])
    for name, moved in motions(run, M).items():
        expected = torch.from_numpy(here[name] + N / M * moved[0])
        # the sum in float32 may fall on the other side of a tie, no further
        exact = expected.bfloat16().double().numpy()
        assert np.mean(after[name] == exact) > 0.999, name
        np.testing.assert_allclose(after[name], exact, rtol=2**-7, atol=1e-30)


def test_windows_count_optimizer_steps(build: Any) -> None:
    callback = ExtrapolationCallback(M, N, max_error=None)
    run = build(callback, gradient_accumulation_steps=3, max_steps=9).train()
    assert [(d.rl_steps, d.represented_steps, d.n_used) for d in callback.decisions] == [
        (4, 10, 6),
        (8, 20, 6),
    ]
    here, after = float64(run.trained.states[8]), float64(run.left.states[8])
    for name, moved in motions(run, 8).items():
        np.testing.assert_allclose(after[name], here[name] + N / M * moved[1], rtol=1e-5, atol=1e-7)


def test_moments_are_kept_or_begin_anew(build: Any) -> None:
    kept = build(ExtrapolationCallback(M, N, max_error=None), max_steps=5).train()
    reset = build(ExtrapolationCallback(M, N, max_error=None, moments="reset"), max_steps=5).train()
    steps = [{int(state["step"]) for state in run.trainer.optimizer.state.values()} for run in (kept, reset)]
    assert steps == [{5}, {1}]
    # Adam's first step is the gradient's sign times the learning rate
    start, after = reset.left.states[4], reset.final
    name = "model.layers.0.mlp.down_proj.weight"
    moved = (after[name] - start[name]).abs()
    assert moved.min() > 0.9 * moved.max()
    before = kept.left.states[4]
    assert (kept.final[name] - before[name]).abs().min() < 0.5 * (kept.final[name] - before[name]).abs().max()
