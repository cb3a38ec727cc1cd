"""LFS: the batch API, uploads in one piece or in parts over signed links, verification, and the CDN."""

from __future__ import annotations

import math
import shutil
from typing import Any

from hubextrap.localhub.access import check_content
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.lfs import Pointer
from hubextrap.localhub.repository import HubRepo
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, list_in

_LINK_SECONDS = 3600.0
_OBJECTS_MAX = 1_000  # in one batch; git-lfs asks for 100, huggingface_hub for 256
_PARTS_MAX = 20_000


def batch(hub: HubContext, call: Call) -> Answer:
    """POST /R.git/info/lfs/objects/batch: where to upload what is not there yet, or download what is."""
    repo = hub.repo(call)
    wanted = call.json()
    asked = [_pointer(item) for item in list_in(wanted, "objects", _OBJECTS_MAX, dict)]
    transfers = list_in(wanted, "transfers", 100, str)
    if wanted.get("operation") == "download":
        check_content(repo, hub.account(call))
        found = [_download(hub, call, repo, pointer) for pointer in asked]
        return json_answer({"transfer": "basic", "objects": found})
    if wanted.get("operation") != "upload":
        raise Refusal(422, '"operation" must be one of [download, upload]')
    hub.reader(call)
    multipart = "multipart" in transfers
    if multipart and sum(_part_count(hub, pointer) for pointer in asked) > _PARTS_MAX:
        raise Refusal(413, f"the objects have more than {_PARTS_MAX} parts together")
    verify = f"{hub.page(call, repo.settings.kind, repo.settings.name)}.git/info/lfs/objects/verify"
    xet = hub.xet and "xet" in transfers  # huggingface_hub 1.x asks here first
    objects = []
    for pointer in asked:
        described: dict[str, Any] = {"oid": pointer.sha256, "size": pointer.size}
        if not xet and not repo.objects.has(pointer):
            action = _upload_action(hub, call, repo, pointer, multipart)
            described["actions"] = {"upload": action, "verify": {"href": verify}}
        objects.append(described)
    return json_answer({"transfer": "xet" if xet else "basic", "objects": objects})


def upload(hub: HubContext, call: Call) -> Answer:
    """PUT of a whole object to the link of the batch answer."""
    repo, pointer = _linked(hub, call)
    _check_room(hub, pointer)
    call.body.limit = pointer.size
    repo.objects.add(call.body.chunks(), pointer)
    return Answer()


def download(hub: HubContext, call: Call) -> Answer:
    """GET of an object from the link of a batch answer."""
    repo, pointer = _linked(hub, call, download=True)
    return _object(repo, pointer.sha256)


def upload_part(hub: HubContext, call: Call) -> Answer:
    """PUT of one part."""
    repo, pointer = _linked(hub, call)
    if not 0 < int(call.groups["part"]) <= _part_count(hub, pointer):
        raise Refusal(400, f"the object has no part {call.groups['part']}")
    _check_room(hub, pointer)
    call.body.limit = hub.part_size
    etag = repo.objects.add_part(pointer.sha256, int(call.groups["part"]), call.body.chunks())
    return Answer(headers={"ETag": f'"{etag}"'})


def complete(hub: HubContext, call: Call) -> Answer:
    """POST that says all parts are there."""
    repo, pointer = _linked(hub, call)
    try:
        parts = list_in(call.json(), "parts", _PARTS_MAX, dict)
        numbers = sorted(int(part["partNumber"]) for part in parts)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refusal(400, f"a part has a partNumber: {error!r:.200}") from error
    if numbers != list(range(1, _part_count(hub, pointer) + 1)):
        raise Refusal(400, f"parts {numbers[:100]} are not all the parts of {pointer.sha256}")
    repo.objects.join_parts(pointer, len(numbers))
    return json_answer({})


def verify(hub: HubContext, call: Call) -> Answer:
    """POST …/verify: whether the object has arrived."""
    hub.reader(call)
    pointer = _pointer(call.json())
    if not hub.repo(call).objects.has(pointer):
        raise Refusal(404, f"the LFS object {pointer.sha256} of {pointer.size} bytes is not here")
    return json_answer({})


def cdn_file(hub: HubContext, call: Call) -> Answer:
    """GET of an object on the CDN's port; an expired link is a plain 403 without the hub's headers."""
    if not hub.signer.valid(call.link):
        return Answer(403, b"Access denied", {"Content-Type": "text/plain"})
    return _object(_repo_of_link(hub, call), call.groups["oid"])


def _object(repo: HubRepo, sha256: str) -> Answer:
    return Answer(200, repo.objects.path(sha256), {"ETag": f'"{sha256}"'}, ranges=True)


def _download(hub: HubContext, call: Call, repo: HubRepo, pointer: Pointer) -> dict[str, Any]:
    described: dict[str, Any] = {"oid": pointer.sha256, "size": pointer.size}
    if not repo.objects.has(pointer):
        return {**described, "error": {"code": 404, "message": "Object does not exist"}}
    link = _link(hub, call, repo, pointer, "?download=1")
    return {**described, "actions": {"download": {"href": link, "expires_in": int(_LINK_SECONDS)}}}


def _upload_action(
    hub: HubContext, call: Call, repo: HubRepo, pointer: Pointer, multipart: bool
) -> dict[str, Any]:
    action: dict[str, Any] = {"href": _link(hub, call, repo, pointer)}
    if multipart and pointer.size > hub.part_size:
        action["header"] = {"chunk_size": str(hub.part_size)}
        for number in range(1, _part_count(hub, pointer) + 1):
            action["header"][f"{number:05d}"] = _link(hub, call, repo, pointer, f"/{number}")
    return action


def _check_room(hub: HubContext, pointer: Pointer) -> None:
    """Refuse an object that does not fit the disk, before it is read."""
    if pointer.size > shutil.disk_usage(hub.store.root).free:
        raise Refusal(507, f"the hub's disk has no room for {pointer.size} bytes")


def _part_count(hub: HubContext, pointer: Pointer) -> int:
    return math.ceil(pointer.size / hub.part_size)


def _link(hub: HubContext, call: Call, repo: HubRepo, pointer: Pointer, end: str = "") -> str:
    path = f"/lfs/{repo.settings.kind}s/{repo.settings.name}/{pointer.sha256}/{pointer.size}{end}"
    return hub.base(call) + hub.signer.sign(path, _LINK_SECONDS)


def _linked(hub: HubContext, call: Call, *, download: bool = False) -> tuple[HubRepo, Pointer]:
    """The repo and the object that a signed link is for; a link to upload does not open what is there."""
    if not hub.signer.valid(call.link) or call.flag("download") != download:
        raise Refusal(403, "the link is not valid or has expired")
    return _repo_of_link(hub, call), Pointer(call.groups["oid"], int(call.groups["size"]))


def _repo_of_link(hub: HubContext, call: Call) -> HubRepo:
    """The repo of a signed link; it may have been moved since."""
    try:
        return hub.store.find(hub.kind(call), call.groups["repo"])
    except KeyError:
        raise Refusal(404, "the repo is gone", "RepoNotFound") from None


def _pointer(item: dict[str, Any]) -> Pointer:
    try:
        pointer = Pointer(str(item["oid"]), int(item["size"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refusal(422, f"an LFS object has an oid and a size: {error!r:.200}") from error
    if Pointer.decode(pointer.encode()) != pointer:
        raise Refusal(422, f"not an LFS object: {str(item)[:200]}")
    return pointer
