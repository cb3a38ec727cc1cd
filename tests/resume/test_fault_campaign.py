"""Faults by the thousand, on reads and on pushes: the right bytes on the Hub, or one clear error and nothing.

Each round runs one command under a few random faults. Whatever came of it, the same command then runs without
faults, and must end in the files and the number of commits that no fault would have changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

import hubextrap
from hubextrap.api.staging import push_place
from hubextrap.cli.main import run as run_command
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import Patience

COLLEAGUES = b"a colleague's"
COLLEAGUES_BLOB = hashlib.sha1(b"blob %d\0" % len(COLLEAGUES) + COLLEAGUES).hexdigest()
OLDER_MODEL: dict[str, bytes | Path | None] = {
    "model.safetensors": b"older weights",
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "notes.txt": b"stays",
}

ANYWHERE = [
    *(Fault("", status=status) for status in (500, 502, 503, 504, 408)),
    Fault("", status=429, headers={"Retry-After": "0"}),
    Fault("", drop=True),
    Fault("", truncate=0),
    Fault("", truncate=20),
    Fault("", delay=0.05),
]
AFTER_EFFECT = [Fault("", status=503, after=True), Fault("", status=504, after=True)] + 2 * [
    Fault("", drop=True, after=True)
]
STORAGE = [
    Fault("", ignore_range=True),
    Fault("", shift_range=1),
    Fault("", headers={"Content-Range": "bytes 7-10006/100000"}),
    Fault("", headers={"Content-Range": ""}),
    Fault("", headers={"Content-Encoding": "gzip"}),
    Fault("", truncate=100_000),
    Fault("", status=403),
    Fault("", status=404),
    Fault("", status=302, headers={"Location": "/nowhere"}),
]
WRONG_FILE = [
    Fault("", headers={"X-Linked-Size": "99"}),
    Fault("", headers={"X-Linked-Etag": f'"{"0" * 64}"'}),
    Fault("", headers={"X-Repo-Commit": "1" * 40}),
    Fault("", status=404),
]
LOST_CARD = [Fault("", status=404, count=30)]
UPLOAD = [
    *(Fault("", cut_upload=length) for length in (0, 1_000, 100_000)),
    Fault("", status=200),  # taken, and lost
    Fault("", status=403),
]
COMMIT = [Fault("", status=412), Fault("", status=409), Fault("", status=400), *AFTER_EFFECT]

SITES: dict[str, tuple[str, str, list[Fault], int]] = {
    # where: path, method, its own faults, how often it is chosen
    "storage": (r"^/lfs/", "GET", STORAGE, 9),
    "resolve": (r"/resolve/", "HEAD", WRONG_FILE, 2),
    "side file": (r"/resolve/", "GET", [Fault("", status=404)], 1),
    "card": (r"/resolve/.*README", "GET", LOST_CARD, 1),
    "tree": (r"/tree/", "GET", [], 2),
    "refs": (r"/refs", "GET", [], 1),
    "whoami": (r"whoami", "GET", [], 1),
    "create repo": (r"/repos/create", "POST", AFTER_EFFECT, 1),
    "card's check": (r"/validate-yaml", "POST", [], 1),
    "preupload": (r"/preupload/", "POST", AFTER_EFFECT, 3),
    "batch": (r"objects/batch", "POST", AFTER_EFFECT, 3),
    "upload": (r"^/lfs/", "PUT", UPLOAD + AFTER_EFFECT, 8),
    "verify": (r"objects/verify", "POST", [Fault("", status=404), *AFTER_EFFECT], 2),
    "branch": (r"/branch/", "POST", AFTER_EFFECT, 1),
    "commit": (r"/commit/", "POST", 2 * COMMIT, 6),
}


def random_faults(dice: random.Random, read: list[str], written: list[str]) -> list[tuple[str, Fault]]:
    """Where and what: 4 to 12 faults, a few of them lasting; those of the storage hit one of the objects."""
    sites = dice.choices(list(SITES), [often for *_, often in SITES.values()], k=dice.randint(4, 12))
    faults = []
    for site in sites:
        path, method, own, _ = SITES[site]
        if path == r"^/lfs/":
            path += f".*{dice.choice(read if method == 'GET' else written)}"
        fault = dice.choice(dice.choice([ANYWHERE, own or ANYWHERE]))
        count = 30 if dice.random() < 0.05 else max(fault.count, dice.choice([1, 1, 1, 2, 3]))
        faults.append((site, dataclasses.replace(fault, path=path, method=method, count=count)))
    return faults


class Model(NamedTuple):
    """What a revision holds."""

    files: dict[str, str]
    """Hash by path."""
    commits: int


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to bring a model onto the Hub."""

    arguments: list[str]
    target: hubextrap.PushTarget
    there: dict[str, bytes | Path | None] | None = None
    """Files on main beforehand; no repo at all when None."""

    def prepare(self, hub: LocalHub) -> None:
        """The target as it is before the first push to it; nothing that was uploaded is left."""
        HfApi().delete_repo(self.target.repo, missing_ok=True)
        if self.there is not None:
            hub.create_repo(self.target.repo)
            hub.commit(self.target.repo, self.there)

    def found(self) -> list[Model]:
        """What the target holds, or each pull request to it; nothing if it is not there."""
        api = HfApi()
        if not api.repo_exists(self.target.repo):
            return []
        refs = api.list_repo_refs(self.target.repo, include_pull_requests=True)
        requests = [ref.ref for ref in refs.pull_requests or ()]
        branches = [ref.name for ref in refs.branches if ref.name == self.target.revision]
        return [self._model(revision) for revision in (requests if self.target.create_pr else branches)]

    def _model(self, revision: str) -> Model:
        api = HfApi()
        files = {
            file.path: file.lfs.sha256 if file.lfs else file.blob_id
            for file in api.list_repo_tree(self.target.repo, revision=revision, recursive=True)
            if isinstance(file, RepoFile)
        }
        return Model(files, len(api.list_repo_commits(self.target.repo, revision=revision)))


class Colleague:
    """Commits a file to the same branch when our commit is on its way, if one is waiting."""

    def __init__(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[str] = []
        send = HfApi.create_commit

        def interrupted(api: HfApi, repo: str, *, revision: str, **options: object) -> object:
            if self.waiting:
                hub.commit(repo, {self.waiting.pop(): COLLEAGUES}, revision)
            return send(api, repo, revision=revision, **options)  # type: ignore[call-overload]

        monkeypatch.setattr(HfApi, "create_commit", interrupted)


Run = Callable[[list[str]], tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(arguments)``: exit code and error of a command, in this process."""

    def command(arguments: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hubextrap", *arguments, "--quiet"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command()
        return int(ended.value.code or 0), capsys.readouterr().err

    return command


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long is waited is tested elsewhere."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("hubextrap.hub.uploading._TWICE", Patience(attempts=2, first_wait=0.002))
    quick = Patience(attempts=4, first_wait=0.002, longest_wait=0.01)
    monkeypatch.setattr("hubextrap.tensors.remote.Patience", lambda: quick)


@pytest.fixture
def on_cdn_hub(cdn_hub: LocalHub, run_folder: Path, repo_id: str) -> str:
    """The run as branches of a repo whose large files lie in another origin's storage."""
    cdn_hub.create_repo(repo_id)
    for folder in sorted(run_folder.iterdir()):
        files: dict[str, bytes | Path | None] = {path.name: path for path in sorted(folder.iterdir())}
        files["README.md"] = b"---\nlicense: mit\nlanguage: de\n---\n# The run\n"
        cdn_hub.commit(repo_id, files, revision=folder.name)
    return repo_id


@pytest.fixture
def ways(run: Run, recipe_file: Callable[..., Path], on_cdn_hub: str, tmp_path: Path) -> list[Way]:
    """A merge straight to a new repo, onto an older model and into a pull request; a push of a folder."""
    recipe, folder = str(recipe_file(on_cdn_hub)), str(tmp_path / "folder")
    assert run(["merge", recipe, "--out", folder]) == (0, "")
    repo = f"{on_cdn_hub}-predicted"
    branch = hubextrap.PushTarget.parse(f"{repo}@step_20")
    pull_request = hubextrap.PushTarget.parse(repo, create_pr=True)
    return [
        Way(["merge", recipe, "--push", branch.name], branch),
        Way(["merge", recipe, "--push", repo], hubextrap.PushTarget.parse(repo), OLDER_MODEL),
        Way(["merge", recipe, "--push", repo, "--create-pr"], pull_request, {"notes.txt": b"stays"}),
        Way(["push", folder, branch.name], branch, OLDER_MODEL),
    ]


@pytest.mark.slow
def test_every_run_ends_in_the_right_bytes_or_in_a_clear_error(
    cdn_hub: LocalHub,
    ways: list[Way],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    expected = []
    for way in ways:
        way.prepare(cdn_hub)
        assert run(way.arguments) == (0, "")
        expected += way.found()
    written = {sha for path, sha in expected[0].files.items() if path.endswith(".safetensors")}
    read = {r.path.split("/")[5][:64] for r in cdn_hub.requests if r.method == "GET" and "Sign" in r.path}
    assert len(read) == 2 * len(written)

    count = 1_000
    dice = random.Random(count)
    colleague = Colleague(cdn_hub, monkeypatch)
    struck: Counter[str] = Counter()
    ended: Counter[int] = Counter()
    while struck.total() < count:
        way, whole = dice.choice(list(zip(ways, expected, strict=True)))
        way.prepare(cdn_hub)
        theirs = dice.choice([*5 * [None], "notes.md", "config.json"])
        colleague.waiting = [theirs] if theirs else []
        faults = [
            (site, fault, fault.count) for site, fault in random_faults(dice, sorted(read), sorted(written))
        ]
        for _, fault, _ in faults:
            cdn_hub.faults.add(fault)
        code, said = run(way.arguments)
        ended[code] += 1
        struck.update({site: times - fault.count for site, fault, times in faults})
        cdn_hub.faults.clear()
        if theirs and not colleague.waiting:
            notes = {"notes.md": COLLEAGUES_BLOB} if theirs == "notes.md" else {}
            whole = Model(whole.files | notes, whole.commits + 1)
            assert code == 1 or theirs == "notes.md"
        colleague.waiting = []

        found = way.found()
        if code == 0:
            assert found == [whole]
        else:
            assert code == 1
            assert re.fullmatch(r"error: me/test-.+\n(me/test-.+\n)*", said), said
            assert "Signature" not in said
            assert all(model == whole or written.isdisjoint(model.files.values()) for model in found)
            assert run(way.arguments) == (0, "")
            found = way.found()
            assert found
            assert all(model == whole for model in found)
            assert len(found) == 1 or way.target.create_pr
        assert not push_place(way.target).exists()
        assert not list(temporary.iterdir())
    assert all(struck[site] >= 5 for site in SITES), struck
    assert ended[0] >= 50, ended
