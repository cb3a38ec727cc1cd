"""adapter_config.json: scalings as peft computes them, and what is refused for what reason."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from adapter_runs import without_warnings, write_adapter_run

from hubextrap.adapters.config import CONFIG_FILE, AdapterConfig, read_adapter_config
from hubextrap.adapters.reading import read_adapters
from hubextrap.errors import CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.tensors import LocalSource

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "q_proj", "model.my_q_proj")
PATTERNS = (
    "q_proj",
    "^model.layers.0.self_attn.q_proj",
    r".*\.q_proj",
    "0.self_attn.q_proj",
    "layers.1.*",
    "x|y_",
)


def config(folder: Path, content: Any) -> AdapterConfig:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / CONFIG_FILE).write_bytes(text)
    return read_adapter_config(LocalSource(folder))


@pytest.mark.parametrize("keys", list(itertools.permutations(PATTERNS, 2)))
def test_patterns_are_those_of_peft(tmp_path: Path, keys: tuple[str, ...]) -> None:
    get_pattern_key = pytest.importorskip("peft.utils.other").get_pattern_key
    ranks, alphas = {key: 2 + number for number, key in enumerate(keys)}, dict.fromkeys(keys[:1], 5)
    read = config(tmp_path, LORA | {"rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": True})
    for module in MODULES:
        rank = ranks.get(get_pattern_key(ranks.keys(), module), 8)
        alpha = alphas.get(get_pattern_key(alphas.keys(), module), 16)
        assert read.rank_of(module) == rank
        assert read.scaling_of(module) == alpha / rank**0.5


def test_what_is_left_out_is_what_peft_takes(tmp_path: Path) -> None:
    read = config(
        tmp_path, {"peft_type": "LORA", "use_rslora": None, "rank_pattern": None, "target_modules": None}
    )
    assert (read.rank, read.alpha, read.scaling_of("x")) == (8, 8, 1)
    assert (read.base, read.base_revision, read.transposed, read.starts_at_base) == (None, None, False, True)


@pytest.mark.parametrize(
    ("start", "at_base"),
    [(True, True), (False, False), ("gaussian", True), ("eva", True), ("orthogonal", False), ("mica", True)],
)
def test_whether_the_base_is_step_0(tmp_path: Path, start: object, at_base: bool) -> None:
    assert config(tmp_path, LORA | {"init_lora_weights": start}).starts_at_base is at_base


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "ADALORA"}, "'ADALORA'.*merge_and_unload"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'.*no run of them can be predicted"),
        ({"peft_type": None}, "names no peft_type"),
        ({"use_dora": True}, "use_dora: DoRA scales each row.*merge_and_unload"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens: .*no run of them can be predicted"),
        ({"use_qalora": True}, "use_qalora: "),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora: "),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        (
            {"init_lora_weights": "pissa_niter_16"},
            "changes the base.*path_initial_model_for_weight_conversion",
        ),
        ({"init_lora_weights": "OLoRA"}, "changes the base.*path_initial_model_for_weight_conversion"),
        (
            {"init_lora_weights": "loftq"},
            "changes the base.*the adapter is not of the base that it names; merge",
        ),
        ({"init_lora_weights": {}}, "changes the base"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=said) as caught:
        config(tmp_path, LORA | fields)
    assert caught.value.file == f"{tmp_path}/{CONFIG_FILE}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LORA | {"r": 0}, "r is 0: an adapter of rank 0 changes nothing"),
        (LORA | {"r": -1}, "r is -1: has to be from 1"),
        (LORA | {"r": True}, "r is True"),
        (LORA | {"r": 10**9}, "r is 1000000000"),
        (LORA | {"rank_pattern": {"q": "8"}}, r"rank_pattern\['q'\] is '8'"),
        (LORA | {"rank_pattern": ["q"]}, "rank_pattern does not map modules to numbers"),
        (LORA | {"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
        (LORA | {"use_rslora": "no"}, "use_rslora is 'no', not true or false"),
        (LORA | {"base_model_name_or_path": 3}, "base_model_name_or_path is 3, not a text"),
        (LORA | {"target_parameters": "experts.down_proj"}, "not a list of names"),
        (LORA | {"rank_pattern": {"(": 8}}, "is no regular expression"),
        ([1], "is not a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"r": 8, "r": 9}', "there twice"),
        (b'{"r": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "not valid JSON"),
        (b"[" + b" " * 17_000_000 + b"]", "not valid JSON .longer than"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(CorruptFile, match=said) as caught:
        config(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path}/{CONFIG_FILE}: ")
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="has an adapter's weights but no"):
        read_adapter_config(LocalSource(tmp_path))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)" * 40 + "b",
        "a?" * 100 + "b",
        "(a*)*b",
        ".*.*.*.*b",
        r"(a)\1",
        "(?:a|b)*c",
        "a{1,90}" * 9,
    ],
)
def test_patterns_that_could_take_for_ever_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="too involved a pattern"):
        config(tmp_path, LORA | {"alpha_pattern": {pattern: 8}})


@pytest.mark.parametrize(
    "pattern",
    [r"model\.layers\.(0|1|2|3)\.(self_attn|mlp)\.(q|k)_proj", r"layers\.\d+\.mlp", ".*a.*b", "(a|a)" * 9],
)
def test_patterns_that_are_taken_are_tried_in_no_time(tmp_path: Path, pattern: str) -> None:
    read = config(tmp_path, LORA | {"rank_pattern": {pattern: 4}})
    start = time.perf_counter()
    for name in ("a" * 256, "a." * 128, ".a" * 128, "a" * 255 + "c"):
        read.rank_of(name)
    assert time.perf_counter() - start < 2


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_of_another_base_saved_as_the_error_says_are_read(tmp_path: Path, start: str) -> None:
    """Both ways: as a plain LoRA, and merged."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    base = write_adapter_run(tmp_path, []) / "base"
    with without_warnings():
        model = AutoModelForCausalLM.from_pretrained(base)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(r=2, init_lora_weights=start, target_modules=["q_proj"])
        )
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(str(tmp_path / "first"))
        adapted.peft_config["default"].init_lora_weights = start
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter += 0.1
        adapted.save_pretrained(str(tmp_path / "trained"))
        with pytest.raises(HubExtrapError, match="path_initial_model_for_weight_conversion"):
            read_adapters([LocalSource(tmp_path / "trained")])
        adapted.save_pretrained(
            str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "first")
        )
        merged = [
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / folder))
            .merge_and_unload()
            .state_dict()["model.layers.0.self_attn.q_proj.weight"]
            for folder in ("plain", "trained")
        ]
    (adapter,) = read_adapters([LocalSource(tmp_path / "plain")])
    (factors,) = adapter.factors.values()
    assert (factors.rank, adapter.config.starts_at_base) == (4, True)
    assert torch.allclose(*merged, atol=1e-6)
    assert (merged[0] - before["model.layers.0.self_attn.q_proj.weight"]).abs().max() > 0.01
