"""Whoever writes --private, or private: true, gets no public repo and no commit to a public one."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_lines import Ground, run_main
from huggingface_hub import HfApi

from hubextrap.api import merge, plan
from hubextrap.hub import PushTarget
from hubextrap.localhub import LocalHub
from hubextrap.recipe import load_recipe


@pytest.fixture
def api(token: str) -> HfApi:
    return HfApi(token=token)


def test_a_push_section_is_not_made_private_by_an_option(ground: Ground, api: HfApi) -> None:
    recipe = ground.recipe(push={"repo": ground.repo})
    for option in ("--private", "--create-pr"):
        refused = run_main("merge", recipe, option, "-q")
        assert refused.code == 2
        assert f"{option} goes with --push REPO; of the recipe's push section, private" in " ".join(
            refused.err.replace("│", " ").split()
        )
    assert not api.repo_exists(ground.repo)


def test_a_push_elsewhere_is_as_private_as_the_section(ground: Ground, api: HfApi) -> None:
    recipe = ground.recipe(push={"repo": "me/elsewhere", "private": True, "commit_message": "Look"})
    done = run_main("merge", recipe, "--push", ground.repo, "-q")
    assert done.code == 0, done
    assert api.model_info(ground.repo).private
    assert api.list_repo_commits(ground.repo)[0].title == "Look"
    assert not api.repo_exists("me/elsewhere")


def test_the_api_is_as_private_as_the_section(ground: Ground, api: HfApi) -> None:
    recipe = load_recipe(ground.recipe(push={"repo": "me/elsewhere", "private": True, "create_pr": True}))
    done = merge(recipe, push=[PushTarget.parse(ground.repo)])
    assert api.model_info(ground.repo).private
    pushed = done.predictions[0].pushed
    assert pushed is not None
    assert "/discussions/" in str(pushed.pull_request_url)


def test_a_plan_in_the_api_asks_for_what_a_merge_does(ground: Ground, hub: LocalHub, api: HfApi) -> None:
    hub.create_repo(ground.repo)
    recipe = load_recipe(ground.recipe(push={"repo": "me/elsewhere", "private": True}))
    (problem,) = plan(recipe, push=[PushTarget.parse(ground.repo)]).problems
    assert "the repo is there and public, but a private one was asked for" in problem


def test_a_pull_request_without_a_branch_leaves_no_repo(ground: Ground, api: HfApi) -> None:
    section = {"repo": ground.repo, "revision": "step_40", "create_pr": True}
    for line in (
        ("plan", ground.recipe(push=section)),
        ("run", ground.recipe(push=section)),
        ("push", "merged", f"{ground.repo}@step_40", "--create-pr"),
    ):
        refused = run_main(*line, "-q")
        assert refused.code == 1
        assert "no such branch, and a pull request needs one to go into" in refused.out + refused.err
    assert not api.repo_exists(ground.repo)


@pytest.mark.parametrize("way", ["option", "section", "push"])
def test_a_public_repo_takes_nothing_private(way: str, ground: Ground, hub: LocalHub, api: HfApi) -> None:
    hub.create_repo(ground.repo)
    head = hub.commit(ground.repo, {"README.md": b"# Public\n"})
    recipe = ground.recipe(push={"repo": ground.repo, "private": True} if way == "section" else None)
    line = {
        "option": ("merge", recipe, "--push", ground.repo, "--private"),
        "section": ("run", recipe),
        "push": ("push", "merged", ground.repo, "--private"),
    }[way]
    hub.requests.clear()
    refused = run_main(*line, "-q")
    assert refused.code == 1
    assert "the repo is there and public, but a private one was asked for" in refused.err
    assert api.list_repo_commits(ground.repo)[0].commit_id == head
    sent = [request for request in hub.requests if request.method not in ("GET", "HEAD")]
    assert sent == []


def test_results_are_not_written_over(ground: Ground) -> None:
    for line, file in (
        (("report", "scan.safetensors", "--out", "scan.safetensors"), "scan.safetensors"),
        (("report", "scan.safetensors", "--out", "recipe.yaml"), "recipe.yaml"),
        (("run", "evaluate.yaml", "--out", "o", "--output", "evaluate.yaml", "-q"), "evaluate.yaml"),
        (
            (
                "eval",
                "merged",
                "--no-against",
                "--task-file",
                "problems.jsonl",
                "--output",
                "problems.jsonl",
                "-q",
            ),
            "problems.jsonl",
        ),
        (("scan", "run", "--out", "merged/model.safetensors", "-q"), "merged/model.safetensors"),
    ):
        before = Path(file).read_bytes()
        refused = run_main(*line)
        assert refused.code == 1, refused
        assert refused.err.startswith("error: ")
        assert Path(file).read_bytes() == before
    assert not Path("o").exists()
