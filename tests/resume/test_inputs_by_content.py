"""A stopped run whose inputs were swapped meanwhile never mixes two models, however alike the files look."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from harness import SHARDS, Lines, scan_stopped_after

import hubextrap
from hubextrap import api
from hubextrap.errors import CorruptFile, OutputError, SourceError
from hubextrap.localhub import LocalHub
from hubextrap.tensors import LocalSource
from hubextrap.trajectory import find_trajectory

Contents = Callable[[Path], dict[str, bytes]]
Recipe = Callable[..., Path]
FullDisk = Callable[[], AbstractContextManager[None]]
BEFORE, AFTER = "model-00002-of-00012.safetensors", "model-00011-of-00012.safetensors"
"""Files that shards were made from when the run was stopped, and that were not read yet."""
STARTS_OVER = "starting over, as the checkpoint of step {} changed since the run that was stopped"


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def merge(recipe: Path, out: Path, lines: Lines | None = None) -> None:
    hubextrap.merge(hubextrap.load_recipe(recipe), out=out, progress=lines)


def swap(path: Path, place: int = -1) -> None:
    """Other bytes in a file of the same size and time of change."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def header_of(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 10])
@pytest.mark.parametrize(
    ("file", "how", "starts_over"),
    [
        (BEFORE, "in place", True),
        (BEFORE, "by another file", True),
        (BEFORE, "its header", True),
        (BEFORE, "not at all", False),
        (BEFORE, "and back", False),
        (AFTER, "in place", False),  # nothing was made of it
        (AFTER, "its header", True),
    ],
)
def test_inputs_that_were_swapped(
    step: int,
    file: str,
    how: str,
    starts_over: bool,
    run: Path,
    recipe_file: Recipe,
    full_disk: FullDisk,
    tmp_path: Path,
    contents: Contents,
    lines: Lines,
) -> None:
    recipe, out, path = recipe_file(run), tmp_path / "out", run / f"step_{step}" / file
    with full_disk(), pytest.raises(OutputError):
        merge(recipe, out)
    status, original = path.stat(), path.read_bytes()
    if how == "in place":
        swap(path)
    elif how == "by another file":
        other = path.with_name("other")
        shutil.copy2(path, other)
        swap(other)
        other.replace(path)
    elif how == "its header":  # the names of two tensors of one shape change places
        number = int(file[6:11]) - 1
        mlp, attention = (f"layers.{number}.{part}.weight".encode() for part in ("mlp", "attention"))
        header = original[: header_of(path)].replace(mlp, b"@").replace(attention, mlp)
        path.write_bytes(header.replace(b"@", attention) + original[header_of(path) :])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "and back":
        swap(path)
        swap(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert (path.read_bytes() == original) == (how in ("not at all", "and back"))
    merge(recipe, out, lines)
    begun = [line for line in lines.said if f"starting over, as the checkpoint of step {step}" in line]
    assert bool(begun) == starts_over, lines.said
    assert (f"resuming: 6 of {SHARDS} shards are there" in lines.said) != starts_over
    merge(recipe, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_run_that_starts_over_and_is_stopped_again(
    run: Path, recipe_file: Recipe, full_disk: FullDisk, tmp_path: Path, contents: Contents, lines: Lines
) -> None:
    recipe, out = recipe_file(run), tmp_path / "out"
    for _ in range(2):
        with full_disk(), pytest.raises(OutputError):
            merge(recipe, out)
        swap(run / "step_0" / BEFORE)
    swap(run / "step_0" / BEFORE)  # as it was in the second run
    merge(recipe, out, lines)
    assert f"resuming: 6 of {SHARDS} shards are there" in lines.said
    merge(recipe, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_push_that_was_stopped(
    hub: LocalHub,
    run: Path,
    recipe_file: Recipe,
    full_disk: FullDisk,
    repo_id: str,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
    lines: Lines,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    recipe, target = hubextrap.load_recipe(recipe_file(run)), hubextrap.PushTarget(repo_id)
    with full_disk(), pytest.raises(OutputError):
        hubextrap.merge(recipe, push=[target])
    swap(run / "step_10" / BEFORE)
    hubextrap.merge(recipe, push=[target], progress=lines)
    assert STARTS_OVER.format(10) in lines.said
    assert hubextrap.verify(repo_id).problems == ()


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_a_file_that_is_swapped_while_it_is_read(how: str, run: Path) -> None:
    path = run / "step_0" / BEFORE
    source = LocalSource(path.parent)
    buffer = bytearray(1000)
    source.read(BEFORE, 0, memoryview(buffer))
    if how == "in place":
        swap(path)
    else:
        shutil.copy2(path, path.with_name("other"))
        path.with_name("other").replace(path)
    with pytest.raises(SourceError, match="changed while it was read"):
        source.read(BEFORE, 1000, memoryview(buffer))
    source.close()


def one_file(folder: Path, like: Path) -> None:
    """The same checkpoint in one file, its tensors in another order than the output's."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    tensors = {
        name: tensor for file in like.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(like / "config.json", folder)


@pytest.fixture
def two_layouts(hub: LocalHub, run: Path, repo_id: str) -> tuple[str, Path]:
    """A run on the Hub whose first checkpoint is one file; and that file in the storage."""
    one_file(run / "one", run / "step_0")
    hub.create_repo(repo_id)
    for step, folder in ((0, run / "one"), (10, run / "step_10")):
        hub.commit(repo_id, {path.name: path for path in folder.iterdir()}, revision=f"step_{step}")
    sha256 = hashlib.sha256((run / "one" / "model.safetensors").read_bytes()).hexdigest()
    return repo_id, hub.store.get("model", repo_id).objects.path(sha256)


def test_a_file_in_another_order_is_compared_too(
    two_layouts: tuple[str, Path], run: Path, recipe_file: Recipe, tmp_path: Path, contents: Contents
) -> None:
    repo, stored = two_layouts
    recipe = recipe_file(repo)
    merge(recipe, tmp_path / "out")
    merge(recipe_file(run), tmp_path / "local")
    there, local = contents(tmp_path / "out"), contents(tmp_path / "local")
    assert {name for name in there if there[name] != local[name]} == {"README.md", "hubextrap.json"}
    swap(stored, -3)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CorruptFile, match=f"{repo}@step_0/.* have sha256"):
        merge(recipe_file(repo), tmp_path / "damaged")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_stopped_run_of_a_file_that_was_not_compared_yet(
    two_layouts: tuple[str, Path],
    recipe_file: Recipe,
    full_disk: FullDisk,
    tmp_path: Path,
    lines: Lines,
    contents: Contents,
) -> None:
    repo, stored = two_layouts
    recipe, out = recipe_file(repo), tmp_path / "out"
    merge(recipe, tmp_path / "fresh")
    with full_disk(), pytest.raises(OutputError):
        merge(recipe, out)
    merge(recipe, out, lines)
    assert lines.said == [f"resuming: 6 of {SHARDS} shards are there"]
    assert contents(out) == contents(tmp_path / "fresh")
    shutil.rmtree(out)

    # damaged while the first run reads, whole again when it goes on: what it made of it is of no use
    swap(stored, header_of(stored))
    with full_disk(), pytest.raises(OutputError):
        merge(recipe, out)
    swap(stored, header_of(stored))
    lines.said.clear()
    merge(recipe, out, lines)
    assert contents(out) == contents(tmp_path / "fresh")
    shutil.rmtree(out)

    # damaged when the first run has ended
    with full_disk(), pytest.raises(OutputError):
        merge(recipe, out)
    swap(stored, header_of(stored))
    with pytest.raises(CorruptFile, match=f"{repo}@step_0/.* have sha256"):
        merge(recipe, out)
    assert not out.exists()
    assert not out.with_name(".out.partial").exists()


def test_what_a_stopped_run_compared_is_not_read_again(
    hub: LocalHub, run_on_hub: str, recipe_file: Recipe, full_disk: FullDisk, tmp_path: Path
) -> None:
    recipe, out = recipe_file(run_on_hub), tmp_path / "out"
    with full_disk(), pytest.raises(OutputError):
        merge(recipe, out)
    hub.requests.clear()
    merge(recipe, out)
    asked = [request for request in hub.requests if BEFORE in request.path and request.method == "GET"]
    assert len(asked) == 2  # the headers


def test_a_scan_that_was_stopped(run: Path, tmp_path: Path) -> None:
    """It begins anew where a local checkpoint was swapped."""
    trajectory = find_trajectory(str(run))
    with scan_stopped_after(5):
        api.scan(trajectory, out=tmp_path / "scan.npz")
    swap(run / "step_0" / "model-00001-of-00012.safetensors")
    lines = Lines()
    found = api.scan(trajectory, out=tmp_path / "scan.npz", progress=lines)
    assert any("starting over, as the checkpoint of step 0 changed" in line for line in lines.said)
    assert (found.gram_table.gram == api.scan(trajectory).gram_table.gram).all()
