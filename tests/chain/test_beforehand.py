"""What refuses an output is found before any weight, by `plan` as by `merge`: the Hub's log shows it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harness import weights_read
from huggingface_hub import HfApi

import hubextrap
from hubextrap.errors import HubExtrapError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors.interfaces import SMALL_FILE

Change = Callable[[Path], object]
FITTED = {"merge_method": "low_rank", "parameters": {"target_step": 60, "rank": 1}}
"""Its coefficients follow from the weights, which are read for them before the merge."""


@pytest.fixture
def put(hub: LocalHub, repo_id: str, checkpoints: Path, tmp_path: Path) -> Callable[..., str]:
    """The run on the Hub, its last checkpoint changed; its name."""

    def upload(change: Change | None = None, odd: dict[str, bytes] | None = None) -> str:
        root = tmp_path / "run"
        shutil.copytree(checkpoints, root)
        if change is not None:
            change(root / "step_30")
        hub.create_repo(repo_id)
        for folder in sorted(root.iterdir()):
            files: dict[str, Any] = {path.name: path for path in sorted(folder.iterdir())}
            if folder.name == "step_30":
                files |= odd or {}
            hub.commit(repo_id, files, revision=folder.name)
        return repo_id

    return upload


@pytest.fixture
def refused(hub: LocalHub, cli: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """What `plan` and `merge` both say, after which no weight has been read and nothing been written."""

    def message(recipe: Path, *said: str, out: Path | None = None, options: tuple[str, ...] = ()) -> str:
        where = options or ("--out", str(out or tmp_path / "out"))
        before = sorted(tmp_path.rglob("*"))
        hub.requests.clear()
        planned = cli("plan", recipe, *where, "-q")
        merged = cli("merge", recipe, *where, "-q")
        assert (planned.code, merged.code) == (1, 1), (planned, merged)
        for text in said:
            assert text in planned.out.replace("\n", " ") + planned.err
            assert text in merged.err
        assert weights_read(hub) == []
        assert sorted(tmp_path.rglob("*")) == before
        return str(merged.err)

    return message


def without_config(last: Path) -> None:
    """And without any before: a trainer may be at one that alone has none."""
    for folder in last.parent.iterdir():
        (folder / "config.json").unlink()


def too_large(last: Path) -> None:
    with (last / "vocab.txt").open("wb") as file:
        file.truncate(SMALL_FILE + 1)


@pytest.mark.parametrize("sections", [{}, FITTED], ids=["fixed", "fitted"])
@pytest.mark.parametrize(
    ("change", "said"),
    [(without_config, "no config.json"), (too_large, "vocab.txt: 67,108,865 bytes are more than")],
)
def test_side_files(
    put: Callable[..., str],
    recipe_file: Callable[..., Path],
    refused: Callable[..., str],
    change: Change,
    said: str,
    sections: dict[str, Any],
) -> None:
    refused(recipe_file(put(change), **sections), said)


def names_of(letters: str, length: int) -> str:
    return (letters * length)[:length]


@pytest.mark.slow
@pytest.mark.parametrize("sections", [{}, FITTED], ids=["fixed", "fitted"])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        (names_of("x", 250), "a name may have 255 bytes there"),
        (names_of("ü", 125), "a name may have 255 bytes there"),
        ("/".join(["x" * 200] * 20), "a path may have 4095 bytes there"),
        ("file/out", "is a file"),
        ("file", "is there already and is no folder"),
        ("/proc/out", "/proc"),
    ],
)
def test_places(
    put: Callable[..., str],
    recipe_file: Callable[..., Path],
    refused: Callable[..., str],
    tmp_path: Path,
    out: str,
    said: str,
    sections: dict[str, Any],
) -> None:
    (tmp_path / "file").write_text("mine")
    refused(recipe_file(put(), **sections), said, out=tmp_path / out)


def test_names_that_just_fit(checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / ("x" * (255 - len("..partial")))
    hubextrap.merge(hubextrap.load_recipe(recipe_file(checkpoints)), out=out)
    assert not hubextrap.verify(out).problems


def test_names_that_are_not_text(checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """Names on a disk are bytes; where they come to stand in a file, they have to be UTF-8."""
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run"))
    shutil.copytree(checkpoints, run)
    recipe = recipe_file(run)
    (run / "step_30" / "remarks\udcff.txt").write_text("mine")
    hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "out\udcff")
    for name in ("out\ud800", "out\0"):
        with pytest.raises(HubExtrapError, match="cannot be the name of a folder"):
            hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / name)
    (run / "step_30" / "LICENSE\udcff").touch()
    (run / "step_30" / "LICENSE-\udcff").touch()
    loaded = hubextrap.load_recipe(recipe)
    assert "or not UTF-8" in hubextrap.plan(loaded).problems[0]
    with pytest.raises(HubExtrapError, match="or not UTF-8"):
        hubextrap.merge(loaded, out=tmp_path / "other")
    (run / "step_30" / "LICENSE-\udcff").unlink()
    odd = run / "last\udcff"
    shutil.copytree(run / "step_30", odd)
    found = hubextrap.find_trajectory(str(run))
    last = replace(found.last, path=str(odd))
    trajectory = replace(found, checkpoints=(*found.checkpoints[:-1], last))
    with pytest.raises(HubExtrapError, match="its name is not UTF-8 text, so hubextrap"):
        hubextrap.merge(loaded, out=tmp_path / "other", run=hubextrap.Run(trajectory))
    assert not (tmp_path / "other").exists()


CARDS = {
    "deep": b"a: " + b"[" * 1000 + b"]" * 1000,
    "long": b"a: " + b"9" * 5000,
    "empty number": b"a: !!int ''",
    "no truth": b"a: !!bool x",
    "code": b"a: !!python/object:os.system {}",
    "no mapping": b"- 1",
    "twice": b"a: 1\na: 2",
    "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nc: *d",
}


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_gives_nothing_is_no_reason_not_to_merge(
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
    card: str,
) -> None:
    shutil.copytree(checkpoints, run := tmp_path / "run")
    (run / "step_30" / "README.md").write_bytes(b"---\nlicense: mit\n" + CARDS[card] + b"\n---\n# x\n")
    recipe = recipe_file(run)
    planned, merged = cli("plan", recipe), cli("merge", recipe, "--out", tmp_path / "out")
    assert (planned.code, merged.code) == (0, 0), (planned, merged)
    for said in (planned.out, merged.err):
        assert "nothing of its metadata is taken over" in " ".join(said.split())
    assert "license" not in (tmp_path / "out" / "README.md").read_text().partition("\n---\n")[0]


@pytest.mark.parametrize("line", ["release: 2024-02-30", "a: !!timestamp x"])
def test_a_date_that_is_none_costs_nothing(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path, line: str
) -> None:
    shutil.copytree(checkpoints, run := tmp_path / "run")
    (run / "step_30" / "README.md").write_text(f"---\nlicense: mit\n{line}\n---\n# x\n")
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run)), out=tmp_path / "out")
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text().partition("\n---\n")[0]


@pytest.mark.parametrize(
    "card",
    [
        b"\xef\xbb\xbf---\nlicense: mit\n---\n",
        b"---\r\nlicense: mit\r\n---\r\n# x\r\n",
        b"---\nlicense: mit\nlanguage: [en, \xff]\n---\n",
        b'---\nlicense: mit\nlanguage: [en, "\\ud800"]\npipeline_tag: "\\udcff"\n---\n',
    ],
)
def test_cards_that_give_what_can_be_read(
    checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path, card: bytes
) -> None:
    shutil.copytree(checkpoints, run := tmp_path / "run")
    (run / "step_30" / "README.md").write_bytes(card)
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run)), out=tmp_path / "out")
    metadata = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert metadata["license"] == "mit"
    assert metadata.get("language", ["en"]) == ["en"]
    assert "pipeline_tag" not in metadata


def test_room_for_what_is_no_tensor(
    put: Callable[..., str],
    recipe_file: Callable[..., Path],
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shards alone would fit: some 140 kB a target."""

    def large_vocabulary(last: Path) -> None:
        (last / "vocab.txt").write_bytes(b"x" * 400_000)

    recipe = recipe_file(put(large_vocabulary), parameters={"target_step": [60, 90]})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900_000))
    refused(recipe, "bytes are needed and 900,000 are free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_300_000))
    hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda:99", "mps", "meta", "nonsense", "cpu:0", "cuda:x", ""])
@pytest.mark.parametrize("sections", [{}, FITTED], ids=["fixed", "fitted"])
def test_devices(
    hub: LocalHub,
    put: Callable[..., str],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    sections: dict[str, Any],
    device: str,
) -> None:
    recipe = hubextrap.load_recipe(recipe_file(put(), **sections))
    settings = hubextrap.MergeOptions(device=device)
    assert "device" in " ".join(hubextrap.plan(recipe, settings=settings).problems)
    with pytest.raises(HubExtrapError, match="device"):
        hubextrap.merge(recipe, out=tmp_path / "out", settings=settings)
    assert weights_read(hub) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(
    hub: LocalHub, put: Callable[..., str], recipe_file: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    recipe = recipe_file(put(), **FITTED)
    result = cli("merge", recipe, "--out", "out", "--device", "cuda", "-q")
    assert result.code == 1
    assert "device cuda: there is no CUDA device here" in result.err
    assert weights_read(hub) == []


PUSHES = {
    "branch": ({"revision": "step 1"}, "is not the name of a branch"),
    "lock": ({"revision": "a.lock"}, "is not the name of a branch"),
    "pull request": ({"revision": "refs/pr/1"}, "is not the name of a branch"),
    "long branch": ({"revision": "x" * 300}, "is not the name of a branch"),
    "no text": ({"revision": "\ud800"}, "is not the name of a branch"),
    "title": ({"commit_message": "x" * 1001}, "the commit's title has 1,001 bytes"),
    "blank title": ({"commit_message": " \t"}, "the commit's title is blank"),
    "repo": ({"repo": "me/x--y"}, "not a repo to push to"),
}


@pytest.mark.parametrize("push", PUSHES)
@pytest.mark.usefixtures("logged_in")
def test_pushes(
    hub: LocalHub, put: Callable[..., str], cli: Callable[..., Any], tmp_path: Path, push: str
) -> None:
    section, said = PUSHES[push]
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"trajectory": {"repo": put()}, "push": {"repo": "me/x"} | section} | FITTED)
    )
    hub.requests.clear()
    for words in (("plan",), ("merge",), ("run",)):
        result = cli(*words, tmp_path / "recipe.yaml", "-q")
        assert result.code == 1, result
        assert said in " ".join((result.out + result.err).split()) or "unicode" in result.err
    assert weights_read(hub) == []
    assert not [request for request in hub.requests if request.method in ("POST", "PUT")]


@pytest.mark.usefixtures("logged_in")
def test_all_at_once(
    put: Callable[..., str], recipe_file: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    recipe = recipe_file(put(), push={"repo": "somebody-else/x"})
    for words in (("plan", recipe), ("merge", recipe, "--device", "cuda:99")):
        result = cli(*words, "--out", tmp_path / "file" / "out", "--push", "me/x@a", "-q")
        assert result.code == 1
        assert "is a file" in " ".join((result.out + result.err).split())
        assert words[0] == "plan" or "device cuda:99" in result.err


@pytest.mark.usefixtures("logged_in")
def test_a_card_that_the_hub_refuses(
    hub: LocalHub, put: Callable[..., str], recipe_file: Callable[..., Path], refused: Callable[..., str]
) -> None:
    """No repo is made for it, and no weight read."""
    repo = put()
    recipe = recipe_file(repo, **FITTED)
    hub.faults.add(Fault("/api/validate-yaml", status=400, count=10))
    refused(recipe, "README.md: the metadata at its top are not valid", options=("--push", f"{repo}-made"))
    assert not HfApi().repo_exists(f"{repo}-made")


@pytest.mark.parametrize("words", [("merge", "--out", "out"), ("plan",), ("run", "--out", "out")])
@pytest.mark.parametrize("summary", ["absent/summary.md", ".", "x" * 300, "/proc/summary.md"])
def test_summaries(
    hub: LocalHub,
    put: Callable[..., str],
    recipe_file: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    summary: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(words[0], recipe_file(put()), *words[1:], "--summary", summary, "-q")
    assert result.code == 1
    assert "the summary cannot be written" in result.err
    assert weights_read(hub) == []
    assert not (tmp_path / "out").exists()


def test_the_log_shows_what_is_read(
    hub: LocalHub, put: Callable[..., str], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Or none of these tests could fail."""
    recipe = hubextrap.load_recipe(recipe_file(put()))
    hubextrap.plan(recipe, out=tmp_path / "out")
    assert weights_read(hub) == []
    hubextrap.merge(recipe, out=tmp_path / "out")
    assert weights_read(hub) != []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "absent/scan.safetensors"), "there is no folder"),
        (("--out", "x" * 250), "a name may have 255 bytes there"),
        (("--out", "."), "a folder; name the file"),
        (("--logprobs", "prompts.jsonl", "--device", "cuda:99"), "device cuda:99"),
    ],
)
def test_scans(
    hub: LocalHub,
    put: Callable[..., str],
    cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n')
    result = cli("scan", put(), *words, "-q")
    assert result.code == 1
    assert said in result.err
    assert weights_read(hub) == []


@pytest.mark.usefixtures("logged_in")
def test_what_a_push_looks_at_before_it_hashes(
    hub: LocalHub, checkpoints: Path, recipe_file: Callable[..., Path], repo_id: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(checkpoints)), out=out)
    hub.requests.clear()
    (out / "a\nb").touch()
    with pytest.raises(HubExtrapError, match="characters that a name must not have"):
        hubextrap.push(out, repo_id)
    (out / "a\nb").rename(out / "a\udcff")
    with pytest.raises(HubExtrapError, match="or not UTF-8"):
        hubextrap.push(out, repo_id)
    (out / "a\udcff").unlink()
    with sorted(out.glob("*.safetensors"))[0].open("ab") as shard:
        shard.write(b"x")
    with pytest.raises(HubExtrapError, match="other bytes"):
        hubextrap.push(out, repo_id)
    assert hub.requests == []


def test_a_sweep_measures_nothing_before(
    hub: LocalHub, put: Callable[..., str], recipe_file: Callable[..., Path], cli: Callable[..., Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    pytest.importorskip("lm_eval")
    (tmp_path / "p.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    recipe = recipe_file(put(too_large), evaluate={"task_files": str(tmp_path / "p.jsonl")})
    result = cli("sweep", recipe, "--out", tmp_path / "swept", "-q")
    assert result.code == 1
    assert "vocab.txt: 67,108,865 bytes are more than" in result.err
    assert weights_read(hub) == []
