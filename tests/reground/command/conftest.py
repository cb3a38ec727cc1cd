"""A small model to start from, recipes for the trainer beside this, and `hubextrap` to be killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import Warm
from safetensors.numpy import load_file
from tiny_llama import save_tiny, tiny_llama

from hubextrap import api
from hubextrap.recipe import load_reground_recipe

HERE = Path(__file__).parent
TRAINER = HERE / "trainer.py"
STEPS, JUMP = 4, 4


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with tied embeddings, as `save_pretrained` writes it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "start"
    save_tiny(tiny_llama(tie_word_embeddings=True), folder)
    return folder


@dataclass(frozen=True)
class Setting:
    """A recipe in a file, the run's folder, and the file that makes the trainer fail while it is there."""

    recipe: Path
    out: Path
    fault: Path

    def change(self, **section: Any) -> None:
        """Change keys of the recipe's reground section; None takes a key away."""
        content = yaml.safe_load(self.recipe.read_text())
        content["reground"] |= section
        content["reground"] = {key: value for key, value in content["reground"].items() if value is not None}
        self.recipe.write_text(yaml.safe_dump(content, sort_keys=False))

    def history(self) -> list[dict[str, Any]]:
        path = self.out / "reground_history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_setting(
    start: Path, folder: Path, push: dict[str, Any] | None = None, pause: float = 0.0, **section: Any
) -> Setting:
    fault = folder / "fault"
    command = [sys.executable, "-I", "-S", str(TRAINER), "--fault", str(fault), "--pause", str(pause)]
    command += ["--model", "{model}", "--start-step", "{start_step}", "--steps", "{steps}"]
    content: dict[str, Any] = {
        "reground": {
            "model": str(start),
            "train": [*command, "--output", "{output}"],
            "checkpoint": "checkpoint-{step}",
            "window": STEPS,
            "jump": JUMP,
            "iterations": 3,
            "guard": {"max_error": "off"},
        }
        | section
    }
    if push is not None:
        content["push"] = push
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    return Setting(recipe, folder / "run", fault)


@pytest.fixture
def setting(start: Path, tmp_path: Path) -> Callable[..., Setting]:
    """``setting(jump=…, push={…}, …)``: three iterations of 4 steps and jumps of 4 that are always made."""
    return lambda **section: write_setting(start, tmp_path, **section)


@pytest.fixture(scope="session")
def undisturbed(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Two iterations that nothing went wrong with."""
    setting = write_setting(start, tmp_path_factory.mktemp("undisturbed"), iterations=2)
    api.reground(load_reground_recipe(setting.recipe), setting.out)
    return setting


@pytest.fixture
def weights() -> Callable[[Path], dict[str, np.ndarray]]:
    """The weights of a folder."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a run that is to be the same however often it was stopped: all but logs and its lock."""

    def read(folder: Path) -> dict[str, bytes]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in files}
        return {
            name: path.read_bytes()
            for name, path in names.items()
            if name != "lock" and path.suffix != ".log"
        }

    return read


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory, start: Path) -> Iterator[Warm]:
    """Runs commands in processes that can be killed."""
    warm = Warm(tmp_path_factory.mktemp("warm"), start)
    yield warm
    warm.close()
