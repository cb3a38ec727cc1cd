"""Units in HF Jobs: machines of the Hub's, each for as long as its units take.

What a job gets: a command (``hubextrap worker PLACE --finish UNIT…``) with the versions that the plan counts
on, two labels, and this user's token as its secret HF_TOKEN. The plan lies in a private bucket, and records
come there; shards go to the target's repo straight from the jobs.

Jobs cannot wait for one another, so there is no last one: whichever job finds all shards on record when it is
through does the last step. Several may; the commit is one, and who comes second finds it made. A job that
was killed is started again by the Hub itself, does what is left of its units, and looks again.
"""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.claims import digest_of
from hubextrap.errors import (
    AccessDenied,
    HubExtrapError,
    MissingExtra,
    OutputError,
    SourceError,
    WrongArgument,
)
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.submission import Submission
from hubextrap.executors.watching import Jobs, Submitted, Watching
from hubextrap.foreign_data import shorten
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.patience import retried
from hubextrap.work.bucket import BucketPlace

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from huggingface_hub import HfApi

    from hubextrap.work.kinds import Work
    from hubextrap.work.places import FolderPlace, Place
    from hubextrap.work.plan import WorkPlan

BUCKET = "hubextrap-work"
"""Of the user's buckets, the one that plans go to unless another one is named."""
FLAVOR = "cpu-upgrade"
"""8 cores and 32 GB of memory: enough for the largest shards that are usual."""
LOWEST = (2, 1, 1)
"""The first huggingface_hub whose jobs are tried again (``attempts``)."""
_TIMEOUT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?[smhd]?")
_BUCKET = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_OURS = {"hubextrap": "worker"}
_UNDER_WAY = ["SCHEDULING", "RUNNING"]


class JobsExecutor(Watching):
    """Units in HF Jobs; the place is in a bucket."""

    name = "jobs"

    def __init__(
        self,
        jobs: int,
        *,
        flavor: str | None = None,
        timeout: str | None = None,
        bucket: str | None = None,
    ) -> None:
        """
        Args:
            jobs: among which the units are dealt out; no more than there are units.
            flavor: the hardware of each, as ``hf jobs hardware`` lists it; `FLAVOR` if None.
            timeout: the longest time of each, ``90m`` or ``6h``; the Hub's own limit if None.
            bucket: OWNER/NAME, made if it is not there; whose it is pays for the jobs. `BUCKET` of the user
                if None.

        Raises:
            WrongArgument: one of them is none.
            MissingExtra: the installed huggingface_hub is too old.
        """
        if jobs < 1:
            raise WrongArgument(f"jobs: has to be at least 1, and is {jobs}")
        if timeout is not None and not (_TIMEOUT.fullmatch(timeout) and re.search("[1-9]", timeout)):
            raise WrongArgument(f"timeout: {timeout[:40]!r} is no time such as 90m or 6h")
        if bucket is not None and not _BUCKET.fullmatch(bucket):
            raise WrongArgument(f"bucket: {bucket[:200]!r} is not OWNER/NAME")
        _check_client()
        self.jobs, self.flavor, self.timeout, self.bucket = jobs, flavor, timeout, bucket

    def settings(self) -> dict[str, Any]:
        return {"jobs": self.jobs, "flavor": self.flavor, "timeout": self.timeout, "bucket": self._bucket()}

    def place(self, plan: WorkPlan, local: FolderPlace) -> Place:
        """A folder of the bucket, the same for each plan that makes the same bytes for the same targets.

        Raises:
            OutputError: the output is a folder of this machine. SourceError: a checkpoint is one.
            AccessDenied: nobody is logged in.
        """
        for output in plan.outputs:
            if output.folder is not None:
                raise OutputError(
                    f"{output.folder}: HF Jobs do not see this machine's folders; give --push REPO"
                )
        for checkpoint in plan.checkpoints:
            if checkpoint.repo is None:
                raise SourceError(
                    f"{checkpoint.name}: HF Jobs do not see this machine's folders; push the checkpoints to "
                    "the Hub, and name their repo in the recipe",
                    step=checkpoint.step,
                )
        key = digest_of(
            {"fingerprint": dict(plan.fingerprint), "outputs": [asdict(output) for output in plan.outputs]}
        )
        return BucketPlace(f"hf://buckets/{self._bucket()}/{key[:32]}")

    def dry_run(self, plan: Work, place: Place, units: Sequence[int]) -> str:
        timeout = self.timeout or "of the Hub"
        lines = [f"{len(self._dealt(units))} jobs, flavor {self.flavor or FLAVOR}, timeout {timeout}:"]
        for part in self._dealt(units):
            command = ["uv", "run", *(f"--with {one}" for one in _dependencies(plan)), "hubextrap"]
            lines.append(" ".join([*command, *_arguments(place.name, part, last=True)]))
        return "\n".join(lines)

    def start(self, plan: Work, place: Place, units: Sequence[int]) -> Jobs:
        return self._start(plan, place, units, last=False)

    def start_last(self, plan: Work, place: Place, after: Collection[str]) -> str:
        """A job of its own that waits for the others' records; only who has no better way needs it."""
        return self._job(plan, place, ["finish", place.name, "--wait"], "last", RETRIES + 1)

    def alive(self, jobs: Collection[str]) -> frozenset[str]:
        return frozenset(jobs) & self._under_way(_OURS) if jobs else frozenset()

    def before_this(self, place: Place, jobs: Collection[str]) -> frozenset[str]:
        """A job comes before those with higher ids; also if it was submitted by somebody else."""
        alive, here = self._under_way({**_OURS, "plan": _key(place)}), self.here()
        return frozenset(job for job in alive if here not in alive or job < str(here))

    def _under_way(self, labels: dict[str, str]) -> frozenset[str]:
        with hub_errors("HF Jobs", SourceError):
            found = hub_api().list_jobs(namespace=self._namespace(), status=_UNDER_WAY, labels=labels)
            return frozenset(job.id for job in found)

    def cancel(self, jobs: Collection[str]) -> None:
        for job in sorted(self.alive(jobs)):
            try:
                with hub_errors(f"job {job}", OutputError):
                    hub_api().cancel_job(job_id=job, namespace=self._namespace())
            except HubExtrapError:
                if self.alive([job]):
                    raise

    def logs(self, place: Place, job: str) -> str:
        command = f"`hf jobs logs {self._namespace()}/{job}`"
        with suppress(HubExtrapError), hub_errors(f"job {job}", SourceError):
            lines = hub_api().fetch_job_logs(job_id=job, namespace=self._namespace(), tail=20)
            if said := [line.strip() for line in lines if line.strip()]:
                return f"{command}, which ends: {shorten(said[-1])}"
        return command

    def commands(self, place: Place, jobs: Collection[str]) -> Submitted:
        user = self._namespace()
        ids = " ".join(sorted(jobs))
        return Submitted(
            tuple(sorted(jobs)),
            f"hf jobs ps --all --namespace {user} --label plan={_key(place)}",
            f"for job in {ids}; do hf jobs cancel {user}/$job; done",
        )

    def here(self) -> str | None:
        return os.environ.get("JOB_ID")

    def _submit(self, plan: Work, place: Place, units: Sequence[int], in_vain: int) -> Submitted:
        """As `Watching._submit`; the last step is a part of every job, so none waits for the others.

        Where no unit is left, one job without units does it.
        """
        jobs = self._going(Submission.load(place), plan)
        under_way = {unit for theirs in jobs.values() for unit in theirs}
        rest = sorted(set(units) - under_way)
        if rest or not jobs:
            started = self._start(plan, place, rest, last=True)
            jobs |= started
            now = Submission(self.name, self.settings(), plan.digest, jobs, None, len(units), in_vain)
            try:
                now.save(place)
            except BaseException:  # nobody would find them any more
                with suppress(HubExtrapError):
                    self.cancel(started)
                raise
        return self.commands(place, jobs)

    def _start(self, plan: Work, place: Place, units: Sequence[int], *, last: bool) -> Jobs:
        """Put jobs into the queue: all of them, or none where the Hub refuses one."""
        started: Jobs = {}
        try:
            for number, part in enumerate(self._dealt(units)):
                arguments = _arguments(place.name, part, last=last)
                # Where nobody watches, the Hub itself starts a job again that was lost.
                attempts = RETRIES + 1 if last else 1
                job = self._job(plan, place, arguments, f"{number}", attempts)
                started[job] = tuple(part)
        except BaseException:
            with suppress(HubExtrapError):
                self.cancel(started)
            raise
        return started

    def _job(self, plan: Work, place: Place, arguments: list[str], number: str, attempts: int) -> str:
        key = _key(place)
        for argument in arguments:
            if Path(argument).is_file():  # the client would send it, and name its copy instead
                raise WrongArgument(
                    f"{argument}: a file of this name is in the current folder, and the Hub's client takes "
                    "it for a part of the command; run this in another folder"
                )
        # Not tried again by itself: an answer may be lost of a job that was taken.
        with hub_errors("HF Jobs", OutputError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*experimental.*", UserWarning)
            job = hub_api().run_uv_job(
                "hubextrap",
                script_args=arguments,
                dependencies=_dependencies(plan),
                secrets={"HF_TOKEN": _token()},
                flavor=self.flavor or FLAVOR,
                timeout=self.timeout,
                attempts=attempts,
                name=f"hubextrap-{key[:8]}-{number}",
                labels={**_OURS, "plan": key},
                namespace=self._namespace(),
            )
        return str(job.id)

    def _dealt(self, units: Sequence[int]) -> list[list[int]]:
        """The units of each job; one job without any where there are none."""
        jobs = max(1, min(self.jobs, len(units)))
        return [list(units[number::jobs]) for number in range(jobs)]

    def _bucket(self) -> str:
        """The bucket; asked of the Hub, once, where none was named."""
        if self.bucket is None:
            _token()
            with hub_errors("the user that HF_TOKEN belongs to", OutputError):
                self.bucket = f"{retried(lambda: _user(hub_api()))}/{BUCKET}"
        return self.bucket

    def _namespace(self) -> str:
        return self._bucket().partition("/")[0]


def _user(api: HfApi) -> str:
    return str(api.whoami()["name"])


def _token() -> str:
    """This user's token, for the one field of a job that the Hub keeps to itself.

    Raises:
        AccessDenied: nobody is logged in.
    """
    from huggingface_hub import get_token

    with hub_errors("HF Jobs", OutputError):
        token = get_token()
    if not token:
        raise AccessDenied(
            "HF Jobs: need a token that may write; log in with `hf auth login`, or set HF_TOKEN"
        )
    return token


def _dependencies(plan: Work) -> list[str]:
    """What a job installs: the versions that the plan's bytes follow from."""
    extra = "[cuda]" if plan.gpus else ""
    found = [f"hubextrap{extra}=={plan.versions['hubextrap']}"]
    return [*found, *(f"{name}=={of}" for name, of in plan.versions.items() if name != "hubextrap")]


def _arguments(place: str, units: Sequence[int], *, last: bool) -> list[str]:
    """Of the command; without units it does none, as all are on record."""
    return ["worker", place, *(["--finish"] if last else []), *(str(int(unit)) for unit in units)]


def _key(place: Place) -> str:
    return place.name.rpartition("/")[2]


def _check_client() -> None:
    found = tuple(int(part) for part in re.findall(r"[0-9]{1,6}", version("huggingface_hub"))[:3])
    if found < LOWEST:
        lowest = ".".join(map(str, LOWEST))
        raise MissingExtra(
            f"HF Jobs need huggingface_hub {lowest} or later, and {version('huggingface_hub')} is installed: "
            f"pip install 'huggingface_hub>={lowest}'"
        )
