"""Runs of adapters as they lie around: no base to be had, tied embeddings, broken ones, odd names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_runs import tiny_model, without_warnings, write_adapter_run

from hubextrap.adapters.base import reference_of_base
from hubextrap.api.drafting import Draft
from hubextrap.trajectory import find_trajectory

pytest.importorskip("peft")
STEPS = (10, 20, 30)
NOWHERE = "/no/such/base"
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter_run(tmp_path_factory.mktemp("run"), STEPS)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def recipe(root: Path, output: str = "{}", base: str = "", method: str = "two_point") -> Path:
    path = root.parent / "recipe.yaml"
    path.write_text(
        f"trajectory: {{repo: {root}{base and f', base: {base}'}}}\nmerge_method: {method}\n"
        f"parameters: {{target_step: 40}}\noutput: {output}\n"
    )
    return path


def say_in_config(folder: Path, **fields: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refused(cli: Cli, *arguments: str | Path) -> str:
    """The message of a command that leaves nothing behind."""
    place = Path(arguments[1]).parent
    before = sorted(place.rglob("*"))
    result = cli(*arguments, "--quiet")
    assert (result.code, result.out) == (1, ""), result
    assert result.err.count("error: ") == 1
    assert sorted(place.rglob("*")) == before
    return str(result.err)


@pytest.mark.slow
def test_a_base_that_cannot_be_had_is_missed_only_where_it_is_needed(
    cli: Cli, root: Path, tmp_path: Path
) -> None:
    steps = cli("steps", root, "--base", NOWHERE)
    assert steps.code == 0
    assert f"warning: the base '{NOWHERE}' cannot be had" in steps.err
    scan, out = tmp_path / "a.scan", tmp_path / "out"
    assert cli("scan", root, "--base", NOWHERE, "--out", scan).code == 0
    assert cli("backtest", root, "--base", NOWHERE).code == 0
    assert cli("report", root, "--base", NOWHERE, "--out", tmp_path / "a.html").code == 0
    adapter = recipe(root, base=NOWHERE, method="calibrated")
    assert cli("merge", adapter, "--out", out, "--scan", scan).code == 0
    assert (out / "adapter_model.safetensors").exists()
    said = refused(cli, "merge", recipe(root, "{as: merged}", NOWHERE), "--out", tmp_path / "merged")
    assert f"error: the base '{NOWHERE}' cannot be had ({NOWHERE}: no such local folder" in said
    assert "; name another: trajectory.base in a recipe, or --base" in said


@pytest.mark.parametrize("named", ["me/base", "base", NOWHERE])
def test_a_recipe_of_checkpoints_at_hand_asks_nothing_of_the_base(root: Path, named: str) -> None:
    for step in STEPS:
        say_in_config(root / f"step_{step}", base_model_name_or_path=named)
    found = find_trajectory(root)
    wanted = {"me/base": "hf://me/base", "base": str(root / "base")}.get(named, NOWHERE)
    assert reference_of_base(found.last) == wanted
    assert Draft.of_trajectory(found, None).trajectory["base"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["lm_head"]}]
)
def test_tied_embeddings_are_merged_into_a_base_that_holds_both(
    cli: Cli, tmp_path: Path, how: dict[str, Any]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    root = write_adapter_run(tmp_path / "run", STEPS, model={"tie_word_embeddings": True}, **how)
    merged = recipe(root, "{as: merged}")
    said = refused(cli, "merge", merged, "--out", tmp_path / "out")
    assert "predict the adapter itself (as: adapter" in said
    assert "a copy whose config.json says tie_word_embeddings: false and that holds both" in said
    with without_warnings():
        untied = AutoModelForCausalLM.from_pretrained(root / "base")
        untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
        untied.config.tie_word_embeddings = False
        untied.save_pretrained(tmp_path / "untied")
        merged = recipe(root, "{as: merged}", str(tmp_path / "untied"))
        assert cli("merge", merged, "--out", tmp_path / "out").code == 0
        exact = recipe(root, "{rank: exact}")
        assert cli("merge", exact, "--out", tmp_path / "adapter").code == 0
        base = AutoModelForCausalLM.from_pretrained(root / "base")
        running = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        tokens = torch.arange(20)[None]
        wanted = running(tokens).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.slow
def test_peft_loads_what_comes_of_a_trainers_own_names(cli: Cli, root: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    exact = recipe(root, "{rank: exact}")
    assert cli("merge", exact, "--out", tmp_path / "usual").code == 0
    for step in STEPS:
        file = root / f"step_{step}" / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file(
            {
                name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
                for name, tensor in tensors.items()
            },
            file,
        )
    assert cli("merge", exact, "--out", tmp_path / "other").code == 0
    loaded = []
    for name in ("usual", "other"):
        with without_warnings():
            model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / name))
        loaded.append({key: one for key, one in model.state_dict().items() if "lora_" in key})
    assert all(bool(one.any()) for one in loaded[0].values())
    assert all(torch.equal(one, loaded[1][key]) for key, one in loaded[0].items())


def test_queues_are_refused(cli: Cli, root: Path, tmp_path: Path) -> None:
    said = refused(cli, "submit", recipe(root), "--out", tmp_path / "out", "--slurm", "--dry-run")
    assert "submit: adapters are small" in said
    assert "hubextrap merge" in said


def test_nobody_is_sent_to_step_0_alone(cli: Cli, root: Path, tmp_path: Path) -> None:
    say_in_config(root / "step_10", r=0)
    said = refused(cli, "merge", recipe(root), "--out", tmp_path / "out")
    assert "leave step 10 out: take the run from step 20 on (--min-step 20" in said
    assert "--max-step" not in said


@pytest.mark.slow
def test_what_is_computed_has_no_dtype_to_note(cli: Cli, root: Path) -> None:
    plan = cli("plan", recipe(root, "{as: merged}"))
    assert plan.code == 0
    assert "dtypes differ" not in plan.out


@pytest.mark.slow
def test_a_note_of_many_steps_is_one_line(cli: Cli, root: Path, tmp_path: Path) -> None:
    for step in STEPS:
        for file in (root / "base").iterdir():
            shutil.copy(file, root / f"step_{step}" / file.name)
    result = cli("merge", recipe(root).rename(tmp_path / "models.yaml"), "--out", tmp_path / "out")
    assert result.code == 1
    assert "output" in result.err  # has no effect on whole models
    path = tmp_path / "models.yaml"
    path.write_text(path.read_text().replace("output: {}\n", ""))
    result = cli("merge", path, "--out", tmp_path / "out")
    note = "each of 3 steps from 10 to 30 holds an adapter beside a whole model"
    assert result.err.count("an adapter beside a whole model") == 1
    assert note in result.err
