"""`hubextrap verify`: good, changed, missing and unnamed weight files, on disk and on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hubextrap
from hubextrap.cli.main import app
from hubextrap.errors import CorruptFile, ReferenceNotFound
from hubextrap.localhub import LocalHub

SECOND, THIRD = "model-00002-of-00012.safetensors", "model-00003-of-00012.safetensors"


@pytest.fixture
def prediction(run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path) -> Path:
    out = tmp_path / "out"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder)), out=out)
    return out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_good(prediction: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q"])
    assert result.exit_code == 0
    assert result.stdout == f"{prediction}: 12 weight files, 1.8 MB, as hubextrap.json says\n"


def test_every_mismatch_is_named(prediction: Path) -> None:
    should = hashlib.sha256((prediction / SECOND).read_bytes()).hexdigest()
    flip(prediction / SECOND)
    found = hashlib.sha256((prediction / SECOND).read_bytes()).hexdigest()
    (prediction / THIRD).write_bytes((prediction / THIRD).read_bytes()[:-1])
    (prediction / "model-00004-of-00012.safetensors").unlink()
    (prediction / "model.safetensors").write_bytes(b"a stray that transformers would load")
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q"])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"mismatch: {SECOND}: has sha256 {found}, should have {should}",
        f"mismatch: {THIRD}: has 131,287 bytes, should have 131,288",
        "mismatch: model-00004-of-00012.safetensors: is missing",
        "mismatch: model.safetensors: is not named in hubextrap.json",
        f"{prediction}: 4 of 13 weight files are not as hubextrap.json says",
    ]
    result = CliRunner().invoke(app, ["verify", str(prediction), "-q", "--json"])
    assert result.exit_code == 1
    listed = {file["file"]: file["problem"] for file in json.loads(result.stdout)["files"]}
    assert listed["model-00001-of-00012.safetensors"] is None
    assert listed["model.safetensors"] == "is not named in hubextrap.json"


def test_a_revision_on_the_hub(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    good = hub.commit(repo_id, {path.name: path for path in prediction.iterdir()}, revision="step_20")
    flip(prediction / SECOND)
    bad = hub.commit(repo_id, {SECOND: prediction / SECOND, THIRD: None}, revision="step_20")
    result = CliRunner().invoke(app, ["verify", f"{repo_id}@{good}", "-q"])
    assert result.exit_code == 0, result.output
    hub.requests.clear()
    result = CliRunner().invoke(app, ["verify", f"{repo_id}@step_20", "-q"])
    assert result.exit_code == 1
    assert result.stdout.startswith(f"mismatch: {SECOND}: has sha256 ")
    assert f"mismatch: {THIRD}: is missing\n{repo_id}@step_20 ({bad}): 2 of 12 weight" in result.stdout
    ranges = [r for r in hub.requests if r.method == "GET" and "/resolve/" in r.path]
    assert ranges
    assert all(bad in request.path and "Range" in request.headers for request in ranges)


def test_large_files_are_read_in_blocks(
    prediction: Path, hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {path.name: path for path in prediction.iterdir()})
    monkeypatch.setattr("hubextrap.tensors.hashing._BLOCK", 10_007)
    assert hubextrap.verify(prediction).problems == ()
    assert hubextrap.verify(repo_id).problems == ()


def test_nothing_to_verify_against(prediction: Path, run_folder: Path) -> None:
    with pytest.raises(CorruptFile, match=r"step_0: holds no hubextrap.json; only what hubextrap merged"):
        hubextrap.verify(run_folder / "step_0")
    (prediction / "hubextrap.json").write_text("{")
    with pytest.raises(CorruptFile, match=re.escape(f"{prediction}/hubextrap.json: not valid JSON")):
        hubextrap.verify(str(prediction))


def test_no_such_place(tmp_path: Path, hub: LocalHub) -> None:
    with pytest.raises(ReferenceNotFound, match="absent: no such local folder"):
        hubextrap.verify(f"{tmp_path}/absent")
    with pytest.raises(ReferenceNotFound, match="me/absent: no such repo"):
        hubextrap.verify("me/absent")
