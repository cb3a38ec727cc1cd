"""Buckets: create, list, delete; trees, paths-info and files; a batch of changes over Xet."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from hubextrap.localhub.access import check_writer, no_such_repo
from hubextrap.localhub.api_xet import token_for
from hubextrap.localhub.buckets import Bucket, BucketEntry, check_file
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import iso_date
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, json_object, linked_pages, list_in

_BATCH_MAX = 1_000  # operations; the client sends no more at a time
_PATHS_MAX = 1_000
_LATEST = 1 << 47  # milliseconds since the epoch: some year that has four digits


def create(hub: HubContext, call: Call) -> Answer:
    """POST /api/buckets/B; one that exists is a 409 whose body still holds its URL."""
    name = _name(hub, call)
    hub.check_owner(call, name)
    wanted = call.json()
    older = wanted.get("private") is True  # as huggingface_hub 1.x says it
    private = older or wanted.get("visibility") == "private"
    about = {"url": f"{hub.base(call)}/buckets/{name}", "name": name}
    with hub.store.lock:
        try:
            hub.buckets.create(name, private=private)
        except FileExistsError:
            raise Refusal(409, "You already created this bucket", **about) from None
        except ValueError as error:
            raise Refusal(400, str(error)) from error
    return json_answer(about)


def info(hub: HubContext, call: Call) -> Answer:
    """GET /api/buckets/B."""
    return json_answer(_info(_bucket(hub, call)))


def list_of(hub: HubContext, call: Call) -> Answer:
    """GET /api/buckets/NAMESPACE?search=: those that this account may see, by name."""
    namespace, search = _owner(hub, call, call.groups["namespace"]), call.query.get("search", [""])[0].lower()
    found = [bucket for bucket in hub.buckets.of(namespace) if _may_see(hub, call, bucket)]
    found = [bucket for bucket in found if search in bucket.name.lower()]
    return linked_pages(call, hub.base(call), [_info(bucket) for bucket in found], default_limit=1000)


def delete(hub: HubContext, call: Call) -> Answer:
    """DELETE /api/buckets/B."""
    with hub.store.lock:
        hub.buckets.delete(_bucket(hub, call, write=True))
    return Answer()


def tree(hub: HubContext, call: Call) -> Answer:
    """GET …/tree[/FOLDER]?recursive=: what is in a folder; nothing where there is no such folder."""
    bucket = _bucket(hub, call)
    folder = call.groups.get("path", "").strip("/")
    start = f"{folder}/" if folder else ""
    listed: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(bucket.entries().items()):
        if not path.startswith(start):
            continue
        inner, slash, _ = path[len(start) :].partition("/")
        if slash and not call.flag("recursive"):
            at = start + inner
            listed[at] = {"type": "directory", "path": at, "uploadedAt": _iso(entry.uploaded)}
        else:
            listed[path] = _item(path, entry)
    return linked_pages(call, hub.base(call), list(listed.values()), default_limit=hub.page_size)


def paths_info(hub: HubContext, call: Call) -> Answer:
    """POST …/paths-info: those of the named files that are there."""
    bucket = _bucket(hub, call)
    entries = bucket.entries()
    paths = dict.fromkeys(list_in(call.json(), "paths", _PATHS_MAX, str))
    return json_answer([_item(path, entries[path]) for path in paths if path in entries])


def batch(hub: HubContext, call: Call) -> Answer:
    """POST …/batch: one change out of lines of JSON; those that cannot be carried out are named."""
    _bucket(hub, call, write=True)  # before anything is read
    lines = [line for line in call.body.read().splitlines() if line.strip()]
    if len(lines) > _BATCH_MAX:
        raise Refusal(413, f"the batch has more than {_BATCH_MAX} operations")
    now = time.time_ns() // 1_000_000
    added: dict[str, tuple[str, int]] = {}
    deleted: list[str] = []
    failed: dict[str, str] = {}
    for line in lines:
        item = json_object(line)
        path, mtime = str(item.get("path", "")), item.get("mtime", now)
        wrong = check_file(path)
        if wrong:
            failed[path] = wrong
        elif item.get("type") == "addFile" and type(mtime) is int and 0 <= mtime < _LATEST:
            added[path] = str(item.get("xetHash")), mtime
        elif item.get("type") == "deleteFile":
            deleted.append(path)
        else:
            raise Refusal(400, f"this hub has no such operation: {str(item.get('type'))[:100]}")
    with hub.store.lock:
        failed |= _bucket(hub, call, write=True).change(added, deleted, now)
    told = [{"path": path, "error": error} for path, error in failed.items()]
    return json_answer(
        {"success": not told, "failed": told}, 422 if told and len(told) == len(lines) else 200
    )


def write_token(hub: HubContext, call: Call) -> Answer:
    """GET …/xet-write-token: an empty store."""
    return token_for(_bucket(hub, call, write=True).xet.new_store())


def read_token(hub: HubContext, call: Call) -> Answer:
    """GET …/xet-read-token: a copy of a store with all files of the bucket."""
    with hub.store.lock:
        return token_for(_bucket(hub, call).readable_store())


def resolve(hub: HubContext, call: Call) -> Answer:
    """HEAD and GET /buckets/B/resolve/PATH: the file."""
    bucket = _bucket(hub, call)
    path = call.groups["path"]
    entry = bucket.entries().get(path)
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
        "ETag": f'"{entry.hash}"',
        "X-Linked-Size": str(entry.size),
        "X-Xet-Hash": entry.hash,
        "Link": f'<{hub.base(call)}/api/buckets/{bucket.name}/xet-read-token>; rel="xet-auth"',
    }
    return Answer(200, bucket.content(entry), headers, ranges=True)


def _name(hub: HubContext, call: Call) -> str:
    """The bucket's full name."""
    namespace, _, name = call.groups["bucket"].partition("/")
    return f"{_owner(hub, call, namespace)}/{name}"


def _owner(hub: HubContext, call: Call, namespace: str) -> str:
    """Whom a namespace belongs to: "me" is the one who asks, unless some user has that name."""
    account = hub.account(call)
    meant = namespace == "me" and "me" not in {one.user for one in list(hub.tokens.values())}
    return account.user if meant and account else namespace


def _may_see(hub: HubContext, call: Call, bucket: Bucket) -> bool:
    account = hub.account(call)
    owner = bucket.name.partition("/")[0]
    mine = account is not None and account.repo is None and account.user == owner
    return mine or not bucket.about()["private"]


def _bucket(hub: HubContext, call: Call, write: bool = False) -> Bucket:
    """The bucket of the path, if the account may see it, or write to it. Raises Refusal."""
    account = hub.account(call)
    try:
        bucket = hub.buckets.get(_name(hub, call))
    except KeyError:
        raise no_such_repo(account) from None
    if not _may_see(hub, call, bucket):
        raise no_such_repo(account)
    if write:
        check_writer(bucket.name, account)
    return bucket


def _info(bucket: Bucket) -> dict[str, Any]:
    entries, about = bucket.entries(), bucket.about()
    size = sum(entry.size for entry in entries.values())
    counted = {"size": size, "totalFiles": len(entries)}
    return {"id": bucket.name, "private": about["private"], "createdAt": about["created"], **counted}


def _item(path: str, entry: BucketEntry) -> dict[str, Any]:
    times = {"mtime": _iso(entry.mtime), "uploadedAt": _iso(entry.uploaded)}
    return {"type": "file", "path": path, "size": entry.size, "xetHash": entry.hash, **times}


def _iso(milliseconds: int) -> str:
    return iso_date(milliseconds / 1000)
