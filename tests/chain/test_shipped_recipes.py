"""Every shipped recipe runs: on the bundled data where it names it, else on stand-ins for the public repos.

The stand-ins have the repos' names, revisions and folders as the recipes describe them, with tiny weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hubextrap
from hubextrap.localhub import LocalHub
from hubextrap.logits import recipe_mixture
from hubextrap.recipe import Recipe

ADAPTERS = "me/my-lora-run"
RECIPES = Path(__file__).parents[2] / "merge_configs"
STAND_INS = {
    ADAPTERS: [("main", f"checkpoint-{step}") for step in range(40, 241, 40)],
    "demo/rlvr-C": [(f"step_{step}", "") for step in (0, 40, 80, 100, 120, 160, 200, 400)],
    "relex-rlvr/RLVR-Qwen2.5-Math-1.5B": [(f"step_{step}", "") for step in (1, *range(5, 501, 5))],
    "relex-rlvr/RLVR-Qwen3-4B-Base": [(f"step_{step}", "") for step in range(1, 76)],
    "Miaow-Lab/RLVR-Linearity-Checkpoints": [
        ("main", f"global_step_{step}") for step in range(100, 1100, 100)
    ],
    "arkilpatel/olmo2-1b-traj-s1-252b": [("main", f"step-{step:04}") for step in range(10, 440, 10)],
}


@pytest.fixture
def loaded(
    request: pytest.FixtureRequest, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Recipe]:
    """A shipped recipe, its repos there."""
    monkeypatch.chdir(RECIPES.parent)  # recipes on bundled data name it from the repository's root
    recipe = hubextrap.load_recipe(request.param)
    section = recipe.trajectory
    made = [name for name in (section.repo, section.base) if name and not Path(name).exists()]
    for number, name in enumerate(made):
        hub.create_repo(name)
        places = STAND_INS[name] if number == 0 else [("main", "")]
        made_of = tiny_adapter if name == ADAPTERS else tiny_model
        for seed, (revision, folder) in enumerate(places):
            files = {f"{folder}/{file}".lstrip("/"): content for file, content in made_of(seed).items()}
            hub.commit(name, files, revision=revision)
    yield recipe
    from huggingface_hub import HfApi

    for name in made:
        HfApi().delete_repo(name, token=hub.add_token(name.partition("/")[0]))


def tiny_adapter(seed: int) -> dict[str, bytes]:
    from safetensors.numpy import save

    noise, module = np.random.default_rng(0), "base_model.model.model.layers.0.mlp.up_proj"
    a, b = noise.standard_normal((2, 3)), noise.standard_normal((4, 2)) * (1 + seed)
    both = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    factors = {name: factor.astype(np.float32) for name, factor in both.items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "me/base"}
    return {"adapter_model.safetensors": save(factors), "adapter_config.json": json.dumps(config).encode()}


def tiny_model(seed: int) -> dict[str, bytes]:
    from safetensors.numpy import save

    noise = np.random.default_rng(seed)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    weights = {name: (1 + seed + noise.standard_normal((4, 3))).astype(np.float32) for name in names}
    config = {"model_type": "llama", "tie_word_embeddings": True}
    return {"model.safetensors": save(weights), "config.json": json.dumps(config).encode()}


# hubextrap reground's are in tests/reground/command: a trainer is not a stand-in's to run; watch's is below
MERGE = sorted(path for path in RECIPES.glob("*.yaml") if not path.stem.startswith(("reground_", "watch")))


@pytest.mark.parametrize("loaded", MERGE, ids=lambda path: path.stem, indirect=True)
def test_recipe_runs(loaded: Recipe, tmp_path: Path) -> None:
    if loaded.space == "logits":
        assert [
            len(recipe_mixture(loaded, target_step=step).checkpoints) for step in loaded.target_steps
        ] == [2]
        return
    result = hubextrap.merge(loaded, out=tmp_path / "out")
    assert [prediction.step for prediction in result.predictions] == list(loaded.target_steps)
    assert not any(prediction.identical_to_last for prediction in result.predictions)


@pytest.mark.slow
def test_recipe_of_watch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(RECIPES.parent)
    (look,) = hubextrap.watch(RECIPES / "watch.yaml", tmp_path / "out", every=None)
    assert look.taken[0].made is not None
    assert (tmp_path / "out" / "predictions" / "from_400" / "model.safetensors").is_file()
