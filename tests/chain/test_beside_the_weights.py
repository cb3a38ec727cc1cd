"""What goes along with a prediction, what stays behind, and folders that hold two models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download

import hubextrap
from hubextrap.localhub import LocalHub

TEMPLATE = "additional_chat_templates/tool_use.jinja"
ALONG = {TEMPLATE: b"tools", "chat_template.jinja": b"new", "tekken.json": b"{}"}
ALONG |= {"USE_POLICY.md": b"terms", "remarks.txt": b"mine"}


@pytest.fixture
def run(checkpoints: Path, tmp_path: Path) -> Path:
    """Steps 20 and 30 of the run; the last one with templates, a note and an archive."""
    root = tmp_path / "run"
    for name in ("step_20", "step_30"):
        shutil.copytree(checkpoints / name, root / name)
    (root / "step_30" / "additional_chat_templates").mkdir()
    for file, content in {**ALONG, "words.zip": b"mine", "trainer_state.json": b"{}"}.items():
        (root / "step_30" / file).write_bytes(content)
    return root


@pytest.fixture
def put(hub: LocalHub, repo_id: str) -> Callable[[Path], str]:
    def upload(root: Path) -> str:
        hub.create_repo(repo_id)
        for folder in sorted(root.iterdir()):
            files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            hub.commit(repo_id, files, revision=folder.name)
        return repo_id

    return upload


@pytest.mark.parametrize("place", ["local", "ranges", "cache"])
def test_side_files_come_from_everywhere(
    run: Path, put: Callable[[Path], str], recipe_file: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    recipe = hubextrap.load_recipe(recipe_file(run if place == "local" else put(run)))
    out = tmp_path / "out"
    hubextrap.merge(recipe, out=out, settings=hubextrap.MergeOptions(cache=place == "cache"))
    assert {file: (out / file).read_bytes() for file in ALONG} == ALONG
    assert not (out / "words.zip").exists()


def test_plan_and_merge_say_what_stays_behind_and_what_a_push_removes(
    hub: LocalHub,
    run: Path,
    cli: Callable[..., Any],
    put: Callable[[Path], str],
    recipe_file: Callable[..., Path],
    logged_in: str,
) -> None:
    repo = put(run)
    recipe = recipe_file(repo)
    old = {TEMPLATE: b"OLD", "additional_chat_templates/rag.jinja": b"OLD", "qwen.tiktoken": b"OLD"}
    hub.commit(repo, {**old, "pytorch_model.bin": b"OLD", "LICENSE": b"x", "notes.md": b"x"}, revision="old")
    stale = "additional_chat_templates/rag.jinja, pytorch_model.bin, qwen.tiktoken"
    left_out = "left out: words.zip of the last checkpoint; copy what the prediction needs of them"
    planned = cli("plan", recipe, "--push", f"{repo}@old")
    assert planned.code == 0
    assert f"note      {left_out}\n" in planned.out
    assert f"note      {repo}@old: removes {stale} of the model that is there\n" in planned.out
    opened = cli("merge", recipe, "--push", f"{repo}@old", "--create-pr")
    assert f"/discussions/1, which removes {stale} of the model that is there" in opened.out
    merged = cli("merge", recipe, "--push", f"{repo}@old")
    assert f"and removed {stale} of the model that was there" in merged.out
    assert left_out in merged.err
    files = set(HfApi().list_repo_files(repo, revision="old"))
    assert files >= {*ALONG, "LICENSE", "notes.md"}
    assert not files & {"qwen.tiktoken", "pytorch_model.bin", "additional_chat_templates/rag.jinja"}
    assert Path(hf_hub_download(repo, TEMPLATE, revision="old")).read_bytes() == b"tools"


def test_checkpoints_without_configuration_are_a_problem_of_the_plan(
    run: Path, cli: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Not of the merge, after all weights were made."""
    for folder in run.iterdir():  # of the last alone, a trainer may be at it
        (folder / "config.json").unlink()
    planned = cli("plan", recipe_file(run), "--out", tmp_path / "out")
    assert planned.code == 1
    assert "no config.json; a model cannot be loaded without one" in planned.out


@pytest.mark.parametrize("place", ["local", "hub"])
def test_both_a_model_and_an_index_of_another(
    run: Path,
    put: Callable[[Path], str],
    cli: Callable[..., Any],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    place: str,
) -> None:
    """`steps` counts and names the one that transformers loads; nothing is made of either."""
    single = run / "step_20" / "model.safetensors"
    shards = sorted(file.name for file in single.parent.glob("*.safetensors"))
    shutil.copy(single.with_name(shards[0]), single)
    reference = str(run) if place == "local" else put(run)
    listed = cli("steps", reference)
    index = "model.safetensors.index.json"
    both = f"holds both model.safetensors and {index}, {shards[0]} and {len(shards) - 1} more; "
    both += "transformers loads model.safetensors, so hubextrap reads that"
    assert f"note: step 20 {both}\n" in listed.out
    first, other = json.loads(cli("steps", reference, "--json", "--fast").out)
    assert (first["size"], first["note"]) == (single.stat().st_size, both)
    assert other["note"] is None
    recipe = recipe_file(reference)
    said = f"has both model.safetensors and {index}, which names {shards[0]}"
    commands = (
        ("plan", recipe, "--out", tmp_path / "out"),
        ("merge", recipe, "--out", tmp_path / "out"),
        ("scan", reference, "--out", tmp_path / "scan.npz"),
    )
    for command in commands:
        refused = cli(*command)
        assert refused.code == 1, refused
        text = refused.out + refused.err
        assert said in text
        assert "transformers loads model.safetensors" in text
    assert not (tmp_path / "out").exists()
