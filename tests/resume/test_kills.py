"""SIGKILL at random moments: every run in the end has the bytes of a run that nobody stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Warm
from kills import Killer, into_folders, onto_hub

from hubextrap.localhub import LocalHub


@pytest.mark.slow
def test_every_run_ends_in_the_same_bytes(
    warm: Warm,
    hub: LocalHub,
    run_folder: Path,
    run_on_hub: str,
    recipe_file: Callable[..., Path],
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    """Local to local, Hub to local, local to Hub, in turn."""
    hub.create_repo(f"{run_on_hub}-predicted")
    killer = Killer(warm, seed=100, kills=100, resumed=40)
    for name in ("from-disk", "from-hub", "to-hub"):
        (tmp_path / name).mkdir()
    local = recipe_file(run_folder).rename(tmp_path / "from-disk" / "recipe.yaml")
    remote = recipe_file(run_on_hub).rename(tmp_path / "from-hub" / "recipe.yaml")
    pushed = recipe_file(run_folder).rename(tmp_path / "to-hub" / "recipe.yaml")
    kinds = [
        into_folders(killer, local, tmp_path / "from-disk", contents),
        into_folders(killer, remote, tmp_path / "from-hub", contents),
        onto_hub(killer, pushed, f"{run_on_hub}-predicted"),
    ]
    while killer.goes_on:
        for one in kinds:
            one()
    assert killer.resumed >= 40
    assert not list(killer.warm.temporary.iterdir())
