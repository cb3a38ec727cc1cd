"""What is read of an adapter is what peft makes of it; what cannot be read is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_runs import EXPERT_PARAMETERS, changes, without_warnings, write_adapter_run
from safetensors.numpy import load_file, save_file

from hubextrap.adapters.reading import Adapter, read_adapters, read_pair, read_whole
from hubextrap.errors import CheckpointMismatch, CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors import LocalSource, read_layout
from hubextrap.trajectory.weights import ADAPTER_FILE

pytest.importorskip("peft")
BIASED = {"attention_bias": True, "mlp_bias": True}
EXACT = {
    "plain": {},
    "gpt2": {"architecture": "gpt2"},
    "rslora": {"use_rslora": True, "lora_alpha": 5},
    "patterns": {
        "rank_pattern": {"self_attn.v_proj": 2, r"layers\.0.*q_proj": 3, "q_proj": 5},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7, "mlp.down_proj": 1},
    },
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {".*v_proj": 3},
    },
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "fp64": {"dtype": "float64"},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "norm", "embed_tokens"]},
    "all biases": {"bias": "all", "model": BIASED},
    "biases beside factors": {"bias": "lora_only", "model": BIASED},
    "biases of B": {"lora_bias": True, "model": BIASED},
    "gpt2, all biases, a saved norm": {"architecture": "gpt2", "bias": "all", "modules_to_save": ["ln_f"]},
    "a parameter": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "experts": {
        "architecture": "mixtral",
        "target_modules": ["q_proj"],
        "target_parameters": list(EXPERT_PARAMETERS),
    },
    "experts, ranks of their own": {
        "architecture": "mixtral",
        "target_parameters": list(EXPERT_PARAMETERS),
        "target_modules": [],
        "rank_pattern": {"experts.down_proj": 3, "gate_up_proj": 2},
        "alpha_pattern": {"experts.gate_up_proj": 5},
    },
    "one parameter of the experts, and the router": {
        "architecture": "mixtral",
        "target_modules": [],
        "target_parameters": ["experts.down_proj", "gate.weight"],
    },
}
"""What `write_adapter_run` is told, by what it shows."""


def read(root: Path, *steps: int) -> list[Adapter]:
    return read_adapters([LocalSource(root / f"step_{step}") for step in steps])


def changed(root: Path, step: int, adapter: Adapter, base: Path | None = None) -> dict[str, np.ndarray]:
    """The change of each tensor of the base, in float64, from what is read."""
    own = read_layout(LocalSource(base or root / "base")).tensors
    with (
        closing(LocalSource(root / f"step_{step}")) as source,
        closing(LocalSource(base or root / "base")) as there,
    ):
        found = {}
        for name, factors in adapter.factors.items():
            left, right = (part.astype(np.float64) for part in read_pair(source, factors))
            found[name] = (factors.scaling * left @ right).reshape(factors.shape)
        for name, info in adapter.whole.items():
            before = read_whole(there, own[name]).astype(np.float64)
            found[name] = read_whole(source, info).astype(np.float64) - before
        return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXACT)
def test_what_is_read_is_what_peft_merges(tmp_path: Path, kind: str) -> None:
    root = write_adapter_run(tmp_path, [20], **EXACT[kind])
    (adapter,) = read(root, 20)
    mica = kind == "mica"  # which peft does in float32 alone
    mine, pefts = changed(root, 20, adapter), changes(root, 20, "float32" if mica else "float64")
    tied = "gpt2" in kind and {"lm_head.weight"}  # the same tensor as the embedding
    assert mine.keys() == pefts.keys() - (tied or set())
    for name, change in mine.items():
        assert change.shape == tuple(pefts[name].shape), name
        np.testing.assert_allclose(
            change, pefts[name].numpy(), rtol=0, atol=1e-6 if mica else 1e-13, err_msg=name
        )
        info = adapter.deltas.tensors[name]
        assert info.shape == change.shape
        assert np.abs(change).max() > 1e-3


@pytest.mark.slow
def test_ranks_that_differ_between_checkpoints(tmp_path: Path) -> None:
    root = write_adapter_run(tmp_path, [0, 10, 20], rank={0: 4, 10: 2, 20: 6}, lora_alpha=3)
    adapters = read(root, 0, 10, 20)
    assert [{one.rank for one in adapter.factors.values()} for adapter in adapters] == [{4}, {2}, {6}]
    for step, adapter in zip((10, 20), adapters[1:], strict=True):
        for name, change in changed(root, step, adapter).items():
            np.testing.assert_allclose(change, changes(root, step)[name].numpy(), rtol=0, atol=1e-13)
    assert all(not change.any() for change in changed(root, 0, adapters[0]).values())
    assert all(adapter.config.starts_at_base for adapter in adapters)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter_run(tmp_path_factory.mktemp("run"), [10, 20], bias="lora_only", model=BIASED)


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A folder of its own with the run's steps."""
    for step in (10, 20):
        shutil.copytree(run / f"step_{step}", tmp_path / f"step_{step}")
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object], **config: Any) -> None:
    """Change step 20's tensors in place, and fields of its configuration."""
    place = folder / "step_20" / ADAPTER_FILE
    tensors = {name: array.copy() for name, array in load_file(place).items()}
    change(tensors)
    save_file(tensors, place)
    path = folder / "step_20" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


Q = "base_model.model.model.layers.0.self_attn.q_proj."
A, B = f"{Q}lora_A.weight", f"{Q}lora_B.weight"


def renamed(rename: Callable[[str], str]) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        named = {rename(name): array for name, array in tensors.items()}
        tensors.clear()
        tensors.update(named)

    return change


def with_name(name: str) -> str:
    """As in the state of the wrapped model."""
    for factor in ("lora_A", "lora_B"):
        name = name.replace(f".{factor}.", f".{factor}.default.")
    return name


@pytest.mark.parametrize(
    "rename",
    [
        with_name,
        lambda name: name.removeprefix("base_model.model."),
        lambda name: with_name(name).removeprefix("base_model.model."),
        lambda name: "_fsdp_wrapped_module." + name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda name: name.replace("model.model.", "model._orig_mod.model."),
    ],
)
def test_names_of_other_exporters(folder: Path, rename: Callable[[str], str]) -> None:
    before = changed_factors(read(folder, 20)[0])
    rewrite(folder, renamed(rename))
    (adapter,) = read(folder, 20)
    assert changed_factors(adapter) == before
    assert set(adapter.whole) == {f"model.layers.0.{module}.bias" for module in MODULES}


MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def changed_factors(adapter: Adapter) -> dict[str, tuple[int, float, tuple[int, ...]]]:
    return {name: (one.rank, one.scaling, one.shape) for name, one in adapter.factors.items()}


def put(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: np.zeros(shape, dtype)})


BROKEN: list[tuple[Callable[[dict[str, np.ndarray]], object], str, str]] = [
    (lambda tensors: tensors.pop(B), A, "is there without its lora_B"),
    (lambda tensors: tensors.pop(A), B, "is there without its lora_A"),
    (put(A, (0, 16)), A, "adapter of rank 0 changes nothing"),
    (put(B, (16, 0)), B, "adapter of rank 0 changes nothing"),
    (put(A, (0,)), A, "stage3_gather_16bit_weights_on_model_save"),
    (put(A, (3, 16)), A, "their ranks differ"),
    (put(A, (4, 16, 3, 3)), A, "has 4 axes; .* convolutions"),
    (put(A, (4, 16), "int32"), A, "is I32; only F64, F32, F16, BF16"),
    (
        lambda tensors: (put(A, (2, 16))(tensors), put(B, (16, 2))(tensors)),
        A,
        "has rank 2, and adapter_config.json gives its module 4",
    ),
    (put(f"{Q}lora_A.other.weight", (4, 16)), A, "are the same factor of one module"),
    (put(f"{Q}lora_magnitude_vector", (16,)), f"{Q}lora_magnitude_vector", "no plain LoRA"),
    (put(f"{Q}hada_w1_a", (16,)), f"{Q}hada_w1_a", "no plain LoRA"),
    (
        put(f"{Q}token_adapter.trainable_tokens_delta", (2, 16)),
        f"{Q}token_adapter.trainable_tokens_delta",
        "no plain LoRA",
    ),
    (
        put("base_model.model.attn.base_layer.out_proj.lora_A.weight", (4, 16)),
        "base_model.model.attn.base_layer.out_proj.lora_A.weight",
        "no plain LoRA",
    ),
    (
        put("base_model.model.lm_head.base_layer.weight", (4, 16)),
        "base_model.model.lm_head.base_layer.weight",
        "whose factors are not there",
    ),
    (put(f"{Q}base_layer.weight", (4, 16)), f"{Q}base_layer.weight", "has shape"),
    (put(f"{Q}weight", (16, 16)), f"{Q}weight", "is trained whole, and has factors too"),
    (put(f"{Q}lora_B.bias", (3,)), f"{Q}lora_B.bias", "has shape"),
    (put(f"{Q}{'x' * 300}.weight", (3,)), f"{Q}{'x' * 300}.weight", "from 1 to 256 characters"),
    (put(f"{Q}base_layer.lora_A.weight", (4, 16)), f"{Q}base_layer.lora_A.weight", "2 parameters"),
]


@pytest.mark.parametrize(("change", "tensor", "said"), BROKEN, ids=[said for _, _, said in BROKEN])
def test_tensors_that_make_no_sense(
    folder: Path, change: Callable[[dict[str, np.ndarray]], object], tensor: str, said: str
) -> None:
    rewrite(folder, change)
    with pytest.raises((CorruptFile, UnsupportedCheckpoint), match=said) as caught:
        read(folder, 10, 20)
    assert "\n" not in str(caught.value)
    assert f"{folder}/step_20/{ADAPTER_FILE}: " in str(caught.value)
    if "2 parameters" not in said:
        assert shorten(repr(tensor)) in str(caught.value)
        assert caught.value.tensor == tensor


def test_a_run_of_two_bases_is_refused(folder: Path) -> None:
    rewrite(folder, lambda _: None, base_model_name_or_path="org/other", revision="v2")
    with pytest.raises(
        CheckpointMismatch, match=r"step_10 is an adapter of '.*base', .*step_20 of 'org/other' at "
    ):
        read(folder, 10, 20)
    rewrite(folder, lambda _: None, base_model_name_or_path=None, revision=None)
    assert len(read(folder, 10, 20)) == 2


def test_a_run_of_other_target_modules_is_refused(folder: Path) -> None:
    rewrite(folder, renamed(lambda name: name.replace("q_proj", "k_proj")))
    with pytest.raises(
        CheckpointMismatch,
        match=r"step_10 changes 'model\.layers\.0\.self_attn\.q_proj\.weight'.*step_20 does not",
    ):
        read(folder, 10, 20)


def test_files_that_hold_no_adapter(folder: Path) -> None:
    place = folder / "step_20" / ADAPTER_FILE
    for name, said in (
        ("adapter_model-00001-of-00002.safetensors", "one of several files"),
        ("adapter_model.bin", "is a pickle"),
        ("other.safetensors", "no adapter_model.safetensors is there, only: .*other.safetensors"),
    ):
        place = place.rename(place.with_name(name))
        with pytest.raises(UnsupportedCheckpoint, match=said):
            read(folder, 10, 20)
    place.rename(place.with_name(ADAPTER_FILE)).write_bytes(b"\x00" * 40)
    with pytest.raises(HubExtrapError, match=f"step_20/{ADAPTER_FILE}: "):
        read(folder, 10, 20)


@pytest.mark.slow
def test_a_pickle_converted_as_the_error_says_is_read(run: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = run / "base"
    with without_warnings():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run / "step_20"))
        adapted.save_pretrained(str(tmp_path / "step_1"), safe_serialization=False)
        with pytest.raises(UnsupportedCheckpoint, match=r"save_pretrained\(other_folder\)"):
            read(tmp_path, 1)
        fresh = AutoModelForCausalLM.from_pretrained(base)
        PeftModel.from_pretrained(fresh, str(tmp_path / "step_1")).save_pretrained(str(tmp_path / "step_2"))
    np.testing.assert_equal(
        changed(tmp_path, 2, *read(tmp_path, 2), base=base), changed(run, 20, *read(run, 20))
    )
