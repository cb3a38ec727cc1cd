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
from hubextrap.trajectory.hub_file import HubFile

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
ALONG = [
    "SYSTEM_PROMPT.txt", "params.json", "licenses.json", "old_vocabulary.txt", "tokens.txt", "logo.png",
    "tokenizer_training_log.csv", "tokenizer_training_log.json", "rwkv_words_v2.txt", "modelcard.json",
    "README_zh.md", "configuration.yaml", "words.dat", "metadata.json",
]  # fmt: skip
"""What nobody knows by its name and is no weight, training state or junk."""
DROPPED = [
    "bash_history", "core", "core.1234",
    "README.md", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "optimizer.pt",
    "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json", "training_args.bin",
    ".gitattributes", "hubextrap.json", "hubextrap-eval.csv", "train.log", "trainer_log.jsonl",
    "all_results.json", "consolidated.safetensors", "zero_to_fp32.py", "latest", "events.out.tfevents.1.2.3",
    "optim_world_size_2_rank_0.pt", "model_world_size_2_rank_0.pt",
    "shard-00001-model-00001-of-00001.safetensors", "extra_state_world_size_2_rank_0.pt", "data.pt",
    "fsdp_config.json",
    ".DS_Store", "Thumbs.db", ".env", ".netrc", "x.lock", "y.TMP", "notes.txt~", "model.safetensors.sha256",
    "SHA256SUMS", "model.Q4.gguf", "model.onnx", "adapter_config.json", "__0_0.distcp", "flax_model.msgpack",
    "tf_model.h5", "pytorch_model.bin.index.json", "slurm-123.out", "random_states_0.pkl", "scaler.pt",
    "latest_checkpointed_iteration.txt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
]  # fmt: skip
KEPT_BACK = [
    "additional_chat_templates/notes.txt", "hf_quant_config.json", "hf_token.txt", "id_rsa", "launch.sh",
    "modeling_x.py", "prod.env", "quantize_config.json", "secrets.yaml", "server.pem", "spk_dict.pt",
    "Makefile", "_netrc", "credentials.csv", "libx.so.1", "run.bat", "tool.jar", "train.sbatch",
    "wandb-key.txt",
    "tokenizer.bin", "tokenizer.pt", "vocab.pkl", "weights.tar.gz", "weights.zip",
]  # fmt: skip
"""What may be missed, so that it is told."""
LEFT = [*DROPPED, *KEPT_BACK]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "additional_chat_templates").mkdir()
    for name in [*KEPT, *ALONG, *LEFT]:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tokenizer.json").write_text("{}")
    return tmp_path


def test_which_files_are_taken(folder: Path) -> None:
    files = side_files(LocalSource(folder), None)
    assert sorted(files) == sorted([*KEPT, *ALONG])
    assert files["merges.txt"] == b"merges.txt"
    assert files["SYSTEM_PROMPT.txt"] == b"SYSTEM_PROMPT.txt"


def test_code_only_where_a_configuration_needs_it(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}')
    assert sorted(side_files(LocalSource(folder), None)) == sorted([*KEPT, *ALONG, "modeling_x.py"])


def test_what_stays_behind_is_known(folder: Path) -> None:
    """All but weights, a trainer's state, junk and what a prediction has of its own."""
    assert read_side_files(LocalSource(folder), None)[0].left_out == tuple(sorted(KEPT_BACK))


def test_an_adapter_has_no_configuration_of_a_model(folder: Path) -> None:
    assert "config.json" not in read_side_files(LocalSource(folder), None, whole_model=False)[1]


TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"hub: {TOKEN}\n", False),
        ("WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567", False),
        ('{"password": "Tr0ub4dor-and-3-of-its-kind"}', False),
        ("password = hunter2hunter2", False),
        ("gh" + "p_" + "a1B2" * 9, False),
        ("sk-" + "proj-" + "a1B2" * 9, False),
        (f"{'x' * (2**18 - 9)} {TOKEN}", False),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx", False),
        ("Authorization: Bearer abcdefghijklmnopqrst0123", False),
        ('{"password": 1234, "token": 17, "secret": 18}', True),
        ('{"password1": 3847, "passwords": "12345678", "passwd": "administrator"}', True),
        ('{"id": 3, "token": "internationalization"}', True),
        ("see https://example.com/terms?version=12&lang=en", True),
        ("the token is a string of at least twenty characters", True),
    ],
)
def test_what_gives_a_secret_away_stays(folder: Path, text: str, kept: bool) -> None:
    """A file of a known name is a loader's: there any word may stand, but for a token of the Hub."""
    for name in ("run.yaml", "vocab.txt"):
        (folder / name).write_text(text.replace(TOKEN, "no token") if name == "vocab.txt" else text)
    chosen, files = read_side_files(LocalSource(folder), None)
    assert "vocab.txt" in files
    assert ("run.yaml" in files) is ("run.yaml" in chosen.taken) is kept
    assert ("run.yaml (it seems to hold a token or a password)" in chosen.left_out) is not kept


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("tokenizer_config.json", '{\n "name_or_path": "me/base",\n "token": "%s"\n}', 3),
        ("tokenizer_config.json", '{"use_auth_token": "api_org_%s"}', 1),
        ("config.json", '{"auto_map": {}, "hub_token": "%s"}', 1),
        ("modeling_x.py", "\nlogin('%s')", 2),
        ("vocab.txt", "a\nb\n%s", 3),
        ("LICENSE", "%s", 1),
        ("chat_template.jinja", "{# %s #}", 1),
    ],
)
def test_no_needed_file_holds_a_token(folder: Path, file: str, text: str, line: int) -> None:
    """Without the file the model would be none."""
    (folder / "config.json").write_text('{"auto_map": {}}')
    (folder / file).write_text(text % TOKEN.removeprefix("hf_" if "api_org_" in text else ""))
    with pytest.raises(SourceError) as caught:
        read_side_files(LocalSource(folder), None)
    assert f"{file}: line {line} seems to hold a token of the Hub" in str(caught.value)
    assert TOKEN[3:] not in str(caught.value)
    (folder / file).write_text(text % "***")  # what the message says to do
    assert file in side_files(LocalSource(folder), None)


def test_the_token_that_transformers_saves_with_a_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    here = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C" / "step_0"
    loaded = AutoTokenizer.from_pretrained(here, use_auth_token=TOKEN)
    loaded.save_pretrained(folder)
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: line \d+ seems to hold a token"):
        read_side_files(LocalSource(folder), None)


def test_the_secret_in_use_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever shape a mirror gives its tokens."""
    monkeypatch.setenv("HF_TOKEN", "opensesame-once-more")
    (folder / "run.yaml").write_text("login with opensesame-once-more")
    assert "run.yaml" not in side_files(LocalSource(folder), None)


def test_no_more_than_one_file_may_have_in_all(folder: Path) -> None:
    """Of files that nobody knows by name; in the order of their names, and what is left out is told."""
    os.truncate(folder / "logo.png", 64 * 2**20 - 1000)
    for name, size in {"long.csv": 1001, "small.csv": 10}.items():
        (folder / name).write_bytes(b"x" * size)
    chosen = read_side_files(LocalSource(folder), None)[0]
    assert {"logo.png", "small.csv"} <= set(chosen.taken)
    assert "long.csv (1,001 bytes; of such files, 67,108,864 in all are taken)" in chosen.left_out


def test_links_that_lead_out_stay(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("x")
    (folder / "words_v9.txt").symlink_to(outside)
    chosen = read_side_files(LocalSource(folder), None)[0]
    assert "words_v9.txt" not in chosen.taken
    assert "words_v9.txt" in chosen.left_out


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
    there = {path: HubFile(path, 1, digest="1" * 40) for path in (*GOES, *STAYS)}
    assert stale_files([], there, {}) == tuple(sorted(GOES))
    assert stale_files(GOES, there, {}) == ()
    ours_before = {path: there[path] for path in ("LICENSE", "notes.txt", "my.spm")}
    changed = {"curve.png": HubFile("curve.png", 1, digest="2" * 40)}
    gone = {"words.txt": HubFile("words.txt", 1)}
    assert stale_files([*GOES, "my.spm"], there, ours_before | changed | gone) == ("LICENSE", "notes.txt")


def test_all_that_tokenizers_of_transformers_look_for_goes() -> None:
    names = sorted(set(read_by_tokenizers()))
    assert stale_files([], {name: HubFile(name, 1) for name in names}, {}) == tuple(names)


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
