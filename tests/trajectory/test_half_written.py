"""A trainer or an upload is at the newest checkpoint: it is left out and told of; others have to be whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import Lines
from safetensors.numpy import save_file

from hubextrap.api.against import real_checkpoint
from hubextrap.errors import HubExtrapError, StepError
from hubextrap.localhub import LocalHub
from hubextrap.opening import Run
from hubextrap.recipe import parse_recipe
from hubextrap.trajectory import find_trajectory, pin_checkpoints

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STEPS = (10, 20, 30, 40)


def write(folder: Path, step: int) -> None:
    folder.mkdir(parents=True)
    weights = {"model.norm.weight": np.linspace(0, step, 64, dtype=np.float32)}
    save_file(weights, folder / SINGLE, {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in STEPS:
        write(tmp_path / "run" / f"checkpoint-{step}", step)
    return tmp_path / "run"


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"")


def empty(folder: Path) -> None:
    (folder / SINGLE).write_bytes(b"")


def half_of_the_tensors(folder: Path) -> None:
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 100)


def half_of_the_header(folder: Path) -> None:
    os.truncate(folder / SINGLE, 40)


def room_alone(folder: Path) -> None:
    (folder / SINGLE).write_bytes(bytes((folder / SINGLE).stat().st_size))


def shards_that_are_not_there(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00003.safetensors")
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict(zip("abc", names, strict=True))})
    )


def no_index(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00003.safetensors")


def all_but_the_index(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-1-of-1.safetensors")


def empty_index(folder: Path) -> None:
    all_but_the_index(folder)
    (folder / INDEX).write_bytes(b"")


def config_alone(folder: Path) -> None:
    (folder / SINGLE).unlink()


def under_another_name(folder: Path) -> None:
    (folder / SINGLE).rename(folder / f"{SINGLE}.tmp")


def moved(name: str) -> Callable[[Path], object]:
    return lambda folder: folder.rename(folder.parent / name)


LOCAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "half of the tensors": (half_of_the_tensors, "model.safetensors is cut short: "),
    "half of the header": (half_of_the_header, "model.safetensors is cut short in its header"),
    "room alone": (room_alone, "model.safetensors is cut short in its header"),
    **{
        f"called {name}": (moved(name), "its name says that it is not whole yet")
        for name in (
            "tmp-checkpoint-40", "checkpoint-40.tmp", "checkpoint-40_tmp-0", "checkpoint-40-incomplete",
            "checkpoint-40.partial",
        )
    },
}  # fmt: skip
"""Of a file on the Hub all bytes are there, and a branch has its name from the first commit on."""
BOTH: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (no_config, "has no config.json, which the checkpoint before it has"),
    "an empty config": (empty_config, "has no config.json"),
    "an empty file": (empty, "model.safetensors is empty"),
    "shards": (
        shards_that_are_not_there,
        "model-00002-of-00003.safetensors is not there, and",
    ),
    "no index": (no_index, "model-00002-of-00003.safetensors is not there, and"),
    "all but the index": (all_but_the_index, f"has model-1-of-1.safetensors and no {INDEX}"),
    "an empty index": (empty_index, f"{INDEX} is empty"),
    "config alone": (config_alone, "no weights"),
    "under another name": (under_another_name, "no weights"),
}


def upload(hub: LocalHub, run: Path, repo: str) -> None:
    hub.create_repo(repo)
    for folder in run.iterdir():
        hub.commit(repo, {path.name: path for path in folder.iterdir()}, revision=folder.name)


@pytest.mark.parametrize("case", [*LOCAL, *BOTH])
def test_on_a_disk(run: Path, lines: Lines, case: str) -> None:
    """The run goes on with the whole ones, and only these are in what is made."""
    change, said = (LOCAL | BOTH)[case]
    change(run / "checkpoint-40")
    with Run(find_trajectory(str(run), progress=lines)) as opened:
        assert opened.steps == STEPS[:-1]
        assert len(opened.layouts) == 3
    (line,) = lines.said
    assert line.startswith("warning: left out step 40")
    assert said in line


@pytest.mark.parametrize("case", BOTH)
@pytest.mark.parametrize("layout", ["branches", "folders"])
def test_on_the_hub(hub: LocalHub, run: Path, lines: Lines, repo_id: str, case: str, layout: str) -> None:
    change, said = BOTH[case]
    change(run / "checkpoint-40")
    if layout == "branches":
        upload(hub, run, repo_id)
    else:
        hub.create_repo(repo_id)
        files = (path for path in sorted(run.rglob("*")) if path.is_file())
        hub.commit(repo_id, {path.relative_to(run).as_posix(): path for path in files})
    assert find_trajectory(repo_id, progress=lines).steps == STEPS[:-1]
    (line,) = lines.said
    assert line.startswith("warning: left out step 40")
    assert said in line


def test_several_at_the_end(run: Path, lines: Lines) -> None:
    half_of_the_tensors(run / "checkpoint-30")
    no_config(run / "checkpoint-40")
    assert find_trajectory(str(run), progress=lines).steps == (10, 20)
    assert [line[:29] for line in lines.said] == [f"warning: left out step {step}, wh" for step in (30, 40)]


def test_what_is_not_the_newest_is_an_error_whose_advice_works(run: Path, lines: Lines) -> None:
    half_of_the_tensors(run / "checkpoint-20")
    for options in ({}, {"max_step": 20}):
        found = find_trajectory(str(run), progress=lines, **options)
        with Run(found) as opened, pytest.raises(HubExtrapError) as error:
            _ = opened.layouts
        assert "checkpoint-20/model.safetensors: is cut short" in str(error.value)
    assert lines.said == []
    with Run(find_trajectory(str(run))) as opened, pytest.raises(HubExtrapError) as error:
        _ = opened.layouts
    assert str(error.value).endswith(
        "; or leave step 20 out: take the run up to step 10 (--max-step 10, or trajectory.steps.max in a "
        "recipe) or from step 30 on (--min-step 30, or trajectory.steps.min); trajectory.steps.only lists "
        "any steps"
    )
    for advised in ({"max_step": 10}, {"min_step": 30}, {"steps": [10, 30, 40]}):
        with Run(find_trajectory(str(run), **advised)) as opened:
            assert opened.layouts


def test_what_is_named_has_to_be_whole(run: Path) -> None:
    half_of_the_tensors(run / "checkpoint-40")
    with pytest.raises(
        StepError, match=r"step 40 cannot be taken, .*checkpoint-40: model.safetensors is cut short"
    ):
        find_trajectory(str(run), steps=[10, 20, 40])
    assert find_trajectory(str(run), steps=[10, 20]).steps == (10, 20)
    listed = pin_checkpoints([(f"{run}/checkpoint-{step}", step) for step in (10, 20, 40)])
    with Run(listed) as opened, pytest.raises(HubExtrapError, match="is cut short"):
        _ = opened.layouts
    with (
        Run(find_trajectory(str(run), max_step=30, base=f"{run}/checkpoint-40")) as opened,
        pytest.raises(HubExtrapError, match="is cut short"),
    ):
        _ = opened.layouts


def test_none_is_whole(run: Path, lines: Lines) -> None:
    """Then nothing is half-written: they are broken, or lie so."""
    for step in STEPS:
        empty(run / f"checkpoint-{step}")
    found = find_trajectory(str(run), progress=lines)
    assert found.steps == STEPS
    assert not any("left out" in line for line in lines.said)
    with (
        Run(found) as opened,
        pytest.raises(HubExtrapError, match="has 0 bytes, too few for a safetensors file"),
    ):
        _ = opened.layouts


def test_runs_that_are_whole_as_they_are(run: Path, lines: Lines) -> None:
    """No checkpoint has a config; one has its name for good; a scale is no reason."""
    for step in STEPS:
        no_config(run / f"checkpoint-{step}")
        (run / f"checkpoint-{step}").rename(run / f"tmp-checkpoint-{step}")
    assert find_trajectory(str(run), progress=lines).steps == STEPS
    assert find_trajectory(str(run), progress=lines, step_scale=2).steps == (20, 40, 60, 80)
    assert lines.said == []


def test_the_real_target_is_no_half_of_one(run: Path, lines: Lines) -> None:
    """What is being written is not compared with either."""
    half_of_the_tensors(run / "checkpoint-40")
    found = find_trajectory(str(run), progress=lines)
    with pytest.raises(StepError, match="step 40 cannot be taken"):
        real_checkpoint(found, 40, "run")


@pytest.mark.slow
def test_as_whole_processes(run: Path, tmp_path: Path) -> None:
    """-q does not hide what was left out; a merge names what it used."""
    half_of_the_tensors(run / "checkpoint-40")
    text = f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 50}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert parse_recipe(text).target_steps == (50,)
    out = tmp_path / "out"
    for words in (
        ("steps", str(run), "--json"), ("backtest", str(run)), ("scan", str(run), "--out", "x.safetensors"),
        ("plan", "recipe.yaml"), ("merge", "recipe.yaml", "--out", str(out)),
    ):  # fmt: skip
        line = [sys.executable, "-m", "hubextrap", *words, "-q"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done
        assert "left out step 40, which is not whole yet" in " ".join(done.stderr.split())
    made = json.loads((out / "hubextrap.json").read_text())
    assert [one["step"] for one in made["inputs"]] == [10, 20, 30]
    shutil.rmtree(out)
