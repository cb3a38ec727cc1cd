"""What happens on the Hub between a submit and its last step, and what a bucket may hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import run_main
from executors.test_jobs import await_end, content, outcome, recipe_of, write_to
from huggingface_hub import HfApi

from hubextrap import api
from hubextrap.errors import AccessDenied, CorruptFile, OutputError, PushError, ReferenceNotFound
from hubextrap.executors.jobs import JobsExecutor
from hubextrap.executors.submission import SUBMITTED, Submission
from hubextrap.executors.watching import Submitted
from hubextrap.hub import PushTarget
from hubextrap.localhub import Fault, LocalHub
from hubextrap.work.bucket import BucketPlace
from hubextrap.work.kinds import Work, load_work
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.plan import Output, WorkPlan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logged_in")]


class Nobody(JobsExecutor):
    """Takes the work, and does none of it."""

    def _submit(self, plan: Work, place: Place, units: Sequence[int], in_vain: int) -> Submitted:
        return Submitted((), "", "")


@pytest.fixture
def recipe(hub: LocalHub, repo_id: str, tmp_path: Path) -> Path:
    return recipe_of(write_to(hub, f"{repo_id}-run"), tmp_path / "recipe.yaml")


def submit(recipe: Path, push: str) -> str:
    return api.submit(recipe, Nobody(1, bucket="me/work"), push=push).place


def test_what_the_hub_has_not_kept_is_made_again(hub: LocalHub, recipe: Path, repo_id: str) -> None:
    """Of shards that were sent ahead; and all of them, where the repo was made anew meanwhile."""
    api.merge(recipe, push=repo_id)
    wanted = content(hub, repo_id)
    HfApi().delete_repo(repo_id)
    place = submit(recipe, repo_id)
    assert len(api.worker(place)) == 8
    lost = sorted(hub.store.get("model", repo_id).objects.path("0" * 64).parents[2].glob("*/*/*"))[0]
    lost.unlink()
    with pytest.raises(PushError, match=r"does not have model-0000\d-of-00008.safetensors any more.* worker"):
        api.finish(place)
    assert content(hub, repo_id)[2] == 1
    assert len(api.worker(place)) == 1
    HfApi().delete_repo(repo_id)
    with pytest.raises(PushError, match="404"):
        api.finish(place)
    time.sleep(1.1)  # a first commit of the same second has the same name
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"mine.txt": b"x"})
    with pytest.raises(PushError, match=r"commit [0-9a-f]{40}, .* is gone: somebody made the repo"):
        api.finish(place)
    HfApi().delete_repo(repo_id)
    submit(recipe, repo_id)
    with pytest.raises(PushError, match=r"does not have model-00001-of-00008.safetensors, .* any more"):
        api.finish(place)
    assert len(api.worker(place)) == 8
    api.finish(place)
    assert content(hub, repo_id) == wanted


def test_what_somebody_else_pushed_is_overwritten_only_by_a_new_submit(
    hub: LocalHub, recipe: Path, repo_id: str
) -> None:
    place = submit(recipe, repo_id)
    api.worker(place)
    hub.commit(repo_id, {"config.json": b"{}"})
    for _ in range(2):
        with pytest.raises(PushError, match=r"somebody else changed config\.json in the meantime"):
            api.finish(place)
    assert submit(recipe, repo_id) == place
    assert api.worker(place) == []
    api.finish(place)
    assert content(hub, repo_id)[2] == 3


def test_jobs_that_end_together_open_one_pull_request(jobs_hub: LocalHub, recipe: Path, repo_id: str) -> None:
    jobs_hub.create_repo(repo_id)
    jobs_hub.faults.add(Fault(path="/commit/", delay=1.0, count=4))
    target = PushTarget(repo_id, create_pr=True)
    place = api.submit(recipe, Nobody(1, bucket="me/work"), push=target).place
    api.worker(place)
    executor = JobsExecutor(1, bucket="me/work")
    plan = WorkPlan.load(BucketPlace(place))
    Submission("jobs", executor.settings(), plan.digest).save(BucketPlace(place))
    for _ in range(3):  # as if three had found all on record; of two submits at once, one's jobs are noted
        executor._start(plan, BucketPlace(place), [], last=True)
    assert api.finish(place, wait=True) is None
    await_end(jobs_hub, 120)
    assert {stage for stage, _, _ in outcome(jobs_hub)} == {"COMPLETED"}, outcome(jobs_hub)
    refs = HfApi().list_repo_refs(repo_id, include_pull_requests=True)
    assert [one.ref for one in refs.pull_requests or ()] == ["refs/pr/1"]


def test_a_plan_in_a_bucket_names_no_folder(
    hub: LocalHub, recipe: Path, repo_id: str, tmp_path: Path
) -> None:
    """Whoever may write to a bucket has nothing read or written on the machines of those who help."""
    place = BucketPlace(submit(recipe, repo_id))
    plan = WorkPlan.load(place)
    (tmp_path / "mine").mkdir()
    mine = str(tmp_path / "mine")
    secret = replace(plan.checkpoints[0], repo=None, commit=None, path=mine)
    for hostile in (
        replace(plan, outputs=(Output(folder=mine),)),
        replace(plan, outputs=(Output(),)),
        replace(plan, finish={**plan.finish, "out": mine}),
        replace(plan, checkpoints=(secret, *plan.checkpoints[1:])),
    ):
        place.write("plan.json", hostile.to_bytes())
        for verb in (api.worker, api.finish):
            with pytest.raises(CorruptFile, match=r"plan\.json: names the folder .* do not work on it"):
                verb(place.name)
    assert list((tmp_path / "mine").iterdir()) == []
    local = FolderPlace(tmp_path / "work")
    local.write("plan.json", replace(plan, outputs=(Output(folder=mine),)).to_bytes())
    assert load_work(local).folders == (mine,)


def test_jobs_that_a_bucket_names_are_those_of_its_owner(hub: LocalHub, recipe: Path, repo_id: str) -> None:
    """No sbatch is run for it, and no token goes to another's jobs."""
    place = BucketPlace(submit(recipe, repo_id))
    digest = WorkPlan.load(place).digest
    for name, settings in (
        ("slurm", {"options": ["--wrap=id"]}),
        ("jobs", {"jobs": 1, "bucket": "eve/work"}),
    ):
        Submission(name, settings, digest, {"1": (0,)}).save(place)
        with pytest.raises(CorruptFile, match="of no jobs whose records come here"):
            api.finish(place.name)
    place.write(SUBMITTED, b"")
    with pytest.raises(OutputError, match="8 of 8 shards are not made yet"):
        api.finish(place.name)


def test_a_public_bucket_is_none_for_plans(hub: LocalHub, recipe: Path, repo_id: str) -> None:
    HfApi().create_bucket(f"{repo_id}-open", private=False)
    with pytest.raises(OutputError, match=r"this bucket is public, .*--bucket"):
        api.submit(recipe, JobsExecutor(1, bucket=f"{repo_id}-open"), push=repo_id)
    assert hub.buckets.get(f"{repo_id}-open").entries() == {}


def test_a_hub_that_is_away_for_long_is_no_fault_of_a_shard(
    hub: LocalHub, recipe: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing permanent is put on record for it, and the exit codes say that another attempt may go well."""
    monkeypatch.setattr("hubextrap.patience.Attempts.wait", lambda self, asked=None: None)
    place = submit(recipe, repo_id)
    hub.faults.add(Fault(path=r"/resolve/.*safetensors", status=503, count=1000))
    ended = run_main("worker", place, "0")
    assert (ended.code, "503" in ended.err) == (75, True), ended
    assert BucketPlace(place).names("failed") == frozenset()
    hub.faults.clear()
    api.worker(place)
    hub.faults.add(Fault(path=r"/commit/", status=503, count=1000))
    assert run_main("finish", place).code == 75
    hub.faults.clear()
    assert run_main("finish", place).code == 0


def test_a_bucket_of_others_leaves_no_repo_behind(
    hub: LocalHub, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what lies in it that the token may not see is no plan; the error says what to check."""
    place = submit(recipe, "me/never")
    HfApi().delete_repo("me/never")
    monkeypatch.setenv("HF_TOKEN", hub.add_token("stranger"))
    with pytest.raises(AccessDenied, match="403"):
        api.submit(recipe, Nobody(1, bucket="me/work"), push="stranger/never")
    assert not HfApi().repo_exists("stranger/never")
    with pytest.raises(ReferenceNotFound, match=r"no plan\.json that this token may read"):
        api.worker(place)
