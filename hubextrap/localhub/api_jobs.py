"""Jobs: run, list, inspect, cancel, and read what one says."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from typing import Any

from hubextrap.localhub.context import HubContext
from hubextrap.localhub.jobs import Job, Jobs, JobSpec
from hubextrap.localhub.repository import iso_date
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, linked_pages, list_in

_TIMEOUT = 1800.0  # seconds, where a job names none; so on the Hub
_ATTEMPTS_MAX = 100
_HARDWARE = {
    "name": "cpu-basic",
    "prettyName": "this machine",
    "cpu": "its own",
    "ram": "its own",
    "accelerator": None,
    "unitCostMicroUSD": 0,
    "unitCostUSD": 0.0,
    "unitLabel": "minute",
}


def hardware(hub: HubContext, call: Call) -> Answer:
    """GET /api/jobs/hardware: one flavor, whatever a job asks for."""
    _jobs(hub)
    return json_answer([_HARDWARE])


def run(hub: HubContext, call: Call) -> Answer:
    """POST /api/jobs/NAMESPACE."""
    jobs = _jobs(hub)
    namespace = call.groups["namespace"]
    hub.check_owner(call, f"{namespace}/")
    spec = _spec(call.json())
    try:
        return json_answer(_info(jobs.submit(namespace, spec)))
    except OverflowError as error:
        raise Refusal(429, str(error)) from error


def list_of(hub: HubContext, call: Call) -> Answer:
    """GET /api/jobs/NAMESPACE?stage=&label=: the newest first; any of the stages, all of the labels."""
    found = _jobs(hub).of(_owner(hub, call))
    stages = call.query.get("stage", [])
    labels = [tuple(label.partition("=")[::2]) for label in call.query.get("label", [])]
    found = [job for job in found if not stages or job.stage in stages]
    found = [job for job in found if all(job.spec.labels.get(key) == value for key, value in labels)]
    return linked_pages(call, hub.base(call), [_info(job) for job in found], default_limit=100)


def inspect(hub: HubContext, call: Call) -> Answer:
    """GET /api/jobs/NAMESPACE/ID."""
    return json_answer(_info(_job(hub, call)))


def cancel(hub: HubContext, call: Call) -> Answer:
    """POST /api/jobs/NAMESPACE/ID/cancel."""
    hub.check_owner(call, f"{call.groups['namespace']}/")
    job = _job(hub, call)
    job.canceled.set()
    return json_answer(_info(job))


def logs(hub: HubContext, call: Call) -> Answer:
    """GET …/logs?tail=: the lines so far as events; who wants more asks again.

    The time of a line is that of the job's start, and a microsecond more for each line before it.
    """
    job = _job(hub, call)
    start = datetime.fromtimestamp(job.started or job.created, timezone.utc)
    lines = job.log.read_text(errors="replace").splitlines()
    events = [
        {"data": line, "timestamp": f"{start + timedelta(microseconds=n):%Y-%m-%dT%H:%M:%S.%fZ}"}
        for n, line in enumerate(lines)
    ]
    tail = call.query.get("tail", [""])[0]
    if tail.isascii() and tail.isdecimal():
        events = events[max(0, len(events) - int(tail[:9])) :]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    return Answer(200, body, {"Content-Type": "text/event-stream"})


def _jobs(hub: HubContext) -> Jobs:
    if hub.jobs is None:
        raise Refusal(501, "this hub runs no jobs; start it with --run-jobs")
    return hub.jobs


def _owner(hub: HubContext, call: Call) -> str:
    """The namespace of the path, if it is the account's. Raises Refusal."""
    account, namespace = hub.account(call), call.groups["namespace"]
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    if account.repo is not None or account.user != namespace:
        raise Refusal(403, f"Forbidden: this token has no access to the jobs of {namespace}")
    return namespace


def _job(hub: HubContext, call: Call) -> Job:
    jobs, owner = _jobs(hub), _owner(hub, call)
    try:
        return jobs.get(owner, call.groups["job"])
    except KeyError:
        raise Refusal(404, "Job not found") from None


def _spec(wanted: dict[str, Any]) -> JobSpec:
    """Raises Refusal where it is none."""
    unknown = {"volumes", "expose", "ssh", "network", "spaceId", "resourceGroupId"} & set(wanted)
    if unknown:
        raise Refusal(400, f"jobs of this hub have no {', '.join(sorted(unknown))}")
    command = [*list_in(wanted, "command", 10_000, str), *list_in(wanted, "arguments", 10_000, str)]
    attempts, timeout = wanted.get("attempts", 1), wanted.get("timeoutSeconds", _TIMEOUT)
    if type(attempts) is not int or not 1 <= attempts <= _ATTEMPTS_MAX:
        raise Refusal(400, f'"attempts" must be from 1 to {_ATTEMPTS_MAX}')
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise Refusal(400, '"timeoutSeconds" must be a number above 0')
    texts = {name: _texts(wanted, name) for name in ("environment", "secrets", "labels")}
    image, flavor = str(wanted.get("dockerImage", "")), str(wanted.get("flavor", ""))
    return JobSpec(
        tuple(command), image=image, flavor=flavor, attempts=attempts, timeout=float(timeout), **texts
    )


def _texts(wanted: dict[str, Any], name: str) -> dict[str, str]:
    found = wanted.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Refusal(400, f'"{name}" must be an object of strings')
    return found


def _info(job: Job) -> dict[str, Any]:
    """What the client makes a JobInfo of; of the secrets, the names alone."""
    spec = job.spec
    times = {"createdAt": job.created, "startedAt": job.started, "finishedAt": job.finished}
    return {
        "id": job.id,
        **{name: None if at is None else iso_date(at) for name, at in times.items()},
        "dockerImage": spec.image,
        "command": list(spec.command),
        "arguments": [],
        "environment": dict(spec.environment),
        "secrets": dict.fromkeys(spec.secrets, ""),
        "flavor": spec.flavor,
        "labels": dict(spec.labels),
        "status": {"stage": job.stage, "message": job.message},
        "owner": {"id": job.owner, "name": job.owner, "type": "user"},
        "retry": spec.attempts - 1,
    }
