"""A kill between the making of a place and its lock, or in its removal: the next run is not in its way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Warm

from hubextrap.durable import places

MAKE_AND_REMOVE = """
import os, sys
from pathlib import Path
from hubextrap.durable import places

place, left = Path(sys.argv[1]), int(sys.argv[2])

def dying(module, name):
    change = getattr(module, name)
    def counted(*args, **kwargs):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return change(*args, **kwargs)
    setattr(module, name, counted)

for name in ("mkdir", "rmdir", "unlink", "rename", "replace", "pwrite"):
    dying(os, name)
places.lock_folder(place, "out", print, make=lambda: places.make_marked(place, None))
os.mkdir(place / "scratch")
places.remove_marked(place)
"""


def make_and_remove(place: Path, calls: int) -> bool:
    """Make a place and remove it in a process that dies after so many changes; whether there were more."""
    ended = subprocess.run([sys.executable, "-c", MAKE_AND_REMOVE, place, str(calls)], check=False)
    return ended.returncode == 9


@pytest.mark.parametrize("there", [False, True], ids=["output missing", "output there"])
def test_strays_go(
    there: bool, warm: Warm, run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file(run_folder)
    out = tmp_path / "model"
    if there:
        out.mkdir()
        (out / "mine").touch()
    for number, lock in enumerate([None, b"", b"%19d made by hubextrap\n" % 7]):
        stray = tmp_path / f".hubextrap-{number:016x}"
        stray.mkdir()
        if lock is not None:
            (stray / "lock").write_bytes(lock)
    ended = warm.run("merge", recipe, "--out", out)
    assert ended.code == (1 if there else 0), ended.output
    assert {path.name for path in tmp_path.iterdir()} == {recipe.name, out.name}


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True], ids=["output missing", "output there"])
def test_a_kill_at_any_step_leaves_nothing_behind_the_next_run(
    there: bool, warm: Warm, run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file(run_folder)
    out = tmp_path / "model"
    if there:
        assert warm.run("merge", recipe, "--out", out).code == 0
    expected = {recipe.name, out.name}
    calls = 0
    while make_and_remove(tmp_path / ".model.partial", calls):
        ended = warm.run("merge", recipe, "--out", out)
        assert ended.code == (1 if there else 0), ended.output
        assert {path.name for path in tmp_path.iterdir()} == expected, calls
        if not there:
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
        calls += 1
    assert calls >= 5  # folder, lock, model and the removal of each


@pytest.mark.parametrize("file", ["mine.txt", "lock"])
def test_what_a_user_has_under_such_a_name_is_kept(
    file: str, warm: Warm, run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / ".hubextrap-0123456789abcdef"
    folder.mkdir()
    (folder / file).write_text("mine", encoding="utf-8")
    assert warm.run("merge", recipe_file(run_folder), "--out", tmp_path / "model").code == 0
    assert (folder / file).read_text(encoding="utf-8") == "mine"


def test_a_place_is_made_while_another_run_clears_strays(tmp_path: Path) -> None:
    """Whichever of the two comes first at any step, the place is held in the end and nothing else is left."""
    done = threading.Event()

    def clear() -> None:
        while not done.is_set():
            places.remove_strays(tmp_path)

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        for number in range(200):
            place = tmp_path / f".out-{number}.partial"
            held = places.lock_folder(place, "out", print, make=lambda at=place: places.make_marked(at, None))
            assert places.is_marked(place)
            places.remove_marked(place)
            os.close(held)
    finally:
        done.set()
        clearing.join()
    places.remove_strays(tmp_path)
    assert not list(tmp_path.iterdir())
