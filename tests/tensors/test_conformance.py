"""Every source passes the one suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import check_source

from hubextrap.localhub import LocalHub
from hubextrap.tensors import open_source
from hubextrap.trajectory import Checkpoint

FILES = {"model.safetensors": bytes(range(256)) * 8, "config.json": b"{}", "empty.txt": b""}


def test_a_local_folder(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    check_source(open_source(Checkpoint(1, None, "", None, str(tmp_path))), FILES)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("folder", ["", "step_1"])
def test_the_hub(folder: str, cache: bool, hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    prefix = f"{folder}/" if folder else ""
    commit = hub.commit(repo_id, {prefix + name: content for name, content in FILES.items()})
    check_source(open_source(Checkpoint(1, repo_id, "main", commit, folder), cache=cache), FILES)
