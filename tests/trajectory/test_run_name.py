"""What a run is called, in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubextrap.trajectory import Checkpoint, path_in_run, paths_in_run, run_name

STEPS = (100, 200, 400)


def local(*places: tuple[int, str]) -> list[Checkpoint]:
    return [Checkpoint(step, None, "", None, path) for step, path in places]


def on_the_hub(*places: tuple[int, str, str, str]) -> list[Checkpoint]:
    return [Checkpoint(step, repo, revision, "c" * 40, path) for step, repo, revision, path in places]


def series(path: str, base: str | None = None) -> list[Checkpoint]:
    first = [] if base is None else [(0, base)]
    return local(*first, *((step, path.format(step)) for step in STEPS))


def hub_series(repo: str, revision: str = "main", path: str = "") -> list[Checkpoint]:
    return on_the_hub(
        *((step, repo.format(step), revision.format(step), path.format(step)) for step in STEPS)
    )


LOCAL = {
    # folder of a step: the run's name, what is said of the last checkpoint
    "/d/verl/grpo-7b/global_step_{}/actor/huggingface": ("grpo-7b", "global_step_400/actor/huggingface"),
    "/d/trainer-out/checkpoint-{}": ("trainer-out", "checkpoint-400"),
    "/d/my-run/checkpoints/step_{}": ("my-run", "checkpoints/step_400"),
    "/d/my-run/ck{}": ("my-run", "ck400"),  # by a pattern of the user's
    "/d/my-run/{}": ("my-run", "400"),
    "/d/step_400/my-run/step_{}": ("my-run", "step_400"),
    "/d/seed-1-step-5/step_{}": ("seed-1-step-5", "step_400"),
    "/d/my-run/checkpoint-{}/global_step9": ("my-run", "checkpoint-400/global_step9"),
    "/home/alice/step_{}": (None, "step_400"),
    "/Users/alice/checkpoints/step_{}": ("checkpoints", "step_400"),
    "/step_{}": (None, "step_400"),
    "/d/ü run/step_{}": ("ü run", "step_400"),
}
HUB = {
    ("me/run", "step_{}", ""): "run",
    ("me/run", "exp1/step_{}", ""): "run",
    ("me/run", "global_step_{}", "actor/huggingface"): "run",
    ("me/run", "c{}" + "0" * 37, ""): "run",  # commits of one branch
    ("me/run", "main", "checkpoint-{}"): "run",
    ("me/run", "main", "global_step_{}/actor/huggingface"): "run",
    ("me/run", "main", "checkpoints/step_{}"): "run",
    ("me/runs", "main", "exp1/checkpoint-{}"): "exp1",
    ("me/runs", "main", "exp1/checkpoints/global_step_{}/actor/huggingface"): "exp1",
    ("me/grpo-step50", "step_{}", ""): "grpo-step50",
    ("me/run-step-{}", "main", ""): "run",
    ("me/Qwen2.5-GRPO-checkpoint-{}", "main", ""): "Qwen2.5-GRPO",
    ("me/stage2-step{}-tokens13B", "main", ""): "stage2",
    ("me/step-{}", "main", ""): "me",
    ("me/run-v{}", "main", ""): "run-v",
}


@pytest.mark.parametrize("path", LOCAL)
@pytest.mark.parametrize("base", [None, "/models/Qwen2.5-1.5B"])
def test_local_folders(path: str, base: str | None) -> None:
    found = series(path, base)
    name, where = LOCAL[path]
    named = None if base is None else "Qwen2.5-1.5B"
    assert (run_name(found), paths_in_run(found)[-1]) == (name or named, where)


@pytest.mark.parametrize("place", HUB, ids=" ".join)
@pytest.mark.parametrize("base", [None, "Qwen/Qwen2.5-1.5B"])
def test_on_the_hub(place: tuple[str, str, str], base: str | None) -> None:
    first = [] if base is None else on_the_hub((0, base, "main", ""))
    found = hub_series(*place)
    assert run_name([*first, *found]) == HUB[place]
    assert paths_in_run(found)[-1] == found[-1].path


@pytest.mark.parametrize("path", [path for path in LOCAL if "ck{}" not in path and "/{}" not in path])
def test_of_one_checkpoint(path: str) -> None:
    """By what its names say alone."""
    (found,) = local((400, path.format(400)))
    assert (run_name([found]), path_in_run(found)) == LOCAL[path]


@pytest.mark.parametrize("place", [place for place in HUB if "v{}" not in place[0]], ids=" ".join)
def test_of_one_on_the_hub(place: tuple[str, str, str]) -> None:
    if place[1].startswith("c{}"):
        place = (place[0], "c" * 40, place[2])
    assert (
        run_name(hub_series(*place)[-1:]) == HUB[place if place in HUB else ("me/run", "c{}" + "0" * 37, "")]
    )


def test_a_scaled_step() -> None:
    (found,) = local((1200, "/d/my-run/checkpoint-600/actor"))
    assert (run_name([found]), path_in_run(found)) == ("my-run", "checkpoint-600/actor")
    (found,) = local((1200, "/d/my-run/checkpoint-600/global_step1200"))
    assert run_name([found]) == "my-run"


def test_models_that_say_no_step() -> None:
    found = local((0, "/models/first"), (7, "/models/second/actor/huggingface"))
    assert run_name(found) == "second"
    assert paths_in_run(found)[1] == "second/actor/huggingface"


def test_the_run_is_found_behind_a_last_one_that_says_none() -> None:
    found = [*hub_series("me/run", "step_{}"), *local((500, "/home/alice/step_500"))]
    assert run_name(found) == "run"


def test_ones_own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/alice")
    assert Path.home() == Path("/data/alice")
    assert run_name(series("/data/alice/step_{}")) is None
    assert run_name(series("/data/alice/r/step_{}")) == "r"
