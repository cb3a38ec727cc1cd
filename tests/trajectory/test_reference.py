"""References: which are local, which are on the Hub, and what is wrong with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubextrap.errors import ReferenceNotFound
from hubextrap.trajectory import parse_reference


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("org/name", "org/name", None, ""),
        ("gpt2", "gpt2", None, ""),
        ("org/name@step_100", "org/name", "step_100", ""),
        ("org/name@feat/x", "org/name", "feat/x", ""),
        ("org/name:sub/folder", "org/name", None, "sub/folder"),
        ("org/name@rev:sub/folder/", "org/name", "rev", "sub/folder"),
        ("hf://org/name", "org/name", None, ""),
        ("hf://models/org/name@step_100/sub/folder", "org/name", "step_100", "sub/folder"),
        ("hf://org/name@refs/pr/2", "org/name", "refs/pr/2", ""),
        ("hf://org/name@feat%2Fx/sub", "org/name", "feat/x", "sub"),
        ("https://huggingface.co/org/name/tree/step_100", "org/name", "step_100", ""),
    ],
)
def test_references_on_the_hub(text: str, repo: str, revision: str | None, path: str) -> None:
    reference = parse_reference(text)
    assert (reference.folder, reference.repo, reference.revision, reference.path) == (
        None,
        repo,
        revision,
        path,
    )


def test_what_exists_on_disk_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name@step:1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (
        "org/name@step:1",
        "./org/name@step:1",
        "~/org/name@step:1",
        str(tmp_path / "org" / "name@step:1"),
    ):
        assert parse_reference(text).folder == tmp_path / "org" / "name@step:1"
    assert parse_reference(".").folder == tmp_path
    assert parse_reference("hf://org/name").folder is None


@pytest.mark.parametrize("text", ["./run", "../run", "~/run", "/nowhere/run"])
def test_a_local_folder_that_is_missing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ReferenceNotFound, match=f"^{text}: no such local folder"):
        parse_reference(text)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ReferenceNotFound, match=r"model.safetensors: this is a file; name the folder"):
        parse_reference(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "text", ["", "org/name/sub", "org/name@", "org/name:", "@rev", ":sub", "org/name@:x"]
)
def test_malformed_references(text: str) -> None:
    with pytest.raises(ReferenceNotFound, match="nor a reference; write org/name, "):
        parse_reference(text)


@pytest.mark.parametrize(
    "text", ["hf://", "hf://name", "hf://model/org/name", "hf://org/name@", "hf://org//x"]
)
def test_malformed_uris(text: str) -> None:
    with pytest.raises(ReferenceNotFound, match=f"^{text}: .*[Uu][Rr][Ii]"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "kind"), [("hf://datasets/org/name", "dataset"), ("hf://spaces/a/b", "space")]
)
def test_other_repos_are_refused(text: str, kind: str) -> None:
    with pytest.raises(ReferenceNotFound, match=f"a {kind}; .* from model repos"):
        parse_reference(text)


@pytest.mark.parametrize(
    "text", ["org/name:../x", "org/name:a/../../x", "hf://org/name/a/../b", "org/name:a//b"]
)
def test_folders_stay_in_the_repo(text: str) -> None:
    with pytest.raises(ReferenceNotFound, match=r"parts; write the path without them|empty segments"):
        parse_reference(text)
