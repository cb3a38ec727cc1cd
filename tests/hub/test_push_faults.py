"""Answers that fail, come late or lie about what happened: a push is made once or not at all."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubextrap.errors import HubExtrapError, PushError
from hubextrap.hub.push import push_folder
from hubextrap.hub.target import PushTarget
from hubextrap.localhub import Fault, LocalHub

COMMIT = r"/commit/"


pytestmark = pytest.mark.usefixtures("hub", "logged_in")


def commits(repo: str, revision: str = "main") -> list[str]:
    return [commit.commit_id for commit in HfApi().list_repo_commits(repo, revision=revision)]


def branches(repo: str) -> list[str]:
    return sorted(branch.name for branch in HfApi().list_repo_refs(repo).branches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault(COMMIT, "POST", status=412),
        Fault(COMMIT, "POST", status=409),
        Fault(COMMIT, "POST", status=503, count=3),
        Fault(COMMIT, "POST", status=429, headers={"Retry-After": "0"}),
        Fault(COMMIT, "POST", drop=True),
        Fault(COMMIT, "POST", status=503, after=True),
        Fault(COMMIT, "POST", status=504, after=True),
        Fault(COMMIT, "POST", drop=True, after=True),
        Fault(r"/branch/", "POST", status=500),
        Fault(r"/branch/", "POST", status=500, after=True),
        Fault(r"/branch/", "POST", drop=True, after=True),
        Fault(r"/refs", "GET", status=503, count=2),
        Fault(r"/repos/create", "POST", status=503, after=True),
        Fault(r"/validate-yaml", "POST", status=503),
        Fault(r"whoami", "GET", status=503),
        Fault(r"^/lfs/", "PUT", drop=True),
        Fault(r"^/lfs/", "PUT", cut_upload=100),
        Fault(r"^/lfs/", "PUT", status=200),  # taken, and lost
        Fault(r"^/lfs/", "PUT", status=403),  # an expired link
        Fault(r"objects/verify", "POST", status=404),
    ],
    ids=lambda fault: f"{fault.path}-{fault.status or 'drop'}{'-after' if fault.after else ''}",
)
def test_one_commit_whatever_happens_on_the_way(
    hub: LocalHub, prediction: Path, repo_id: str, fault: Fault
) -> None:
    fault = Fault(
        **{name: getattr(fault, name) for name in fault.__dataclass_fields__}
    )  # counted down in use
    hub.faults.add(fault)
    result = push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    assert not result.unchanged
    assert hub.faults.pending() == 0
    assert commits(repo_id, "step_400") == [result.commit, *commits(repo_id)]
    assert len(commits(repo_id)) == 1
    assert push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400")).unchanged


def test_the_answer_to_the_last_attempt_is_lost(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(COMMIT, "POST", status=503, count=4))
    hub.faults.add(Fault(COMMIT, "POST", drop=True, after=True))
    hub.faults.add(Fault(COMMIT, "POST", status=418))
    result = push_folder(prediction, PushTarget.parse(repo_id))
    assert hub.faults.pending() == 1
    assert commits(repo_id)[0] == result.commit
    assert len(commits(repo_id)) == 2


@pytest.mark.parametrize("status", [503, None])
def test_a_pull_request_is_not_opened_twice(
    hub: LocalHub, prediction: Path, repo_id: str, status: int | None
) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(COMMIT, "POST", status=status, drop=status is None, after=True))
    result = push_folder(prediction, PushTarget.parse(repo_id, create_pr=True))
    assert result.pull_request_url == f"{hub.url}/{repo_id}/discussions/1"
    assert commits(repo_id, "refs/pr/1")[0] == result.commit
    assert len(list(HfApi().get_repo_discussions(repo_id))) == 1


class MeanwhileHub:
    """Commits to the repo, as somebody else would, when our commit is on its way."""

    def __init__(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub, self.monkeypatch = hub, monkeypatch

    def commit(self, repo: str, files: dict[str, bytes | Path | None], revision: str = "main") -> None:
        send = HfApi.create_commit
        waiting = [files]

        def interrupted(api: HfApi, *args: object, **options: object) -> object:
            if waiting:
                self.hub.commit(repo, waiting.pop(), revision)
            return send(api, *args, **options)  # type: ignore[call-overload]

        self.monkeypatch.setattr(HfApi, "create_commit", interrupted)


@pytest.fixture
def meanwhile(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> MeanwhileHub:
    return MeanwhileHub(hub, monkeypatch)


def test_another_file_changed_meanwhile(
    hub: LocalHub, meanwhile: MeanwhileHub, prediction: Path, repo_id: str
) -> None:
    hub.create_repo(repo_id)
    meanwhile.commit(repo_id, {"notes.md": b"from a colleague"})
    result = push_folder(prediction, PushTarget.parse(repo_id))
    assert commits(repo_id)[0] == result.commit
    assert len(commits(repo_id)) == 3
    assert "notes.md" in HfApi().list_repo_files(repo_id)


def test_one_of_our_files_comes_to_main_while_a_branch_is_pushed(
    hub: LocalHub, prediction: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    shard = min(prediction.glob("*.safetensors"))
    send = HfApi.preupload_lfs_files

    def interrupted(api: HfApi, *args: object, **options: object) -> None:
        if len(commits(repo_id)) == 1:
            hub.commit(repo_id, {shard.name: shard})
        send(api, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "preupload_lfs_files", interrupted)
    result = push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    assert commits(repo_id, "step_400")[0] == result.commit
    there = set(HfApi().list_repo_files(repo_id, revision="step_400"))
    assert there == {path.name for path in prediction.iterdir()} | {".gitattributes"}


@pytest.mark.parametrize("file", ["README.md", "model.safetensors", "config.json"])
def test_the_same_files_changed_meanwhile(
    hub: LocalHub, meanwhile: MeanwhileHub, prediction: Path, repo_id: str, file: str
) -> None:
    hub.create_repo(repo_id)
    meanwhile.commit(repo_id, {file: b"from a colleague"})
    with pytest.raises(PushError) as error:
        push_folder(prediction, PushTarget.parse(repo_id))
    theirs = commits(repo_id)[0]
    assert str(error.value) == (
        f"{repo_id}@main: somebody else changed {file} in the meantime (commit {theirs}); "
        "look at that commit, then push again"
    )
    assert len(commits(repo_id)) == 2


def test_the_same_model_was_pushed_meanwhile(
    hub: LocalHub, meanwhile: MeanwhileHub, prediction: Path, repo_id: str
) -> None:
    hub.create_repo(repo_id)
    (prediction / "README.md").unlink()  # the card names its target
    meanwhile.commit(repo_id, {path.name: path for path in prediction.iterdir()})
    result = push_folder(prediction, PushTarget.parse(repo_id))
    assert commits(repo_id)[0] == result.commit
    assert len(commits(repo_id)) == 2


def test_a_hub_that_stays_down(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(COMMIT, "POST", status=503, count=100))
    with pytest.raises(PushError) as error:
        push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    assert str(error.value).startswith(f"{repo_id}@step_400: the Hub answered 503")
    assert "run the same command again later; what was uploaded is not sent twice" in str(error.value)
    assert branches(repo_id) == ["main"]  # the branch that was made for the push is gone again
    assert len(commits(repo_id)) == 1


def test_the_branch_goes_too_where_main_moved_before_it_was_made(
    hub: LocalHub, prediction: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(r"/branch/", "POST", status=503))
    hub.faults.add(Fault(COMMIT, "POST", status=403))
    branch = HfApi.create_branch

    def interrupted(api: HfApi, *args: object, **options: object) -> None:
        if len(commits(repo_id)) == 1:
            hub.commit(repo_id, {"notes.md": b"from a colleague"})
        branch(api, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "create_branch", interrupted)
    with pytest.raises(PushError, match="the Hub answered 403"):
        push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    assert hub.faults.pending() == 0
    assert branches(repo_id) == ["main"]


def test_what_was_uploaded_is_not_sent_twice(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(COMMIT, "POST", status=403))
    target = PushTarget.parse(repo_id)
    with pytest.raises(PushError):
        push_folder(prediction, target)
    hub.requests.clear()
    push_folder(prediction, target)
    assert not [request for request in hub.requests if request.method == "PUT"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        (COMMIT, 403, "use a token with write rights on this repo, check the storage quota"),
        (COMMIT, 413, "too large for the Hub; check the storage quota"),
        (COMMIT, 402, "the account's storage quota is used up"),
        (COMMIT, 400, "check the repo's name and the revision"),
        (r"^/lfs/", 403, "use a token with write rights"),
        (r"objects/batch", 507, "the account's storage quota is used up"),
        (r"/repos/create", 403, "or push under your own name"),
        (r"whoami", 401, "set HF_TOKEN to a valid token with write rights"),
    ],
)
def test_refusals(hub: LocalHub, prediction: Path, repo_id: str, path: str, status: int, said: str) -> None:
    hub.faults.add(Fault(path, status=status, count=100))
    with pytest.raises(PushError) as error:
        push_folder(prediction, PushTarget.parse(repo_id))
    message = str(error.value)
    assert message.startswith(f"{repo_id}@main: the Hub answered {status}")
    assert said in message
    assert "\n" not in message
    hub.faults.clear()
    assert not HfApi().repo_exists(repo_id) or len(commits(repo_id)) == 1


def test_a_card_that_the_hub_will_not_check(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    """Only a 400 says what is wrong with it; any other answer is no leave to push."""
    hub.faults.add(Fault(r"/validate-yaml", "POST", status=403, count=100))
    with pytest.raises(HubExtrapError, match="403"):
        push_folder(prediction, PushTarget.parse(repo_id))
    assert {one.path for one in hub.requests if one.method == "POST"} == {"/api/validate-yaml"}


def test_a_storage_that_loses_what_it_takes(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.faults.add(Fault(r"^/lfs/", "PUT", status=200, count=100))
    with pytest.raises(PushError, match=r"answered 404 .* again later"):
        push_folder(prediction, PushTarget.parse(repo_id))
    assert len(commits(repo_id)) == 1


@pytest.mark.slow
def test_retry_after_is_honoured(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.faults.add(Fault(COMMIT, "POST", status=429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    push_folder(prediction, PushTarget.parse(repo_id))
    assert 1.0 <= time.monotonic() - start < 5.0


def test_a_wait_beyond_patience_is_not_begun(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.faults.add(Fault(COMMIT, "POST", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(PushError, match="asked to wait 3600 s"):
        push_folder(prediction, PushTarget.parse(repo_id))


@pytest.mark.slow
def test_signed_links_are_kept_out_of_the_log(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    said = io.StringIO()
    logger, handler = logging.getLogger("huggingface_hub"), logging.StreamHandler(said)
    hub.faults.add(Fault(r"^/lfs/", "PUT", status=503))
    logger.addHandler(handler)
    try:
        push_folder(prediction, PushTarget.parse(repo_id))
    finally:
        logger.removeHandler(handler)
    assert re.search(r"503 thrown while requesting PUT http://\S+/lfs/\S+\?\*\*\*\n", said.getvalue())
    assert "Signature" not in said.getvalue()


def test_two_pushes_of_one_model_make_one_commit(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    target = PushTarget.parse(f"{repo_id}@step_400")
    with ThreadPoolExecutor(2) as pool:
        results = [push.result() for push in [pool.submit(push_folder, prediction, target) for _ in "ab"]]
    assert {result.commit for result in results} == {commits(repo_id, "step_400")[0]}
    assert len(commits(repo_id, "step_400")) == 2


def test_of_two_pushes_of_different_models_one_is_told(
    hub: LocalHub, prediction: Path, models: Callable[..., Path], repo_id: str
) -> None:
    hub.create_repo(repo_id)
    both_looked = threading.Event()  # before either commits
    hub.faults.add(Fault(COMMIT, "POST", until=both_looked, count=2))
    target = PushTarget.parse(f"{repo_id}@step_400")
    with ThreadPoolExecutor(2) as pool:
        pushes = [pool.submit(push_folder, folder, target) for folder in (prediction, models(1))]
        while hub.faults.pending() and not any(push.done() for push in pushes):
            time.sleep(0.01)
        both_looked.set()
        errors = [push.exception() for push in pushes]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType", "PushError"]
    refused = next(str(error) for error in errors if error)
    assert refused.startswith(f"{repo_id}@step_400: somebody else changed ")
    winner = next(push.result() for push, error in zip(pushes, errors, strict=True) if not error)
    assert commits(repo_id, "step_400")[0] == winner.commit
    assert len(commits(repo_id, "step_400")) == 2


@pytest.mark.parametrize("file", ["notes.md", "config.json"])
def test_what_landed_is_known_by_its_own_commit(
    hub: LocalHub, prediction: Path, repo_id: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost, and before we look somebody else's commit comes on top of ours."""
    import hubextrap.hub.commit as module

    theirs: list[str] = []
    real = module.read_remote

    def late(target: PushTarget) -> object:
        theirs.append(hub.commit(repo_id, {file: b"{}"}))
        return real(target)

    hub.create_repo(repo_id)
    hub.faults.add(Fault(COMMIT, "POST", status=503, after=True))
    monkeypatch.setattr(module, "read_remote", late)
    result = push_folder(prediction, PushTarget(repo_id))
    assert commits(repo_id)[:2] == [*theirs, result.commit]
    assert result.url.endswith(result.commit)
