"""An adapter beside its base: which way each product lies there, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_runs import EXPERT_PARAMETERS, changes, write_adapter_run
from opened_adapters import open_adapters

from hubextrap.adapters.fitting import check_tied, fitted
from hubextrap.adapters.reading import Adapter, read_adapters, read_pair
from hubextrap.errors import CheckpointMismatch
from hubextrap.tensors import LocalSource, read_layout
from hubextrap.tensors.configuration import read_config

pytest.importorskip("peft")
SQUARE = {"hidden_size": 16, "intermediate_size": 16}
EXPERTS = {"architecture": "gpt_oss", "target_modules": [], "target_parameters": list(EXPERT_PARAMETERS)}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2 with a head, after which its configuration says that nothing is transposed": {
        "architecture": "gpt2",
        "target_modules": ["c_attn", "c_proj", "lm_head"],
        "model": {"tie_word_embeddings": False},
    },
    "transposed experts": EXPERTS,
    "transposed experts, one of them square": EXPERTS | {"model": SQUARE},
    "square transposed experts alone": EXPERTS
    | {"model": SQUARE, "target_parameters": ["experts.down_proj"]},
    "experts": EXPERTS | {"architecture": "mixtral"},
    "experts, square": EXPERTS | {"architecture": "mixtral", "model": SQUARE},
}


def beside_base(root: Path) -> Adapter:
    (adapter,) = read_adapters([LocalSource(root / "step_20")])
    base = LocalSource(root / "base")
    return fitted(adapter, read_layout(base), read_config(base))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_products_lie_as_in_the_base(tmp_path: Path, kind: str) -> None:
    root = write_adapter_run(tmp_path, [20], **KINDS[kind])
    pefts, source = changes(root, 20), LocalSource(root / "step_20")
    adapter = beside_base(root)
    assert adapter.factors.keys() == pefts.keys()
    for name, factors in adapter.factors.items():
        left, right = (part.astype(np.float64) for part in read_pair(source, factors))
        change = (factors.scaling * left @ right).reshape(factors.shape)
        np.testing.assert_allclose(change, pefts[name].numpy(), rtol=0, atol=1e-13, err_msg=name)
        assert adapter.deltas.tensors[name].shape == pefts[name].shape


@pytest.mark.slow
def test_a_run_turns_its_products_once_the_base_is_there(tmp_path: Path) -> None:
    run = open_adapters(write_adapter_run(tmp_path, [10, 20], **EXPERTS), [0, 10, 20])
    beside, pefts = run.beside_base, changes(tmp_path, 20)
    names = list(beside.layouts[-1].tensors)
    for name in names:
        (term,) = beside.terms(name, [1.0, 0.0, 1.0])
        product = term.scale * term.left.astype(np.float64) @ term.right
        np.testing.assert_allclose(product, pefts[name].numpy(), rtol=0, atol=1e-13, err_msg=name)
        assert [layout.tensors[name].shape for layout in beside.layouts] == [pefts[name].shape] * 3
    assert run.layouts[-1].tensors[names[0]].shape != pefts[names[0]].shape


@pytest.mark.slow
def test_a_base_that_is_another_is_refused(tmp_path: Path) -> None:
    root = write_adapter_run(tmp_path / "run", [20])
    (adapter,) = read_adapters([LocalSource(root / "step_20")])
    for said, architecture, model in (
        (
            r"'model\.layers\.0\.mlp\.down_proj\.weight' of shape .* has one of \[16, 32\]",
            "llama",
            {"intermediate_size": 32},
        ),
        ("which its base .* does not have", "gpt2", {}),
    ):
        other = (
            write_adapter_run(tmp_path / architecture, [], architecture=architecture, model=model) / "base"
        )
        with pytest.raises(CheckpointMismatch, match=said) as caught:
            fitted(adapter, read_layout(LocalSource(other)), {})
        assert caught.value.tensor in adapter.factors


TIED: dict[str, Any] = {"model": {"tie_word_embeddings": True}}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}])
def test_tied_embeddings_hold_no_change_of_one(tmp_path: Path, how: dict[str, Any]) -> None:
    adapter = beside_base(write_adapter_run(tmp_path, [20], **TIED, **how))
    base = read_layout(LocalSource(tmp_path / "base"))
    with pytest.raises(
        CheckpointMismatch, match=r"base .* are tied, .* \(as: adapter.* a copy whose"
    ) as caught:
        check_tied(adapter, base)
    assert caught.value.tensor == "model.embed_tokens.weight"


@pytest.mark.slow
@pytest.mark.parametrize("head", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_tied_head_is_not_in_the_base(tmp_path: Path, head: dict[str, Any]) -> None:
    root = write_adapter_run(tmp_path, [20], **TIED, **head)
    with pytest.raises(CheckpointMismatch, match=r"'lm_head\.weight'.* steps.min: 1 .* a copy whose"):
        beside_base(root)


@pytest.mark.slow
def test_a_resized_vocabulary_is_of_the_tied_tensor_itself(tmp_path: Path) -> None:
    saved = {"modules_to_save": ["embed_tokens"]}
    adapter = beside_base(write_adapter_run(tmp_path, [20], **TIED, **saved))
    base = read_layout(LocalSource(tmp_path / "base"))
    check_tied(replace(adapter, config=replace(adapter.config, modules_to_save=("tokens", "lm_head"))), base)
    with pytest.raises(CheckpointMismatch):
        check_tied(
            replace(adapter, config=replace(adapter.config, modules_to_save=("model.embed_tokens",))), base
        )


@pytest.mark.slow
def test_a_lora_bias_of_a_layer_without_one(tmp_path: Path) -> None:
    root = write_adapter_run(tmp_path, [20], lora_bias=True)
    with pytest.raises(CheckpointMismatch, match=r"_proj\.bias'.* peft cannot merge .*predict the adapter"):
        beside_base(root)
