"""Folders as an archive or a clone can bring them: links, pipes, devices and names in every role of a file.

Each command on each of them ends in one error that names the file, or as it does without; in no case leaves
anything behind, sends a byte from outside, or waits for a pipe.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubextrap.localhub import LocalHub

Cli = Callable[..., "object"]
SECRET = "hf_" + "Secret" * 5 + "Abcd"

ROLES = (
    "LICENSE", "NOTICE.md", "README.md", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja",
    "model.safetensors.index.json", "model-00001-of-*.safetensors",
)  # fmt: skip
"""What of the last checkpoint goes into a prediction, or decides what does."""


def link_to_token(place: Path, outside: Path) -> None:
    place.symlink_to(outside / "token")


def link_up(place: Path, outside: Path) -> None:
    place.symlink_to(os.path.relpath(outside / "token", place.parent))


def link_through_a_link(place: Path, outside: Path) -> None:
    (place.parent / ".hop").symlink_to(outside)
    place.symlink_to(".hop/token")


def link_to_hidden(place: Path, outside: Path) -> None:
    git = place.parent / ".git"
    git.mkdir()
    shutil.copy(outside / "token", git / "config")
    place.symlink_to(".git/config")


def link_to_a_device(place: Path, outside: Path) -> None:
    place.symlink_to("/dev/zero")


def link_to_nowhere(place: Path, outside: Path) -> None:
    place.symlink_to("nowhere")


def link_to_itself(place: Path, outside: Path) -> None:
    place.symlink_to(place.name)


def a_pipe(place: Path, outside: Path) -> None:
    os.mkfifo(place)


def a_socket(place: Path, outside: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # a socket's path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place.name)
    finally:
        os.chdir(here)


def a_device(place: Path, outside: Path) -> None:
    try:
        os.mknod(place, 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


KINDS = (
    link_to_token, link_up, link_through_a_link, link_to_hidden, link_to_a_device, link_to_nowhere,
    link_to_itself, a_pipe, a_socket, a_device,
)  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "token").write_text(SECRET)
    return folder


@pytest.fixture
def run(checkpoints: Path, tmp_path: Path) -> Path:
    """A run of two steps whose last has a file in every role."""
    root = tmp_path / "run"
    for step in (0, 10):
        shutil.copytree(checkpoints / f"step_{step}", root / f"step_{step}")
    last = root / "step_10"
    (last / "additional_chat_templates").mkdir()
    for name in ("LICENSE", "NOTICE.md", "README.md", "additional_chat_templates/tool.jinja"):
        (last / name).write_text("ours\n")
    (last / "chat_template.jinja").write_text("{{ messages }}")
    return root


def replaced(folder: Path, role: str, kind: Callable[[Path, Path], None], outside: Path) -> str:
    """Put something else in the place of the file in this role; its name."""
    place = next(folder.glob(role), folder / role)
    place.unlink(missing_ok=True)
    kind(place, outside)
    return place.relative_to(folder).as_posix()


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def published(repo: str) -> bytes:
    """All bytes that a repo holds, whatever the revision."""
    api = HfApi()
    if not api.repo_exists(repo):
        return b""
    found = b""
    for ref in api.list_repo_refs(repo).branches:
        for file in api.list_repo_files(repo, revision=ref.name):
            found += Path(api.hf_hub_download(repo, file, revision=ref.name)).read_bytes()
    return found


def pairs() -> list[tuple[str, Callable[[Path, Path], None]]]:
    """Every role with some kind, every kind with some role; all of both is left to the slow test."""
    longest = max(len(ROLES), len(KINDS))
    return list(itertools.islice(zip(itertools.cycle(ROLES), itertools.cycle(KINDS), strict=False), longest))


def check_refused(role: str, kind: Callable[[Path, Path], None], run: Path, outside: Path, cli: Cli) -> None:
    name = replaced(run / "step_10", role, kind, outside)
    here = run.parent
    recipe = here / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
    )
    before = files_under(here)
    for words in (
        ("plan", recipe, "--quiet"),
        ("merge", recipe, "--out", here / "out", "--quiet"),
        ("merge", recipe, "--push", "me/never", "--quiet"),
        ("push", run / "step_10", "me/never", "--quiet"),
    ):
        ended = cli(*words)
        said = ended.out + ended.err
        assert ended.code == 1, (words, said)
        assert name in said, (words, said)
        assert re.search(r"link|pipe|socket|device|not a regular file|no config.json", said), (words, said)
        assert SECRET not in said
        assert files_under(here) == before, words
    assert SECRET.encode() not in published("me/never")


@pytest.mark.usefixtures("logged_in", "hub")
@pytest.mark.parametrize(("role", "kind"), pairs(), ids=lambda value: getattr(value, "__name__", value))
def test_a_hostile_file_in_a_checkpoint(
    role: str, kind: Callable[[Path, Path], None], run: Path, outside: Path, cli: Cli
) -> None:
    check_refused(role, kind, run, outside, cli)


@pytest.mark.slow
@pytest.mark.usefixtures("logged_in", "hub")
@pytest.mark.parametrize(
    ("role", "kind"),
    sorted(set(itertools.product(ROLES, KINDS)) - set(pairs()), key=str),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_other_hostile_file_in_every_role(
    role: str, kind: Callable[[Path, Path], None], run: Path, outside: Path, cli: Cli
) -> None:
    check_refused(role, kind, run, outside, cli)


@pytest.mark.usefixtures("logged_in", "hub")
def test_what_merely_lies_beside_changes_nothing(run: Path, outside: Path, tmp_path: Path, cli: Cli) -> None:
    """Nobody reads it: a trainer's state on another disk, an editor's lock, a pipe of somebody's."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
    )
    assert cli("merge", recipe, "--out", tmp_path / "plain", "--quiet").code == 0
    last = run / "step_10"
    (last / "optimizer.pt").symlink_to(outside / "token")
    (last / ".#config.json").symlink_to("me@host.1")
    (last / "data").symlink_to(outside)
    os.mkfifo(last / "pipe")
    (last / "odd\n\x1b[31m\u202e.txt").write_text("x")
    Path(os.fsdecode(os.fsencode(last) + b"/\xff.bin")).write_text("x")
    (last / ("x" * 255)).write_text("x")
    assert cli("merge", recipe, "--out", tmp_path / "beside", "--quiet").code == 0
    plain, beside = tmp_path / "plain", tmp_path / "beside"
    assert files_under(plain) == files_under(beside)
    for name in files_under(plain):
        if (plain / name).is_file() and name not in ("README.md", "hubextrap.json"):
            assert (plain / name).read_bytes() == (beside / name).read_bytes(), name


def refused_everywhere(run: Path, said: str, tmp_path: Path, cli: Cli) -> None:
    """By plan, merge and push."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
    )
    for words in (("plan", recipe, "-q"), ("merge", recipe, "--out", tmp_path / "out", "-q"),
                  ("push", run / "step_10", "me/never", "-q")):  # fmt: skip
        ended = cli(*words)
        assert ended.code == 1
        assert said in ended.out + ended.err
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize(
    "name", ["new\nline.model", "\x1b]0;x\x07.jinja", "\u202egpj.model", b"\xff.model", "a\\b.model"]
)
def test_a_name_that_no_file_should_have(
    name: str | bytes, run: Path, tmp_path: Path, cli: Cli, hub: LocalHub
) -> None:
    """Where it would be taken along or pushed."""
    place = Path(os.fsdecode(os.fsencode(run / "step_10") + b"/" + os.fsencode(name)))
    place.write_text("x")
    refused_everywhere(run, "has a name with characters that a name must not have", tmp_path, cli)


@pytest.mark.usefixtures("logged_in", "hub")
def test_a_linked_template_folder(run: Path, outside: Path, tmp_path: Path, cli: Cli) -> None:
    templates = run / "step_10" / "additional_chat_templates"
    shutil.rmtree(templates)
    (outside / "evil.jinja").write_text(SECRET)
    templates.symlink_to(outside)
    refused_everywhere(run, "additional_chat_templates: is a link", tmp_path, cli)
    assert SECRET.encode() not in published("me/never")


@pytest.mark.usefixtures("logged_in", "hub")
@pytest.mark.parametrize(
    "shard", ["../outside/token", "/etc/passwd", "sub/model.safetensors", "..", 7, ["a"]]
)
def test_an_index_that_names_what_lies_elsewhere(
    shard: object, run: Path, outside: Path, tmp_path: Path, cli: Cli
) -> None:
    import json

    index = run / "step_10" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], shard)
    index.write_text(json.dumps(content))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
    )
    for words in (
        ("merge", recipe, "--out", tmp_path / "out", "-q"),
        ("push", run / "step_10", "me/x", "-q"),
    ):
        ended = cli(*words)
        assert ended.code == 1
        assert "model.safetensors.index.json" in ended.out + ended.err
        assert not (tmp_path / "out").exists()


def test_other_readers(run: Path, outside: Path, tmp_path: Path, cli: Cli) -> None:
    """Commands that read a checkpoint's folder by themselves."""
    shutil.copytree(run / "step_0", run / "step_5")
    last = run / "step_10"
    shard = next(last.glob("model-00001-of-*"))
    shard.rename(outside / "shard")
    shard.symlink_to(outside / "shard")
    for words in (
        ("steps", run, "-q"),
        ("scan", run, "--out", tmp_path / "scan.safetensors", "-q"),
        ("backtest", run, "-q"),
    ):
        ended = cli(*words)
        assert ended.code == 1, words
        assert f"{shard.name}: is a link that leads out of the folder" in ended.err, (words, ended.err)
    assert not (tmp_path / "scan.safetensors").exists()
    # what the error advises, to the letter
    assert "put a copy of the file in place of the link, or move its folder there as a whole" in ended.err
    shard.unlink()
    shard.write_bytes((outside / "shard").read_bytes())
    assert cli("backtest", run, "-q").code == 0
    last.rename(outside / "step_10")
    last.symlink_to(outside / "step_10")
    assert cli("backtest", run, "-q").code == 0


def test_a_local_model_that_transformers_would_read(run: Path, outside: Path) -> None:
    from hubextrap.errors import SourceError
    from hubextrap.logits.loading import load_causal_lm, load_tokenizer
    from hubextrap.trajectory import resolve_checkpoint

    checkpoint = resolve_checkpoint(str(run / "step_10"), step=10)
    load_tokenizer(checkpoint)
    os.mkfifo(run / "step_10" / "special_tokens_map.json.tmp")
    (run / "step_10" / "special_tokens_map.json").unlink(missing_ok=True)
    os.mkfifo(run / "step_10" / "special_tokens_map.json")
    for load in (load_tokenizer, load_causal_lm):
        with pytest.raises(SourceError, match=r"special_tokens_map.json: is a pipe"):
            load(checkpoint)


def test_verify_reads_nothing_elsewhere(run: Path, outside: Path, tmp_path: Path, cli: Cli) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
    )
    out = tmp_path / "out"
    assert cli("merge", recipe, "--out", out, "-q").code == 0
    for name in ("hubextrap.json", next(out.glob("*.safetensors")).name):
        (out / name).rename(outside / name)
        (out / name).symlink_to(outside / name)
        ended = cli("verify", out)
        assert ended.code == 1
        assert name in ended.out + ended.err
        (out / name).unlink()
        (outside / name).rename(out / name)
    assert cli("verify", out).code == 0


def test_links_that_stay(run: Path, tmp_path: Path, cli: Cli) -> None:
    """To a file beside, to the folder, and of a snapshot in the Hub cache to its blobs."""
    recipe = tmp_path / "recipe.yaml"

    def merged(repo: Path, out: str) -> bytes:
        recipe.write_text(
            f"trajectory: {{repo: {repo}}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
        )
        ended = cli("merge", recipe, "--out", tmp_path / out, "-q")
        assert ended.code == 0, ended.err
        shards = sorted((tmp_path / out).glob("*.safetensors"))
        return b"".join(shard.read_bytes() for shard in shards) + (tmp_path / out / "LICENSE").read_bytes()

    plain = merged(run, "plain")
    (tmp_path / "linked").symlink_to(run)
    (run / "latest").symlink_to("step_10")
    licence = run / "step_10" / "LICENSE"
    licence.rename(run / "step_10" / "terms")
    licence.symlink_to("terms")
    assert merged(tmp_path / "linked", "beside") == plain

    repo = tmp_path / "models--me--x"
    snapshots = repo / "snapshots" / ("a" * 40)
    (repo / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in run.rglob("*") if path.is_file())):
        if "latest" in file.parts:
            continue
        inside = snapshots / file.relative_to(run)
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, repo / "blobs" / f"{number:040}")
        inside.symlink_to(os.path.relpath(repo / "blobs" / f"{number:040}", inside.parent))
    assert merged(snapshots, "cached") == plain


@pytest.mark.parametrize("how", ["blobs is a link", "a blob is a link", "another repo's", "no commit"])
def test_what_only_looks_like_the_cache(how: str, tmp_path: Path, outside: Path) -> None:
    from hubextrap.tensors import LocalSource

    repo = tmp_path / "models--me--x"
    commit = "main" if how == "no commit" else "a" * 40
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    if how == "blobs is a link":
        (repo / "blobs").symlink_to(outside)
    elif how == "another repo's":
        (tmp_path / "models--me--y" / "blobs").mkdir(parents=True)
        shutil.copy(outside / "token", tmp_path / "models--me--y" / "blobs" / "token")
    else:
        (repo / "blobs").mkdir()
        if how == "a blob is a link":
            (repo / "blobs" / "token").symlink_to(outside / "token")
        else:
            shutil.copy(outside / "token", repo / "blobs" / "token")
    other = "models--me--y" if how == "another repo's" else "models--me--x"
    (folder / "LICENSE").symlink_to(f"../../../{other}/blobs/token")
    problem = LocalSource(folder).files()["LICENSE"].problem
    assert problem is not None
    assert "leads out of the folder" in problem


def test_a_folder_that_may_not_be_read(run: Path, tmp_path: Path) -> None:
    """As another user than root, in a process of its own."""
    import subprocess
    import sys

    (run / "step_10" / "LICENSE").chmod(0)
    script = (
        "import os,sys\n"
        "from hubextrap.tensors import LocalSource\n"
        "from hubextrap.hub.side_files import side_files\n"
        "from hubextrap.errors import HubExtrapError\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: side_files(LocalSource(sys.argv[1]), None)\n"
        "except HubExtrapError as error: print(error); sys.exit(3)\n"
    )
    for path in (tmp_path, *tmp_path.parents):
        if os.getuid() == 0 and path.stat().st_mode & 0o005 != 0o005 and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-c", script, run / "step_10"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3, ended.stderr
    assert "LICENSE: cannot be opened: Permission denied; check its permissions" in ended.stdout
