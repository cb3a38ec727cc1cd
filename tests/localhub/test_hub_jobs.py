"""Jobs, through the client as it is: processes of this machine, for who may write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, JobInfo
from huggingface_hub.errors import HfHubHTTPError

from hubextrap.errors import HubExtrapError
from hubextrap.localhub import LocalHub
from hubextrap.localhub.jobs import Jobs, command_here

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental:UserWarning")
Run = Callable[..., JobInfo]


@pytest.fixture
def jobs(hub: LocalHub, tmp_path: Path) -> Iterator[Jobs]:
    hub.jobs = Jobs(tmp_path / "jobs")
    yield hub.jobs
    hub.jobs.stop()
    hub.jobs = None


@pytest.fixture
def run(api: HfApi, jobs: Jobs) -> Run:
    """Run Python code as a job, and wait for its end."""

    def run(code: str, **how: Any) -> JobInfo:
        job = api.run_uv_job("python", script_args=["-c", code], namespace="me", **how)
        return ended(api, job)

    return run


def ended(api: HfApi, job: JobInfo) -> JobInfo:
    found = api.wait_for_job(job_id=job.id, namespace="me", timeout=30)
    assert isinstance(found, JobInfo)
    return found


def said(api: HfApi, job: JobInfo, **how: Any) -> list[str]:
    return list(api.fetch_job_logs(job_id=job.id, namespace="me", **how))


@slow
def test_a_job_runs_its_command(api: HfApi, run: Run, jobs: Jobs) -> None:
    """With its variables and secrets, in a folder of its own that is gone afterwards."""
    code = (  # the client takes no argument that is too long for a file's name
        "import os, sys; e = os.environ; print(e['PLAIN'], e['HF_TOKEN'][::-1], os.getcwd());"
        "print(e['JOB_ID'], e['HOME'] == os.getcwd(), 'SECRET' in e, flush=True);"
        "open('left', 'w'); print('to stderr', file=sys.stderr)"
    )
    os.environ["SECRET"] = "of the hub"
    try:
        job = run(code, env={"PLAIN": "p"}, secrets={"HF_TOKEN": "abc"}, labels={"a": "1"}, name="n")
    finally:
        del os.environ["SECRET"]
    assert (job.status.stage, job.status.message) == ("COMPLETED", None)
    (plain, secret, folder), (number, home, seen), last = [line.split() for line in said(api, job)]
    assert (plain, secret, number, home, seen) == ("p", "cba", job.id, "True", "False")
    assert last == ["to", "stderr"]
    assert not Path(folder).exists()
    assert (job.secrets, job.environment) == ({"HF_TOKEN": ""}, {"PLAIN": "p"})
    assert job.labels == {"a": "1", "name": "n"}
    assert job.created_at is not None
    assert jobs.processes() == {}
    assert said(api, job, tail=1) == said(api, job, follow=True)[-1:] == ["to stderr"]


@slow
def test_a_job_that_fails_is_tried_again(api: HfApi, run: Run, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'tries')!r}, 'a').write('x')"
    assert run(f"{count}; exit(3)", attempts=3).status.message == "Job failed with exit code: 3"
    assert (tmp_path / "tries").read_text() == "xxx"
    job = run(f"{count}; exit(len(open({str(tmp_path / 'tries')!r}).read()) < 5)", attempts=3)
    assert (job.status.stage, job.retry) == ("COMPLETED", 2)
    assert (tmp_path / "tries").read_text() == "xxxxx"


@slow
def test_cancelled_killed_or_out_of_time(api: HfApi, run: Run, jobs: Jobs, tmp_path: Path) -> None:
    """Whatever ends a job ends what it started."""
    sleep = (
        "import subprocess, time; subprocess.Popen(['sleep', '98']);print('up', flush=True); time.sleep(99)"
    )
    job = api.run_uv_job("python", script_args=["-c", sleep], namespace="me", attempts=2)
    wait_for(lambda: said(api, job) == ["up"])
    first = jobs.processes()[job.id]
    os.kill(first, 9)
    wait_for(lambda: said(api, job) == ["up", "up"])
    wait_for(lambda: not in_group(first))
    second = jobs.processes()[job.id]
    assert in_group(second)
    api.cancel_job(job_id=job.id, namespace="me")
    assert ended(api, job).status.stage == "CANCELED"
    wait_for(lambda: not in_group(second))
    assert run(sleep, timeout="1s", attempts=5).status.message == "Job timeout"
    last = api.run_uv_job("python", script_args=["-c", sleep], namespace="me")
    wait_for(lambda: said(api, last) == ["up"])
    third = jobs.processes()[last.id]
    jobs.stop()
    wait_for(lambda: not in_group(third))
    assert not (tmp_path / "jobs").exists()


def wait_for(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_group(leader: int) -> bool:
    """Whether a process of the group is there that is more than a zombie."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                return True
    return False


@slow
def test_listed_by_stage_and_label(api: HfApi, run: Run) -> None:
    good, bad = run("", labels={"a": "1", "b": "2"}), run("exit(1)", labels={"a": "1"})

    def listed(**by: Any) -> list[str]:
        return [job.id for job in api.list_jobs(namespace="me", **by)]

    assert listed() == [bad.id, good.id]
    assert listed(labels={"a": "1"}, status=["COMPLETED", "RUNNING"]) == [good.id]
    assert listed(labels={"a": "1", "b": "2"}) == [good.id]
    assert listed(labels={"a": "2"}) == listed(status="RUNNING") == []
    assert api.inspect_job(job_id=bad.id, namespace="me").status.stage == "ERROR"
    assert api.list_jobs_hardware()[0].unit_cost_usd == 0


@slow
def test_what_is_not_installed_is_an_error_of_the_job(api: HfApi, run: Run) -> None:
    job = run("", dependencies=["hubextrap==0.0.0"])
    assert (job.status.stage, "not 0.0.0" in (job.status.message or "")) == ("ERROR", True)
    assert run("", dependencies=[f"hubextrap=={version('hubextrap')}"]).status.stage == "COMPLETED"


def test_who_may(hub: LocalHub, jobs: Jobs, api: HfApi, stranger: HfApi, anonymous: HfApi) -> None:
    for other, status in ((stranger, "403"), (anonymous, "401")):
        with pytest.raises(HfHubHTTPError, match=status):
            other.run_job(image="x", command=["true"], namespace="me")
        with pytest.raises(HfHubHTTPError, match=status):
            list(other.list_jobs(namespace="me"))
    read = HfApi(token=hub.add_token("me", read_only=True))
    with pytest.raises(HfHubHTTPError, match="403"):
        read.run_job(image="x", command=["true"], namespace="me")
    assert list(read.list_jobs(namespace="me")) == []
    with pytest.raises(HfHubHTTPError, match="404"):
        stranger.inspect_job(job_id="ab" * 12, namespace="stranger")
    assert jobs.of("me") == []


def test_off_unless_asked_for(api: HfApi, hub: LocalHub) -> None:
    with pytest.raises(HfHubHTTPError, match="--run-jobs"):
        api.run_job(image="x", command=["true"], namespace="me")
    with pytest.raises(HfHubHTTPError, match="501"):
        list(api.list_jobs(namespace="me"))


def test_only_on_loopback(tmp_path: Path) -> None:
    with pytest.raises(HubExtrapError, match="not loopback"):
        LocalHub(tmp_path / "hub", host="0.0.0.0", run_jobs=True)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    "spec",
    [
        {"command": "ls"},
        {"command": [1]},
        {"command": ["ls"], "attempts": 0},
        {"command": ["ls"], "attempts": 10**9},
        {"command": ["ls"], "timeoutSeconds": -1},
        {"command": ["ls"], "timeoutSeconds": "1h"},
        {"command": ["ls"], "environment": {"a": 1}},
        {"command": ["ls"], "secrets": ["a"]},
        {"command": ["ls"], "volumes": [{}]},
    ],
)
def test_jobs_that_are_none(spec: dict[str, Any], jobs: Jobs, hub: LocalHub, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx2.post(f"{hub.url}/api/jobs/me", json=spec, headers=headers)
    assert answer.status_code == 400, answer.text
    assert jobs.of("me") == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("uv", "run", "--with", "hubextrap", "x"), "NAME==VERSION"),
        (("uv", "run", "--with", "no-such-package-here==1", "x"), "not installed"),
        (("uv", "run", "--python", "2.7", "x"), "2.7"),
        (("uv", "run"), "no command"),
        ((), "no command"),
    ],
)
def test_commands_that_this_machine_does_not_have(command: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        command_here(command)
