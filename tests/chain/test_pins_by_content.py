"""A Hub whose storage holds other bytes than were uploaded, of the same size: refused however they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubextrap.localhub import LocalHub

Cli = Callable[..., object]
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


def damage(hub: LocalHub, repo: str, file: str, original: Path, place: str) -> None:
    """Change one byte of the stored object, or all but its first half; size and name stay."""
    import hashlib

    content = bytearray(original.read_bytes())
    stored = hub.store.get("model", repo).objects.path(hashlib.sha256(content).hexdigest())
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
WAYS: dict[str, tuple[list[str], dict[str, object]]] = {
    "ranges": (["merge", "RECIPE", "--out", "OUT"], {}),
    "cache": (["merge", "RECIPE", "--out", "OUT", "--cache"], {}),
    "onto the Hub": (["merge", "RECIPE", "--push", "me/PUSHED"], {}),
    "fitted": (["merge", "RECIPE", "--out", "OUT"], {"merge_method": "low_rank"}),
    "scan": (["scan", "REPO", "--out", "OUT"], {}),
    "scan of the cache": (["scan", "REPO", "--out", "OUT", "--cache"], {}),
    "logits": (["generate", "RECIPE", "1+1="], {"space": "logits"}),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("way", WAYS)
def test_damage_in_the_storage_is_refused(
    way: str,
    kind: str,
    hub: LocalHub,
    run_on_hub: str,
    checkpoints: Path,
    recipe_file: Callable[..., Path],
    cli: Callable[..., object],
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
        assert result.code == 0, result.err  # type: ignore[attr-defined]
        return
    assert result.code == 1, result.out  # type: ignore[attr-defined]
    assert f"error: {run_on_hub}@step_30/{file}: its bytes have" in result.err  # type: ignore[attr-defined]
    assert sorted(tmp_path.iterdir()) == before
    assert not list(hub.store.root.glob(f"models/{pushed}.git")) or not pushed_files(hub, pushed)


def pushed_files(hub: LocalHub, repo: str) -> list[str]:
    from huggingface_hub import HfApi

    return [file for file in HfApi().list_repo_files(repo) if file.endswith(".safetensors")]
