"""A storage that holds other bytes than were uploaded, of the same size: refused however they are read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubextrap import api, load_recipe
from hubextrap.adapters.base import Bases
from hubextrap.errors import CorruptFile, SourceError
from hubextrap.evaluation import EvaluationOptions, Harness
from hubextrap.hub import read_provenance
from hubextrap.localhub import LocalHub
from hubextrap.trajectory import resolve_checkpoint

FIRST, LAST = 0, -1
"""Of the weight files."""


@pytest.fixture
def run_on_hub(hub: LocalHub, checkpoints: Path, repo_id: str) -> str:
    """Branches of a repo in which JSON lies in the LFS storage too, so that it can be damaged there."""
    hub.create_repo(repo_id)
    for folder in sorted(checkpoints.glob("step_*")):
        hub.commit(
            repo_id, {".gitattributes": b"*.json filter=lfs diff=lfs merge=lfs -text\n"}, revision=folder.name
        )
        hub.commit(repo_id, {path.name: path for path in sorted(folder.iterdir())}, revision=folder.name)
    return repo_id


def stored_path(hub: LocalHub, repo: str, original: Path) -> Path:
    """Where the Hub keeps the bytes of a file."""
    return hub.store.get("model", repo).objects.path(hashlib.sha256(original.read_bytes()).hexdigest())


def damage(hub: LocalHub, repo: str, file: str, original: Path, place: str) -> None:
    """Change one byte of the stored object, or all but its first half; size and name stay."""
    content = bytearray(original.read_bytes())
    stored = stored_path(hub, repo, original)
    assert stored.read_bytes() == content
    header = 8 + int.from_bytes(content[:8], "little")
    if place == "half":  # cut short, then padded
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    elif place == "metadata":
        at = content.index(b'"pt"')
        content[at + 1] ^= 1
    elif place == "padding":
        # another space that JSON takes
        at = content.rindex(b" ", 0, header) if content[header - 1] == 32 else content.index(b'"pt"') + 1
        content[at] = 9 if content[at] == 32 else content[at] ^ 1
    elif place == "text":
        at = content.rindex(b"1")
        content[at] ^= 1
    else:
        content[{"first": header, "last": -1}[place]] ^= 1
    copy = stored.with_name("copy")
    copy.write_bytes(content)
    copy.replace(stored)


DAMAGE: dict[str, tuple[int | str, str]] = {
    "header": (LAST, "metadata"),
    "padding": (LAST, "padding"),
    "first tensor": (FIRST, "first"),
    "last tensor": (LAST, "last"),
    "cut and padded": (LAST, "half"),
    "config": ("config.json", "text"),
    "tokenizer": ("tokenizer.json", "text"),
}
FAST = ("header", "last tensor")
WAYS: dict[str, tuple[list[str], dict[str, object]]] = {
    "ranges": (["merge", "RECIPE", "--out", "OUT"], {}),
    "cache": (["merge", "RECIPE", "--out", "OUT", "--cache"], {}),
    "onto the Hub": (["merge", "RECIPE", "--push", "me/PUSHED"], {}),
    "fitted": (["merge", "RECIPE", "--out", "OUT"], {"merge_method": "low_rank"}),
    "scan": (["scan", "REPO", "--out", "OUT"], {}),
    "scan of the cache": (["scan", "REPO", "--out", "OUT", "--cache"], {}),
    "logits": (["generate", "RECIPE", "1+1="], {"space": "logits"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "kind"),
    [
        pytest.param(way, kind, marks=[] if way == "ranges" or kind in FAST else pytest.mark.slow)
        for way in WAYS
        for kind in DAMAGE
    ],
)
def test_damage_in_the_storage_is_refused(
    way: str,
    kind: str,
    hub: LocalHub,
    run_on_hub: str,
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
    logged_in: str,
) -> None:
    which, place = DAMAGE[kind]
    weights = sorted(path.name for path in (checkpoints / "step_30").glob("*.safetensors"))
    file = which if isinstance(which, str) else weights[which]
    damage(hub, run_on_hub, file, checkpoints / "step_30" / file, place)
    arguments, sections = WAYS[way]
    if "space" in sections:
        sections = {**sections, "out_dtype": None}
    recipe = recipe_file(run_on_hub, **sections)
    out, pushed = tmp_path / "out", f"me/pushed-{run_on_hub[-12:]}"
    places = {"RECIPE": recipe, "OUT": out, "REPO": run_on_hub, "me/PUSHED": pushed}
    before = sorted(tmp_path.iterdir())
    result = cli(*(places.get(argument, argument) for argument in arguments), "-q")
    reads_it = file.endswith(".safetensors") or not (way.startswith("scan") and file == "tokenizer.json")
    if not reads_it:
        assert result.code == 0, result.err
        return
    assert result.code == 1, result.out
    assert f"error: {run_on_hub}@step_30/{file}: its bytes have" in result.err
    assert sorted(tmp_path.iterdir()) == before
    assert not list(hub.store.root.glob(f"models/{pushed}.git")) or not pushed_files(hub, pushed)


@pytest.mark.parametrize("value", [b"\xff\xff\xff\xff", b"\x7e\x7e\x7e\x7e"], ids=["NaN", "huge"])
@pytest.mark.parametrize("way", ["fitted", "scan"])
def test_a_checkpoint_is_not_blamed_for_the_storage(
    way: str,
    value: bytes,
    hub: LocalHub,
    run_on_hub: str,
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """What cannot be computed with is compared with the Hub's hash first: "leave it out" is no remedy."""
    original = max((checkpoints / "step_30").glob("*.safetensors"))
    content = bytearray(original.read_bytes())
    stored = stored_path(hub, run_on_hub, original)
    content[-4:] = value
    stored.with_name("copy").write_bytes(content)
    stored.with_name("copy").replace(stored)
    arguments, sections = WAYS[way]
    places = {"RECIPE": recipe_file(run_on_hub, **sections), "OUT": tmp_path / "out", "REPO": run_on_hub}
    result = cli(*(places.get(argument, argument) for argument in arguments), "-q")
    assert result.code == 1, result.out
    assert f"error: {run_on_hub}@step_30/{original.name}: its bytes have sha256" in result.err


def pushed_files(hub: LocalHub, repo: str) -> list[str]:
    from huggingface_hub import HfApi

    return [file for file in HfApi().list_repo_files(repo) if file.endswith(".safetensors")]


@pytest.mark.parametrize("kind", FAST)
def test_what_the_error_says_of_the_cache_helps(
    kind: str,
    hub: LocalHub,
    run_on_hub: str,
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A cache that was filled with damaged bytes is mended by removing the file that is named."""
    last = sorted((checkpoints / "step_30").glob("*.safetensors"))[-1]
    stored = stored_path(hub, run_on_hub, last)
    damage(hub, run_on_hub, last.name, last, DAMAGE[kind][1])
    arguments = ("merge", recipe_file(run_on_hub), "--out", tmp_path / "out", "--cache", "-q")
    refused = cli(*arguments)
    shutil.copy(last, stored)
    assert refused.code == cli(*arguments).code == 1  # what is in the cache is not downloaded again
    named = re.search(r"remove (\S+) from the Hub cache", refused.err)
    assert named is not None, refused.err
    Path(named[1]).unlink()
    assert cli(*arguments).code == 0


def test_other_files_of_the_cache(
    run_on_hub: str, recipe_file: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Bytes that rot on the disk, of the files beside the weights and of those for transformers."""
    from hubextrap.logits import load_tokenizer
    from hubextrap.logits.loading import load_causal_lm

    checkpoint = resolve_checkpoint(f"{run_on_hub}@step_30")
    merge = ("merge", recipe_file(run_on_hub), "--cache", "-q", "--out")
    assert cli(*merge, tmp_path / "good").code == 0
    load_causal_lm(checkpoint)
    for file in ("config.json", "tokenizer.json", "model-00001-of-"):
        repo = Path(os.environ["HF_HOME"], "hub", f"models--{run_on_hub.replace('/', '--')}")
        (cached,) = repo.glob(f"snapshots/{checkpoint.commit}/{file}*")
        blob = cached.resolve()
        content = bytearray(blob.read_bytes())
        at = content.rindex(b"1") if file.endswith(".json") else len(content) - 1
        content[at] ^= 1
        blob.write_bytes(content)
        refused = cli(*merge, tmp_path / "bad")
        assert f"@step_30/{cached.name}: its bytes have sha256" in refused.err
        assert not (tmp_path / "bad").exists()
        with pytest.raises(CorruptFile, match=re.escape(f"remove {blob} from the Hub cache")):
            load_causal_lm(checkpoint)
        if file.endswith(".json"):
            with pytest.raises(CorruptFile, match=re.escape(cached.name)):
                load_tokenizer(checkpoint)
        content[at] ^= 1
        blob.write_bytes(content)


@pytest.mark.slow
def test_the_provenance_says_what_was_compared(
    run_on_hub: str,
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    rules = {"target_step": 60, "tensors": [{"match": "lm_head*", "method": "persistence"}]}
    made: list[list[Any]] = []
    for name, options in (("ranges", []), ("cache", ["--cache"]), ("small", ["--memory", "400MiB"])):
        recipe = recipe_file(run_on_hub, parameters=rules)
        assert cli("merge", recipe, "--out", tmp_path / name, *options, "-q").code == 0
        made.append(list(read_provenance(tmp_path / name).inputs))
    assert made[0] == made[1] == made[2]
    for one in made[0]:
        folder = checkpoints / f"step_{one.step}"
        assert [file.file for file in one.files] == sorted(path.name for path in folder.glob("*.safetensors"))
        for file in one.files:
            assert file.listed == hashlib.sha256((folder / file.file).read_bytes()).hexdigest()
            assert file.compared == (file.read == "whole")
            assert file.read == ("whole" if one.step in (0, 30) else "header")
    assert cli("merge", recipe_file(checkpoints), "--out", tmp_path / "local", "-q").code == 0
    (first, *_) = read_provenance(tmp_path / "local").inputs
    assert {(file.read, file.listed, file.compared) for file in first.files} == {("whole", None, False)}


def test_a_provenance_from_before_is_read(
    checkpoints: Path, recipe_file: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    assert cli("merge", recipe_file(checkpoints), "--out", tmp_path / "out", "-q").code == 0
    file = tmp_path / "out" / "hubextrap.json"
    content = json.loads(file.read_text())
    for one in content["inputs"]:
        del one["files"]
    del content["digest"]
    file.write_text(json.dumps(content))
    assert cli("verify", tmp_path / "out", "-q").code == 0
    assert read_provenance(file).inputs[0].files == ()


def test_a_file_that_is_read_in_part(tmp_path: Path, hub: LocalHub, repo_id: str) -> None:
    """Where much of a file is not needed it is not read, and so not compared: the provenance says so."""
    from safetensors.torch import save_file
    from torch import full

    hub.create_repo(repo_id)
    for step in (0, 10):
        tensors = {"a": full((700, 1000), step), "b": full((700, 1000), step + 1)}
        save_file({name: one.float() for name, one in tensors.items()}, tmp_path / "model.safetensors")
        files = {"model.safetensors": tmp_path / "model.safetensors", "config.json": b"{}"}
        hub.commit(repo_id, files, revision=f"step_{step}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "trajectory": {"repo": repo_id},
                "merge_method": "two_point",
                "parameters": {"target_step": 20, "tensors": [{"match": "b", "method": "persistence"}]},
            }
        )
    )
    api.merge(load_recipe(recipe), out=tmp_path / "out")
    inputs = read_provenance(tmp_path / "out").inputs
    assert [(one.files[0].read, one.files[0].compared) for one in inputs] == [
        ("part", False),
        ("whole", True),
    ]


def test_run_measures_what_it_merged(
    checkpoints: Path, tmp_path: Path, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint on the disk that is overwritten between the merge and the evaluation is noticed."""
    run = Path(shutil.copytree(checkpoints, tmp_path / "run"))
    evaluate = {"tasks": ["hubextrap_gsm8k"], "limit": 1, "against": ["last"]}
    recipe = load_recipe(recipe_file(run, evaluate=evaluate))
    measured = []

    class Counting(Harness):
        """Measures nothing: what is measured is overwritten before."""

        bases = Bases()

        def __init__(self) -> None:
            self.options = EvaluationOptions()

        def check(self, items: Any, bases: Any = None) -> None:
            pass

        def measure(self, label: str, checkpoint: Any) -> Any:
            measured.append(label)
            if label == "last":
                path = next((run / "step_30").glob("*.safetensors"))
                status, content = path.stat(), bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            return None

    monkeypatch.setattr("hubextrap.api.chain.Harness", lambda options, progress: Counting())
    with pytest.raises(SourceError, match=r"step_30: changed while the command ran"):
        api.run(recipe, out=tmp_path / "out")
    assert measured == ["prediction", "last"]


@pytest.mark.slow
@pytest.mark.parametrize("option", [[], ["--cache"]])
def test_over_xet(
    option: list[str], checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The client decides on Xet when it is imported, so these are processes of their own."""
    with LocalHub(tmp_path / "hub", tokens={"hf_xet": "me"}, xet=True) as hub:
        hub.create_repo("me/run")
        for folder in sorted(checkpoints.glob("step_*")):
            hub.commit("me/run", {path.name: path for path in folder.iterdir()}, revision=folder.name)
        last = sorted((checkpoints / "step_30").glob("*.safetensors"))[-1]
        recipe = recipe_file("me/run")

        def merge(out: str) -> subprocess.CompletedProcess[str]:
            environment = os.environ | {
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / f"home-{out}"),
                "HF_HUB_DISABLE_XET": "0",
            }
            command = [sys.executable, "-m", "hubextrap", "merge", str(recipe), "--out", str(tmp_path / out)]
            return subprocess.run(
                [*command, "-q", *option], capture_output=True, text=True, env=environment, timeout=120
            )

        good = merge("good")
        assert good.returncode == 0, good.stderr
        damage(hub, "me/run", last.name, last, "last")
        for xorb in (tmp_path / "hub").rglob("stores/*/xet/xorbs/xorbs/*"):
            if xorb.is_file():
                content = bytearray(xorb.read_bytes())
                content[len(content) // 2] ^= 1
                xorb.chmod(0o644)
                xorb.write_bytes(content)
        bad = merge("bad")
        assert bad.returncode == 1, bad.stderr
        assert re.search("its bytes have sha256|cannot be downloaded", bad.stderr), bad.stderr
        assert not (tmp_path / "bad").exists()
