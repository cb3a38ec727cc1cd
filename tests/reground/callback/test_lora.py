"""Jumps of a peft model: in its factors' products, held against float64 on a real training's snapshots."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from tiny_llama import tiny_llama

from hubextrap.methods import coefficients
from hubextrap.regrounding import ExtrapolationCallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's
]

M, N = 4, 6
ALPHA = 24
State = dict[str, torch.Tensor]
Matrix = NDArray[np.float64]


def lora(rank: int = 16, **options: Any) -> Any:
    """Of two projections; a rank of 16 is that of the matrices themselves, so that nothing is cut off."""
    wanted = {"target_modules": ["q_proj", "v_proj"], "lora_alpha": ALPHA, **options}
    return peft.get_peft_model(tiny_llama(vocab_size=32), peft.LoraConfig(r=rank, **wanted))


def factors(state: State) -> dict[str, tuple[Matrix, Matrix]]:
    """B and A of every module."""
    found = {}
    for name, tensor in state.items():
        for a, b in ((".lora_A.", ".lora_B."), (".lora_embedding_A.", ".lora_embedding_B.")):
            if a in name:
                found[name.split(a)[0]] = (
                    state[name.replace(a, b)].double().numpy(),
                    tensor.double().numpy(),
                )
    return found


def products(state: State) -> dict[str, Matrix]:
    return {module: b @ a for module, (b, a) in factors(state).items()}


def windows(run: Any, until: int, of: Callable[[State], dict[str, Matrix]]) -> dict[str, list[Matrix]]:
    """What training did in each window up to a step."""
    found: dict[str, list[Matrix]] = {}
    for end in range(M, until + 1, M):
        start, last = of(run.left.states[end - M]), of(run.trained.states[end])
        for name in last:
            found.setdefault(name, []).append(last[name] - start[name])
    return found


def landing(rule: str, here: Matrix, moved: list[Matrix]) -> Matrix:
    if rule == "two_point":
        return here + N / M * moved[-1]
    points = np.stack([here - sum(moved[index:]) for index in range(len(moved))] + [here])
    deltas = (points - points[0]).reshape(len(points), -1)
    steps = [M * index for index in range(len(points))]
    row = coefficients("calibrated", steps, steps[-1] + N, gram_matrix=deltas @ deltas.T)
    return np.asarray(np.tensordot(row, points, 1))


@pytest.mark.parametrize(
    ("rule", "snapshots"), [("two_point", "cpu"), ("calibrated", "cpu"), ("two_point", "disk")]
)
def test_products_land_on_the_formula_and_factors_do_not(build: Any, rule: str, snapshots: str) -> None:
    callback = ExtrapolationCallback(M, N, rule=rule, max_error=None, snapshots=snapshots)  # type: ignore[arg-type]
    run = build(callback, model=lora()).train()
    jumps = [decision for decision in callback.decisions if decision.action == "jumped"]
    assert len(jumps) == (2 if rule == "calibrated" else 3)
    for decision in jumps:
        assert decision.lost_energy is not None
        assert decision.lost_energy < 1e-20
        step = decision.rl_steps
        here, after = products(run.trained.states[step]), products(run.left.states[step])
        apart = factors(run.left.states[step])
        for module, moved in windows(run, step, products).items():
            expected = landing(rule, here[module], moved)
            # each factor is rounded to float32 once
            unit = np.abs(apart[module][0]) @ np.abs(apart[module][1])
            assert (np.abs(after[module] - expected) <= 2**-22 * unit).all(), module
            assert np.linalg.norm(expected - here[module]) > 0.05 * np.linalg.norm(here[module])
        if rule == "two_point":
            by_factor = {
                side: windows(
                    run, step, lambda state, side=side: {k: v[side] for k, v in factors(state).items()}
                )
                for side in (0, 1)
            }
            before = factors(run.trained.states[step])
            for module, product in after.items():
                b, a = (before[module][side] + N / M * by_factor[side][module][-1] for side in (0, 1))
                assert np.linalg.norm(b @ a - product) > 0.01 * np.linalg.norm(product - here[module])


def test_a_cut_to_the_rank_is_the_nearest_and_is_told(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    """So far a jump that rank 2 does not hold it."""
    callback = ExtrapolationCallback(M, 40, max_error=None)
    with caplog.at_level(logging.INFO, "hubextrap.regrounding"):
        run = build(callback, model=lora(2), max_steps=9, learning_rate=2e-2).train()
    warned = [record for record in caplog.records if "adapter's rank lost" in record.message]
    for decision in callback.decisions:
        step = decision.rl_steps
        here, after = products(run.trained.states[step]), products(run.left.states[step])
        lost, total = {}, 0.0
        for module, moved in windows(run, step, products).items():
            outer, values, inner = np.linalg.svd(here[module] + 40 / M * moved[-1])
            nearest = (outer[:, :2] * values[:2]) @ inner[:2]
            np.testing.assert_allclose(after[module], nearest, atol=1e-5 * values[0])
            lost[module], total = float(np.sum(values[2:] ** 2)), total + float(np.sum(values**2))
        assert decision.lost_energy == pytest.approx(sum(lost.values()) / total, rel=1e-6)
        assert (decision.lost_energy > 0.01) == ("adapter's rank lost" in decision.reason)
    told = [
        entry["reground/lost_energy"] for entry in run.trainer.state.log_history if "reground/n_used" in entry
    ]
    assert told == [decision.lost_energy for decision in callback.decisions]
    assert any(decision.lost_energy > 0.01 for decision in callback.decisions)
    assert [record.levelno for record in warned] == [logging.WARNING] * sum(
        decision.lost_energy > 0.01 for decision in callback.decisions
    )


def test_what_is_trained_beside_the_products_is_moved_as_it_is(build: Any) -> None:
    model = lora(
        target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"], lora_bias=False, bias="none"
    )
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    run = build(ExtrapolationCallback(M, N, max_error=None), model=model).train()
    here, after = run.trained.states[M], run.left.states[M]
    (head,) = (name for name in here if "lora" not in name)
    moved = here[head].double() - run.left.states[0][head].double()
    torch.testing.assert_close(
        after[head].double(), here[head].double() + N / M * moved, rtol=1e-6, atol=1e-8
    )
    found = windows(run, M, products)
    assert {module.split(".")[-1] for module in found} == {"q_proj", "embed_tokens"}
    for module, (motion,) in found.items():
        expected = products(here)[module] + N / M * motion
        np.testing.assert_allclose(products(after)[module], expected, atol=1e-6 * np.abs(expected).max())
    for name, parameter in model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name


def test_the_factors_stay_near_what_they_were(build: Any) -> None:
    """A, random from the start, hardly turns; so the learning rate suits the factors as it did."""
    run = build(ExtrapolationCallback(M, N, max_error=None), model=lora(4)).train()
    for step in (4, 8, 12):
        before, after = factors(run.trained.states[step]), factors(run.left.states[step])
        for module, (_, a) in before.items():
            assert np.linalg.norm(after[module][1] - a) < 0.1 * np.linalg.norm(a)


def test_moments_of_the_factors_begin_anew(build: Any) -> None:
    model = lora(modules_to_save=["lm_head"])
    run = build(ExtrapolationCallback(M, N, max_error=None), model=model, max_steps=5).train()
    steps = {
        name: int(run.trainer.optimizer.state[parameter]["step"])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert {step for name, step in steps.items() if "lora" in name} == {1}
    assert {step for name, step in steps.items() if "lora" not in name} == {5}


def test_a_jump_that_does_harm_is_undone_to_the_bit(build: Any, assert_same: Any) -> None:
    scores = iter([1.0, 0.0, 1.0, 1.0])
    callback = ExtrapolationCallback(M, N, max_error=None, probe=lambda model: next(scores), probe_margin=0.1)
    model = lora()
    run = build(callback, model=model, max_steps=9).train()
    assert [decision.action for decision in callback.decisions] == ["rolled_back", "jumped"]
    assert_same(run.trained.states[M], run.left.states[M])
    assert callback.decisions[0].lost_energy is not None


@pytest.mark.parametrize("step", [8, 10])
def test_resumed_equals_uninterrupted(build: Any, stop_at: Any, assert_same: Any, step: int) -> None:
    """Step 8 is saved right after a jump, while the optimizer has no state of the factors."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 14}
    whole = ExtrapolationCallback(M, N, max_error=None)
    expected = build(whole, model=lora(4), out="whole", **options).train()
    cut = ExtrapolationCallback(M, N, max_error=None)
    with pytest.raises(KeyboardInterrupt):
        build(cut, model=lora(4), out="cut", last=(stop_at(step),), **options).train()
    resumed = ExtrapolationCallback(M, N, max_error=None)
    run = build(resumed, model=lora(4), out="cut", **options).train(resume_from_checkpoint=True)
    assert_same(run.final, expected.final)
    assert resumed.decisions == whole.decisions
