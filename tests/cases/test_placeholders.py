"""Files that stand for weights that are elsewhere: ZeRO-3's empty tensors, and pointers of clones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from case_runs import Tensors, random, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from safetensors.torch import save_file

POINTERS = {
    "git lfs pull": f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0a' * 32}\nsize 1234567\n",
    "git annex get .": "/annex/objects/SHA256E-s1234567--0a0a0a.safetensors\n",
    "git xet checkout": f"# xet version 0\nfilesize = 1234567\nhash = '{'0a' * 32}'\n",
}
FACTORS = "base_model.model.model.layers.0.self_attn.q_proj."


def hollow(step: int, shape: tuple[int, ...] = (0,)) -> Tensors:
    """What a ZeRO-3 run without gather_16bit_weights saves: only what is not partitioned keeps its shape."""
    whole = tiny(step)
    return {name: one if "norm" in name else one.new_zeros(shape) for name, one in whole.items()}


@pytest.mark.parametrize("shape", [(0,), (0, 5), (8, 0)])
@pytest.mark.parametrize("where", [(100, 200, 300), (300,), (100,)], ids=["all", "the last", "the first"])
def test_empty_tensors_are_no_weights(
    tmp_path: Path, refused: Callable[..., str], where: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """huggingface/transformers#20082: every checkpoint is the same, and a prediction of them is empty."""
    run = tmp_path / "run"
    for step in (100, 200, 300):
        tensors = hollow(step, shape) if step in where else tiny(step)
        write_model(run / f"checkpoint-{step}", tensors)
    said = refused(run)
    assert "gather_16bit_weights" in said
    assert f"checkpoint-{where[0]}/model.safetensors: tensor 'lm_head.weight' has shape {list(shape)}" in said


def test_empty_tensors_of_steps_that_are_left_out_do_no_harm(
    tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    run = write_run(tmp_path / "run")
    write_model(run / "step_300", hollow(300))
    trajectory = {"repo": str(run), "steps": {"max": 200}}
    recipe = recipe_for(run, tmp_path / "r.yaml", trajectory=trajectory)
    assert cli("merge", recipe, "--out", tmp_path / "out").code == 0


def adapter(folder: Path, step: int, shape: tuple[int, ...] = (2, 4)) -> None:
    folder.mkdir(parents=True)
    left, right = (
        torch.ones(4, 2) * step,
        random(step, 8).reshape(2, 4) if shape == (2, 4) else torch.ones(shape),
    )
    save_file(
        {f"{FACTORS}lora_A.weight": right, f"{FACTORS}lora_B.weight": left},
        folder / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    config |= {
        "base_model_name_or_path": str(folder.parents[1] / "base"),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_empty_factors_of_adapters(tmp_path: Path, refused: Callable[..., str]) -> None:
    for step in (100, 200):
        adapter(tmp_path / f"run/step_{step}", step, (0,))
    write_model(tmp_path / "base", tiny(0))
    assert "gather_16bit_weights" in refused(tmp_path / "run")


@pytest.mark.parametrize("command", POINTERS)
@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"],
)
@pytest.mark.parametrize("where", [(100, 200), (200,)], ids=["all", "the last"])
def test_pointers_of_a_clone(
    tmp_path: Path, refused: Callable[..., str], file: str, command: str, where: tuple[int, ...]
) -> None:
    """`git clone` without LFS leaves texts of some hundred bytes, and says nothing."""
    run = write_run(tmp_path / "run")
    for step in (100, 200):
        folder = run / f"step_{step}"
        if "00001" in file or "index" in file:
            split(folder)
        if step in where:
            (folder / file).write_text(POINTERS[command])
    said = refused(run)
    assert f"step_{where[0]}/{file}: is a " in said
    assert f"`{command}` in {run.resolve()}/step_{where[0]}" in said


def split(folder: Path) -> None:
    """The model of a folder in two shards, as `save_pretrained` makes them."""
    (folder / "model.safetensors").unlink()
    tensors, files = tiny(100), [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    places = {name: files[number % 2] for number, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "README.md"])
def test_pointers_beside_the_weights(tmp_path: Path, cli: Callable[..., Ended], file: str) -> None:
    """A prediction with them would not load; what nobody needs stays, and is told."""
    run = write_run(tmp_path / "run", beside={"notes.csv": POINTERS["git lfs pull"]})
    recipe = recipe_for(run, tmp_path / "r.yaml")
    assert "left out: notes.csv" in cli("plan", recipe, "--out", tmp_path / "out").out
    (run / "step_200" / file).write_text(POINTERS["git lfs pull"])
    said = [cli(command, recipe, "--out", tmp_path / "out") for command in ("plan", "merge")]
    assert [end.code for end in said] == [1, 1]
    for end in said:
        assert f"step_200/{file}: is a Git LFS pointer" in " ".join((end.out + end.err).split())
        assert "`git lfs pull` in" in " ".join((end.out + end.err).split())


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_pointers_in_adapters(tmp_path: Path, refused: Callable[..., str], file: str) -> None:
    for step in (100, 200):
        adapter(tmp_path / f"run/step_{step}", step)
        (tmp_path / f"run/step_{step}" / file).write_text(POINTERS["git lfs pull"])
    write_model(tmp_path / "base", tiny(0))
    assert "`git lfs pull` in" in refused(tmp_path / "run")


def test_pointers_in_the_base_of_adapters(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """Nothing reads it but a merge into it."""
    for step in (100, 200):
        adapter(tmp_path / f"run/step_{step}", step)
    write_model(tmp_path / "base", tiny(0))
    (tmp_path / "base" / "model.safetensors").write_text(POINTERS["git lfs pull"])
    recipe = recipe_for(tmp_path / "run", tmp_path / "r.yaml", output={"as": "merged"})
    for command in ("plan", "merge"):
        ended = cli(command, recipe, "--out", tmp_path / "out")
        assert ended.code == 1
        assert "`git lfs pull` in" in " ".join((ended.out + ended.err).split())


def test_a_push_of_pointers(tmp_path: Path, cli: Callable[..., Ended], repo_id: str, logged_in: str) -> None:
    run = write_run(tmp_path / "run")
    assert cli("merge", recipe_for(run, tmp_path / "r.yaml"), "--out", tmp_path / "out").code == 0
    clone = shutil.copytree(tmp_path / "out", tmp_path / "clone")
    (clone / "model.safetensors").write_text(POINTERS["git lfs pull"])
    pushed = cli("push", clone, repo_id)
    assert pushed.code == 1
    assert "model.safetensors: is a Git LFS pointer" in pushed.err
