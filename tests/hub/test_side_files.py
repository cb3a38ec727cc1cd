from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hubextrap.errors import CorruptFile
from hubextrap.hub.side_files import is_side_file, is_weight_file, side_files, with_dtype
from hubextrap.tensors import LocalSource

KEPT = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "qwen.tiktoken",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "LICENSE", "LICENSE.txt", "NOTICE",
]  # fmt: skip
LEFT = [
    "README.md", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "optimizer.pt",
    "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json", "training_args.bin",
    "tokenizer.pt", "tokenizer.bin", ".gitattributes", "hubextrap.json", "train.log", "modeling_x.py",
    "vocab.pkl",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*KEPT, *LEFT]:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tokenizer.json").write_text("{}")
    return tmp_path


def test_which_files_are_taken(folder: Path) -> None:
    files = side_files(LocalSource(folder), None)
    assert sorted(files) == sorted(KEPT)
    assert files["merges.txt"] == b"merges.txt"


def test_code_only_where_a_configuration_needs_it(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}')
    assert sorted(side_files(LocalSource(folder), None)) == sorted([*KEPT, "modeling_x.py"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no config.json; a model cannot be loaded without one"),
        (b"{", "config.json is not valid JSON"),
        (b"\xff", "config.json is not valid JSON"),
        (b"[]", "config.json holds no JSON object"),
    ],
)
def test_a_configuration_that_cannot_be_used(folder: Path, content: bytes | None, said: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(CorruptFile) as error:
        side_files(LocalSource(folder, "me/x@step_1"), "bfloat16")
    assert str(error.value).startswith(f"me/x@step_1: {said}")


def test_only_the_dtype_changes() -> None:
    config = (
        b'{\n  "dtype" : "float32",\n "b":  1, "a": "\xc3\xa9",\n "t": {"torch_dtype": "torch.float16"}}\n'
    )
    changed = with_dtype(config, "bfloat16")
    assert changed == config.replace(b"float32", b"bfloat16").replace(b"torch.float16", b"torch.bfloat16")
    assert with_dtype(changed, "bfloat16") == changed
    assert (
        with_dtype(b'{"dtype": null, "my_dtype": "float32"}', "bfloat16")
        == b'{"dtype": null, "my_dtype": "float32"}'
    )


def test_the_configuration_of_a_real_model(models: Callable[..., Path]) -> None:
    files = side_files(LocalSource(models(1)), "bfloat16")
    before = json.loads((models(1) / "config.json").read_bytes())
    assert before["dtype"] == "float32"
    assert json.loads(files["config.json"]) == before | {"dtype": "bfloat16"}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)


def test_weight_files() -> None:
    for file in ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        assert is_weight_file(file)
        assert not is_weight_file(f"step_100/{file}")
    assert is_weight_file("pytorch_model-00001-of-00002.bin")
    assert not any(is_weight_file(file) for file in KEPT)
    assert not is_side_file("step_100/config.json")
    assert not is_weight_file("data.bin")
