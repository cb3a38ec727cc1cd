"""SIGKILLs at random moments, and what has to be there after each."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from harness import SHARDS, Warm
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from hubextrap.api.staging import push_place
from hubextrap.hub import PushTarget

KILLED = -9


class Killer:
    """Kills commands until so many have died and so many went on where one before them was.

    How many of the killed leave something to go on from depends on how busy the machine is. So it goes on
    until both numbers are reached, but never kills more than three times ``kills``.
    """

    def __init__(self, warm: Warm, seed: int, kills: int, resumed: int) -> None:
        self.warm = warm
        self.random = random.Random(seed)
        self.kills = kills
        self.needed = resumed
        self.killed = 0
        self.resumed = 0

    @property
    def goes_on(self) -> bool:
        return self.killed < self.kills or (self.resumed < self.needed and self.killed < 3 * self.kills)

    def round(
        self, command: list[str | Path], seconds: float, journal: Path, check: Callable[[], bool]
    ) -> None:
        """One output, with up to four kills on the way; ``check`` says whether it is there, whole.

        Every other kill comes at any moment of the ``seconds`` that a run takes, the others right after some
        shard, any of them, got into the ``journal``.
        """
        for kill in range(5):
            pid = self.warm.start(*command)
            if kill == 4 or not self.goes_on:
                ended = self.warm.end(pid)
            elif self.killed % 2:
                ended = self.warm.end(pid, after=self.random.uniform(0.02, seconds))
            else:
                wait_for_shards(journal, self.random.randint(1, SHARDS), pid)
                time.sleep(self.random.uniform(0.0, 0.01))
                ended = self.warm.end(pid, after=0.0)
            self.killed += ended.code == KILLED
            self.resumed += "resuming: " in ended.output
            there = check()
            if ended.code == 0:
                assert there
                return
            if ended.code == 1:  # the run before was killed between the rename and its end
                assert there, ended.output
                assert "is there already and not empty" in ended.output
                return
            assert ended.code == KILLED, ended.output
        raise AssertionError("the run that nobody stopped did not end")


def wait_for_shards(journal: Path, count: int, pid: int) -> None:
    """Return when the journal names so many shards, or the process has ended."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if len(journal.read_bytes().splitlines()) > count:
                return
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.001)


def into_folders(
    killer: Killer, recipe: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> Callable[[], None]:
    """A function that makes one more output under fire."""
    made = killer.warm.run("merge", recipe, "--out", tmp_path / "unkilled")
    assert made.code == 0, made.output
    expected = contents(tmp_path / "unkilled")
    numbers = iter(range(10**6))

    def one() -> None:
        out = tmp_path / f"out-{next(numbers)}"

        def whole() -> bool:
            if not out.exists():
                return False
            assert contents(out) == expected
            return True

        journal = tmp_path / f".{out.name}.partial" / "journal-0.jsonl"
        killer.round(["merge", recipe, "--out", out], made.seconds, journal, whole)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([recipe.name, out.name, "unkilled"])
        for path in out.iterdir():
            path.unlink()
        out.rmdir()

    return one


def onto_hub(killer: Killer, recipe: Path, repo: str) -> Callable[[], None]:
    """The same for pushes; the target never shows anything but nothing or the whole model."""
    made = killer.warm.run("merge", recipe, "--push", f"{repo}@unkilled")
    assert made.code == 0, made.output
    expected = files_of(repo, "unkilled")
    numbers = iter(range(10**6))

    def one() -> None:
        branch = f"step-{next(numbers)}"

        def whole() -> bool:
            found = files_of(repo, branch)
            assert found in ({}, expected)
            return bool(found)

        place = push_place(PushTarget.parse(f"{repo}@{branch}"))
        command: list[str | Path] = ["merge", recipe, "--push", f"{repo}@{branch}"]
        killer.round(command, made.seconds, place / "journal-0.jsonl", whole)
        assert not place.exists()

    return one


def files_of(repo: str, branch: str) -> dict[str, str]:
    """Every file of the branch by its hash, but what all branches have and what names the branch."""
    api = HfApi()
    if branch not in {ref.name for ref in api.list_repo_refs(repo).branches}:
        return {}
    return {
        file.path: file.lfs.sha256 if file.lfs else file.blob_id
        for file in api.list_repo_tree(repo, revision=branch)
        if isinstance(file, RepoFile) and file.path not in (".gitattributes", "README.md")
    }
