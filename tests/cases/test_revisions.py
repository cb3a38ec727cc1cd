"""Runs on the Hub whose branches are named as trainers name them; right since they were reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from case_runs import files_of, recipe_for, tiny, write_model
from command_lines import Ended

from hubextrap.localhub import LocalHub

pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.fixture
def branches(hub: LocalHub, tmp_path: Path) -> Callable[[str, Iterable[tuple[str, int]]], None]:
    """Make a repo whose branches hold the model of a step each; ``main`` holds the last one of them."""

    def make(repo: str, named: Iterable[tuple[str, int]]) -> None:
        hub.create_repo(repo)
        named = list(named)
        for name, step in [("main", named[-1][1]), *named]:
            folder = write_model(tmp_path / "made" / f"{step}", tiny(step))
            hub.commit(repo, files_of(folder), revision=name)

    return make


def steps_of(cli: Callable[..., Ended], *arguments: str) -> list[tuple[int, str]]:
    """The steps that `steps` lists, and the revisions that hold them."""
    ended = cli("steps", *arguments, "--json", "--fast")
    assert ended.code == 0, ended
    return [(one["step"], one["revision"]) for one in json.loads(ended.out)]


@pytest.mark.slow
def test_two_versions_of_a_run_and_a_push_that_failed(
    tmp_path: Path, hub: LocalHub, cli: Callable[..., Ended], repo_id: str, branches: Callable[..., None]
) -> None:
    """huggingface/open-r1: a branch each save, v01.00 for a second run; a failed push leaves an empty one."""
    steps = {"v00.00": (10, 20, 100), "v01.00": (50, 100, 1000)}
    names = [(f"{version}-step-{step:09d}", step) for version, ran in steps.items() for step in ran]
    branches(repo_id, names)
    hub.commit(repo_id, {".gitattributes": b""}, revision="v01.00-step-000001100")
    for version, ran in steps.items():
        expected = [(step, f"{version}-step-{step:09d}") for step in ran]
        assert steps_of(cli, repo_id, "--series", version) == expected
    told = cli("steps", repo_id, "--series", "v01.00")
    assert "v01.00-step-000001100" in told.out + told.err
    trajectory = {"repo": repo_id, "steps": {"series": "v01.00-step-{step}", "min": 100}}
    push = {"repo": f"{repo_id}-predicted", "revision": "v01.00-step-{target_step}"}
    recipe = recipe_for("", tmp_path / "r.yaml", 2000, trajectory=trajectory, push=push)
    assert cli("merge", recipe).code == 0
    assert cli("verify", f"{repo_id}-predicted@v01.00-step-2000").code == 0


@pytest.mark.slow
def test_a_base_in_another_repo_is_step_0(
    tmp_path: Path, cli: Callable[..., Ended], repo_id: str, branches: Callable[..., None], hub: LocalHub
) -> None:
    """allenai/open-instruct#615: OLMo-2's steps start from the model of another repo, which has none."""
    branches(repo_id, [(f"step_{step}", step) for step in (360, 300, 240, 180, 120, 60)])
    base = f"{repo_id}-dpo"
    hub.create_repo(base)
    hub.commit(base, files_of(write_model(tmp_path / "base", tiny(0))))
    alone = cli("steps", base)
    assert alone.code == 1
    assert "no checkpoints found" in alone.err
    assert [step for step, _ in steps_of(cli, repo_id, "--base", base)] == [0, 60, 120, 180, 240, 300, 360]
    scan = tmp_path / "s.safetensors"
    assert cli("scan", repo_id, "--base", base, "--out", scan).code == 0
    tried = cli("backtest", scan)
    assert tried.code == 0
    assert "360" in tried.out


@pytest.mark.parametrize(
    ("named", "steps"),
    [
        (
            [
                ("step-5k-token-10B", 5000),
                ("step-65k-token-136B", 65000),
                ("step-480k-token-1007B", 480000),
                ("step-1195k-token-2.5T", 1195000),
                ("step-1431k-token-3T", 1431000),
            ],
            [5000, 65000, 480000, 1195000, 1431000],
        ),
        ([("step1000-tokens4B", 1000), ("step10000-tokens42B", 10000)], [1000, 10000]),
        ([("ckpt_160", 160), ("ckpt_1600", 1600)], [160, 1600]),
        ([("step-002500", 2500), ("step-005000", 5000), ("latest-checkpoint", 5000)], [2500, 5000]),
    ],
)
def test_steps_in_thousands_and_tokens_beside_them(
    cli: Callable[..., Ended],
    repo_id: str,
    branches: Callable[..., None],
    named: list[tuple[str, int]],
    steps: list[int],
) -> None:
    """TinyLlama's, OLMo's, K2-Spike's and LeRobot's branches; what is latest is no step."""
    branches(repo_id, named)
    assert [step for step, _ in steps_of(cli, repo_id)] == steps
