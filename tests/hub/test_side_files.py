from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from hubextrap.errors import CorruptFile, SourceError, UnsupportedCheckpoint
from hubextrap.hub.outgoing import stale_files
from hubextrap.hub.side_files import (
    is_side_file,
    is_weight_file,
    read_side_files,
    side_files,
    with_dtype,
)
from hubextrap.tensors import LocalSource

KEPT = [
    "tokenizer_v3.json", "decoder_tokenizer.json", "vocab_en.txt", "bpe_merges.txt",
    "tool_chat_template.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "qwen.tiktoken", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "LICENSE", "LICENSE.txt", "NOTICE", "MODEL_LICENSE", "LICENSE-CODE.md",
    "Licence.txt", "Notice.txt", "USE_POLICY.md", "COPYING", "gemma_terms_of_use.txt", "tekken.json",
    "tekken_240911.json", "tiktoken.model", "tokenizer.model.v3", "tokenizer.4.0.0.json", "source.spm",
    "target.spm", "target_vocab.json", "dict.txt", "bpe.codes", "vocab.bpe", "sentencepiece.bpe.model",
    "ice_text.model", "audio_tokenizer_config.json", "video_preprocessor_config.json",
    "chat_template.jsonl", "tool_chat_template.jinja", "additional_chat_templates/tool_use.jinja",
    "additional_chat_templates/rag.jinja",
]  # fmt: skip
LEFT = [
    "README.md", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "optimizer.pt",
    "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json", "training_args.bin",
    "tokenizer.pt", "tokenizer.bin", ".gitattributes", "hubextrap.json", "train.log", "modeling_x.py",
    "vocab.pkl", "tokenizer_training_log.csv", "tokenizer_training_log.json", "tokenizer.log",
    "all_results.json", "consolidated.safetensors", "params.json", "zero_to_fp32.py", "latest",
    "events.out.tfevents.1.2.3", "licenses.json", "old_vocabulary.txt",
    "additional_chat_templates/notes.txt", "spk_dict.pt",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "additional_chat_templates").mkdir()
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


def test_what_stays_behind_is_known(folder: Path) -> None:
    """All but weights, a trainer's state and what a prediction has of its own."""
    assert read_side_files(LocalSource(folder), None)[0].left_out == (
        "additional_chat_templates/notes.txt",
        "licenses.json",
        "modeling_x.py",
        "old_vocabulary.txt",
        "params.json",
        "spk_dict.pt",
        "tokenizer.bin",
        "tokenizer.pt",
        "tokenizer_training_log.csv",
        "tokenizer_training_log.json",
        "vocab.pkl",
    )


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_file_that_configuration_or_code_names(folder: Path, quote: str) -> None:
    """A tokenizer of the model's own may have its vocabulary under any name; pickles stay even so."""
    for name in ("rwkv_words_v2.txt", "rwkv_unused.txt", "words.pkl"):
        (folder / name).write_text(name)
    (folder / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}'
    )
    (folder / "tokenization_x.py").write_text(f"NAMES = [{quote}rwkv_words_v2.txt{quote}, 'words.pkl']")
    files = side_files(LocalSource(folder), None)
    assert files["rwkv_words_v2.txt"] == b"rwkv_words_v2.txt"
    assert sorted(files) == sorted([*KEPT, "modeling_x.py", "tokenization_x.py", "rwkv_words_v2.txt"])


def read_by_tokenizers() -> Iterator[str]:
    """Every file name that a tokenizer of the installed transformers declares, read off its source."""
    root = Path(str(find_spec("transformers").submodule_search_locations[0]))  # type: ignore[union-attr, index]
    for module in [*root.glob("tokenization_*.py"), *root.glob("models/*/tokenization_*.py")]:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        constants = {
            target.id: node.value.value
            for node in assigned
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant)
        }
        for node in assigned:
            names = {ast.unparse(target).lower() for target in node.targets}
            if "vocab_files_names" in names and isinstance(node.value, ast.Dict):
                for value in node.value.values:
                    yield str(constants[value.id] if isinstance(value, ast.Name) else ast.literal_eval(value))


def test_all_that_tokenizers_and_processors_of_transformers_read() -> None:
    from transformers import utils

    names = set(read_by_tokenizers())
    assert len(names) > 20
    names |= {
        value
        for name, value in vars(utils).items()
        if name.endswith("_NAME") and "WEIGHTS" not in name and isinstance(value, str) and "." in value
    }
    of_no_whole_model = {"adapter_config.json", utils.MODEL_CARD_NAME}
    assert "processor_config.json" in names
    assert {name for name in names - of_no_whole_model if not is_side_file(name)} == set()


GOES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "audio_tokenizer_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "tokenizer.model.v3", "tokenizer.4.0.0.json", "tekken.json", "tekken_240911.json", "vocab.json",
    "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/tool_use.jinja", "qwen.tiktoken",
    "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    "model.safetensors.index.fp16.json", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json", "consolidated.safetensors", "model.Q4.gguf", "adapter_config.json",
    "adapter_model.safetensors",
]  # fmt: skip
STAYS = [
    "README.md", "LICENSE", "LICENSE.txt", "LICENCE", "NOTICE", "NOTICE.md", "Notice.txt", "LICENSE.model",
    "NOTICE.vocab", "USE_POLICY.md", "COPYING", "tokenizer_training_log.csv", "tokenizer_training_log.json",
    "tokenizer-comparison.json", "tokenizer_notes.txt", "old.model", "scratch.vocab", "words.codes",
    "notes.bpe", "my.spm", "stats_vocab.json", "old_vocab.txt", "vocab_sizes.json", "vocab-plot.txt",
    "git_merges.txt", "example_chat_template.json", "prompt.jinja", "my.tokenizer", "x.tiktoken", "curve.png",
    "train.log", "params.json", "modelcard.json", "eval_results.json", "notes.txt", ".gitattributes",
    "docs/tokenizer.json", "other/model.safetensors", "other/additional_chat_templates/a.jinja",
    "additional_chat_templates/README.md", "additional_chat_templates/tokenizer.json",
]  # fmt: skip


def test_what_goes_with_an_older_model_and_what_stays() -> None:
    """Only what a loader takes for the next model's by its name; all else may be anything."""
    assert stale_files([], [*GOES, *STAYS]) == tuple(sorted(GOES))
    assert stale_files(GOES, [*GOES, *STAYS]) == ()


def test_all_that_tokenizers_of_transformers_look_for_goes() -> None:
    names = sorted(set(read_by_tokenizers()))
    assert stale_files([], names) == tuple(names)


def test_a_file_that_is_too_large_is_found_first(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 64 * 2**20 + 1)
    with pytest.raises(SourceError, match=r"67,108,865 bytes are more than"):
        side_files(LocalSource(folder, "ckpt"), None)


def test_weights_under_a_name_that_the_configuration_gives(folder: Path) -> None:
    """The prediction's are called model.safetensors, so transformers would look for what is not there."""
    (folder / "config.json").write_text('{"transformers_weights": "best.safetensors"}')
    with pytest.raises(UnsupportedCheckpoint, match="transformers_weights") as error:
        side_files(LocalSource(folder), None)
    assert error.value.file == "config.json"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no config.json; a model cannot be loaded without one"),
        (b"{", "config.json: not valid JSON"),
        (b"\xff", "config.json: not valid JSON"),
        (b"[]", "config.json is not a JSON object"),
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
