from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from hubextrap.hub.card import model_card
from hubextrap.hub.provenance import Provenance
from hubextrap.hub.provenance_checks import read_provenance
from hubextrap.hub.push import push_folder
from hubextrap.hub.target import PushTarget
from hubextrap.localhub import LocalHub

pytestmark = pytest.mark.usefixtures("hub", "logged_in")


@pytest.fixture
def folder_with(
    prediction: Path, make_provenance: Callable[..., Provenance], tmp_path: Path
) -> Callable[[dict[str, bytes]], Path]:
    """A prediction's folder with more files, all of which its hubextrap.json names."""

    def make(beside: dict[str, bytes]) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "out"
        shutil.copytree(prediction, folder)
        for name, content in beside.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        shards = list(read_provenance(prediction).shards)
        (folder / "hubextrap.json").write_bytes(make_provenance(shards, files=beside).to_bytes())
        return folder

    return make


def commits(repo: str, revision: str = "main") -> list[str]:
    return [commit.commit_id for commit in HfApi().list_repo_commits(repo, revision=revision)]


def files(repo: str, revision: str = "main") -> list[str]:
    return sorted(HfApi().list_repo_files(repo, revision=revision))


def posts(hub: LocalHub, part: str) -> int:
    return sum(part in request.path and request.method == "POST" for request in hub.requests)


def test_a_new_repo_gets_one_commit(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    result = push_folder(prediction, PushTarget.parse(repo_id))
    assert not result.unchanged
    assert result.pull_request_url is None
    history = commits(repo_id)
    assert history[0] == result.commit
    assert len(history) == 2  # the Hub's own first commit, and ours
    assert result.url == f"{hub.url}/{repo_id}/commit/{result.commit}"
    assert files(repo_id) == sorted([".gitattributes", *(path.name for path in prediction.iterdir())])
    info = HfApi().model_info(repo_id, files_metadata=True)
    assert not info.private
    remote = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for shard in read_provenance(prediction).shards:
        assert remote[shard.file].lfs
        assert remote[shard.file].lfs.sha256 == shard.sha256
    title = HfApi().list_repo_commits(repo_id)[0].title
    assert title == "Predict step 400 from 3 checkpoints, steps 0 to 200 (two_point)"


def test_a_new_branch_starts_at_main(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"notes.md": b"kept"})
    main = commits(repo_id)
    result = push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    assert commits(repo_id, "step_400") == [result.commit, *main]
    assert commits(repo_id) == main
    assert "notes.md" in files(repo_id, "step_400")


def test_private_is_honoured(prediction: Path, repo_id: str) -> None:
    push_folder(prediction, PushTarget.parse(repo_id, private=True))
    assert HfApi().model_info(repo_id).private
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(repo_id, token=False)


def test_nothing_is_committed_when_nothing_changed(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    target = PushTarget.parse(f"{repo_id}@step_400")
    first = push_folder(prediction, target)
    hub.requests.clear()
    again = push_folder(prediction, target)
    assert again.unchanged
    assert again.commit == first.commit
    assert commits(repo_id, "step_400")[0] == first.commit
    assert posts(hub, "/commit/") == posts(hub, "/preupload/") == posts(hub, "objects/batch") == 0


def test_a_branch_whose_content_is_on_main_already(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    shutil.copy(prediction / "config.json", prediction / "README.md")  # a card without our snippet
    first = push_folder(prediction, PushTarget.parse(repo_id))
    second = push_folder(prediction, PushTarget.parse(f"{repo_id}@copy"))
    assert second.unchanged
    assert commits(repo_id, "copy")[0] == first.commit


def test_only_what_changed_is_sent(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    target = PushTarget.parse(repo_id)
    push_folder(prediction, target)
    (prediction / "notes.txt").write_text("more")
    hub.requests.clear()
    result = push_folder(prediction, target)
    assert not result.unchanged
    assert posts(hub, "objects/batch") == 0
    assert "notes.txt" in files(repo_id)
    assert len(commits(repo_id)) == 3


def test_what_an_earlier_prediction_brought_makes_room(
    hub: LocalHub, folder_with: Callable[[dict[str, bytes]], Path], repo_id: str
) -> None:
    """By its hubextrap.json, and only while it is as it was: the rest is somebody's."""
    target = PushTarget.parse(repo_id)
    large = b"x" * 11 * 2**20  # of which the Hub lists a sha256
    push_folder(
        folder_with({"PROMPT.txt": b"be kind", "LICENSE": b"l", "big.csv": large, "a/b": b"x"}), target
    )
    hub.commit(repo_id, {"LICENSE": b"mine by now", "notes.md": b"x", "PROMPT2.txt": b"be kind"})
    result = push_folder(folder_with({"words.dat": b"w"}), target)
    assert result.deleted == ("PROMPT.txt", "a/b", "big.csv")
    kept = {"LICENSE", "notes.md", "PROMPT2.txt", "words.dat", "hubextrap.json", "README.md"}
    assert kept <= set(files(repo_id))
    again = push_folder(folder_with({"words.dat": b"w"}), target)
    assert again.unchanged


def test_a_record_of_a_prediction_goes_with_it(
    hub: LocalHub, prediction: Path, models: Callable[..., Path], repo_id: str
) -> None:
    """A model of another kind comes: nothing there is what hubextrap.json describes any more."""
    push_folder(prediction, PushTarget.parse(repo_id))
    assert "hubextrap.json" in push_folder(models(3), PushTarget.parse(repo_id)).deleted
    assert "README.md" in files(repo_id)


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"format": 1}', b"\xff"])
def test_a_record_that_says_nothing_removes_nothing(
    hub: LocalHub, prediction: Path, repo_id: str, record: bytes
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"hubextrap.json": record, "PROMPT.txt": b"x"})
    assert push_folder(prediction, PushTarget.parse(repo_id)).deleted == ()


def test_an_older_model_makes_room(
    hub: LocalHub, prediction: Path, models: Callable[..., Path], repo_id: str
) -> None:
    hub.create_repo(repo_id)
    old = {path.name: path for path in models(1).iterdir()}
    keep = {
        "notes.md": b"x",
        "data.bin": b"x",
        "step_100/model.safetensors": b"x",
        "step_100/config.json": b"{}",
    }
    hub.commit(repo_id, {**old, "chat_template.jinja": b"old", "pytorch_model.bin": b"old", **keep})
    assert "model.safetensors" in files(repo_id)
    result = push_folder(prediction, PushTarget.parse(repo_id))
    assert result.deleted == ("chat_template.jinja", "model.safetensors", "pytorch_model.bin")
    assert len(commits(repo_id)) == 3
    assert files(repo_id) == sorted([".gitattributes", *keep, *(path.name for path in prediction.iterdir())])


def test_an_older_models_templates_and_vocabularies_go_too(
    hub: LocalHub, prediction: Path, models: Callable[..., Path], repo_id: str
) -> None:
    """In the same commit; what a loader does not mix in stays. The pushed one has its own templates only."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models(7))
    tokenizer.chat_template = {"default": "new", "rag": "new rag"}
    tokenizer.save_pretrained(prediction)
    assert (prediction / "additional_chat_templates" / "rag.jinja").read_text() == "new rag"
    templates = "additional_chat_templates"
    stale = {
        f"{templates}/rag.jinja": b"OLD rag",
        f"{templates}/tool_use.jinja": b"OLD tools",
        **dict.fromkeys(["chat_template.json", "tekken.json", "qwen.tiktoken", "tokenizer.model"], b"{}"),
        **dict.fromkeys(["consolidated.safetensors", "model.safetensors.index.fp16.json"], b"{}"),
    }
    names = [
        "LICENSE",
        "NOTICE.txt",
        "USE_POLICY.md",
        "tokenizer_training_log.csv",
        "curve.png",
        "params.json",
    ]
    keep = dict.fromkeys([*names, f"{templates}/notes.txt", f"docs/{templates}/tool_use.jinja"], b"kept")
    hub.create_repo(repo_id)
    hub.commit(repo_id, {**{path.name: path for path in models(1).iterdir()}, **stale, **keep})
    history = commits(repo_id)
    result = push_folder(prediction, PushTarget.parse(repo_id))
    assert commits(repo_id) == [result.commit, *history]
    assert set(result.deleted) == {*stale, "model.safetensors"} - {f"{templates}/rag.jinja"}
    ours = [path.relative_to(prediction).as_posix() for path in prediction.rglob("*") if path.is_file()]
    assert files(repo_id) == sorted([".gitattributes", *keep, *ours])
    loaded = AutoTokenizer.from_pretrained(repo_id, revision=result.commit)
    assert loaded.chat_template == {"default": "new", "rag": "new rag"}


def test_a_pull_request(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    before = commits(repo_id)
    result = push_folder(prediction, PushTarget.parse(repo_id, create_pr=True, message="A prediction"))
    assert result.pull_request_url == f"{hub.url}/{repo_id}/discussions/1"
    assert commits(repo_id) == before
    assert commits(repo_id, "refs/pr/1") == [result.commit, *before]
    assert HfApi().get_discussion_details(repo_id, 1).title == "A prediction"


def test_the_card_that_is_pushed(prediction: Path, repo_id: str) -> None:
    push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    pushed = Path(hf_hub_download(repo_id, "README.md", revision="step_400")).read_text(encoding="utf-8")
    assert f'AutoModelForCausalLM.from_pretrained("{repo_id}", revision="step_400")' in pushed
    card = ModelCard(pushed)
    assert card.data.base_model == ["me/run"]
    assert card.data["base_model_relation"] == "merge"
    assert (prediction / "README.md").read_text(encoding="utf-8") == model_card(read_provenance(prediction))


def test_hidden_files_stay_at_home(prediction: Path, repo_id: str) -> None:
    (prediction / ".hubextrap").mkdir()
    (prediction / ".hubextrap" / "journal.json").write_text("{}")
    (prediction / ".env").write_text("SECRET=1")
    push_folder(prediction, PushTarget.parse(repo_id))
    assert not [name for name in files(repo_id) if name.startswith(".") and name != ".gitattributes"]


def test_transformers_loads_and_generates(
    prediction: Path, models: Callable[..., Path], repo_id: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400", private=True))
    model = AutoModelForCausalLM.from_pretrained(repo_id, revision="step_400")
    tokenizer = AutoTokenizer.from_pretrained(repo_id, revision="step_400")
    local = AutoModelForCausalLM.from_pretrained(models(7))
    prompt = tokenizer("12+34=", return_tensors="pt", return_token_type_ids=False)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    generated = model.generate(**prompt, **options)
    assert generated.shape[1] > prompt["input_ids"].shape[1]
    assert torch.equal(generated, local.generate(**prompt, **options))


def test_hf_download_gets_it(prediction: Path, repo_id: str, tmp_path: Path) -> None:
    push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400", private=True))
    hf = Path(sys.executable).with_name("hf")
    command = [hf, "download", repo_id, "--revision", "step_400", "--local-dir", tmp_path / "got"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for path in prediction.iterdir():
        if path.name != "README.md":
            assert (tmp_path / "got" / path.name).read_bytes() == path.read_bytes()


def test_the_token_goes_to_the_hub_only(
    hub: LocalHub,
    prediction: Path,
    repo_id: str,
    token: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    uploads = [request for request in hub.requests if request.method == "PUT"]
    assert uploads
    assert not any(token in str(request.headers) for request in uploads)
    for request in hub.requests:
        assert token not in request.path
    out, err = capfd.readouterr()
    assert token not in out + err + caplog.text
    for name in ("README.md", "hubextrap.json"):
        content = Path(hf_hub_download(repo_id, name, revision="step_400")).read_text(encoding="utf-8")
        assert token not in content
        assert not re.search("hf_[A-Za-z0-9]{8}", content)
    assert token not in str(HfApi().list_repo_commits(repo_id, revision="step_400"))
