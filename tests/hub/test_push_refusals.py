"""Pushes that cannot work: one error that names the thing and the remedy, and nothing on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi, get_session

from hubextrap.errors import PushError
from hubextrap.hub import OutputShard, read_provenance
from hubextrap.hub.push import push_folder
from hubextrap.hub.target import PushTarget, check_target
from hubextrap.localhub import LocalHub

pytestmark = pytest.mark.usefixtures("hub", "logged_in")


def refusal(folder: Path, reference: str, **options: bool) -> str:
    with pytest.raises(PushError) as error:
        push_folder(folder, PushTarget.parse(reference, **options))
    return str(error.value)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("", ": not a repo to push to; write OWNER/NAME or OWNER/NAME@BRANCH"),
        ("a/b/c", "a/b/c: not a repo to push to"),
        ("me/x--y", "me/x--y: not a repo to push to"),
        ("name", "name: a repo to push to needs its owner; write OWNER/name"),
        ("me/x@", "me/x@: '' is not the name of a branch; write me/x@BRANCH, e.g. @step_400"),
        ("me/x@a b", "me/x@a b: 'a b' is not the name of a branch"),
        ("me/x@a..b", "me/x@a..b: 'a..b' is not the name of a branch"),
        ("me/x@refs/pr/1", "me/x@refs/pr/1: 'refs/pr/1' is not the name of a branch"),
        (
            "me/x@" + "a1" * 20,
            f"me/x@{'a1' * 20}: a push goes to a branch, not to a commit; write me/x@BRANCH",
        ),
        ("https://u:hf_abcdefgh@h.co/me/x", "https://***@h.co/me/x: not a repo to push to"),
    ],
)
def test_references(reference: str, said: str) -> None:
    with pytest.raises(PushError) as error:
        PushTarget.parse(reference)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("reference", "repo", "revision"),
    [
        ("me/x", "me/x", "main"),
        ("me/x@step_400", "me/x", "step_400"),
        ("hf://me/x@feat/step-400", "me/x", "feat/step-400"),
        ("me/x@v1.0", "me/x", "v1.0"),
    ],
)
def test_references_that_can_be_pushed_to(reference: str, repo: str, revision: str) -> None:
    assert PushTarget.parse(reference) == PushTarget(repo, revision)


def test_a_branch_with_a_slash(prediction: Path, repo_id: str) -> None:
    result = push_folder(prediction, PushTarget.parse(f"{repo_id}@feat/step-400"))
    assert HfApi().model_info(repo_id, revision="feat/step-400").sha == result.commit


def test_no_token(hub: LocalHub, prediction: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert refusal(prediction, repo_id) == (
        f"{repo_id}@main: no token; log in with `hf auth login`, or set HF_TOKEN to one with write rights"
    )
    assert not hub.requests


def test_a_token_that_is_not_valid(prediction: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisnotavalidtoken")
    message = refusal(prediction, repo_id)
    assert message.startswith(f"{repo_id}@main: the Hub answered 401")
    assert "thisisnot" not in message


def test_a_read_token(hub: LocalHub, prediction: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.add_token("me", read_only=True))
    assert refusal(prediction, repo_id) == (
        f"{repo_id}@main: the token only has read rights; make one with write rights in the Hub's settings, "
        "and set HF_TOKEN to it"
    )
    assert {request.method for request in hub.requests} == {"GET"}


def test_somebody_elses_name(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    name = repo_id.replace("me/", "you/")
    assert "or push under your own name" in refusal(prediction, name)
    hub.create_repo(name)
    hub.requests.clear()
    message = refusal(prediction, f"{name}@step_400")
    assert message.startswith(f"{name}@step_400: the Hub answered 403")
    assert "or push under your own name" in message
    assert {request.method for request in hub.requests} == {"GET"}


def test_a_tag_and_a_branch_that_a_pull_request_needs(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.tag(repo_id, "v1")
    assert refusal(prediction, f"{repo_id}@v1") == (
        f"{repo_id}@v1: v1 is a tag, and a tag cannot be pushed to; choose a branch"
    )
    assert refusal(prediction, f"{repo_id}@new", create_pr=True) == (
        f"{repo_id}@new: no such branch, and a pull request needs one to go into; leave out new, which makes "
        "it main, or push without a pull request"
    )


@pytest.mark.parametrize(
    ("there", "wanted", "instead"),
    [
        ("exp1/step_100", "exp1", "exp1-1"),
        ("a/b/c", "a", "a-1"),
        ("exp1", "exp1/step_1", "exp1-step_1"),
        ("a/b", "a/b/c/d", "a-b-c-d"),
        ("main", "main/step_1", "main-step_1"),
    ],
)
def test_a_branch_that_git_cannot_hold_beside_another(
    hub: LocalHub, prediction: Path, repo_id: str, there: str, wanted: str, instead: str
) -> None:
    """One is a folder of refs where the other is a file; found before anything is hashed or sent."""
    hub.create_repo(repo_id)
    if there != "main":
        hub.commit(repo_id, {"a.txt": b"x"}, revision=there)
    hub.requests.clear()
    assert refusal(prediction, f"{repo_id}@{wanted}") == (
        f"{repo_id}@{wanted}: the repo has a branch {there}, and git holds no branch {wanted} beside it; "
        f"choose another name, e.g. {repo_id}@{instead}, or delete {there} on the Hub"
    )
    assert {request.method for request in hub.requests} == {"GET"}
    push_folder(prediction, PushTarget.parse(f"{repo_id}@{instead}"))  # what was advised works


def test_a_branch_below_main_in_a_repo_that_is_yet_to_be_made(prediction: Path, repo_id: str) -> None:
    assert "the repo has a branch main" in refusal(prediction, f"{repo_id}@main/step_1")
    assert not HfApi().repo_exists(repo_id)


def test_neighbours_that_only_look_alike(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    """A tag is no branch, and half a name is another one."""
    hub.create_repo(repo_id)
    hub.tag(repo_id, "exp1/v1")
    hub.commit(repo_id, {"a.txt": b"x"}, revision="exp10/step_1")
    hub.commit(repo_id, {"a.txt": b"x"}, revision="EXP1/step_1")
    push_folder(prediction, PushTarget.parse(f"{repo_id}@exp1"))
    push_folder(prediction, PushTarget.parse(f"{repo_id}@exp10/step_2"))


ODD_NAMES = (
    "a b", "a..b", "a.lock", "a.lock/b", "a@{b", "@", "-a", ".a", "a/.b", "a//b", "/a", "a/", "a.", "a~",
    "a^", "a:b", "a?", "a*", "a[", "a\\b", "a\x7f", "a\tb", "a\n", "", "HEAD", "refs/heads/a",
    "x" * 251, "x/" * 600 + "x", "\udcff",
)  # fmt: skip
GOOD_NAMES = (
    "a-",
    "a.b",
    "a/b.c",
    "a.locked",
    "a@b",
    "ü/→",
    "A",
    "a{b}",
    "x" * 250,
    ("y" * 200 + "/") * 3 + "y",
    "a,b=c",
    "a'\"$`b",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_git_does_not_take(name: str) -> None:
    with pytest.raises(PushError, match="is not the name of a branch"):
        PushTarget("me/x", name)


def test_every_other_name_is_one_that_git_takes(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    for name in GOOD_NAMES:
        HfApi().create_branch(repo_id, branch=PushTarget(repo_id, name).revision)
    assert {ref.name for ref in HfApi().list_repo_refs(repo_id).branches} == {"main", *GOOD_NAMES}


def test_a_pull_request_where_the_repo_takes_none(
    hub: LocalHub, prediction: Path, repo_id: str, logged_in: str
) -> None:
    hub.create_repo(repo_id)
    settings, headers = f"{hub.url}/api/models/{repo_id}/settings", {"Authorization": f"Bearer {logged_in}"}
    assert get_session().put(settings, json={"discussionsDisabled": True}, headers=headers).status_code == 200
    hub.requests.clear()
    assert "the Hub answered 403" in refusal(prediction, repo_id, create_pr=True)
    assert len([request for request in hub.requests if request.method == "POST"]) == 1  # which asks


def test_a_public_repo_where_a_private_one_was_asked_for(
    hub: LocalHub, prediction: Path, repo_id: str
) -> None:
    hub.create_repo(repo_id)
    assert "the repo is there and public, but a private one was asked for" in refusal(
        prediction, repo_id, private=True
    )
    assert len(HfApi().list_repo_commits(repo_id)) == 1


def test_metadata_that_the_hub_refuses(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    (prediction / "README.md").write_text("---\nlicense: [\n---\n# x\n")
    message = refusal(prediction, repo_id)
    assert message.startswith("README.md: the metadata at its top are not valid (")
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert not HfApi().repo_exists(repo_id)


def test_the_check_changes_nothing(hub: LocalHub, repo_id: str) -> None:
    state = check_target(PushTarget.parse(repo_id))
    assert not state.exists
    assert {request.method for request in hub.requests} == {"GET"}


def test_folders_that_hold_no_model(hub: LocalHub, tmp_path: Path, repo_id: str) -> None:
    assert refusal(tmp_path / "no", repo_id).startswith(f"{tmp_path}/no: no such folder")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert refusal(tmp_path, repo_id).startswith(
        f"{tmp_path}: holds no .safetensors file, so no model to push; give the folder"
    )
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "model.safetensors").write_bytes(b"x")
    assert refusal(tmp_path, repo_id).endswith(f"no model to push; a model is in {tmp_path}/step_1")
    assert not hub.requests


def test_a_shard_is_missing(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    (prediction / "model-00001-of-00003.safetensors").unlink(missing_ok=True)
    index = json.loads((prediction / "model.safetensors.index.json").read_bytes())
    shard = sorted(set(index["weight_map"].values()))[0]
    (prediction / shard).unlink(missing_ok=True)
    assert refusal(prediction, repo_id) == (
        f"{prediction}: {shard} is named in model.safetensors.index.json but is not there; "
        "merge again, or restore it"
    )
    (prediction / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json: not a valid index of shards" in refusal(prediction, repo_id)
    assert not hub.requests


def test_a_shard_that_is_not_the_one_in_the_provenance(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    shard = sorted(prediction.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert refusal(prediction, repo_id) == (
        f"{shard}: has other bytes (sha256) than hubextrap.json says; merge again, "
        "or remove hubextrap.json to push the folder as it is"
    )
    asked = [request for request in hub.requests if not request.path.startswith("/api/validate-yaml")]
    assert {request.method for request in asked} == {"GET"}
    (prediction / "hubextrap.json").write_text("{")
    assert f"{prediction / 'hubextrap.json'}: not valid JSON" in refusal(prediction, repo_id)


@pytest.mark.parametrize("how", ["other bytes", "another size", "gone"])
def test_a_file_beside_the_weights_that_is_not_the_one_in_the_provenance(
    hub: LocalHub, prediction: Path, repo_id: str, how: str
) -> None:
    config, stated = prediction / "config.json", prediction / "hubextrap.json"
    content = config.read_bytes()
    covered = OutputShard(file=config.name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    stated.write_bytes(read_provenance(stated).model_copy(update={"files": (covered,)}).to_bytes())
    config.unlink()
    if how != "gone":
        config.write_bytes(content[:-1] + (b" " if how == "other bytes" else b""))
    said = {
        "other bytes": "has other bytes (sha256)",
        "another size": "has other bytes (size)",
        "gone": "is not there",
    }
    assert refusal(prediction, repo_id) == (
        f"{config}: {said[how]} than hubextrap.json says; merge again, "
        "or remove hubextrap.json to push the folder as it is"
    )
    assert {request.method for request in hub.requests} <= {"GET", "POST"}
    assert not any("/commit/" in request.path for request in hub.requests)


def test_a_broken_link(prediction: Path, repo_id: str) -> None:
    (prediction / "tokenizer.model").symlink_to(prediction / "nowhere")
    assert refusal(prediction, repo_id).startswith(f"{prediction}/tokenizer.model: is a broken link")


def test_a_hub_that_cannot_be_reached(
    prediction: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi as Client

    monkeypatch.setattr("hubextrap.hub.target.hub_api", lambda: Client(endpoint="http://127.0.0.1:9"))
    message = refusal(prediction, repo_id)
    assert message.startswith(f"{repo_id}@main: cannot reach the Hub (")
    assert message.endswith("); check the network and HF_ENDPOINT, then push again")


@pytest.mark.usefixtures("logged_in")
def test_a_repo_that_this_token_cannot_make_is_refused_beforehand(hub: LocalHub) -> None:
    with pytest.raises(PushError, match="push under your own name") as error:
        check_target(PushTarget("someone/new"))
    assert error.value.repo == "someone/new"
    assert not check_target(PushTarget("me/new-of-mine")).exists


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("hubextrap.json", "is not what was written there, and the prediction was judged with"),
        ("modeling_llama.py", "came there after the merge, and was not judged; take it away"),
        ("model-00001-of-00003.safetensors", "has other bytes (sha256)"),
        ("config.json", "has other bytes"),
    ],
)
def test_what_was_judged_is_what_is_pushed(file: str, said: str, prediction: Path, repo_id: str) -> None:
    """Whatever somebody does to the folder while its prediction is being measured."""
    own = ("hubextrap.json", "README.md")
    beside = [path for path in prediction.iterdir() if path.suffix != ".safetensors" and path.name not in own]
    files = [
        OutputShard(
            file=path.name,
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in beside
    ]
    made = read_provenance(prediction).model_copy(update={"files": tuple(files)})
    path = prediction / "hubextrap.json"
    path.write_bytes(made.to_bytes())
    if file == "hubextrap.json":
        path.write_bytes(made.model_copy(update={"merge_method": "another"}).to_bytes())
    elif (prediction / file).exists():
        content = bytearray((prediction / file).read_bytes())
        content[-2] ^= 1
        (prediction / file).write_bytes(content)
    else:
        (prediction / file).write_text("x")
    with pytest.raises(PushError, match=re.escape(said)):
        push_folder(prediction, PushTarget.parse(repo_id), made=made)
    assert not HfApi().repo_exists(repo_id)
