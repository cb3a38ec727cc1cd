"""merge: the same bytes from everywhere, a model that loads, provenance that tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import hubextrap
from hubextrap.hub import read_provenance
from hubextrap.localhub import LocalHub


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors*"))}


def test_local_cache_and_ranges_give_the_same_bytes(
    checkpoints: Path, on_hub: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    repo = on_hub(checkpoints)
    places = {"local": str(checkpoints), "ranges": repo, "cache": repo}
    found = {}
    for name, place in places.items():
        recipe = hubextrap.load_recipe(recipe_file(place, merge_method="least_squares"))
        settings = hubextrap.MergeOptions(cache=name == "cache", workers=3 if name == "cache" else 1)
        hubextrap.merge(recipe, out=tmp_path / name, settings=settings)
        found[name] = weights_of(tmp_path / name)
    assert len(found["local"]) > 2  # several shards and their index
    assert found["local"] == found["ranges"] == found["cache"]


def test_ranges_leave_no_model_byte_on_disk(
    hub: LocalHub,
    checkpoints: Path,
    on_hub: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    import os

    repo = on_hub(checkpoints)
    cache = Path(os.environ["HF_HOME"]) / "hub" / f"models--{repo.replace('/', '--')}"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(repo)), out=tmp_path / "out")
    assert not cache.exists()


def test_prediction_loads_and_generates(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(checkpoints)), out=out)
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    answer = model.generate(**tokenizer("12+3=", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > 5
    assert str(model.dtype) == "torch.bfloat16"
    assert (out / "tokenizer.json").read_bytes() == (checkpoints / "step_30" / "tokenizer.json").read_bytes()


def test_provenance_tells_everything(
    hub: LocalHub,
    checkpoints: Path,
    on_hub: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    import hashlib

    repo = on_hub(checkpoints)
    path = recipe_file(
        repo,
        parameters={
            "target_step": 60,
            "base_step": 10,
            "tensors": [{"match": "*norm*", "method": "persistence"}],
        },
    )
    out = tmp_path / "out"
    hubextrap.merge(hubextrap.load_recipe(path), out=out)
    provenance = read_provenance(out)
    refs = {step: hubextrap.resolve_checkpoint(f"{repo}@step_{step}").commit for step in (0, 10, 20, 30)}
    assert {source.step: source.commit for source in provenance.inputs} == refs
    rules = {rule.match: rule.coefficients for rule in provenance.coefficients}
    assert rules["*norm*"] == {0: 0, 10: 0, 20: 0, 30: 1}
    assert rules["*"] == pytest.approx({0: 0, 10: -1.5, 20: 0, 30: 2.5})
    assert provenance.horizon == 1.0
    assert provenance.recipe == path.read_text()
    for shard in provenance.shards:
        content = (out / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.size, shard.sha256)
    assert sorted(shard.file for shard in provenance.shards) == sorted(
        p.name for p in out.glob("*.safetensors")
    )


def test_same_inputs_give_the_same_folder(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = hubextrap.load_recipe(recipe_file(checkpoints))
    for name in ("one", "two"):
        hubextrap.merge(recipe, out=tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


def test_several_targets_equal_one_by_one(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    hubextrap.merge(
        hubextrap.load_recipe(recipe_file(checkpoints, parameters={"target_step": [40, 60]})),
        out=tmp_path / "both",
    )
    for step in (40, 60):
        alone = tmp_path / f"alone_{step}"
        single = recipe_file(checkpoints, parameters={"target_step": step})
        hubextrap.merge(hubextrap.load_recipe(single), out=alone)
        assert weights_of(tmp_path / "both" / f"step_{step}") == weights_of(alone)


def test_push_and_folder_hold_the_same_model(
    hub: LocalHub,
    checkpoints: Path,
    on_hub: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    logged_in: str,
) -> None:
    from huggingface_hub import snapshot_download

    repo = on_hub(checkpoints)
    recipe = hubextrap.load_recipe(recipe_file(repo))
    target = hubextrap.PushTarget.parse(f"{repo}-predicted@step_60")
    result = hubextrap.merge(recipe, push=[target])
    hubextrap.merge(recipe, out=tmp_path / "out")
    snapshot = Path(snapshot_download(target.repo, revision="step_60"))
    assert weights_of(snapshot) == weights_of(tmp_path / "out")
    assert json.loads((snapshot / "hubextrap.json").read_bytes()) == json.loads(
        (tmp_path / "out" / "hubextrap.json").read_bytes()
    )
    assert f'"{target.repo}", revision="step_60"' in (snapshot / "README.md").read_text()
    (prediction,) = result.predictions
    assert prediction.pushed is not None
    assert not prediction.pushed.unchanged
    again = hubextrap.merge(recipe, push=[target]).predictions[0].pushed
    assert again is not None
    assert again.unchanged
    assert again.commit == prediction.pushed.commit


def test_identical_prediction_is_reported(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = hubextrap.load_recipe(recipe_file(checkpoints, merge_method="persistence"))
    (prediction,) = hubextrap.merge(recipe, out=tmp_path / "out").predictions
    assert prediction.identical_to_last
