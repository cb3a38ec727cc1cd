"""What options may name to read and to write: files and folders; not devices, sockets, links that hang."""

from __future__ import annotations

import inspect
import itertools
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_type_hints

import pytest
from command_lines import Ended, Ground, commands, run_main

OUTPUTS = {
    # command, parameter: a line in which {} is the place, and whether a folder is meant
    ("scan", "out"): ("run --out {} -q", False),
    ("report", "out"): ("scan.safetensors --out {}", False),
    ("report", "png"): ("scan.safetensors --out page.html --png {}", True),
    ("plan", "out"): ("recipe.yaml --out {} -q", True),
    ("predict", "out"): ("run --to 60 --out {} -q", True),
    ("predict", "write_recipe"): ("run --to 60 --dry-run --write-recipe {} -q", False),
    ("predict", "output"): ("run --to 60 --out o --eval radd --include-path tasks --output {} -q", False),
    ("predict", "summary"): ("run --to 60 --dry-run --summary {} -q", False),
    ("backtest", "write_recipe"): ("run --write-recipe {} -q", False),
    ("plan", "place"): ("recipe.yaml {} -q", True),
    ("backtest", "summary"): ("run --summary {} -q", False),
    ("plan", "summary"): ("recipe.yaml --summary {} -q", False),
    ("submit", "out"): ("recipe.yaml --slurm --dry-run --out {} -q", True),
    ("submit", "place"): ("recipe.yaml {} --slurm --dry-run -q", True),
    ("finish", "summary"): ("work --summary {} -q", False),
    ("merge", "out"): ("recipe.yaml --out {} -q", True),
    ("merge", "place"): ("recipe.yaml {} -q", True),
    ("merge", "summary"): ("recipe.yaml --out o --summary {} -q", False),
    ("run", "out"): ("recipe.yaml --out {} -q", True),
    ("run", "place"): ("recipe.yaml {} -q", True),
    ("run", "output"): ("evaluate.yaml --out o --output {} -q", False),
    ("run", "summary"): ("recipe.yaml --out o --summary {} -q", False),
    ("eval", "output"): ("merged --no-against --task-file problems.jsonl --output {} -q", False),
    ("eval", "plot"): ("run --all-steps --task-file problems.jsonl --plot {} -q", False),
    ("eval", "summary"): ("merged --no-against --task-file problems.jsonl --summary {} -q", False),
    ("sweep", "out"): ("evaluate.yaml --out {} -q", True),
    ("walk", "out"): ("recipe.yaml --prompts problems.jsonl --out {} -q", True),
    ("reground", "out"): ("reground.yaml --out {} -q", True),
    ("watch", "out"): ("run --once --out {} -q", True),
    ("watch", "summary"): ("run --once --out o --summary {} -q", False),
    ("recipes cp", "destination"): ("low_rank {}", False),
    ("hub serve", "folder"): ("{} --port 0", True),
}
INPUTS = {
    ("scan", "logprobs"): "run --out s.safetensors --logprobs {} -q",
    ("report", "evaluation"): "scan.safetensors --out page.html --evaluation {}",
    ("predict", "walk"): "run --to 60 --out o --walk {} -q",
    ("predict", "scan"): "run --to 60 --dry-run --scan {} -q",
    ("plan", "recipe"): "{} -q",
    ("plan", "scan"): "recipe.yaml --scan {} -q",
    ("submit", "recipe"): "{} --out o --slurm --dry-run -q",
    ("submit", "scan"): "recipe.yaml --out o --slurm --dry-run --scan {} -q",
    ("merge", "scan"): "recipe.yaml --out o --scan {} -q",
    ("run", "scan"): "recipe.yaml --out o --scan {} -q",
    ("sweep", "scan"): "evaluate.yaml --out o --scan {} -q",
    ("walk", "recipe"): "{} --prompts problems.jsonl --out o -q",
    ("walk", "prompts"): "recipe.yaml --prompts {} --out o -q",
    ("walk", "scan"): "recipe.yaml --prompts problems.jsonl --out o --scan {} -q",
    ("generate", "scan"): "logits.yaml 1+1= --scan {} -q",
    ("merge", "recipe"): "{} --out o -q",
    ("run", "recipe"): "{} --out o -q",
    ("sweep", "recipe"): "{} --out o -q",
    ("reground", "recipe"): "{} --out o -q",
    ("generate", "recipe"): "{} 1+1= -q",
    ("generate", "prompts"): "logits.yaml --prompts {} -q",
    ("eval", "task_file"): "merged --no-against --task-file {} -q",
    ("recipes validate", "files"): "{}",
    ("mergekit-yaml", "config"): "{} out-of-mergekit",
}
FOLDERS = {
    ("eval", "include_path"),
    ("predict", "include_path"),
    ("walk", "include_path"),
    ("push", "folder"),
}
"""Parameters that name a folder to read; a folder's files are another test's."""


def test_every_path_is_in_a_table() -> None:
    there = {
        (words, name)
        for words, command in commands().items()
        for name, kind in get_type_hints(inspect.unwrap(command.callback)).items()
        if "Path" in str(kind)
    }
    assert there - FOLDERS == (OUTPUTS.keys() | INPUTS.keys()) - {("mergekit-yaml", "config")}


def some(places: Mapping[tuple[str, str], object], kinds: list[str]) -> list[object]:
    """Two kinds for each place, all in turn; the other pairs are slow."""
    turn = itertools.cycle(kinds)
    quick = {(place, next(turn)) for place in places for _ in range(2)}
    slow = pytest.mark.slow
    return [
        pytest.param(*place, kind, marks=[] if (place, kind) in quick else slow)
        for place in places
        for kind in kinds
    ]


def make(kind: str, place: Path) -> None:
    if kind == "pipe":
        os.mkfifo(place)
    elif kind in ("null", "zero"):
        try:
            os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, {"null": 3, "zero": 5}[kind]))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place.name)  # the current folder's: a socket's path has to be short
    elif kind == "folder":
        place.mkdir()
    elif kind == "dangling link":
        place.symlink_to("nowhere/at/all")
    elif kind == "link to a file":
        (place.parent / "behind").write_text("<!doctype html>precious")
        place.symlink_to("behind")
    elif kind == "file":
        place.write_text("precious")


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, status.st_ino)
    return found


def check(ended: Ended, ground: Ground, before: dict[str, tuple[int, int, int]]) -> None:
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.err
    assert "place" in ended.err + ended.out, ended
    assert tree(ground.folder) == before


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    some(OUTPUTS, ["null", "link to a file", "pipe", "dangling link", "folder", "file", "socket"]),
)
def test_an_output_is_a_file_or_a_folder(words: str, name: str, kind: str, ground: Ground) -> None:
    line, folder = OUTPUTS[words, name]
    if kind == ("folder" if folder else "file") or (kind == "folder" and words == "recipes cp"):
        return  # what is meant
    place = ground.folder / "place"
    make(kind, place)
    before = tree(ground.folder)
    ended = run_main(*words.split(), *line.format("place").split(), seconds=30)
    check(ended, ground, before)


@pytest.mark.filterwarnings("ignore")  # of what mergekit imports
@pytest.mark.parametrize(
    ("words", "name", "kind"), some(INPUTS, ["zero", "pipe", "socket", "folder", "dangling link"])
)
def test_an_input_is_a_file(
    words: str, name: str, kind: str, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == "mergekit-yaml" and kind in ("folder", "dangling link"):
        return  # mergekit says it
    if words in ("report", "mergekit-yaml"):
        pytest.importorskip({"report": "matplotlib", "mergekit-yaml": "mergekit"}[words])
    monkeypatch.setattr("hubextrap.containment.PIPE_PATIENCE", 0.1)
    place = ground.folder / "place"
    make(kind, place)
    before = tree(ground.folder)
    check(run_main(*words.split(), *INPUTS[words, name].format("place").split(), seconds=30), ground, before)


def test_a_recipe_from_a_pipe(ground: Ground) -> None:
    """As in `hubextrap plan <(sed … recipe.yaml)`."""
    reading, writing = os.pipe()
    os.write(writing, Path("recipe.yaml").read_bytes())
    os.close(writing)
    try:
        assert run_main("plan", f"/dev/fd/{reading}", "-q").code == 0
    finally:
        os.close(reading)


def test_modes_and_owners_stay(ground: Ground, umask: Callable[[int], None]) -> None:
    """Of the files and of the empty folder whose place an output takes."""
    pytest.importorskip("matplotlib")
    umask(0o022)
    lines = (
        ("merge recipe.yaml --out {} -q", True),
        ("report scan.safetensors --out {}", False),
        ("plan recipe.yaml --summary {} -q", False),
    )
    for number, (line, folder) in enumerate(lines):
        modes = (0o700, 0o2770) if folder else (0o640,) if line.startswith("report") else (0o600, 0o666)
        for mode in modes:
            place = Path(f"place-{number}-{mode:o}")
            place.mkdir() if folder else place.write_text("<!doctype html>")
            if os.getuid() == 0:
                os.chown(place, 12345, 23456)
            place.chmod(mode)
            assert run_main(*line.format(place).split()).code == 0
            found = place.stat()
            assert stat.S_IMODE(found.st_mode) == mode, place
            if os.getuid() == 0:
                assert (found.st_uid, found.st_gid) == (12345, 23456)
            assert any(place.iterdir()) if folder else place.stat().st_size > 20
    for number, (line, folder) in enumerate((*lines[:1], lines[2])):
        place = Path(f"new-{number}")
        assert run_main(*line.format(place).split()).code == 0
        assert stat.S_IMODE(place.stat().st_mode) == (0o755 if folder else 0o644)


def test_a_private_folder_stays_so_while_it_is_made(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubextrap.engine import run as engine_run

    seen = []
    run_plan = engine_run.run_plan

    def spied(*arguments: object, **more: object) -> object:
        for path in (Path(".place.partial"), Path(".place.partial/model")):
            seen.append(stat.S_IMODE(path.stat().st_mode))
        return run_plan(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_run, "run_plan", spied)
    Path("place").mkdir(mode=0o700)
    assert run_main("merge", "recipe.yaml", "--out", "place", "-q").code == 0
    assert seen == [0o700, 0o700]


@pytest.fixture
def umask() -> Callable[[int], None]:
    before = os.umask(0o022)
    yield os.umask  # type: ignore[misc]
    os.umask(before)


def plant_a_link(planted: Path, outside: Path) -> None:
    planted.symlink_to(outside)


def plant_a_pipe(planted: Path, outside: Path) -> None:
    os.mkfifo(planted)


@pytest.mark.parametrize("plant", [plant_a_link, plant_a_pipe])
@pytest.mark.parametrize("name", ["model", "model/step_60", "model/x", "journal-0.jsonl", "lock", "scratch"])
def test_a_place_as_an_archive_can_bring_it(
    name: str, plant: Callable[[Path, Path], None], ground: Ground, tmp_path: Path
) -> None:
    """With a lock as we write it, and links in it: what we write or remove there would be elsewhere."""
    place = ground.folder / ".o.partial"
    (place / "model").mkdir(parents=True)
    lock = b"%19d made by hubextrap\n" % 0
    (place / "lock").write_bytes(lock)
    outside = tmp_path / "outside"
    if name == "lock":
        outside.write_bytes(lock)
        (place / name).unlink()
    elif name.endswith(".jsonl"):
        outside.write_text("mine\n")
    else:
        outside.mkdir()
        (outside / "mine").write_text("mine")
        if name == "model":
            (place / name).rmdir()
    plant(place / name, outside)
    before = sorted((path, path.read_bytes() if path.is_file() else b"") for path in outside.rglob("*"))
    there = sorted(place.rglob("*"))
    for words in (("plan", "recipe.yaml", "--out", "o", "-q"), ("merge", "recipe.yaml", "--out", "o", "-q")):
        ended = run_main(*words)
        assert ended.code == 1, ended
        assert ".o.partial: " in ended.err + ended.out
        assert sorted(place.rglob("*")) == there
        assert not Path("o").exists()
    assert (
        sorted((path, path.read_bytes() if path.is_file() else b"") for path in outside.rglob("*")) == before
    )
    if outside.is_file():
        assert outside.read_bytes() in (lock, b"mine\n")


@pytest.mark.parametrize("kind", ["files", "empty", "link", "fifo", "lock of its own"])
def test_what_lies_where_staging_would(kind: str, ground: Ground) -> None:
    """A user's own .NAME.partial is named and stays, with every file in it."""
    place = ground.folder / ".o.partial"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        (ground.folder / "elsewhere").mkdir()
        (ground.folder / "elsewhere" / "mine").write_text("precious")
        place.symlink_to("elsewhere")
    else:
        place.mkdir()
    if kind in ("files", "lock of its own"):
        (place / "model").mkdir()
        (place / "model" / "mine").write_text("precious")
        (place / ("lock" if kind == "lock of its own" else "notes")).write_text("precious")
    before = tree(ground.folder)
    for words in ("plan", "merge", "run"):
        ended = run_main(words, "recipe.yaml", "--out", "o", "-q", seconds=30)
        assert ended.code == 1
        assert ".o.partial: cannot be written: File exists" in ended.err + ended.out
        assert tree(ground.folder) == before


def test_what_lies_where_a_push_would_stage(ground: Ground) -> None:
    from hubextrap import PushTarget
    from hubextrap.api.staging import push_place

    place = push_place(PushTarget.parse(ground.repo))
    (place / "scratch").mkdir(parents=True)
    (place / "scratch" / "mine").write_text("precious")
    ended = run_main("merge", "recipe.yaml", "--push", ground.repo, "-q")
    assert ended.code == 1
    assert f"{place}: cannot be written: File exists" in ended.err
    assert [path.name for path in place.rglob("*")] == ["scratch", "mine"]


def test_what_lies_where_a_scan_would_keep_its_journal(ground: Ground) -> None:
    for content in ("precious", "{}\n"):
        Path(".new.safetensors.partial").write_text(content)
        before = tree(ground.folder)
        ended = run_main("scan", "run", "--out", "new.safetensors", "-q")
        assert ended.code == 1
        assert ".new.safetensors.partial: exists, but a stopped scan did not leave it" in ended.err
        assert tree(ground.folder) == before


def test_temporary_names_of_the_users_own(ground: Ground) -> None:
    """Names that were once used for what is on its way."""
    pytest.importorskip("matplotlib")
    mine = [".page.html.new", "page.html.partial", ".page.html.part", "page.html.unfinished"]
    for name in mine:
        Path(name).write_text("precious")
    assert run_main("report", "scan.safetensors", "--out", "page.html").code == 0
    assert {Path(name).read_text() for name in mine} == {"precious"}
    assert not list(ground.folder.glob(".hubextrap-*"))


def test_a_sweeps_folder_is_known_by_what_it_keeps(ground: Ground) -> None:
    for name in ("measured", "predictions"):
        (ground.folder / "o" / name).mkdir(parents=True)
        (ground.folder / "o" / name / "mine").write_text("precious")
    before = tree(ground.folder)
    ended = run_main("sweep", "evaluate.yaml", "--out", "o", "-q")
    assert ended.code == 1
    assert "o: is there already and holds no sweep" in ended.err
    assert tree(ground.folder) == before


@pytest.mark.parametrize("content", ["precious", "link"])
def test_a_lock_of_somebodys_own(content: str, ground: Ground) -> None:
    """`reground` takes its lock in the folder that is named."""
    Path("o").mkdir()
    Path("mine").write_text("precious")
    if content == "link":
        Path("o/lock").symlink_to("../mine")
    else:
        Path("o/lock").write_text(content)
    ended = run_main("reground", "reground.yaml", "--out", "o", "-q")
    assert ended.code == 1
    assert "cannot be written" in ended.err
    assert Path("mine").read_text() == Path("o/lock").read_text() == "precious"
