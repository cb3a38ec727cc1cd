"""Checkpoints whose files have transformers or vLLM load what does not lie in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubextrap.errors import HubExtrapError, UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.logits.loading import load_causal_lm, load_tokenizer
from hubextrap.tensors.local import check_folder
from hubextrap.trajectory import Checkpoint, resolve_checkpoint


def edit(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | fields))


@pytest.fixture
def folder(trajectory_c: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trajectory_c / "step_0", tmp_path / "checkpoint"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside.json"
    file.write_text("{}")
    return file


def tokenizer_file(folder: Path, outside: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_file=str(outside))


def tokenizer_file_without_one(folder: Path, outside: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_file=str(outside))


def up_from_the_current_folder(folder: Path, outside: Path) -> None:
    edit(folder / "tokenizer_config.json", vocab_file=f"../{outside.name}")


def by_position(folder: Path, outside: Path) -> None:
    edit(folder / "tokenizer_config.json", init_inputs=[str(outside)])


def a_device(folder: Path, outside: Path) -> None:
    edit(folder / "tokenizer_config.json", merges_file="/dev/zero")


def weights_file(folder: Path, outside: Path) -> None:
    edit(folder / "config.json", transformers_weights="../outside.safetensors")


def kernel(folder: Path, outside: Path) -> None:
    edit(folder / "config.json", attn_implementation="someone/kernel")


def adapter(folder: Path, outside: Path) -> None:
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="someone/model")


ELSEWHERE = (
    *(tokenizer_file, tokenizer_file_without_one, up_from_the_current_folder, by_position, a_device),
    *(weights_file, kernel, adapter),
)


@pytest.mark.parametrize("change", ELSEWHERE, ids=lambda change: change.__name__)
@pytest.mark.parametrize("on_the_hub", [False, True], ids=["folder", "repo"])
def test_it_is_refused_before_it_is_loaded(
    change: Callable[[Path, Path], None],
    on_the_hub: bool,
    folder: Path,
    outside: Path,
    hub: LocalHub,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)  # transformers takes paths from there
    change(folder, outside)
    checkpoint = Checkpoint(0, None, "", None, str(folder))
    if on_the_hub:
        hub.create_repo(repo_id)
        hub.commit(repo_id, {file.name: file for file in folder.iterdir()})
        checkpoint = resolve_checkpoint(repo_id, step=0)
    for load in (load_tokenizer, load_causal_lm):
        with pytest.raises(UnsupportedCheckpoint, match=r"config\.json .*in a copy of the checkpoint"):
            load(checkpoint)


def test_places_of_another_machine_are_let_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_file="/home/somebody/model/tokenizer.json",
        special_tokens_map_file="/home/somebody/special_tokens_map.json",
        name_or_path=str(folder.parent),
        vocab_file="../absent/vocab.json",
        merges_file=str(folder / "config.json"),
        chat_template="{{ '../' }}",
    )
    edit(folder / "config.json", _name_or_path="/dev/null", attn_implementation="eager")
    check_folder(folder)  # what transformers makes of such a tokenizer differs from version to version
    load_causal_lm(Checkpoint(0, None, "", None, str(folder)))


@pytest.mark.parametrize("content", ["[" * 10_000, '{"a": 1, "a": 2}', "x", '{"a": "\\ud800"}'])
def test_a_tokenizer_configuration_that_is_none(content: str, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(HubExtrapError, match="not valid JSON"):
        load_tokenizer(Checkpoint(0, None, "", None, str(folder)))
