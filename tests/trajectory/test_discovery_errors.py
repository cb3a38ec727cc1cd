"""References that lead nowhere, and hubs that do not answer: one clear error each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hubextrap.errors import (
    AccessDenied,
    CorruptFile,
    HubExtrapError,
    ReferenceNotFound,
    TrajectoryError,
    UnsupportedCheckpoint,
)
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import describe
from hubextrap.trajectory import find_series, find_trajectory, pin_checkpoints, resolve_checkpoint

Model = Callable[..., dict[str, bytes]]
OnBranches = Callable[..., dict[str, str]]
OnMain = Callable[[dict[str, bytes]], str]


@pytest.mark.parametrize("ask", [find_trajectory, find_series, resolve_checkpoint])
def test_an_unknown_repo(ask: Callable[[str], object], hub: LocalHub, repo_id: str) -> None:
    for reference in (repo_id, f"hf://{repo_id}"):
        with pytest.raises(ReferenceNotFound) as caught:
            ask(reference)
        assert str(caught.value) == (
            f"{reference}: no such repo, or it is private; check the name, and if it is private log in with "
            "`hf auth login` or set HF_TOKEN"
        )


@pytest.mark.parametrize("ask", [find_trajectory, find_series, resolve_checkpoint])
def test_an_unknown_revision(ask: Callable[[str], object], repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["step_1"])
    for revision in ("step_2", "f" * 40):
        with pytest.raises(ReferenceNotFound, match=f"^{repo_id}@{revision}: no such revision"):
            ask(f"{repo_id}@{revision}")


def test_an_unknown_folder(repo_id: str, on_main: OnMain, model: Model) -> None:
    on_main(model(1))
    with pytest.raises(ReferenceNotFound, match="no folder 'step_1'") as error:
        resolve_checkpoint(f"{repo_id}:step_1")
    assert error.value.repo == repo_id


def test_a_name_that_no_hub_takes(hub: LocalHub) -> None:
    with pytest.raises(ReferenceNotFound, match=r"^me/a b: .*[Rr]epo id"):
        find_trajectory("me/a b")


def test_an_empty_repo(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    with pytest.raises(
        TrajectoryError,
        match=f"{repo_id}: no checkpoints found; .*main.*step_",
    ):
        find_trajectory(repo_id)
    with pytest.raises(UnsupportedCheckpoint, match=rf"{repo_id}: no weight files in it \(.gitattributes\)"):
        resolve_checkpoint(repo_id)


def test_the_names_that_were_seen_are_told(
    hub: LocalHub, repo_id: str, on_main: OnMain, model: Model
) -> None:
    on_main(model(1, "final") | model(2, "checkpoint_pct010") | {"step_3/config.json": b"{}"})
    hub.branch(repo_id, "v1")
    with pytest.raises(TrajectoryError) as caught:
        find_trajectory(repo_id)
    for name in ("main", "v1", "checkpoint_pct010/", "final/", "step_3 (no weights)"):
        assert name in str(caught.value)
    with pytest.raises(TrajectoryError, match=r"is like 'iter_\{step\}' and holds weights: main, v1,"):
        find_trajectory(repo_id, pattern="iter_{step}")


def test_many_names_are_cut_short(hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    on_branches([f"v{number}" for number in range(20)])
    with pytest.raises(TrajectoryError, match=r"holds weights: main, v0, v1, .* and \d+ more\. If its"):
        find_trajectory(repo_id)


def test_a_private_repo(
    hub: LocalHub, repo_id: str, on_branches: OnBranches, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_branches(["step_1"], private=True)
    with pytest.raises(ReferenceNotFound, match="no such repo, or it is private"):
        find_trajectory(repo_id)
    monkeypatch.setenv("HF_TOKEN", token)
    assert find_trajectory(repo_id).steps == (1,)


def test_a_gated_repo(
    hub: LocalHub, repo_id: str, on_branches: OnBranches, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_branches(["step_1"], gated="auto")
    found = find_trajectory(repo_id)
    stranger = hub.add_token("stranger")
    for held in ("", stranger):
        monkeypatch.setenv("HF_TOKEN", held)
        with pytest.raises(AccessDenied) as caught:
            describe(found)
        assert str(caught.value) == (
            f"{repo_id}@step_1/model.safetensors: the repo is gated; ask for access on its page, then log "
            "in with `hf auth login` or set HF_TOKEN"
        )
    monkeypatch.setenv("HF_TOKEN", token)
    assert describe(found).last.dtype == "BF16"


def test_a_token_that_is_not_valid(
    hub: LocalHub, repo_id: str, on_branches: OnBranches, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_branches(["step_1"])
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 5)
    with pytest.raises(HubExtrapError) as caught:
        find_trajectory(repo_id)
    assert "secret" not in str(caught.value)
    assert repo_id in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


def test_a_dataset(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id, repo_type="dataset")
    with pytest.raises(ReferenceNotFound, match=f"hf://datasets/{repo_id}: this is a dataset"):
        find_trajectory(f"hf://datasets/{repo_id}")


def test_a_base_that_is_missing(repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["step_1"])
    with pytest.raises(ReferenceNotFound, match=f"^{repo_id}-base: no such repo"):
        find_trajectory(repo_id, base=f"{repo_id}-base")
    with pytest.raises(ReferenceNotFound, match=f"^{repo_id}@step_2: no such revision"):
        pin_checkpoints([(f"{repo_id}@step_1", 1), (f"{repo_id}@step_2", 2)])


def test_a_hub_that_fails(hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["step_1"])
    hub.faults.add(Fault(path=r"/refs$", method="GET", status=500, count=5))
    with pytest.raises(TrajectoryError, match=f"^{repo_id}: the Hub answered 500: "):
        find_trajectory(repo_id)
    hub.faults.add(Fault(path=r"/refs$", method="GET", drop=True, count=5))
    with pytest.raises(TrajectoryError, match=f"^{repo_id}: cannot reach the Hub .*HF_ENDPOINT"):
        find_trajectory(repo_id)
    assert find_trajectory(repo_id).steps == (1,)


@pytest.mark.parametrize("revision", ["", "@step_1"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"truncate": 10}], ids=str)
def test_a_hub_that_fails_for_a_moment(
    hub: LocalHub, repo_id: str, on_branches: OnBranches, fault: dict[str, int], revision: str
) -> None:
    on_branches(["step_1"])
    hub.faults.add(Fault(path="/revision/" if revision else r"/refs$", method="GET", count=4, **fault))
    if revision:
        pin_checkpoints([(f"{repo_id}{revision}", 1)])
    else:
        find_trajectory(repo_id)
    assert hub.faults.pending() == 0


def test_a_tree_that_fails_while_many_are_listed(
    hub: LocalHub, repo_id: str, on_branches: OnBranches
) -> None:
    commits = on_branches([f"step_{step}" for step in range(12)])
    hub.faults.add(Fault(path=rf"/tree/{commits['step_7']}", method="GET", status=400, count=10))
    with pytest.raises(TrajectoryError, match=f"^{repo_id}@step_7: the Hub answered 400"):
        find_trajectory(repo_id)


def test_a_corrupt_header(hub: LocalHub, repo_id: str, on_main: OnMain) -> None:
    on_main({"step_1/model.safetensors": b"\xff" * 64})
    with pytest.raises(CorruptFile, match=f"^{repo_id}@main:step_1: the header of"):
        describe(find_trajectory(repo_id))
