"""Runs in a bucket, which keeps nothing: what is written to while a command reads it is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from case_runs import files_of, recipe_for, tiny, write_model
from command_lines import Ended
from huggingface_hub import HfApi

from hubextrap.engine.stream import UnitBuffer
from hubextrap.localhub import LocalHub
from hubextrap.tensors.bucket import BucketSource

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logged_in")]


class Bucket:
    """A run of three steps in a bucket."""

    def __init__(self, name: str, folder: Path) -> None:
        self.address = f"hf://buckets/{name}/run"
        self._name, self._folder = name, folder
        HfApi().create_bucket(name)
        for step in (100, 200, 300):
            files = files_of(write_model(folder / f"step_{step}", tiny(step), beside={"notes.txt": "x"}))
            self.put({f"step_{step}/{file}": content for file, content in files.items()})

    def put(self, files: dict[str, bytes]) -> None:
        HfApi().batch_bucket_files(self._name, add=[(data, f"run/{file}") for file, data in files.items()])

    def again(self, file: str) -> bytes:
        return (self._folder / file).read_bytes()

    def other(self) -> bytes:
        return files_of(write_model(self._folder / "other", tiny(7)))["model.safetensors"]

    def remove(self, file: str) -> None:
        HfApi().batch_bucket_files(self._name, delete=[f"run/{file}"])


@pytest.fixture
def bucket(hub: LocalHub, repo_id: str, tmp_path: Path, logged_in: str) -> Bucket:
    return Bucket(repo_id, tmp_path / "made")


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], list[bool]]:
    """Do something once: between planning and reading ("before"), or when the weights are read ("after")."""

    def arrange(when: str, work: Callable[[], object]) -> list[bool]:
        done: list[bool] = []

        def once() -> None:
            if not done:
                done.append(True)
                work()

        if when == "before":
            fill = UnitBuffer.fill

            def first(self: UnitBuffer, *rest: object) -> None:
                once()
                fill(self, *rest)  # type: ignore[arg-type]

            monkeypatch.setattr(UnitBuffer, "fill", first)
        else:
            check = BucketSource.check_unchanged

            def then(self: BucketSource) -> None:
                once()
                check(self)

            monkeypatch.setattr(BucketSource, "check_unchanged", then)
        return done

    return arrange


def commands(bucket: Bucket, tmp_path: Path) -> dict[str, list[str | Path]]:
    recipe, out = recipe_for(bucket.address, tmp_path / "r.yaml", 400), tmp_path / "out"
    return {
        "merge": ["merge", recipe, "--out", out],
        "scan": ["scan", bucket.address, "--out", tmp_path / "s.safetensors", "--exact"],
        "sample": ["scan", bucket.address, "--out", tmp_path / "s.safetensors", "--sample", "1024"],
        "backtest": ["backtest", bucket.address],
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("command", ["merge", "scan", "sample", "backtest"])
@pytest.mark.parametrize("change", ["write", "remove", "write beside"])
def test_what_is_written_to_meanwhile_is_an_error(
    bucket: Bucket,
    cli: Callable[..., Ended],
    meanwhile: Callable[..., list[bool]],
    tmp_path: Path,
    command: str,
    when: str,
    change: str,
) -> None:
    if command == "sample" and when == "before":
        pytest.skip("a sample is read without units")
    file = "step_200/config.json" if change == "write beside" else "step_200/model.safetensors"
    work = {
        "write": lambda: bucket.put({file: bucket.other()}),
        "remove": lambda: bucket.remove(file),
        "write beside": lambda: bucket.put({file: b"{ }"}),
    }[change]
    done = meanwhile(when, work)
    ended = cli(*commands(bucket, tmp_path)[command])
    assert done
    assert ended.code == 1, ended
    assert file in ended.err.replace(": ", "/", 1) or file.rpartition("/")[2] in ended.err
    assert "step_200" in ended.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_same_bytes_once_more_are_accepted(
    bucket: Bucket, cli: Callable[..., Ended], meanwhile: Callable[..., list[bool]], tmp_path: Path, when: str
) -> None:
    file = "step_200/model.safetensors"
    done = meanwhile(when, lambda: bucket.put({file: bucket.again(file)}))
    ended = cli(*commands(bucket, tmp_path)["merge"])
    assert done
    assert ended.code == 0, ended


def test_what_changed_is_named(bucket: Bucket) -> None:
    from hubextrap.errors import HubExtrapError
    from hubextrap.tensors import open_source
    from hubextrap.trajectory import find_trajectory

    found = find_trajectory(bucket.address)
    bucket.put({"step_200/config.json": b"{ }", "step_200/new.txt": b"x"})
    bucket.remove("step_200/notes.txt")
    said = "config.json was written to, new.txt was added, notes.txt was removed since this command pinned it"
    with pytest.raises(HubExtrapError, match=f"step_200: {said}; wait until nothing writes to it"):
        open_source(found.checkpoints[1]).files()
