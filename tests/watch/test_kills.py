"""A watch that is killed again and again while checkpoints arrive ends where one that nobody stopped does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from harness import Warm
from huggingface_hub import HfApi
from trainers import STEPS, Trainer, branches, left_behind

from hubextrap.localhub import LocalHub

KILLED = -9


def killed_and_undisturbed(
    warm: Warm,
    hub: LocalHub,
    token: str,
    repo: str,
    run: Path,
    steps: tuple[int, ...],
    kills: int,
    tmp_path: Path,
    *,
    seconds: float,
    sample: tuple[str, ...] = (),
) -> None:
    """Watch a run that is being pushed, killed so many times at random; and again, undisturbed; compare.

    Args:
        seconds: between two checkpoints, and the longest that a watch lives.
        sample: the options that ask for one.
    """
    predicted, chance = f"{repo}-predicted", random.Random(18)
    hub.create_repo(repo)
    recipe = tmp_path / "watch.yaml"
    watch = {
        "predict": {"ahead": 40},
        "push": {"repo": predicted, "revision": "from_{last_step}-to_{target_step}"},
        "since": steps[2],
    }
    recipe.write_text(yaml.safe_dump({"trajectory": {"repo": repo}, "watch": watch}))
    trainer = Trainer(token, repo, run, steps, seconds)
    trainer.start()
    killed = 0
    while trainer.at_work or killed < kills:
        pid = warm.start("watch", recipe, "--out", tmp_path / "killed", "--every", "1s", "-q", *sample)
        ended = warm.end(pid, after=chance.uniform(0.05, seconds))
        assert ended.code == KILLED, ended.output
        killed += 1
    last = warm.run("watch", recipe, "--out", tmp_path / "killed", "--once", "-q", *sample)
    assert last.code == 0, last.output
    pushed = branches(token, predicted)
    assert {f"from_{step}-to_{step + 40}" for step in steps[2:]} <= pushed.keys()
    HfApi(token=token).delete_repo(predicted)
    alone = warm.run("watch", recipe, "--out", tmp_path / "alone", "--once", "-q", *sample)
    assert alone.code == 0, alone.output
    assert pushed == branches(token, predicted)
    assert left_behind(tmp_path / "killed") == left_behind(tmp_path / "alone")


@pytest.mark.slow
def test_killed_while_checkpoints_arrive(
    warm: Warm, hub: LocalHub, token: str, repo_id: str, rlvr_c: Path, tmp_path: Path
) -> None:
    killed_and_undisturbed(warm, hub, token, repo_id, rlvr_c, STEPS, 8, tmp_path, seconds=3.0)


@pytest.mark.slow
def test_killed_where_a_sample_is_read(
    warm: Warm, hub: LocalHub, token: str, repo_id: str, rlvr_c: Path, tmp_path: Path
) -> None:
    asked = ("--sample", "256")
    killed_and_undisturbed(
        warm, hub, token, repo_id, rlvr_c, STEPS[:5], 6, tmp_path, seconds=2.0, sample=asked
    )
