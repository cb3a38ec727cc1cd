"""The last step, killed before each change that it makes to the disk: the next one makes what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session

from hubextrap import api
from hubextrap.errors import ReferenceNotFound
from hubextrap.executors.slurm import SlurmExecutor
from hubextrap.executors.watching import Submitted
from hubextrap.recipe import load_recipe

pytestmark = pytest.mark.slow

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR
DONE, NO_PLAN, FAILED = 0, 7, 8


class Nobody(SlurmExecutor):
    """Takes the work, and does none of it."""

    def submit(self, *_: object) -> Submitted:
        return Submitted((), "", "")


def finish(place: str, stop: int = 0) -> int:
    """How the last step ends in a fork of this process: one of the above, or minus the signal.

    Args:
        stop: the number of the change before which it is killed.
    """
    pid = os.fork()
    if pid == 0:
        code = FAILED
        try:
            close_session()  # its connections are the parent's
            sys.addaudithook(_killing(stop))
            api.finish(place)
            code = DONE
        except ReferenceNotFound:
            code = NO_PLAN
        except BaseException as error:
            os.write(2, repr(error).encode())  # else nobody sees it
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _killing(stop: int) -> Callable[[str, tuple[object, ...]], None]:
    seen = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES or (event == "open" and int(str(arguments[2])) & WRITING):
            seen += 1
            if seen == stop:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch


def killed_everywhere(
    place: str, kept: Path, scratch: Path, begin: Callable[[], None], check: Callable[[], None]
) -> int:
    """Kill it before its first change, its second, and so on; how many there are.

    Args:
        kept: what the work lies in, which is put back before each.
        begin: has what the last step makes be gone.
        check: fails unless it is there, whole.
    """
    shutil.copytree(kept, scratch)
    for stop in range(1, 1000):
        begin()
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(scratch, kept)
        ended = finish(place, stop)
        if ended == DONE:
            return stop - 1
        assert ended == -signal.SIGKILL
        planned = Path(place, "plan.json").exists()
        # where the plan is gone, all was done, and what is left is a few small files
        assert finish(place) == (DONE if planned else NO_PLAN), stop
        check()
        assert not (kept / "work").exists(), stop
        assert not (kept / "model").exists(), stop
    raise AssertionError("it has no end")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders(recipe: Path, tmp_path: Path) -> None:
    loaded, out = load_recipe(recipe), tmp_path / "out"
    api.merge(loaded, out=tmp_path / "local")
    expected = contents(tmp_path / "local")
    place = api.submit(loaded, Nobody(), out=out).place
    api.worker(place)

    def check() -> None:
        assert contents(out) == expected

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)

    assert killed_everywhere(place, tmp_path / ".out.partial", tmp_path / "scratch", begin, check) > 20


@pytest.mark.parametrize("folder", [False, True])
def test_commits(folder: bool, hub_recipe: tuple[Path, str], tmp_path: Path) -> None:
    recipe, repo = hub_recipe
    loaded, hub = load_recipe(recipe), HfApi()
    hub.create_repo(repo)
    api.merge(loaded, push=f"{repo}@local")
    expected = commit_of(repo, "local")
    out = tmp_path / "out" if folder else None
    place = api.submit(loaded, Nobody(), out=out, push=f"{repo}@made").place
    api.worker(place)

    def begin() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if any(branch.name == "made" for branch in hub.list_repo_refs(repo).branches):
            hub.delete_branch(repo, branch="made")

    def check() -> None:
        assert commit_of(repo, "made") == expected

    kept = Path(place).parent
    assert killed_everywhere(place, kept, tmp_path / "scratch", begin, check) > 10


def commit_of(repo: str, branch: str) -> tuple[list[str], dict[str, str]]:
    """The titles of a branch's commits, and each file's hash but the card's, which names the branch."""
    hub = HfApi()
    files = {
        one.path: one.lfs.sha256 if one.lfs else one.blob_id
        for one in hub.list_repo_tree(repo, revision=branch)
        if one.path != "README.md"
    }
    return [commit.title for commit in hub.list_repo_commits(repo, revision=branch)], files
