"""A trainer that pushes checkpoints while a run is watched, and what a watch leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from hubextrap.localhub import LocalHub

STEPS = (0, 40, 80, 100, 120, 160, 200)
"""Of the run in demo/data/rlvr-C, as far as they are evenly enough spaced to be rehearsed."""


def push(api: HfApi, repo: str, folder: Path, step: int, *, weights: bool = True) -> None:
    """Push a checkpoint as a branch, its configuration before its weights, as two commits."""
    branch = f"step_{step}"
    api.create_branch(repo, branch=branch, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, revision=branch, ignore_patterns=["*.safetensors"])
    if weights:
        api.upload_folder(repo_id=repo, folder_path=folder, revision=branch)


def push_run(hub: LocalHub, token: str, repo: str, run: Path, steps: Sequence[int]) -> HfApi:
    """Push these checkpoints of a folder to a new repo; who pushes more."""
    api = HfApi(token=token)
    hub.create_repo(repo)
    for step in steps:
        push(api, repo, run / f"step_{step}", step)
    return api


class Trainer:
    """Pushes the checkpoints of a folder one after the other, so many seconds apart, from a thread."""

    def __init__(self, token: str, repo: str, run: Path, steps: tuple[int, ...], seconds: float) -> None:
        self._api, self._repo, self._run = HfApi(token=token), repo, run
        self._steps, self._seconds = steps, seconds
        self._thread = threading.Thread(target=self._push)
        self._stop = threading.Event()

    def start(self) -> None:
        self._thread.start()

    @property
    def at_work(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _push(self) -> None:
        for step in self._steps:
            push(self._api, self._repo, self._run / f"step_{step}", step)
            if self._stop.wait(self._seconds):
                return


def left_behind(out: Path) -> dict[str, bytes]:
    """The page, the scan and the predictions' recipes and folders, by their names in ``out``."""
    files = [out / "index.html", out / "run.scan.safetensors", *sorted((out / "predictions").rglob("*"))]
    return {str(file.relative_to(out)): file.read_bytes() for file in files if file.is_file()}


def branches(token: str, repo: str) -> dict[str, tuple[int, dict[str, str]]]:
    """By branch, how many commits it has and the hash of each file."""
    api = HfApi(token=token)
    found = {}
    for ref in api.list_repo_refs(repo).branches:
        tree = api.list_repo_tree(repo, revision=ref.name, recursive=True)
        files = {
            one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in tree if isinstance(one, RepoFile)
        }
        found[ref.name] = (len(api.list_repo_commits(repo, revision=ref.name)), files)
    return found
