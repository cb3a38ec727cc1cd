"""One run of a small Llama, saved by save_pretrained and by torch itself in each form that trainers leave."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_llama import save_tiny, tiny_llama
from torch_runs import Spread, write_dcp, write_fsdp, write_sharded

STEPS = (0, 10, 25)
WORLDS = dict(zip(STEPS, (2, 3, 4), strict=True))
"""Ranks, by step: the trainer was restarted on other numbers of them."""
LAYERS = 2
FORMS = ("plain", "fsdp", "dcp", "accelerate", "sharded")
TIED_FORMS = ("plain", "fsdp", "dcp", "sharded")


def written(folder: Path, form: str, plain: Path, world: int, spread: Spread) -> None:
    """A checkpoint in some form, with the files beside its weights where that form's trainer puts them."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plain, dtype="auto")
    _with_a_wide_norm(model)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    assert len({tensor.dtype for tensor in state.values()}) == 2
    beside = folder
    if form == "fsdp":
        write_fsdp(folder, state, world, spread)
        beside = folder / "huggingface"
    elif form == "dcp":
        moments = {"optim": {"state": {"m": torch.ones(5)}}, "step": torch.tensor(3)}
        write_dcp(folder, state, world, spread=spread, beside=moments)
    elif form == "accelerate":
        write_dcp(folder / "pytorch_model_fsdp_0", state, world, spread=spread)
    elif form == "sharded":
        write_sharded(folder, state, world, spread)
        beside = folder / ".hf_metadata"
    beside.mkdir(exist_ok=True)
    for file in plain.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, beside)


def _with_a_wide_norm(model: object) -> None:
    """What trainers keep in float32 in a model of bfloat16."""
    model.model.norm.float()  # type: ignore[attr-defined]


def model_at(step: int, *, tied: bool) -> object:
    """The weights of a step: along a line, with a bend in it and noise."""
    import torch

    model = tiny_llama(1, num_hidden_layers=LAYERS, tie_word_embeddings=tied)
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            moved = 1e-2 * step + 1e-4 * step**2
            parameter += moved * parameter.abs().mean() + 1e-2 * torch.randn(parameter.shape, generator=draw)
    model.bfloat16()
    _with_a_wide_norm(model)
    return model


def write_runs(root: Path, *, tied: bool, spread: Spread = Spread(), forms: tuple[str, ...] = FORMS) -> Path:
    """``root/FORM/step_N`` for every form; ``plain`` by save_pretrained."""
    for step in STEPS:
        plain = root / "plain" / f"step_{step}"
        save_tiny(model_at(step, tied=tied), plain)
        for form in forms[1:]:
            written(root / form / f"step_{step}", form, plain, WORLDS[step], spread)
    return root


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each form, untied."""
    return write_runs(tmp_path_factory.mktemp("runs"), tied=False)


@pytest.fixture(scope="session")
def tied_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with tied embeddings."""
    return write_runs(tmp_path_factory.mktemp("tied"), tied=True, forms=TIED_FORMS)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """``recipe(run, **sections)``: in a file of its own."""
    numbers = itertools.count()

    def write(run: Path | str, target: int | list[int] = 45, **sections: object) -> Path:
        content = {
            "trajectory": {"repo": str(run)},
            "merge_method": "low_rank",
            "parameters": {"target_step": target},
        }
        file = tmp_path / f"recipe-{next(numbers)}.yaml"
        file.write_text(yaml.safe_dump(content | sections))
        return file

    return write


def contents(folder: Path) -> dict[str, bytes]:
    """What a prediction's folder holds, but for what says where it comes from."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(files)
        if path.name not in ("hubextrap.json", "README.md")
    }
