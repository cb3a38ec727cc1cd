"""Every layout in which runs lie on the Hub, against a loopback one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

import pytest

from hubextrap.errors import AmbiguousTrajectory, ReferenceNotFound, StepError, TrajectoryError
from hubextrap.localhub import LocalHub
from hubextrap.tensors import describe
from hubextrap.tensors.describe import describe_checkpoint
from hubextrap.trajectory import (
    UNKNOWN_STEP,
    Trajectory,
    find_series,
    find_trajectory,
    pin_checkpoints,
    resolve_checkpoint,
)

CONFIG = {"config.json": b"{}", "tokenizer.json": b"{}"}
Model = Callable[..., dict[str, bytes]]
OnBranches = Callable[..., dict[str, str]]
OnMain = Callable[[dict[str, bytes]], str]


def places(trajectory: Trajectory) -> list[tuple[int, str, str]]:
    return [(c.step, c.revision, c.path) for c in trajectory.checkpoints]


def test_branches_are_pinned_to_their_commits(hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    commits = on_branches(["step_20", "step_100", "step_3", "fp32"])
    hub.requests.clear()
    found = find_trajectory(repo_id)
    assert places(found) == [(3, "step_3", ""), (20, "step_20", ""), (100, "step_100", "")]
    assert [c.commit for c in found.checkpoints] == [
        commits["step_3"],
        commits["step_20"],
        commits["step_100"],
    ]
    assert found.series == "step_{step}"
    assert all(c.size for c in found.checkpoints)
    # refs, the tree of main, and one tree a checkpoint that is taken
    assert len(hub.requests) == 2 + 3


def test_what_is_not_taken_is_not_looked_into(hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    on_branches([f"step_{step}" for step in range(40)])
    hub.requests.clear()
    assert find_trajectory(repo_id, min_step=10, max_step=12).steps == (10, 11, 12)
    assert len(hub.requests) == 2 + 3


def test_tags(hub: LocalHub, repo_id: str, on_main: OnMain, model: Model) -> None:
    on_main(model(1))
    hub.tag(repo_id, "step-000100")
    second = hub.commit(repo_id, model(2))
    hub.tag(repo_id, "step-000200")
    found = find_trajectory(repo_id)
    assert places(found) == [(100, "step-000100", ""), (200, "step-000200", "")]
    assert found.last.commit == second
    assert [one.label for one in find_series(repo_id)] == ["tags: step-{step}"]


def test_a_branch_and_a_tag_of_one_commit_are_one(
    hub: LocalHub, repo_id: str, on_branches: OnBranches
) -> None:
    commits = on_branches(["step_1", "step_2"])
    hub.tag(repo_id, "step_2", from_=commits["step_2"])
    hub.tag(repo_id, "step_3", from_=commits["step_1"])
    assert [one.label for one in find_series(repo_id)] == ["branches and tags: step_{step}"]
    assert find_trajectory(repo_id).steps == (1, 2, 3)


def test_a_branch_and_a_tag_of_two_commits_clash(
    hub: LocalHub, repo_id: str, on_branches: OnBranches
) -> None:
    commits = on_branches(["step_1", "step_2"])
    hub.tag(repo_id, "step_02", from_=commits["step_1"])
    with pytest.raises(StepError) as caught:
        find_trajectory(repo_id)
    assert str(caught.value).startswith(
        f"{repo_id}: step 2 is there twice, {repo_id}@step_02 ({commits['step_1'][:8]}) and {repo_id}@step_2 "
        f"({commits['step_2'][:8]}); give a narrower pattern"
    )


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["step1000-tokens4B", "step2000-tokens8B", "main-old"], (1000, 2000)),
        (["step-001000-2BT", "step-002000-4BT"], (1000, 2000)),
        (["iter_0001000", "iter_0000500"], (500, 1000)),
        (["update_011250", "update_022500"], (11250, 22500)),
        (["global_step10000", "global_step9000"], (9000, 10000)),
        (["tldr-1step_100", "tldr-1step_200"], (100, 200)),
        (["checkpoint-500", "checkpoint_pct010", "tokens252B", "2BT", "step01-sft"], (500,)),
        (["run/step_1", "run/step_2"], (1, 2)),
    ],
)
def test_names_of_branches(
    repo_id: str, on_branches: OnBranches, names: list[str], steps: tuple[int, ...]
) -> None:
    on_branches(names)
    assert find_trajectory(repo_id).steps == steps


@pytest.mark.parametrize(
    ("names", "choice", "steps"),
    [
        (["global_step_10", "global_step_20", "new_global_step_10"], "global_step_{step}", (10, 20)),
        (["global_step_10", "global_step_20", "new_global_step_10"], "new_global_step_", (10,)),
        (["pretrain_iter_0373000", "anneal_iter_0001000", "anneal_iter_0002000"], "anneal", (1000, 2000)),
        (["stage1-step9000-tokens4B", "stage2-ingredient1-step3000-tokens13B"], "stage1", (9000,)),
        (
            ["stage2-ingredient1-step3000-tokens13B", "stage2-ingredient2-step3000-tokens13B"],
            "stage2-ingredient2-step{step}-tokens{tokens}",
            (3000,),
        ),
    ],
)
def test_series_that_must_not_be_mixed(
    repo_id: str, on_branches: OnBranches, names: list[str], choice: str, steps: tuple[int, ...]
) -> None:
    on_branches(names)
    with pytest.raises(
        AmbiguousTrajectory,
        match=f"{repo_id}: there are 2 series .*, or --series",
    ):
        find_trajectory(repo_id)
    assert find_trajectory(repo_id, series=choice).steps == steps


def test_subfolders_of_main_share_its_commit(
    hub: LocalHub, repo_id: str, on_main: OnMain, model: Model
) -> None:
    commit = on_main(model(0) | model(1, "checkpoint-500") | model(2, "checkpoint-1000") | model(3, "docs"))
    hub.requests.clear()
    found = find_trajectory(repo_id)
    assert places(found) == [(500, "main", "checkpoint-500"), (1000, "main", "checkpoint-1000")]
    assert {c.commit for c in found.checkpoints} == {commit}
    assert found.base.name == f"{repo_id}@main:checkpoint-500"
    assert len(hub.requests) == 2


def test_subfolders_in_pages(hub: LocalHub, repo_id: str, on_main: OnMain, model: Model) -> None:
    on_main({path: content for step in range(30) for path, content in model(step, f"step_{step}").items()})
    hub.page_size, before = 25, hub.page_size
    try:
        assert find_trajectory(repo_id).steps == tuple(range(30))
    finally:
        hub.page_size = before


def test_verl_folders(repo_id: str, on_main: OnMain, model: Model) -> None:
    files = model(1, "global_step_100/actor/huggingface") | model(2, "global_step_200/actor/huggingface")
    files |= {f"global_step_300/actor/huggingface/{name}": content for name, content in CONFIG.items()}
    on_main(files)
    found = find_trajectory(repo_id)
    assert places(found) == [
        (100, "main", "global_step_100/actor/huggingface"),
        (200, "main", "global_step_200/actor/huggingface"),
    ]
    with pytest.raises(StepError, match=f"{repo_id}@main:global_step_300: no weights"):
        find_trajectory(repo_id, steps=[100, 300])


def test_the_outer_step_counts(repo_id: str, on_main: OnMain, model: Model) -> None:
    on_main(
        model(1, "checkpoint-600") | {"checkpoint-600/global_step1200/mp_rank_00_model_states.pt": b"state"}
    )
    assert places(find_trajectory(repo_id)) == [(600, "main", "checkpoint-600")]


def test_a_folder_of_a_revision(hub: LocalHub, repo_id: str, on_main: OnMain, model: Model) -> None:
    on_main(model(1, "a/step_1") | model(2, "b/step_1") | model(3, "b/step_2"))
    old = hub.commit(repo_id, model(4, "b/step_9"), revision="old")
    for reference in (f"{repo_id}:b", f"hf://{repo_id}@main/b"):
        assert places(find_trajectory(reference)) == [(1, "main", "b/step_1"), (2, "main", "b/step_2")]
    for revision in ("old", old):
        found = find_trajectory(f"{repo_id}@{revision}:b")
        assert places(found) == [(9, revision, "b/step_9")]
        assert found.last.commit == old
    with pytest.raises(AmbiguousTrajectory, match=r"subfolders: a/step_.*\n  subfolders: b/step_"):
        find_trajectory(repo_id)
    for reference in (f"{repo_id}:c", f"{repo_id}@main:c"):
        with pytest.raises(ReferenceNotFound, match=f"{reference}: no folder 'c' in {repo_id}@main"):
            find_trajectory(reference)


def test_a_folder_in_every_branch(hub: LocalHub, repo_id: str, model: Model) -> None:
    hub.create_repo(repo_id)
    for step in (1, 2):
        hub.commit(repo_id, model(step, "actor/huggingface"), revision=f"step_{step}")
    with pytest.raises(
        TrajectoryError,
        match=f"none of its 2 places .* {repo_id}@step_1: no weights",
    ):
        find_trajectory(repo_id)
    found = find_trajectory(f"{repo_id}:actor/huggingface")
    assert places(found) == [(1, "step_1", "actor/huggingface"), (2, "step_2", "actor/huggingface")]


def test_branches_and_subfolders_of_one_name(
    hub: LocalHub, repo_id: str, on_main: OnMain, model: Model
) -> None:
    on_main(model(1, "step_1"))
    hub.commit(repo_id, model(2), revision="step_2")
    with pytest.raises(AmbiguousTrajectory):
        find_trajectory(repo_id, series="step_{step}")
    assert find_trajectory(repo_id, series="subfolders: step_{step}").steps == (1,)
    assert find_trajectory(repo_id, series="branches").steps == (2,)


def test_branches_without_weights_are_left_out(hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["step_1", "step_2"])
    hub.commit(repo_id, CONFIG, revision="step_3")
    hub.commit(repo_id, {"pytorch_model.bin": b"pickle"}, revision="step_4")
    assert find_trajectory(repo_id).steps == (1, 2)
    with pytest.raises(
        StepError,
        match=f"{repo_id}@step_3: no weights among .*config.json",
    ):
        find_trajectory(repo_id, steps=[1, 3])


def test_predictions_are_not_checkpoints(
    hub: LocalHub, repo_id: str, on_branches: OnBranches, model: Model
) -> None:
    on_branches(["step_1", "step_2"])
    hub.commit(repo_id, model(3) | {"hubextrap.json": b"{}"}, revision="step_4")
    assert find_trajectory(repo_id).steps == (1, 2)
    with pytest.raises(StepError, match=f"{repo_id}@step_4: a prediction of hubextrap"):
        find_trajectory(repo_id, steps=[1, 4])
    assert resolve_checkpoint(f"{repo_id}@step_4").step == 4


def history(hub: LocalHub, repo_id: str, model: Model, titles: list[str]) -> list[str]:
    hub.create_repo(repo_id)
    return [
        hub.commit(
            repo_id, model(seed), message=title, date=datetime(2026, 1, 1, 0, seed, tzinfo=timezone.utc)
        )
        for seed, title in enumerate(titles)
    ]


def test_the_commit_history(hub: LocalHub, repo_id: str, model: Model) -> None:
    titles = [
        f"Training in progress, step {step}{end}" for step in (500, 1000) for end in ("", ", checkpoint")
    ]
    commits = history(hub, repo_id, model, [*titles, "End of training"])
    found = find_trajectory(repo_id)
    assert places(found) == [(500, commits[0], ""), (1000, commits[2], "")]
    assert [c.commit for c in found.checkpoints] == [commits[0], commits[2]]
    assert found.base.date == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert [one.label for one in find_series(repo_id)] == ["commits: Training in progress, step {step}"]
    assert find_trajectory(f"{repo_id}@{commits[1]}").steps == (500,)


def test_other_titles(hub: LocalHub, repo_id: str, model: Model) -> None:
    history(hub, repo_id, model, ["step 5", "Fix the card", "step 10"])
    assert find_trajectory(repo_id).steps == (5, 10)
    assert find_trajectory(repo_id, pattern="step {step}").steps == (5, 10)


def test_a_history_whose_counter_starts_again(hub: LocalHub, repo_id: str, model: Model) -> None:
    titles = [f"Training in progress, step {step}" for step in (100, 200, 40, 80, 120, 120)]
    commits = history(hub, repo_id, model, titles)
    with pytest.raises(AmbiguousTrajectory) as caught:
        find_trajectory(repo_id)
    assert str(caught.value).splitlines()[1:] == [
        "  commits: Training in progress, step {step} [run 1]  2 checkpoints, steps 100 to 200",
        "  commits: Training in progress, step {step} [run 2]  3 checkpoints, steps 40 to 120",
        "  commits: Training in progress, step {step} [run 3]  1 checkpoint, step 120",
    ]
    second = find_trajectory(repo_id, series="Training in progress, step {step} [run 2]")
    assert [c.commit for c in second.checkpoints] == commits[2:5]


def test_branches_are_taken_before_the_history(hub: LocalHub, repo_id: str, model: Model) -> None:
    history(hub, repo_id, model, ["Training in progress, step 500"])
    hub.commit(repo_id, model(7), revision="step_7")
    assert find_trajectory(repo_id).steps == (7,)
    assert find_trajectory(repo_id, series="Training in progress").steps == (500,)


def test_sibling_repos(hub: LocalHub, repo_id: str, model: Model) -> None:
    commits = {}
    for step in (100, 600):
        hub.create_repo(f"{repo_id}-step-{step}")
        commits[step] = hub.commit(f"{repo_id}-step-{step}", model(step))
    for other in (f"{repo_id}-sft-step-300", f"{repo_id}x-step-400", f"{repo_id}-step-old"):
        hub.create_repo(other)
        hub.commit(other, model(1))
    # given one of them, or the name that they share, with and without a repo of that name
    for made in (False, True):
        if made:
            hub.create_repo(repo_id)
            hub.commit(repo_id, model(0))
        for reference in (repo_id, f"{repo_id}-step-100"):
            found = find_trajectory(reference)
            assert [(c.step, c.repo, c.revision, c.commit, c.path) for c in found.checkpoints] == [
                (step, f"{repo_id}-step-{step}", "main", commits[step], "") for step in (100, 600)
            ]
    assert [one.layout for one in find_series(repo_id)] == ["repos"]
    assert find_trajectory(repo_id, pattern=f"{repo_id[3:]}-sft-step-{{step}}").steps == (300,)


def test_a_base_in_another_repo(hub: LocalHub, repo_id: str, on_branches: OnBranches, model: Model) -> None:
    commits = on_branches(["step_10", "v0"])
    base = f"{repo_id}-base"
    hub.create_repo(base)
    first = hub.commit(base, model(0))
    hub.commit(base, model(1))
    for reference, commit in ((f"{base}@{first}", first), (f"{repo_id}@v0", commits["v0"])):
        found = find_trajectory(repo_id, base=reference)
        assert found.steps == (0, 10)
        assert found.base.commit == commit
    hub.commit(repo_id, model(3), revision="step_0")
    with pytest.raises(StepError, match=f"already there, {repo_id}@step_0 .* base {base}"):
        find_trajectory(repo_id, base=base)


def test_one_checkpoint(hub: LocalHub, repo_id: str, on_main: OnMain, model: Model) -> None:
    commit = on_main(model(1) | model(2, "step_5"))
    hub.branch(repo_id, "step_9")
    assert resolve_checkpoint(repo_id).step == UNKNOWN_STEP
    assert resolve_checkpoint(f"{repo_id}@step_9").step == 9
    inner = resolve_checkpoint(f"{repo_id}@step_9:step_5")
    assert (inner.step, inner.revision, inner.path, inner.commit) == (5, "step_9", "step_5", commit)
    assert resolve_checkpoint(f"hf://{repo_id}/step_5", step=50).step == 50


def test_a_list_of_checkpoints(hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    commits = on_branches(["late", "early", "base"])
    found = pin_checkpoints([(f"{repo_id}@late", 90), (f"{repo_id}@early", 40)], base=f"{repo_id}@base")
    assert [(c.step, c.commit) for c in found.checkpoints] == [
        (0, commits["base"]),
        (40, commits["early"]),
        (90, commits["late"]),
    ]


def test_step_scale(repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["checkpoint_pct010", "checkpoint_pct050"])
    found = find_trajectory(repo_id, pattern="checkpoint_pct{step}", step_scale=12.5)
    assert places(found) == [(125, "checkpoint_pct010", ""), (625, "checkpoint_pct050", "")]


def test_describe(hub: LocalHub, repo_id: str, model: Model) -> None:
    dates = [datetime(2026, 1, day, 12, tzinfo=timezone.utc) for day in (1, 2, 3)]
    hub.create_repo(repo_id)
    hub.commit(repo_id, model(1, "step_1", "BF16"), date=dates[0])
    hub.commit(repo_id, model(2, "step_2", "F32"), date=dates[1])
    hub.commit(repo_id, {"step_1/README.md": b"late", "step_3/model.gguf": b"x"}, date=dates[2])
    found = describe(find_trajectory(repo_id))
    assert [(c.dtype, c.date) for c in found.checkpoints] == [("BF16", dates[0]), ("F32", dates[1])]
    unread = describe_checkpoint(resolve_checkpoint(f"{repo_id}:step_3"))
    assert (unread.dtype, unread.date, unread.weights) == (None, dates[2], "GGUF")
