"""Names that trainers leave: wrappers in every checkpoint, folders that count without a word, odd files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from case_runs import Tensors, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from safetensors.torch import load_file

from hubextrap.errors import TrajectoryError
from hubextrap.trajectory import find_trajectory

Cli = Callable[..., Ended]


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._fsdp_wrapped_module.", "_forward_module."]
)
def test_what_wraps_every_name_is_taken_off(prefix: str, tmp_path: Path, cli: Cli) -> None:
    """huggingface/transformers#28041, safetensors/safetensors#403: loaders know no such names."""
    write_run(tmp_path / "plain")
    write_run(tmp_path / "run", tensors=lambda step: {prefix + name: one for name, one in tiny(step).items()})
    written = {}
    for name in ("plain", "run"):
        recipe = recipe_for(tmp_path / name, tmp_path / f"{name}.yaml")
        notes = json.loads(cli("plan", recipe, "--out", tmp_path / "none", "--json").out)["notes"]
        assert any(f"{prefix}lm_head.weight → lm_head.weight and 3 more" in one for one in notes) == (
            name == "run"
        )
        assert cli("merge", recipe, "--out", tmp_path / f"out-{name}", "-q").code == 0
        written[name] = (tmp_path / f"out-{name}/model.safetensors").read_bytes()
    assert written["run"] == written["plain"]


@pytest.mark.parametrize(
    "names",
    [
        ("module.a.weight", "head.weight"),  # a module of the model's own
        ("a.weight", "_orig_mod.a.weight"),  # two tensors would be one
    ],
)
def test_names_that_only_look_wrapped_stay(names: tuple[str, ...], tmp_path: Path, cli: Cli) -> None:
    def tensors(step: int) -> Tensors:
        return {name: torch.full((2,), float(step)) for name in names}

    run = write_run(tmp_path / "run", tensors=tensors)
    assert cli("merge", recipe_for(run, tmp_path / "r.yaml"), "--out", tmp_path / "out", "-q").code == 0
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(names)


@pytest.mark.parametrize(
    ("names", "pattern", "steps"),
    [
        (("epoch_1", "epoch_2", "epoch_10"), "epoch_{step}", (1, 2, 10)),
        (("step_100.0", "step_200.0"), "step_{step}.0", (100, 200)),
        (("ep0-ba100", "ep0-ba2000", "ep1-ba4000"), "ep{ep}-ba{step}", (100, 2000, 4000)),  # llm-foundry
        (("500_steps", "1000_steps", "final"), "{step}_steps", (500, 1000)),
        (("v1.0-100", "v1.0-200", "best"), "v1.0-{step}", (100, 200)),
    ],
)
def test_numbers_without_a_word_get_a_pattern_that_works(
    names: tuple[str, ...], pattern: str, steps: tuple[int, ...], tmp_path: Path
) -> None:
    for number, name in enumerate(names):
        write_model(tmp_path / name, tiny(number))
    with pytest.raises(TrajectoryError) as caught:
        find_trajectory(tmp_path)
    said = f"--pattern '{pattern}' takes {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"
    assert said in str(caught.value)
    assert find_trajectory(tmp_path, pattern=pattern).steps == steps


@pytest.mark.parametrize(
    "names",
    [
        ("0.1B", "1.5B"),
        ("0.1", "0.2"),
        ("20250101-1000", "20250101-1130", "20250102-0000"),
        ("seed1", "other2"),
        ("final", "best"),
    ],
)
def test_numbers_that_count_nothing_get_none(names: tuple[str, ...], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write_model(tmp_path / name, tiny(number))
    with pytest.raises(TrajectoryError, match=r"no checkpoints found; .* Give a pattern such as"):
        find_trajectory(tmp_path)


def test_a_rule_for_what_the_trainer_dropped_says_how_to_leave_it_out(tmp_path: Path, cli: Cli) -> None:
    """modelscope/ms-swift#9802: the first that one tries for mtp.* is a rule."""
    write_model(tmp_path / "base", tiny(0) | {"mtp.norm.weight": torch.ones(4)})
    write_run(tmp_path / "run")
    trajectory = {"repo": str(tmp_path / "run"), "base": str(tmp_path / "base")}
    rule = {"match": "mtp.*", "method": "persistence"}
    ended = cli(
        "merge",
        recipe_for(
            "", tmp_path / "r.yaml", trajectory=trajectory, parameters={"target_step": 300, "tensors": [rule]}
        ),
        "--out",
        "none",
    )
    assert ended.code == 1
    assert 'write trajectory: {tensors: {ignore: ["mtp.*"]}} to leave these tensors out' in ended.err
    mended = recipe_for("", tmp_path / "m.yaml", trajectory=trajectory | {"tensors": {"ignore": ["mtp.*"]}})
    assert cli("merge", mended, "--out", tmp_path / "out", "-q").code == 0


def test_counters_are_the_last_checkpoints(tmp_path: Path, cli: Cli) -> None:
    """num_batches_tracked of a batch norm: plan and merge agree; several integers may pack weights still."""

    def tensors(step: int, shape: tuple[int, ...] = ()) -> Tensors:
        return tiny(step) | {"vision.bn.num_batches_tracked": torch.full(shape, step)}

    run = write_run(tmp_path / "run", tensors=tensors)
    recipe = recipe_for(run, tmp_path / "r.yaml")
    planned = json.loads(cli("plan", recipe, "--out", tmp_path / "none", "--json").out)
    assert planned["problems"] == []
    assert cli("merge", recipe, "--out", tmp_path / "out", "-q").code == 0
    assert load_file(tmp_path / "out/model.safetensors")["vision.bn.num_batches_tracked"].item() == 200
    several = write_run(tmp_path / "several", tensors=lambda step: tensors(step, (2,)))
    ended = cli("merge", recipe_for(several, tmp_path / "s.yaml"), "--out", tmp_path / "no", "-q")
    assert (ended.code, "which is copied and never combined" in ended.err) == (1, True)


@pytest.mark.parametrize("file", ["consolidated.safetensors", "diffusion_pytorch_model.safetensors"])
def test_a_model_under_another_name_can_be_linked(file: str, tmp_path: Path, cli: Cli) -> None:
    """mistral-finetune, diffusers: the line that is printed makes the run one that is read."""
    run = write_run(tmp_path / "a run", file=file, beside={"sampler.bin": "x", "optimizer.bin": "x"})
    recipe = recipe_for(run, tmp_path / "r.yaml")
    ended = cli("merge", recipe, "--out", "none")
    assert ended.code == 1
    (loop,) = [line for line in ended.err.splitlines() if line.endswith("; done")]
    subprocess.run(["bash", "-euc", loop], check=True, timeout=20)
    assert cli("merge", recipe, "--out", tmp_path / "out", "-q").code == 0


def test_figures_beside_the_weights_are_missed_aloud(tmp_path: Path, cli: Cli) -> None:
    """LeRobot's policies normalise by a safetensors file that is no part of the model."""
    name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    run = write_run(tmp_path / "run", beside={name: "x"})
    ended = cli("merge", recipe_for(run, tmp_path / "r.yaml"), "--out", tmp_path / "out")
    assert ended.code == 0
    assert f"left out: {name} of the last checkpoint" in ended.err


def test_many_folders_that_lack_an_index_are_few_lines(tmp_path: Path, cli: Cli) -> None:
    run = write_run(tmp_path / "run", range(0, 600, 50), file="model-00001-of-00001.safetensors")
    ended = cli("merge", recipe_for(run, tmp_path / "r.yaml", 700), "--out", "none", "-q")
    assert ended.code == 1
    assert ended.err.count("or rename that file to model.safetensors, as it holds the whole model") == 3
    assert "and 9 more messages like this one; the last is of " in ended.err
