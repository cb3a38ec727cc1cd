"""Discussions: rename, edit, hide, and the settings of a repo that rule them."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, DiscussionComment, DiscussionTitleChange, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubextrap.localhub import LocalHub


@pytest.fixture
def asked(hub: LocalHub, stranger: HfApi, repo_id: str) -> str:
    """A repo of "me" with one discussion of "stranger"."""
    hub.create_repo(repo_id)
    stranger.create_discussion(repo_id, "  a question ", description="why?")
    return repo_id


@pytest.fixture
def third(hub: LocalHub) -> HfApi:
    """A user who has no part in it."""
    return HfApi(token=hub.add_token("third"))


def first_comment(api: HfApi, repo: str) -> DiscussionComment:
    comment = api.get_discussion_details(repo, 1).events[0]
    assert isinstance(comment, DiscussionComment)
    return comment


def test_rename(api: HfApi, stranger: HfApi, third: HfApi, asked: str) -> None:
    assert api.get_discussion_details(asked, 1).title == "a question"
    change = stranger.rename_discussion(asked, 1, " a better question ")
    assert isinstance(change, DiscussionTitleChange)
    assert (change.old_title, change.new_title) == ("a question", "a better question")
    api.rename_discussion(asked, 1, "by the owner")
    details = api.get_discussion_details(asked, 1)
    assert details.title == "by the owner"
    assert [event.type for event in details.events] == ["comment", "title-change", "title-change"]
    with pytest.raises(HfHubHTTPError, match="no rights to write"):
        third.rename_discussion(asked, 1, "mine")
    with pytest.raises(HfHubHTTPError, match="not allowed to be empty"):
        stranger.rename_discussion(asked, 1, "  ")
    with pytest.raises(HfHubHTTPError, match="not allowed to be empty"):
        stranger.create_discussion(asked, " ")


@pytest.mark.filterwarnings("ignore:Hidden comments' content cannot be retrieved:UserWarning")
def test_edit_and_hide_a_comment(api: HfApi, stranger: HfApi, third: HfApi, asked: str) -> None:
    comment = first_comment(api, asked)
    edited = stranger.edit_discussion_comment(asked, 1, comment.id, "why not?")
    assert (edited.id, edited.edited, edited.content) == (comment.id, True, "why not?")
    assert first_comment(api, asked) == edited
    assert edited.last_edited_by == "stranger"
    for client in (api, third):  # not even the owner of the repo
        with pytest.raises(HfHubHTTPError, match="the comment is stranger's"):
            client.edit_discussion_comment(asked, 1, comment.id, "forged")
    with pytest.raises(HfHubHTTPError, match="no such comment"):
        stranger.edit_discussion_comment(asked, 1, "0" * 10, "x")
    with pytest.raises(HfHubHTTPError, match="no rights to write"):
        third.hide_discussion_comment(asked, 1, comment.id)
    hidden = api.hide_discussion_comment(asked, 1, comment.id)
    assert (hidden.hidden, hidden.content) == (True, "")
    with pytest.raises(HfHubHTTPError, match="hidden"):
        stranger.edit_discussion_comment(asked, 1, comment.id, "back again")


def test_status_with_a_comment_and_merge_with_one(hub: LocalHub, api: HfApi, asked: str) -> None:
    api.change_discussion_status(asked, 1, "closed", comment="answered")
    details = api.get_discussion_details(asked, 1)
    assert (details.status, [event.type for event in details.events]) == (
        "closed",
        ["comment", "comment", "status-change"],
    )
    api.create_commit(asked, [CommitOperationAdd("a.txt", b"a")], commit_message="a", create_pr=True)
    api.merge_pull_request(asked, 2, comment="thanks")
    details = api.get_discussion_details(asked, 2)
    assert details.status == "merged"
    assert "thanks" in [event.content for event in details.events if isinstance(event, DiscussionComment)]
    with pytest.raises(HfHubHTTPError, match="is merged"):
        api.change_discussion_status(asked, 2, "open")


def test_settings(hub: LocalHub, token: str, api: HfApi, stranger: HfApi, asked: str) -> None:
    url, headers = f"{hub.url}/api/models/{asked}/settings", {"Authorization": f"Bearer {token}"}
    assert httpx2.put(url, json={"discussionsDisabled": True}, headers=headers).status_code == 200
    with pytest.raises(HfHubHTTPError, match="Discussions are disabled") as refused:
        stranger.create_discussion(asked, "another question")
    assert refused.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="Discussions are disabled"):
        stranger.upload_file(repo_id=asked, path_or_fileobj=b"x", path_in_repo="x", create_pr=True)
    assert httpx2.put(url, json={"discussionsDisabled": False}, headers=headers).status_code == 200
    stranger.create_discussion(asked, "another question")
    api.update_repo_settings(asked, visibility="private", gated="auto")
    info = api.model_info(asked)
    assert (info.private, info.gated) == (True, "auto")
    api.update_repo_settings(asked, visibility="public", gated=False)
    assert (api.model_info(asked).private, api.model_info(asked).gated) == (False, False)
    for wrong in ({"gated": "maybe"}, {"visibility": "secret"}, {"color": "blue"}, {"private": True, "x": 1}):
        assert httpx2.put(url, json=wrong, headers=headers).status_code == 400
    assert not api.model_info(asked).private
