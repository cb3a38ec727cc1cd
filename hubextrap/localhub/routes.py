"""Which function answers which request. Paths are matched raw, then their parts are percent-decoded."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

from hubextrap.localhub import (
    api_buckets,
    api_commits,
    api_files,
    api_git,
    api_info,
    api_jobs,
    api_lfs,
    api_refs,
    api_repos,
    api_xet,
    discussions,
)
from hubextrap.localhub.access import no_such_repo
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.inbound import BODY_MAX
from hubextrap.localhub.wire import Answer, Call, Refusal, tagged

Endpoint = Callable[[HubContext, Call], Answer]
Routes = list[tuple[str, re.Pattern[str], Endpoint]]

_API = r"/api/(?P<kind>models|datasets|spaces)"
_REPO = _API + r"/(?P<repo>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)"
_REVISION = r"(?P<revision>refs(?:/|%2F)pr(?:/|%2F)\d{1,9}|[^/]+)"
_DISCUSSION = _REPO + r"/discussions/(?P<number>\d{1,9})"
_COMMENT = _DISCUSSION + r"/comment/(?P<comment>\w+)"
_BUCKET = r"/api/buckets/(?P<bucket>[^/]+/[^/]+)"
_JOBS = r"/api/jobs/(?P<namespace>[^/]+)"
_JOB = _JOBS + r"/(?P<job>[0-9a-f]{24})"
_OBJECT = r"/lfs/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"

_HUB = [
    ("POST", r"/oauth/token", api_repos.exchange),
    ("GET", r"/api/whoami-v2", api_repos.whoami),
    ("POST", r"/api/validate-yaml", api_repos.validate_yaml),
    ("POST", r"/api/repos/create", api_repos.create),
    ("DELETE", r"/api/repos/delete", api_repos.delete),
    ("POST", r"/api/repos/move", api_repos.move),
    ("GET", r"/api/settings/repositories", api_info.list_mine),
    ("GET", r"/api/organizations/(?P<namespace>[^/]+)/settings/repositories", api_info.list_mine),
    ("GET", _API, api_info.list_repos),
    ("GET", _REPO, api_info.info),
    ("GET", f"{_REPO}/revision/{_REVISION}", api_info.info),
    ("POST", f"{_REPO}/duplicate", api_repos.duplicate),
    ("POST", f"{_REPO}/lfs-files/duplicate", api_repos.duplicate_lfs),
    ("GET", f"{_REPO}/auth-check(?:/(?P<right>write))?", api_repos.auth_check),
    ("PUT", f"{_REPO}/settings", api_repos.settings),
    ("GET", f"{_REPO}/refs", api_refs.refs),
    ("POST", f"{_REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)", api_refs.create),
    ("DELETE", f"{_REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)", api_refs.delete),
    ("GET", f"{_REPO}/tree/{_REVISION}(?:/(?P<path>.*))?", api_files.tree),
    ("POST", f"{_REPO}/paths-info/{_REVISION}", api_files.paths_info),
    ("GET", f"{_REPO}/commits/{_REVISION}", api_files.commits),
    ("POST", f"{_REPO}/preupload/{_REVISION}", api_commits.preupload),
    ("POST", f"{_REPO}/commit/{_REVISION}", api_commits.commit),
    ("POST", f"{_REPO}/super-squash/{_REVISION}", api_refs.squash),
    ("GET", f"{_REPO}/discussions", discussions.listing),
    ("POST", f"{_REPO}/discussions", discussions.create),
    ("GET", _DISCUSSION, discussions.details),
    ("POST", f"{_DISCUSSION}/comment", discussions.comment),
    ("POST", f"{_COMMENT}/edit", discussions.edit),
    ("POST", f"{_COMMENT}/hide", discussions.hide),
    ("POST", f"{_DISCUSSION}/title", discussions.rename),
    ("POST", f"{_DISCUSSION}/status", discussions.status),
    ("POST", f"{_DISCUSSION}/merge", discussions.merge),
    ("GET", f"{_REPO}/xet-write-token/{_REVISION}", api_xet.write_token),
    ("GET", f"{_REPO}/xet-read-token/{_REVISION}", api_xet.read_token),
    ("GET", r"/api/buckets/(?P<namespace>[^/]+)", api_buckets.list_of),
    ("POST", _BUCKET, api_buckets.create),
    ("GET", _BUCKET, api_buckets.info),
    ("DELETE", _BUCKET, api_buckets.delete),
    ("GET", f"{_BUCKET}/tree(?:/(?P<path>.*))?", api_buckets.tree),
    ("POST", f"{_BUCKET}/paths-info", api_buckets.paths_info),
    ("POST", f"{_BUCKET}/batch", api_buckets.batch),
    ("GET", f"{_BUCKET}/xet-write-token", api_buckets.write_token),
    ("GET", f"{_BUCKET}/xet-read-token", api_buckets.read_token),
    ("GET", r"/buckets/(?P<bucket>[^/]+/[^/]+)/resolve/(?P<path>.+)", api_buckets.resolve),
    ("GET", r"/api/jobs/hardware", api_jobs.hardware),
    ("POST", _JOBS, api_jobs.run),
    ("GET", _JOBS, api_jobs.list_of),
    ("GET", _JOB, api_jobs.inspect),
    ("POST", f"{_JOB}/cancel", api_jobs.cancel),
    ("GET", f"{_JOB}/logs", api_jobs.logs),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", api_lfs.batch),
    ("POST", _PAGE + r"\.git/info/lfs/objects/verify", api_lfs.verify),
    ("PUT", _OBJECT + r"/(?P<size>\d{1,15})", api_lfs.upload),
    ("PUT", _OBJECT + r"/(?P<size>\d{1,15})/(?P<part>\d{1,5})", api_lfs.upload_part),
    ("POST", _OBJECT + r"/(?P<size>\d{1,15})", api_lfs.complete),
    ("GET", _OBJECT + r"/(?P<size>\d{1,15})", api_lfs.download),
    ("GET", _PAGE + r"(?:\.git)?/info/refs", api_git.refs),
    ("POST", _PAGE + r"(?:\.git)?/git-upload-pack", api_git.upload_pack),
    ("GET", f"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", api_files.resolve),
]
HUB_ROUTES: Routes = [(method, re.compile(pattern), endpoint) for method, pattern, endpoint in _HUB]
CDN_ROUTES: Routes = [("GET", re.compile(_OBJECT), api_lfs.cdn_file)]

_LARGER: dict[Endpoint, int] = {
    api_commits.commit: 1 << 28,  # small files come in it
    api_buckets.batch: 1 << 22,
    api_buckets.paths_info: 1 << 22,
    api_commits.preupload: 1 << 23,
    api_files.paths_info: 1 << 22,
    api_git.upload_pack: 1 << 24,
    api_lfs.batch: 1 << 22,
    api_repos.duplicate_lfs: 1 << 22,
    api_repos.validate_yaml: 1 << 24,  # a README.md as large as a commit takes it
}
"""Bytes of a body, of endpoints that take more than ``BODY_MAX``; LFS uploads take what their link says."""
_FOR_ALL: tuple[Endpoint, ...] = (
    *(api_files.paths_info, api_git.upload_pack, api_lfs.batch, api_repos.validate_yaml, api_repos.exchange),
    *(api_lfs.upload, api_lfs.upload_part, api_lfs.complete),  # by their link's signature
)
"""Endpoints with a body for requests without a token; all others see the token before they read the body."""
_TAGGED: tuple[Endpoint, ...] = (
    *(api_info.info, api_info.list_repos, api_refs.refs, api_files.tree, api_files.commits),
    *(api_buckets.info, api_buckets.list_of, api_buckets.tree),
)
"""Endpoints whose answers have an ETag, so that who asks again and again need not be told the same again."""


def answer(hub: HubContext, routes: Routes, call: Call) -> Answer:
    """Find the endpoint for ``call`` and let it answer; HEAD is answered like GET, without the body."""
    method = "GET" if call.method == "HEAD" else call.method
    for wanted, pattern, endpoint in routes:
        match = pattern.fullmatch(call.path) if wanted == method else None
        if match:
            call.groups = {
                name: unquote(part) for name, part in match.groupdict().items() if part is not None
            }
            if "repo" in call.groups:
                call.repo_span = match.span("repo")
            call.body.limit = _LARGER.get(endpoint, BODY_MAX)
            if method != "GET" and endpoint not in _FOR_ALL and hub.account(call) is None:
                raise Refusal(401, "Invalid username or password.")
            found = endpoint(hub, call)
            return tagged(found, call.headers) if endpoint in _TAGGED else found
    if re.match(_API + "/", call.path) or "/resolve/" in call.path:
        raise no_such_repo(hub.account(call))
    raise Refusal(404, f"nothing here: {method} {call.path}")
