"""Whatever is wrong: one clear error with the thing and the remedy, exit code 1, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hubextrap.localhub import LocalHub

Run = Callable[..., object]


@pytest.fixture
def run_copy(checkpoints: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(checkpoints, tmp_path / "run"))


@pytest.fixture
def refused(cli: Run, recipe_file: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Merge a run that must be refused; returns the message after checking that nothing was left behind."""

    def merge(repo: str | Path, *options: str | Path, **sections: object) -> str:
        path = recipe_file(repo, **sections)
        before = sorted(tmp_path.rglob("*"))
        result = cli("merge", path, *(options or ("--out", tmp_path / "out")), "--quiet")
        assert result.code == 1, result
        assert result.out == ""
        assert result.err.startswith("error: ")
        assert result.err.count("error: ") == 1
        assert "Traceback" not in result.err
        assert sorted(tmp_path.rglob("*")) == before
        return result.err

    return merge


def test_unknown_repo(hub: LocalHub, refused: Callable[..., str]) -> None:
    message = refused("me/nothing-here")
    assert "me/nothing-here: no such repo, or it is private" in message
    assert "HF_TOKEN" in message


def test_unknown_revision(checkpoints: Path, on_hub: Callable[..., str], refused: Callable[..., str]) -> None:
    repo = on_hub(checkpoints)
    message = refused(f"{repo}@step_31:sub")
    assert "no such revision" in message
    assert "step_31" in message


def test_unknown_file(cli: Run, tmp_path: Path) -> None:
    result = cli("merge", tmp_path / "absent.yaml", "--out", tmp_path / "out")
    assert result.code == 1
    assert "absent.yaml" in result.err


def test_unknown_local_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    assert f"{tmp_path}/absent: no such local folder" in refused(tmp_path / "absent")


def test_gated(
    hub: LocalHub,
    token: str,
    checkpoints: Path,
    on_hub: Callable[..., str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo = on_hub(checkpoints, gated=True)
    anonymous = refused(repo)
    assert "gated" in anonymous
    assert "hf auth login" in anonymous
    stranger = hub.add_token("stranger")
    monkeypatch.setenv("HF_TOKEN", stranger)
    message = refused(repo)
    assert "gated" in message
    assert stranger not in message


def test_invalid_token(
    hub: LocalHub,
    checkpoints: Path,
    on_hub: Callable[..., str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo = on_hub(checkpoints, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 6)
    message = refused(repo)
    assert "HF_TOKEN" in message
    assert "wrongwrong" not in message


def test_step_missing(checkpoints: Path, refused: Callable[..., str]) -> None:
    message = refused(checkpoints, trajectory={"repo": str(checkpoints), "steps": {"only": [0, 25]}})
    assert "step 25 is not there; the nearest are" in message


def test_step_twice(hub: LocalHub, checkpoints: Path, repo_id: str, refused: Callable[..., str]) -> None:
    hub.create_repo(repo_id)
    for name in ("step_10", "step_0010"):
        files = {path.name: path for path in (checkpoints / "step_10").iterdir()} | {"which": name.encode()}
        hub.commit(repo_id, files, revision=name)
    message = refused(repo_id)
    assert "step 10 is there twice" in message
    assert "step_0010" in message


def test_target_before_last(checkpoints: Path, refused: Callable[..., str]) -> None:
    message = refused(checkpoints, parameters={"target_step": 15})
    assert "target step 15 is before the last observed step 30" in message
    assert "steps.max" in message


def test_base_step_not_observed(checkpoints: Path, refused: Callable[..., str]) -> None:
    message = refused(checkpoints, parameters={"target_step": 60, "base_step": 15})
    assert "base_step 15" in message
    assert "choose one of 0, 10, 20" in message


def edit(folder: Path, change: Callable[[dict[str, object]], dict[str, object]]) -> str:
    """Rewrite one shard of a checkpoint with other tensors; returns its name."""
    from safetensors.torch import load_file, save_file

    path = sorted(folder.glob("*.safetensors"))[0]
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return path.name


def reindex(folder: Path) -> None:
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {
        name: path.name
        for path in folder.glob("*.safetensors")
        for name in safe_open(path, "pt").keys()  # noqa: SIM118 - it is no dict
    }
    index.write_text(json.dumps(content))


def test_shape_mismatch(run_copy: Path, refused: Callable[..., str]) -> None:
    import torch

    names = []

    def grow(tensors: dict[str, object]) -> dict[str, object]:
        names.append(sorted(tensors)[0])
        return tensors | {names[0]: torch.zeros(3, 5, dtype=torch.bfloat16)}

    edit(run_copy / "step_20", grow)
    message = refused(run_copy)
    assert names[0] in message
    assert "[3, 5]" in message
    assert "step 20" in message


def test_name_mismatch(run_copy: Path, refused: Callable[..., str]) -> None:
    names = []

    def drop(tensors: dict[str, object]) -> dict[str, object]:
        names.append(sorted(tensors)[0])
        return {name: tensor for name, tensor in tensors.items() if name != names[0]}

    edit(run_copy / "step_20", drop)
    reindex(run_copy / "step_20")
    message = refused(run_copy)
    assert names[0] in message
    assert "step 20" in message


def test_dtype_mismatch(run_copy: Path, refused: Callable[..., str]) -> None:
    import torch

    def to_integers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}

    edit(run_copy / "step_20", to_integers)  # type: ignore[arg-type]
    message = refused(run_copy)
    assert "I32" in message
    assert "step 20" in message


def test_all_mismatches_at_once(run_copy: Path, refused: Callable[..., str]) -> None:
    import torch

    for step, length in ((10, 1), (20, 2)):
        edit(run_copy / f"step_{step}", lambda t, n=length: {name: torch.zeros(n) for name in t})
    message = refused(run_copy)
    assert "step 10" in message
    assert "step 20" in message
    assert "problems" in message


def test_missing_shard(run_copy: Path, refused: Callable[..., str]) -> None:
    gone = sorted((run_copy / "step_20").glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refused(run_copy)


def test_corrupt_header(run_copy: Path, refused: Callable[..., str]) -> None:
    path = sorted((run_copy / "step_20").glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert path.name in refused(run_copy)


def test_truncated_file(run_copy: Path, refused: Callable[..., str]) -> None:
    path = sorted((run_copy / "step_20").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-10])
    message = refused(run_copy)
    assert path.name in message
    assert "again" in message


def strip_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def test_pickle_only(run_copy: Path, refused: Callable[..., str]) -> None:
    strip_weights(run_copy / "step_20")
    (run_copy / "step_20" / "pytorch_model.bin").write_bytes(b"never opened")
    message = refused(run_copy, trajectory={"repo": str(run_copy), "steps": {"only": [0, 20, 30]}})
    assert "step_20" in message
    assert "pytorch_model.bin is a pickle" in message


def test_lora_only(run_copy: Path, refused: Callable[..., str]) -> None:
    source = next((run_copy / "step_20").glob("*.safetensors"))
    shutil.copy(source, run_copy / "step_20" / "adapter_model.safetensors")
    for path in (run_copy / "step_20").glob("model*"):
        path.unlink()
    (run_copy / "step_20" / "adapter_config.json").write_text("{}")
    message = refused(run_copy, trajectory={"repo": str(run_copy), "steps": {"only": [0, 20, 30]}})
    assert "step_20 is an adapter" in message
    assert "name steps of one kind" in message


def test_non_finite(run_copy: Path, refused: Callable[..., str]) -> None:
    names = []

    def poison(tensors: dict[str, object]) -> dict[str, object]:
        names.append(sorted(tensors)[0])
        tensors[names[0]].view(-1)[1] = float("nan")  # type: ignore[attr-defined]
        return tensors

    edit(run_copy / "step_30", poison)
    message = refused(run_copy)
    assert names[0] in message
    assert "1 " in message


def test_output_there_already(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    result = cli("merge", recipe_file(checkpoints), "--out", tmp_path / "out", "-q")
    assert result.code == 1
    assert "not empty; remove it, or choose another --out" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_unwritable_output(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    parent = Path("/proc") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid() != 0:
        parent.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    result = cli("merge", recipe_file(checkpoints), "--out", parent / "out", "-q")
    assert result.code == 1
    assert f"{parent}" in result.err
    assert "choose another --out" in result.err


def test_no_destination(refused: Callable[..., str], checkpoints: Path) -> None:
    message = refused(checkpoints, "--memory", "512MiB")
    assert "--out DIR" in message


def test_memory_too_small(refused: Callable[..., str], checkpoints: Path, tmp_path: Path) -> None:
    message = refused(checkpoints, "--out", tmp_path / "out", "--memory", "10MiB")
    assert "give at least" in message


def test_bad_recipe_lists_every_problem(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "trajectory:\n  repo: a/b\n  steeps: {max: 3}\nmerge_method: two_points\n"
        "parameters:\n  target_step: x\ndtype: bfloat16\n"
    )
    result = cli("merge", path, "--out", tmp_path / "out")
    assert result.code == 1
    for expected in (
        ":3: trajectory.steeps: unknown key; did you mean steps?",
        ":4: ",
        ":6: ",
        ":7: ",
    ):
        assert expected in result.err


def test_unknown_task_before_any_work(
    cli: Run, hub: LocalHub, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe_file(checkpoints, evaluate={"tasks": ["rad"], "include_path": "demo/tasks"})
    result = cli("run", path, "--out", tmp_path / "out", "-q")
    assert result.code == 1
    assert "unknown task: 'rad' (did you mean radd" in result.err
    assert not (tmp_path / "out").exists()


def test_push_without_token(checkpoints: Path, refused: Callable[..., str]) -> None:
    assert "HF_TOKEN" in refused(checkpoints, "--push", "me/model@step_60")


def test_hub_out_of_reach(
    on_hub: Callable[..., str], checkpoints: Path, hub: LocalHub, refused: Callable[..., str]
) -> None:
    from hubextrap.localhub import Fault

    repo = on_hub(checkpoints)
    hub.faults.add(Fault(path=r"/refs", drop=True, count=100))
    message = refused(repo)
    assert "cannot reach the Hub" in message
    assert "run the same command again" in message
