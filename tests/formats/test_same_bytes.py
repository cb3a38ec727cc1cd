"""Predictions from what trainers leave are those from save_pretrained's files, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from executors.processes import ProcessExecutor
from formats.conftest import FORMS, STEPS, TIED_FORMS, contents
from harness import Lines, scan_stopped_after
from huggingface_hub import HfApi

import hubextrap
from hubextrap import api
from hubextrap.errors import SourceError, UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.opening import Run
from hubextrap.scans import Scan
from hubextrap.trajectory import find_trajectory

pytestmark = pytest.mark.slow
Recipe = Callable[..., Path]


def merged(recipe: Path, out: Path, lines: Lines | None = None, **how: object) -> dict[str, bytes]:
    settings = api.MergeOptions(**how)  # type: ignore[arg-type]
    hubextrap.merge(hubextrap.load_recipe(recipe), out=out, settings=settings, progress=lines)
    return contents(out)


@pytest.fixture
def on_hub(runs: Path, hub: LocalHub, repo_id: str) -> Callable[[str], str]:
    """Makes folders of a repo of the run in a form."""

    def push(form: str) -> str:
        hub.create_repo(repo_id)
        files = (path for path in (runs / form).rglob("*") if path.is_file())
        hub.commit(repo_id, {path.relative_to(runs / form).as_posix(): path for path in sorted(files)})
        return repo_id

    return push


def figures(scan: Scan) -> list[object]:
    """All that a scan found in the weights."""
    table = scan.gram_table
    return [
        table.tensors,
        scan.dtypes,
        *(array.tobytes() for array in (table.gram, table.elements, scan.counts, scan.example_values)),
        None if scan.weights is None else [one.tobytes() for one in scan.weights.stored],
    ]


@pytest.fixture(scope="module")
def expected(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The prediction from the plain run."""
    folder = tmp_path_factory.mktemp("expected")
    file = folder / "recipe.yaml"
    content = {
        "trajectory": {"repo": str(runs / "plain")},
        "merge_method": "low_rank",
        "parameters": {"target_step": 45},
    }
    file.write_text(json.dumps(content))
    found = merged(file, folder / "out")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= found.keys()
    return found


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_merge(form: str, runs: Path, expected: dict[str, bytes], recipe: Recipe, tmp_path: Path) -> None:
    assert merged(recipe(runs / form), tmp_path / "out") == expected
    stated = json.loads((tmp_path / "out" / "hubextrap.json").read_bytes())
    for step, one in zip(STEPS, stated["inputs"], strict=True):
        there = runs / form / f"step_{step}"
        for file in one["files"]:
            assert file["size"] == (there / file["file"]).stat().st_size
            assert (file["read"], file["compared"]) == ("part", False)
        assert one["files"]
    assert str(api.verify(tmp_path / "out"))


@pytest.mark.parametrize("form", TIED_FORMS[1:])
def test_tied_embeddings_are_written_once(form: str, tied_runs: Path, recipe: Recipe, tmp_path: Path) -> None:
    found = merged(recipe(tied_runs / form), tmp_path / form)
    assert found == merged(recipe(tied_runs / "plain"), tmp_path / "plain")


@pytest.mark.parametrize("form", FORMS[1:])
def test_ranges_from_the_hub(
    form: str, on_hub: Callable[[str], str], expected: dict[str, bytes], recipe: Recipe, tmp_path: Path
) -> None:
    assert merged(recipe(on_hub(form)), tmp_path / "out") == expected
    stated = json.loads((tmp_path / "out" / "hubextrap.json").read_bytes())
    every = [file for one in stated["inputs"] for file in one["files"]]
    assert all(file["listed"] and not file["compared"] for file in every)


@pytest.mark.parametrize("form", ["fsdp", "accelerate", "sharded"])
def test_the_hubs_cache(
    form: str, on_hub: Callable[[str], str], expected: dict[str, bytes], recipe: Recipe, tmp_path: Path
) -> None:
    assert merged(recipe(on_hub(form)), tmp_path / "out", cache=True) == expected


@pytest.mark.parametrize("form", ["fsdp", "accelerate", "sharded"])
def test_a_bucket(
    form: str,
    runs: Path,
    expected: dict[str, bytes],
    recipe: Recipe,
    hub: LocalHub,
    repo_id: str,
    logged_in: str,
    tmp_path: Path,
) -> None:
    HfApi().create_bucket(repo_id, private=True)
    files = [(file, file.relative_to(runs / form)) for file in (runs / form).rglob("*") if file.is_file()]
    HfApi().batch_bucket_files(repo_id, add=[(file, f"run/{path.as_posix()}") for file, path in files])
    assert merged(recipe(f"hf://buckets/{repo_id}/run"), tmp_path / "out") == expected


def test_one_step_is_plain_and_others_are_not(
    runs: Path, expected: dict[str, bytes], recipe: Recipe, tmp_path: Path
) -> None:
    forms = ("fsdp", "plain", "sharded")
    listed = [
        {"step": step, "model": str(runs / form / f"step_{step}")}
        for step, form in zip(STEPS, forms, strict=True)
    ]
    several = {"trajectory": {"checkpoints": listed}}
    assert merged(recipe("", **several), tmp_path / "out") == expected


def test_a_plain_base_on_the_hub(
    runs: Path, expected: dict[str, bytes], recipe: Recipe, hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    hub.create_repo(repo_id)
    base = runs / "plain" / f"step_{STEPS[0]}"
    hub.commit(repo_id, {path.name: path for path in base.iterdir()})
    run = tmp_path / "run"
    for step in STEPS[1:]:
        shutil.copytree(runs / "dcp" / f"step_{step}", run / f"step_{step}")
    found = merged(recipe(run, trajectory={"repo": str(run), "base": repo_id}), tmp_path / "out")
    assert found == expected


@pytest.mark.parametrize("form", ["fsdp", "dcp", "sharded"])
@pytest.mark.parametrize("sample", [None, 64])
def test_scans(form: str, sample: int | None, runs: Path, tmp_path: Path) -> None:
    found = [
        api.scan(find_trajectory(str(runs / one)), sample="exact" if sample is None else sample)
        for one in (form, "plain")
    ]
    assert figures(found[0]) == figures(found[1])


def test_a_scan_that_was_stopped_goes_on(runs: Path, tmp_path: Path) -> None:
    run, lines = find_trajectory(str(runs / "fsdp")), Lines()
    with scan_stopped_after(3):
        api.scan(run, out=tmp_path / "run.scan", sample="exact")
    found = api.scan(run, out=tmp_path / "run.scan", sample="exact", progress=lines)
    assert any("going on after 3 tensors" in line for line in lines.said), lines.said
    assert figures(found) == figures(api.scan(find_trajectory(str(runs / "plain")), sample="exact"))


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of a file of a checkpoint in pieces."""
    monkeypatch.setattr("hubextrap.tensors.assembled.SHARD_SIZE", 3000)
    return 3000


def in_several_files(runs: Path, folder: Path, size: int) -> Path:
    """The plain run, as save_pretrained cuts it."""
    from formats.conftest import model_at

    for step in STEPS:
        shutil.copytree(runs / "plain" / f"step_{step}", folder / f"step_{step}")
        (folder / f"step_{step}" / "model.safetensors").unlink()
        model_at(step, tied=False).save_pretrained(folder / f"step_{step}", max_shard_size=size)
    assert len(list((folder / "step_0").glob("model-*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("form", ["fsdp", "dcp"])
def test_several_files(form: str, runs: Path, small_files: int, recipe: Recipe, tmp_path: Path) -> None:
    plain = in_several_files(runs, tmp_path / "plain-run", small_files)
    assert merged(recipe(runs / form), tmp_path / form) == merged(recipe(plain), tmp_path / "plain")


@pytest.mark.parametrize("changed", [False, True])
def test_a_merge_that_was_stopped_goes_on(
    changed: bool,
    runs: Path,
    small_files: int,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And starts over where a rank's file was written to meanwhile."""
    run, lines = Path(shutil.copytree(runs / "fsdp", tmp_path / "run")), Lines()
    how = recipe(run, merge_method="two_point")
    with stopped_after(2, monkeypatch):
        merged(how, tmp_path / "out")
    if changed:
        file = run / "step_25" / "model_world_size_4_rank_0.pt"
        content = bytearray(file.read_bytes())
        place = content.find(content_of(run, "model.embed_tokens.weight"))
        content[place] ^= 1
        file.write_bytes(content)
    found = merged(how, tmp_path / "out", lines)
    starts_over = "starting over, as the checkpoint of step 25 changed since the run that was stopped"
    assert (starts_over in lines.said) == changed
    assert found == merged(how, tmp_path / "anew")


@contextmanager
def stopped_after(shards: int, patched: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the merge in this block once so many shards are finished."""
    from hubextrap.tensors.journal import Journal

    record, count = Journal.record, 0

    def stop(journal: Journal, *given: object, **named: object) -> None:
        nonlocal count
        record(journal, *given, **named)  # type: ignore[arg-type]
        count += 1
        if count == shards:
            raise KeyboardInterrupt

    with patched.context() as patch:
        patch.setattr(Journal, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def content_of(run: Path, tensor: str) -> bytes:
    """The first bytes of a tensor of the last step."""
    with Run.of(find_trajectory(str(run))) as opened:
        source, layout = opened.sources[-1], opened.layouts[-1]
        info = layout.tensors[tensor]
        data = bytearray(64)
        source.read(info.file, info.offset, memoryview(data))
    return bytes(data)


@pytest.mark.parametrize("form", ["fsdp", "accelerate", "sharded"])
@pytest.mark.parametrize("place", ["disk", "hub"])
def test_workers_elsewhere(
    form: str,
    place: str,
    runs: Path,
    on_hub: Callable[[str], str],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan carries where everything lies: nobody looks for it again."""
    monkeypatch.setattr("hubextrap.api.distributing.executor_named", lambda name: ProcessExecutor())
    run = runs / form if place == "disk" else on_hub(form)
    found = merged(recipe(run, merge_method="two_point"), tmp_path / "out", executor="ray")
    assert found == merged(recipe(runs / "plain", merge_method="two_point"), tmp_path / "plain")


@pytest.mark.parametrize("form", ["dcp", "sharded"])
def test_a_scan_by_workers(form: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubextrap.executors.local import LocalExecutor
    from hubextrap.reading import ReadingOptions

    monkeypatch.setattr("hubextrap.api.elsewhere.executor_named", lambda name: LocalExecutor())
    reading = ReadingOptions(executor="ray")
    found = api.scan(find_trajectory(str(runs / form)), sample="exact", settings=reading)
    assert figures(found) == figures(api.scan(find_trajectory(str(runs / "plain")), sample="exact"))


def test_a_file_that_is_written_to_while_it_is_read(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "dcp", tmp_path / "run"))
    with Run.of(find_trajectory(str(run))) as opened:
        source, layout = opened.sources[0], opened.layouts[0]
        for file in (run / "step_0").glob("*.distcp"):
            file.write_bytes(file.read_bytes() + b" ")
        info = next(iter(layout.tensors.values()))
        with pytest.raises(SourceError, match="changed while it was read"):
            source.read(info.file, info.offset, memoryview(bytearray(info.nbytes)))


def test_what_cannot_be_loaded_is_written_by_the_command_that_is_told(runs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from hubextrap.logits.loading import check_loadable, load_causal_lm, load_tokenizer
    from hubextrap.trajectory import resolve_checkpoint

    checkpoint = resolve_checkpoint(str(runs / "fsdp" / "step_10"), step=10)
    for load in (load_tokenizer, check_loadable, load_causal_lm):
        with pytest.raises(
            UnsupportedCheckpoint, match="FSDP shards, which neither transformers nor"
        ) as told:
            load(checkpoint)
    command = str(told.value).partition("--against last=step-10`): ")[2]
    command = command.replace("hubextrap merge", f"{sys.executable} -m hubextrap merge")
    paths = os.pathsep.join(sys.path)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths})
    assert contents(tmp_path / "step-10") == contents(runs / "plain" / "step_10")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "step-10", dtype="auto")
    assert model.config.vocab_size == 28
