"""Runs of LoRA adapters, from a command to what it leaves: as of the models that peft merges them to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from adapter_runs import merged, without_warnings, write_adapter_run
from safetensors.torch import load_file

import hubextrap
from hubextrap.errors import CorruptFile
from hubextrap.hub import Provenance, read_provenance
from hubextrap.localhub import LocalHub

STEPS = (10, 20, 30, 40)
LSQ = {"merge_method": "least_squares"}


def recipe_of(root: Path | str, target: int | Sequence[int] = 60, **sections: Any) -> hubextrap.Recipe:
    """``least_squares``, or what ``sections`` say, of a run."""
    parameters = {"target_step": target} | sections.pop("parameters", {})
    content = {"trajectory": {"repo": str(root)}, **LSQ, "parameters": parameters}
    return hubextrap.parse_recipe(yaml.safe_dump(content | sections, sort_keys=False))


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def as_(kind: str, **more: Any) -> dict[str, Any]:
    return {"output": {"as": kind, **more}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    ranks = {10: 2, 20: 4, 30: 3, 40: 4}
    how = {"bias": "all", "modules_to_save": ["lm_head"], "use_rslora": True}
    return write_adapter_run(root, STEPS, rank=ranks, model={"attention_bias": True}, **how)


@without_warnings()
def loaded(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What peft makes of an adapter and its base, in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    return dict(PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict())


def formula(root: Path, made: Provenance) -> dict[str, torch.Tensor]:
    """Σ c·W of the models that peft merges each step to, in float64; the base's own is step 0's."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64).state_dict()
    models = {step: merged(root, step) if step else base for step in made.steps}
    sums = {}
    for name, tensor in base.items():
        rule = next((one for one in made.coefficients if Path(name).match(one.match)), None)
        sums[name] = tensor.clone()
        for step, c in rule.coefficients.items() if rule is not None else ():
            sums[name] += c * (models[step][name] - tensor)
    return sums


@pytest.mark.slow
def test_a_merged_model_is_the_sum_rounded_once(run: Path, tmp_path: Path) -> None:
    """Each weight is no further from Σ c·W than half of the last place that its dtype stores."""
    for dtype, bits in (("float32", 24), ("bfloat16", 8), ("float16", 11)):
        out = tmp_path / dtype
        rules = [{"match": "*v_proj*", "method": "persistence"}, {"match": "*bias", "method": "two_point"}]
        hubextrap.merge(
            recipe_of(run, out_dtype=dtype, parameters={"tensors": rules}, **as_("merged")), out=out
        )
        found, wanted = load_file(out / "model.safetensors"), formula(run, read_provenance(out))
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            assert tensor.dtype == getattr(torch, dtype)
            exponents = torch.frexp(wanted[name])[1] - bits
            place = torch.exp2(exponents.double()).clamp(min=2.0**-24 if dtype == "float16" else 0.0)
            assert ((tensor.double() - wanted[name]).abs() <= place * 0.5000001).all(), name


def test_an_adapter_that_cuts_nothing_is_the_merged_model(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hubextrap.merge(recipe_of(run, **as_("merged")), out=tmp_path / "merged")
    hubextrap.merge(recipe_of(run, **as_("adapter", rank="exact")), out=tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64).state_dict()
    for name, tensor in loaded(run / "base", tmp_path / "adapter").items():
        assert torch.allclose(tensor, whole[name], rtol=1e-6, atol=1e-7), name
    record = read_provenance(tmp_path / "adapter").adapter
    assert record is not None
    assert (record.rank, record.lost) == (sum((2, 4, 3, 4)), None)
    assert "in factors of rank 13" in (tmp_path / "adapter" / "README.md").read_text()


def test_what_a_cut_loses_is_in_all_that_tells_of_it(run: Path, tmp_path: Path) -> None:
    (made,) = hubextrap.merge(recipe_of(run, **as_("adapter", rank=2)), out=tmp_path / "out").predictions
    wanted, found = formula(run, made.provenance), loaded(run / "base", tmp_path / "out")
    base = load_file(run / "base" / "model.safetensors")
    record = read_provenance(tmp_path / "out").adapter
    assert record is not None
    assert record.lost is not None
    for name, share in record.lost.items():
        change = wanted[name] - base[name]
        values = torch.linalg.svdvals(change)
        assert share == pytest.approx(float((values[2:] ** 2).sum() / (values**2).sum()), rel=1e-6)
        rest = found[name] - wanted[name]
        assert float((rest**2).sum() / (change**2).sum()) == pytest.approx(share, rel=1e-5)
    (warning,) = (line for line in made.warnings if "cut to rank 2" in line)
    assert f"{100 * max(record.lost.values()):.2g}%" in warning
    card = (tmp_path / "out" / "README.md").read_text()
    assert warning in card
    assert "cut by SVD to factors of rank 2" in card


@pytest.mark.slow
def test_targets_whose_exact_ranks_differ_go_together(run: Path, tmp_path: Path) -> None:
    """Of steps 10 to 40 the line to step 50 has no part of step 20, and a lower rank is exact there."""
    recipe = recipe_of(
        run, [50, 60], trajectory={"repo": str(run), "steps": {"min": 1}}, **as_("adapter", rank="exact")
    )
    hubextrap.merge(recipe, out=tmp_path / "both")
    for step, alone in ((50, 9), (60, 13)):
        single = recipe_of(
            run, step, trajectory={"repo": str(run), "steps": {"min": 1}}, **as_("adapter", rank="exact")
        )
        hubextrap.merge(single, out=tmp_path / f"{step}")
        ranks = [
            read_provenance(place).adapter for place in (tmp_path / f"{step}", tmp_path / f"both/step_{step}")
        ]
        assert [one and one.rank for one in ranks] == [alone, 13]
        one, other = (
            loaded(run / "base", place) for place in (tmp_path / f"{step}", tmp_path / f"both/step_{step}")
        )
        assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-12) for name in one)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_several_targets_equal_one_by_one(run: Path, tmp_path: Path, kind: str) -> None:
    hubextrap.merge(recipe_of(run, [50, 60], **as_(kind)), out=tmp_path / "both")
    for step in (50, 60):
        hubextrap.merge(recipe_of(run, step, **as_(kind)), out=tmp_path / f"{step}")
        assert weights_of(tmp_path / f"{step}") == weights_of(tmp_path / f"both/step_{step}")


@pytest.mark.slow
def test_figures_are_those_of_the_merged_models(run: Path, tmp_path: Path) -> None:
    """Inner products of the moves, and each rehearsal of the backtest."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    full = tmp_path / "full"
    with without_warnings():
        for step in (0, *STEPS):
            model = AutoModelForCausalLM.from_pretrained(run / "base", dtype=torch.float64)
            if step:
                model = PeftModel.from_pretrained(model, str(run / f"step_{step}")).merge_and_unload()
            model.save_pretrained(full / f"step_{step}")
    check_figures(run, full)


def check_figures(adapters: Path | str, full: Path, **options: Any) -> None:
    """A run of adapters against the run of full models that peft makes of it, in float64."""
    chosen = hubextrap.TrajectoryOptions(**options) if options else None
    found, wanted = (hubextrap.scan(str(place), options=chosen) for place in (adapters, full))
    models = [load_file(full / f"step_{step}" / "model.safetensors") for step in found.steps]
    for name, gram in zip(found.tensors, found.gram_table.gram, strict=True):
        weights = torch.stack([model.pop(name).flatten() for model in models])
        moves = weights - weights[0]
        brute = (moves @ moves.T).numpy()
        assert np.abs(gram - brute).max() <= 1e-7 * np.abs(brute).max(), name
    assert all(torch.equal(tensor, models[0][name]) for model in models for name, tensor in model.items())
    rows, others = (hubextrap.backtest(scan).rows for scan in (found, wanted))
    assert len(rows) > 20
    for row, other in zip(rows, others, strict=True):
        for field, value in asdict(other).items():
            if not isinstance(value, float):
                assert getattr(row, field) == value
            else:
                assert getattr(row, field) == pytest.approx(value, rel=1e-5, abs=1e-7), (field, row)


def on_hub(hub: LocalHub, run: Path, repo_id: str) -> tuple[str, str]:
    """The run's branches step_N and its base, in two repos; the adapters name it by its repo."""
    base = f"{repo_id}-base"
    hub.create_repo(base)
    hub.commit(base, {path.name: path for path in sorted((run / "base").iterdir())}, message="base")
    hub.create_repo(repo_id)
    for step in STEPS:
        folder = run / f"step_{step}"
        config = json.loads((folder / "adapter_config.json").read_text())
        files: dict[str, Any] = {"adapter_model.safetensors": folder / "adapter_model.safetensors"}
        files["adapter_config.json"] = json.dumps(config | {"base_model_name_or_path": base}).encode()
        hub.commit(repo_id, files, revision=f"step_{step}", message=f"step {step}")
    return repo_id, base


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.slow
def test_from_hub_to_hub(
    hub: LocalHub, run: Path, repo_id: str, logged_in: str, tmp_path: Path, kind: str
) -> None:
    """The bytes are those of the folders; no byte of the base gets onto the disk."""
    from huggingface_hub import snapshot_download

    repo, base = on_hub(hub, run, repo_id)
    target = f"{repo}-predicted@step_60"
    (pushed,) = hubextrap.merge(recipe_of(repo, **as_(kind)), push=target).predictions
    cache = Path(os.environ["HF_HOME"]) / "hub"
    weights = [
        path.name for path in cache.glob(f"models--{base.replace('/', '--')}/snapshots/*/*.safetensors")
    ]
    assert weights == []
    hubextrap.merge(recipe_of(run, **as_(kind)), out=tmp_path / "out")
    snapshot = Path(snapshot_download(f"{repo}-predicted", revision="step_60"))
    assert weights_of(snapshot) == weights_of(tmp_path / "out")
    assert hubextrap.verify(target).problems == ()
    record = read_provenance(snapshot).adapter
    assert record is not None
    assert record.base_name == base
    assert record.base is not None  # lm_head and biases begin there
    assert record.base.repo == base
    card = (snapshot / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    wanted = ("peft", [base]) if kind == "adapter" else ("transformers", [base, repo])
    assert (metadata["library_name"], metadata["base_model"]) == wanted
    assert pushed.pushed is not None
    assert not pushed.pushed.unchanged


def test_nothing_that_is_published_names_a_folder_of_this_machine(run: Path, tmp_path: Path) -> None:
    for kind in ("adapter", "merged"):
        hubextrap.merge(recipe_of(run, **as_(kind)), out=tmp_path / kind)
        for file in ("README.md", "hubextrap.json"):
            assert str(run) not in (tmp_path / kind / file).read_text()
        assert "base_model:" not in (tmp_path / kind / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lost": {"lm_head.weight": 1.5}}, "adapter.lost"),
        ({"rank": None}, "adapter: an adapter has a rank"),
        ({"output": "merged"}, "adapter: an adapter has a rank"),
        ({"rank": 0}, "adapter.rank"),
    ],
)
def test_what_a_record_claims_can_be_true(
    run: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    hubextrap.merge(recipe_of(run, **as_("adapter", rank=2)), out=out)
    content = json.loads((out / "hubextrap.json").read_text())
    content["adapter"] |= change
    del content["digest"]
    with pytest.raises(CorruptFile, match=said):
        read_provenance(json.dumps(content).encode())


def test_another_scaling_is_another_checkpoint(run: Path, tmp_path: Path) -> None:
    """A scan knows the configurations that it was made from, as they decide what the factors stand for."""
    own = copytree(run, tmp_path / "run")
    hubextrap.scan(str(own), out=tmp_path / "scan.safetensors")
    settled = recipe_of(own, **as_("adapter"), merge_method="calibrated")
    hubextrap.merge(settled, out=tmp_path / "out", scan=tmp_path / "scan.safetensors")
    config = own / "step_20" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"lora_alpha": content["lora_alpha"] + 1}))
    with pytest.raises(hubextrap.HubExtrapError, match=r"step.20"):
        hubextrap.merge(settled, out=tmp_path / "other", scan=tmp_path / "scan.safetensors")


@pytest.mark.slow
def test_figures_of_a_real_run(rlvr: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file as arrays
    from safetensors.numpy import save_file

    root, steps = rlvr / "rlvr-F", range(0, 401, 50)
    base = {
        name: tensor.astype(np.float64)
        for name, tensor in arrays(root / "base" / "model.safetensors").items()
    }
    for step in steps:
        file = arrays(root / f"step_{step}" / "adapter_model.safetensors")
        config = json.loads((root / f"step_{step}" / "adapter_config.json").read_text())
        model = dict(base)
        for name in base:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            if (a := file.get(f"{module}.lora_A.weight")) is not None:
                b = file[f"{module}.lora_B.weight"].astype(np.float64)
                model[name] = base[name] + config["lora_alpha"] / config["r"] * b @ a.astype(np.float64)
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        save_file(model, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text((root / "base" / "config.json").read_text())
    check_figures(root, tmp_path, steps=tuple(steps))


@pytest.mark.parametrize("named", ["repo", "folder", "given"])
@pytest.mark.slow
def test_what_the_card_says_to_run_loads_it(
    hub: LocalHub, run: Path, repo_id: str, logged_in: str, tmp_path: Path, named: str
) -> None:
    """Also where the adapters name a folder that others do not have, and somebody gave its repo."""
    repo, base = on_hub(hub, run, repo_id)
    trajectory = {"repo": repo if named == "repo" else str(run)} | (
        {"base": base} if named == "given" else {}
    )
    recipe = recipe_of(run, trajectory=trajectory, **as_("adapter"))
    target = f"{repo}-predicted@step_60"
    hubextrap.merge(recipe, out=tmp_path / "out", push=target)
    from huggingface_hub import hf_hub_download

    card = Path(hf_hub_download(f"{repo}-predicted", "README.md", revision="step_60")).read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert ('revision="step_60"' in code, "path/to/its/base" in code) == (True, named == "folder")
    if named == "folder":
        code = code.replace("path/to/its/base", str(run / "base"))
    loaded_there: dict[str, Any] = {}
    with without_warnings():
        exec(code, loaded_there)
    found = loaded_there["model"].merge_and_unload().state_dict()
    wanted = loaded(run / "base", tmp_path / "out")
    assert all(torch.allclose(tensor, wanted[name].float(), atol=1e-6) for name, tensor in found.items())
    assert loaded_there["tokenizer"]("12+3=")["input_ids"]
