"""What comes along with a prediction, what a push takes away, and how the card says to load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from case_runs import files_of, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from huggingface_hub import HfApi, hf_hub_download

from hubextrap.localhub import LocalHub

TEMPLATE = "additional_chat_templates/tool_use.jinja"
TEMPLATES = {"chat_template.jinja": "default", TEMPLATE: "tools", "tokenizer_config.json": "{}"}


def put(hub: LocalHub, repo: str, run: Path) -> str:
    """The folders of a run as branches of a repo."""
    hub.create_repo(repo)
    for folder in sorted(run.iterdir()):
        hub.commit(repo, files_of(folder), revision=folder.name)
    return repo


@pytest.mark.parametrize("place", ["local", "hub"])
def test_further_chat_templates(
    tmp_path: Path, hub: LocalHub, cli: Callable[..., Ended], repo_id: str, place: str, logged_in: str
) -> None:
    """huggingface/transformers#36588: a tokenizer with several templates saves them in a folder."""
    run = write_run(tmp_path / "run", beside=TEMPLATES)
    recipe = recipe_for(run if place == "local" else put(hub, repo_id, run), tmp_path / "r.yaml")
    assert cli("merge", recipe, "--out", tmp_path / "out").code == 0
    assert {name: (tmp_path / "out" / name).read_text() for name in TEMPLATES} == TEMPLATES


@pytest.mark.slow
def test_templates_of_an_older_model_make_room(
    tmp_path: Path, hub: LocalHub, cli: Callable[..., Ended], repo_id: str, logged_in: str
) -> None:
    """What stayed would be loaded beside the new default."""
    run = write_run(tmp_path / "run", beside=TEMPLATES)
    bare = write_run(tmp_path / "bare", beside={"tokenizer_config.json": "{}"})
    hub.create_repo(repo_id)
    hub.commit(
        repo_id, {"config.json": b"{}", TEMPLATE: b"OLD", "additional_chat_templates/rag.jinja": b"OLD"}
    )
    with_templates = recipe_for(run, tmp_path / "r.yaml")
    assert cli("merge", with_templates, "--push", repo_id).code == 0
    assert Path(hf_hub_download(repo_id, TEMPLATE)).read_text() == "tools"
    assert "additional_chat_templates/rag.jinja" not in HfApi().list_repo_files(repo_id)
    without = recipe_for(bare, tmp_path / "r2.yaml", 400)
    planned = cli("plan", without, "--push", repo_id)
    assert f"removes {TEMPLATE}, chat_template.jinja of the model that is there" in planned.out
    assert cli("merge", without, "--push", repo_id).code == 0
    assert not {TEMPLATE, "chat_template.jinja"} & set(HfApi().list_repo_files(repo_id))


@pytest.mark.slow
def test_what_an_earlier_prediction_brought_under_any_name_makes_room(
    tmp_path: Path, hub: LocalHub, cli: Callable[..., Ended], repo_id: str, logged_in: str
) -> None:
    """And nothing that somebody else put there; neither by a folder's push nor by a merge's own."""
    named = {"SYSTEM_PROMPT.txt": "be kind", "words.dat": "w", "LICENSE": "l", "params.json": "{}"}
    first = recipe_for(write_run(tmp_path / "run", beside=named), tmp_path / "r.yaml")
    assert cli("merge", first, "--push", repo_id).code == 0
    assert set(named) <= set(HfApi().list_repo_files(repo_id))
    hub.commit(repo_id, {"notes.txt": b"mine", "params.json": b'{"by": "me"}'})
    bare = recipe_for(write_run(tmp_path / "bare"), tmp_path / "r2.yaml")
    planned = cli("plan", bare, "--push", repo_id)
    assert "removes LICENSE, SYSTEM_PROMPT.txt, words.dat of the model that is there" in planned.out
    assert cli("merge", bare, "--out", tmp_path / "out").code == 0
    pushed = cli("push", tmp_path / "out", repo_id)
    assert pushed.code == 0, pushed
    left = set(HfApi().list_repo_files(repo_id))
    assert not left & {"LICENSE", "SYSTEM_PROMPT.txt", "words.dat"}
    assert {"notes.txt", "params.json", "model.safetensors"} <= left


SEES = {
    **dict.fromkeys(("preprocessor_config.json", "video_preprocessor_config.json"), "{}"),
    **dict.fromkeys(("processor_config.json", "tokenizer_config.json", "vocab.json"), "{}"),
    **dict.fromkeys(("chat_template.json", "chat_template.jinja", "merges.txt", "LICENSE"), "{}"),
    "USE_POLICY.md": "u",
}


@pytest.mark.parametrize(
    ("config", "beside", "loads"),
    [
        ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, SEES, "AutoModelForImageTextToText"),
        (
            {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}},
            {},
            "AutoModelForImageTextToText",
        ),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, {}, "AutoModelForSequenceClassification"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, {}, "AutoModelForTokenClassification"),
        ({"architectures": ["Qwen3ForCausalLM"]}, {}, "AutoModelForCausalLM"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, {}, "WhisperForConditionalGeneration"),
    ],
)
def test_the_card_loads_this_kind_of_model(
    tmp_path: Path, cli: Callable[..., Ended], config: dict[str, object], beside: dict[str, str], loads: str
) -> None:
    """QwenLM/Qwen3-VL#1488, huggingface/transformers#45357: processors' files, and the class of the model."""
    card = "---\nlicense: other\nlicense_name: qwen\npipeline_tag: image-text-to-text\n---\n"
    run = write_run(tmp_path / "run", config=config, beside=beside | {"README.md": card})
    assert cli("merge", recipe_for(run, tmp_path / "r.yaml"), "--out", tmp_path / "out").code == 0
    assert {name: (tmp_path / "out" / name).read_text() for name in beside} == beside
    written = (tmp_path / "out" / "README.md").read_text()
    assert f"model = {loads}.from_pretrained(" in written
    assert "pipeline_tag: image-text-to-text" in written


def test_one_model_twice_in_a_folder(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """Mistral's layout: consolidated.safetensors holds the weights of model.safetensors by other names."""
    for step in (100, 200):
        folder = write_model(tmp_path / f"run/step_{step}", tiny(step), beside={"params.json": "{}"})
        (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    size = (tmp_path / "run/step_100/model.safetensors").stat().st_size
    listed = json.loads(cli("steps", tmp_path / "run", "--json").out)
    assert [one["size"] for one in listed] == [size, size]
    recipe = recipe_for(tmp_path / "run", tmp_path / "r.yaml")
    planned = json.loads(cli("plan", recipe, "--out", tmp_path / "out", "--json").out)
    assert planned["problems"] == []
    assert [one["size"] for one in planned["checkpoints"]] == [size, size]
    assert cli("merge", recipe, "--out", tmp_path / "out").code == 0
    assert not (tmp_path / "out" / "consolidated.safetensors").exists()
    assert (tmp_path / "out" / "params.json").exists()
    assert "left out" not in cli("merge", recipe, "--out", tmp_path / "again").err
