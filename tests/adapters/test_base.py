"""Which base an adapter is of, and what is said where it cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hubextrap.adapters.base import Bases
from hubextrap.errors import CheckpointMismatch, HubExtrapError, ReferenceNotFound, UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.trajectory import Checkpoint, Pins, resolve_checkpoint
from hubextrap.trajectory.checkpoint import ADAPTER, BASE, UNTOUCHED_BASE

HOW = "trajectory.base in a recipe, or --base"


def base_of(adapter: Checkpoint, given: Checkpoint | str | None, pins: Pins | None = None) -> Checkpoint:
    found = Bases(given, pins).of(adapter)
    assert found is not None
    return found


def write_adapter(folder: Path, **config: object) -> Checkpoint:
    """A folder that holds an adapter by its names."""
    folder.mkdir(parents=True)
    content = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    found = resolve_checkpoint(folder)
    assert found.kind == ADAPTER
    return found


def write_base(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_folder_beside_the_steps(tmp_path: Path) -> None:
    write_base(tmp_path / "run" / "base")
    for step in ("step_10", "global_step_20/actor/lora_adapter"):
        found = base_of(write_adapter(tmp_path / "run" / step), None)
        assert (found.path, found.kind, found.step) == (str(tmp_path / "run" / "base"), BASE, 0)


def test_a_folder_from_here_comes_first_and_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path / "run" / "base")
    here = write_base(tmp_path / "here" / "base")
    monkeypatch.chdir(here.parent)
    assert base_of(write_adapter(tmp_path / "run" / "step_1"), None).path == str(here)
    named = str(tmp_path / "run" / "base")
    assert base_of(write_adapter(tmp_path / "run" / "a", base_model_name_or_path=named), None).path == named


def test_what_the_user_names_comes_before_all(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    other = resolve_checkpoint(write_base(tmp_path / "other"))
    found = base_of(write_adapter(tmp_path / "step_1", base_model_name_or_path="/no/where"), other)
    assert (found.path, found.kind, found.step) == (other.path, BASE, 0)
    assert base_of(UNTOUCHED_BASE, other) == found


def test_a_reference_is_looked_for_and_refused_by_its_name(
    hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    hub.create_repo(repo_id)
    commit = hub.commit(repo_id, {file.name: file for file in write_base(tmp_path / "base").iterdir()})
    adapter = write_adapter(tmp_path / "step_1")
    found = base_of(adapter, repo_id)
    assert (found.repo, found.commit, found.kind, found.step) == (repo_id, commit, BASE, 0)
    gone = r"the base 'me/nothing' cannot be had \(me/nothing: no such repo.*\); name another: " + HOW
    with pytest.raises(ReferenceNotFound, match=gone):
        base_of(adapter, "me/nothing")
    with pytest.raises(UnsupportedCheckpoint, match="is an adapter itself"):
        base_of(adapter, str(tmp_path / "step_1"))


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_repo_is_pinned_at_the_revision_that_is_named(
    hub: LocalHub, repo_id: str, tmp_path: Path, revision: str | None
) -> None:
    hub.create_repo(repo_id)
    old = write_base(tmp_path / "old")
    files = {file.name: file for file in old.iterdir()}
    first = hub.commit(repo_id, files, revision="v1")
    main = hub.commit(repo_id, files | {"more.txt": b"more"})
    adapter = write_adapter(tmp_path / "step_1", base_model_name_or_path=repo_id, revision=revision)
    found = base_of(adapter, None)
    assert (found.repo, found.commit) == (repo_id, first if revision else main)
    pins = Pins()
    pins.keep(repo_id, "main", first)  # as the command found it before
    pinned = write_adapter(tmp_path / "step_2", base_model_name_or_path=repo_id)
    assert base_of(pinned, None, pins).commit == first


def test_an_adapter_on_the_hub_opens_no_folder_of_this_machine(
    hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    private = write_base(tmp_path / "private")
    local = write_adapter(tmp_path / "step_1", base_model_name_or_path=str(private))
    hub.create_repo(repo_id)
    hub.commit(repo_id, {file.name: file for file in Path(local.path).iterdir()})
    with pytest.raises(ReferenceNotFound, match="folder of whoever trained it") as caught:
        base_of(resolve_checkpoint(repo_id), None)
    assert HOW in str(caught.value)
    assert caught.value.file == f"{repo_id}@main/adapter_config.json"


def test_one_that_is_not_on_the_hub(hub: LocalHub, repo_id: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "step_7", base_model_name_or_path=repo_id)
    with pytest.raises(ReferenceNotFound, match="cannot be had") as caught:
        base_of(adapter, None)
    assert caught.value.file == f"{adapter.path}/adapter_config.json"
    assert caught.value.step == 7
    assert HOW in str(caught.value)


@pytest.mark.parametrize("named", ["/no/where", "../base", "~/base", "./base"])
def test_a_folder_that_is_not_there(tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()  # wherever the tests run, a folder base may lie beside it
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    adapter = write_adapter(tmp_path / "step_7", base_model_name_or_path=named)
    with pytest.raises(ReferenceNotFound, match="is not there") as caught:
        base_of(adapter, None)
    assert HOW in str(caught.value)


@pytest.mark.parametrize("named", ["x" * 257, "a/" + "b" * 300 + "/c", "ab/" * 1500])
def test_a_name_that_no_folder_can_have(tmp_path: Path, named: str) -> None:
    adapter = write_adapter(tmp_path / "step_7", base_model_name_or_path=named)
    with pytest.raises(ReferenceNotFound, match="is too long a name for any model") as caught:
        base_of(adapter, None)
    assert caught.value.file == f"{adapter.path}/adapter_config.json"
    assert HOW in str(caught.value)


def test_none_is_named(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "step_7", base_model_name_or_path=None)
    with pytest.raises(ReferenceNotFound, match="names no base") as caught:
        base_of(adapter, None)
    assert HOW in str(caught.value)
    with pytest.raises(ReferenceNotFound, match="nothing says which it is"):
        base_of(UNTOUCHED_BASE, None)


def test_a_quantised_one(tmp_path: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    write_base(tmp_path / "base", **quantised)
    adapter = write_adapter(tmp_path / "step_1")
    with pytest.raises(UnsupportedCheckpoint, match="quantised by bitsandbytes") as caught:
        base_of(adapter, None)
    assert HOW in str(caught.value)
    assert "bf16" in str(caught.value)
    original = resolve_checkpoint(write_base(tmp_path / "original"))
    assert base_of(adapter, original).path == original.path
    with pytest.raises(UnsupportedCheckpoint, match="made from instead"):
        base_of(adapter, resolve_checkpoint(tmp_path / "base"))


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    write_adapter(tmp_path / "base", base_model_name_or_path="other")
    with pytest.raises(UnsupportedCheckpoint, match="is an adapter itself"):
        base_of(write_adapter(tmp_path / "step_1"), None)


def test_a_pickle_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(UnsupportedCheckpoint, match="no weight files"):
        base_of(write_adapter(tmp_path / "step_1"), None)


def test_several_share_what_one_can_say(tmp_path: Path) -> None:
    """A prediction lies elsewhere than its run, and names the base as the run does."""
    base = write_base(tmp_path / "run" / "base")
    last, lost = write_adapter(tmp_path / "run" / "step_1"), write_adapter(tmp_path / "out" / "step_2")
    with pytest.raises(HubExtrapError):
        base_of(lost, None)
    bases = Bases()
    bases.find([UNTOUCHED_BASE, lost, last])
    assert {found.path for one in (UNTOUCHED_BASE, lost, last) if (found := bases.of(one))} == {str(base)}
    assert bases.of(resolve_checkpoint(base)) == bases.of(last)
    assert bases.of(resolve_checkpoint(write_base(tmp_path / "other"))) is None


def test_adapters_of_two_bases_have_no_common_one(tmp_path: Path) -> None:
    adapters = []
    for run in ("one", "two"):
        write_base(tmp_path / run / "base")
        adapters.append(write_adapter(tmp_path / run / "step_1"))
    bases = Bases()
    bases.find(adapters)
    assert [found.path for one in adapters if (found := bases.of(one))] == [
        str(tmp_path / "one" / "base"),
        str(tmp_path / "two" / "base"),
    ]
    with pytest.raises(CheckpointMismatch, match="different bases"):
        bases.of(UNTOUCHED_BASE)


def test_each_is_asked_for_once(hub: LocalHub, repo_id: str, tmp_path: Path) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {file.name: file for file in write_base(tmp_path / "b").iterdir()})
    one = write_adapter(tmp_path / "step_1", base_model_name_or_path=repo_id)
    shutil.copytree(one.path, tmp_path / "step_2")
    bases = Bases()
    bases.find([one])
    asked = len(hub.requests)
    assert asked
    bases.find([resolve_checkpoint(tmp_path / "step_2")])
    assert len(hub.requests) == asked
