"""LoRA's products in training, on factors made for it: inner products, new factors, refusals."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from tiny_llama import tiny_llama
from torch import nn

from hubextrap.errors import MethodError, NonFinite
from hubextrap.regrounding.parameters import gram_matrices, jump_to, local_tensors
from hubextrap.regrounding.peft_layers import factor_pairs
from hubextrap.regrounding.products import product_gram
from hubextrap.regrounding.ring import Layout, SnapshotRing

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STEPS = (0, 3, 6)


class Experts(nn.Module):
    """Matrices of three experts in one parameter, as mixtures have them, beside a projection and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(3, 6, 10))
        self.proj = nn.Linear(6, 5)
        self.table = nn.Embedding(9, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eio->bo", x, self.gate_up)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Experts()


def model_of(rank: int, **options: Any) -> Any:
    torch.manual_seed(0)
    wanted = {
        "target_modules": ["proj", "table"],
        "target_parameters": ["gate_up"],
        "lora_alpha": 6,
        **options,
    }
    return peft.get_peft_model(Layer(), peft.LoraConfig(r=rank, **wanted))


def walked(model: Any, still: bool = False) -> tuple[SnapshotRing, dict[str, NDArray[np.float64]]]:
    """Snapshots of a walk from step to step, and what peft says each step's products are: (K, …) each."""
    torch.manual_seed(1)
    tensors = local_tensors(model)
    ring = SnapshotRing({name: Layout.of(tensor) for name, tensor in tensors.items()})
    said: dict[str, list[NDArray[np.float64]]] = {}
    with torch.no_grad():
        for step in STEPS:
            for name, tensor in tensors.items():
                if not still or step == 0:
                    tensor.add_(torch.randn(tensor.shape), alpha=0.03 if "_A" in name else 0.1)
            ring.put(step, tensors)
            for name, delta in deltas(model).items():
                said.setdefault(name, []).append(delta)
    return ring, {name: np.stack(parts) for name, parts in said.items()}


def deltas(model: Any) -> dict[str, NDArray[np.float64]]:
    """By the tensor of the base, as peft computes them."""
    found = {}
    for place, module in copy.deepcopy(model).double().named_modules():
        if hasattr(module, "get_delta_weight"):
            name = place.removeprefix("base_model.model.").replace(".base_layer", "")
            name += f".{getattr(module, 'parameter_name', 'weight')}"
            found[name] = module.get_delta_weight("default").detach().numpy()
    return found


def test_inner_products_come_from_the_factors() -> None:
    model = model_of(2)
    pairs = factor_pairs(model)
    ring, said = walked(model)
    assert (
        {pair.name for pair in pairs} == said.keys() == {"mlp.gate_up", "mlp.proj.weight", "mlp.table.weight"}
    )
    for pair in pairs:
        moves = (said[pair.name] - said[pair.name][0]).reshape(len(STEPS), -1)
        gram = product_gram(ring, STEPS, pair, torch.device("cpu"))
        np.testing.assert_allclose(gram, moves @ moves.T, rtol=1e-9, atol=1e-12)


def test_what_stands_still_has_moved_by_exactly_nothing() -> None:
    model = model_of(2)
    pairs = factor_pairs(model)
    ring, _ = walked(model, still=True)
    tensors = local_tensors(model)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    assert not gram_matrices(ring, STEPS, dict.fromkeys(tensors, 1.0), tensors, pairs).any()
    assert jump_to(ring, STEPS, {"*": (-2.0, 1.0, 2.0)}, tensors, pairs) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_products_of_experts_and_tables_land_too() -> None:
    """Each is as wide as rank 6 or less, so that nothing is cut off."""
    model = model_of(6)
    ring, said = walked(model)
    cut = jump_to(ring, STEPS, {"*": (-1.0, -0.5, 2.5)}, local_tensors(model), factor_pairs(model))
    assert cut is not None
    assert cut.lost < 1e-20
    for name, delta in deltas(model).items():
        expected = np.tensordot(np.array([-1.0, -0.5, 2.5]), said[name], 1)
        np.testing.assert_allclose(delta, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kept", ["A", "B"])
def test_the_factor_that_begins_at_random_stays_and_no_jump_changes_none(kept: str) -> None:
    module = "proj" if kept == "A" else "table"
    model = model_of(2, target_modules=[module], target_parameters=None)
    (pair,) = factor_pairs(model)
    tensors = local_tensors(model)
    ring = SnapshotRing({name: Layout.of(tensor) for name, tensor in tensors.items()})
    torch.manual_seed(2)
    slow, fast = (pair.a, pair.b) if kept == "A" else (pair.b, pair.a)
    for name in (slow, fast):
        tensors[name].copy_(torch.randn(tensors[name].shape))
    ring.put(0, tensors)
    for name, size in ((slow, 1e-3), (fast, 0.3)):
        tensors[name].add_(torch.randn(tensors[name].shape), alpha=size)
    ring.put(3, tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    jump_to(ring, (0, 3), {"*": (0.0, 1.0)}, tensors, (pair,))
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)
    jump_to(ring, (0, 3), {"*": (-2.0, 3.0)}, tensors, (pair,))
    assert (tensors[slow] - before[slow]).norm() < 0.05 * before[slow].norm()
    assert (tensors[fast] - before[fast]).norm() > 0.3 * before[fast].norm()


def test_a_direction_without_energy_is_not_lost() -> None:
    """B of rank 1 beside A of rank 3: rows of A that no column of B meets go on as they are."""
    model = model_of(3, target_modules=["proj"], target_parameters=None)
    (pair,) = factor_pairs(model)
    tensors = local_tensors(model)
    ring = SnapshotRing({name: Layout.of(tensor) for name, tensor in tensors.items()})
    ring.put(0, tensors)
    tensors[pair.b].copy_(torch.outer(torch.arange(5.0), torch.tensor([1.0, -2.0, 0.5])))
    ring.put(3, tensors)
    jump_to(ring, (0, 3), {"*": (-2.0, 3.0)}, tensors, (pair,))
    values = torch.linalg.svdvals(tensors[pair.a])
    assert all(after > 0.3 * before for before, after in pairwise(values))
    torch.testing.assert_close(
        tensors[pair.b] @ tensors[pair.a],
        3.0 * ring.read(3, pair.b).view(5, 3) @ ring.read(3, pair.a).view(3, 6),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_factors_are_rounded_once_or_not_at_all(dtype: torch.dtype) -> None:
    model = model_of(6, target_modules=["proj"], target_parameters=None)
    (pair,) = factor_pairs(model)
    tensors = {name: tensor.to(dtype) for name, tensor in local_tensors(model).items()}
    ring = SnapshotRing({name: Layout.of(tensor) for name, tensor in tensors.items()})
    torch.manual_seed(1)
    for step in (0, 3):
        for name, tensor in tensors.items():
            tensor.add_(torch.randn(tensor.shape).to(dtype), alpha=0.03 if name == pair.a else 0.1)
        ring.put(step, tensors)
    first, last = (
        ring.read(step, pair.b).double().view(5, 6) @ ring.read(step, pair.a).double().view(6, 6)
        for step in (0, 3)
    )
    jump_to(ring, (0, 3), {"*": (-2.0, 3.0)}, tensors, (pair,))
    b, a = tensors[pair.b].double(), tensors[pair.a].double()
    bound = 1.01 * torch.finfo(dtype).eps * (b.abs() @ a.abs())
    assert ((b @ a - (3 * last - 2 * first)).abs() <= bound).all()
    if dtype == torch.float16:
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        ring.put(6, tensors)
        with pytest.raises(NonFinite, match="leaves the range of its dtype"):
            jump_to(ring, (0, 6), {"*": (-1e6, 1e6 + 1)}, tensors, (pair,))
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


OTHERS = [
    (peft.LoHaConfig(target_modules=["q_proj"]), "peft type LOHA"),
    (peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "peft type IA3"),
    (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "peft type PROMPT_TUNING"),
    (peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10), "peft type ADALORA"),
    (peft.LoraConfig(target_modules=["q_proj"], use_dora=True), "variant of LoRA, Dora"),
]


@pytest.mark.parametrize(("config", "reason"), OTHERS, ids=[reason.split()[-1] for _, reason in OTHERS])
def test_other_adapters_are_refused_by_name(config: Any, reason: str) -> None:
    with pytest.raises(MethodError, match=reason):
        factor_pairs(peft.get_peft_model(tiny_llama(), config))


def test_factors_that_are_no_matrices_are_refused() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3))
    with pytest.raises(MethodError, match="factors of a Conv1d are no matrices"):
        factor_pairs(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"])))


def test_factors_of_others_are_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_a, self.lora_b = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    with pytest.raises(MethodError, match=r"parameter '0.lora_a.weight' is part of an adapter"):
        factor_pairs(nn.Sequential(Own()))


def test_a_factor_that_is_shared_is_refused() -> None:
    model = model_of(2, target_modules=["proj"], target_parameters=None)
    other = model_of(2, target_modules=["proj"], target_parameters=None)
    other.base_model.model.mlp.proj.lora_A.default.weight = (
        model.base_model.model.mlp.proj.lora_A.default.weight
    )
    with pytest.raises(MethodError, match="shares a factor with"):
        factor_pairs(nn.ModuleList([model, other]))


def test_with_one_factor_frozen_the_other_is_an_ordinary_tensor() -> None:
    model = model_of(2, target_modules=["proj"], target_parameters=None)
    model.base_model.model.mlp.proj.lora_A.default.weight.requires_grad_(False)
    assert factor_pairs(model) == ()
    assert [name.split(".")[-3] for name in local_tensors(model)] == ["lora_B"]


def test_an_adapter_that_is_not_trained_does_not_count() -> None:
    model = model_of(2, target_modules=["proj"], target_parameters=None)
    model.add_adapter("reference", peft.LoraConfig(r=3, target_modules=["proj"], use_dora=True))
    (pair,) = factor_pairs(model)
    assert (pair.rank, ".default." in pair.a) == (2, True)


def test_a_whole_model_has_no_products() -> None:
    assert factor_pairs(tiny_llama()) == ()
