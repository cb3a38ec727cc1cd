"""LFS: the batch API, uploads in one piece or in parts over signed links, verification, and the CDN."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hubextrap.localhub.lfs import Pointer, RejectedObject
from hubextrap.localhub.wire import Answer, Call, FileBody, Refusal, json_answer

if TYPE_CHECKING:
    from hubextrap.localhub.hub import LocalHub

_LINK_SECONDS = 3600.0


def batch(hub: LocalHub, call: Call) -> Answer:
    """POST /R.git/info/lfs/objects/batch: where to upload what is not there yet."""
    wanted = call.json()
    if wanted.get("operation") != "upload":
        raise Refusal(400, "only uploads go through the LFS batch API; downloads are plain resolve requests")
    repo = hub.repo(call)
    hub.reader(call)
    multipart = "multipart" in wanted.get("transfers", [])
    verify = f"{hub.page(call, repo.settings.kind, repo.settings.name)}.git/info/lfs/objects/verify"
    objects = []
    for item in wanted.get("objects", []):
        pointer = _pointer(item)
        described: dict[str, Any] = {"oid": pointer.sha256, "size": pointer.size}
        if not hub.store.objects.has(pointer):
            upload = (
                _parts(hub, call, pointer)
                if multipart and pointer.size > hub.part_size
                else _whole(hub, call, pointer)
            )
            described["actions"] = {"upload": upload, "verify": {"href": verify}}
        objects.append(described)
    return json_answer({"transfer": "basic", "objects": objects})


def upload(hub: LocalHub, call: Call) -> Answer:
    """PUT of a whole object to the link of the batch answer."""
    _check_link(hub, call)
    _store(lambda: hub.store.objects.add(call.body.chunks(), _linked(call)))
    return Answer()


def upload_part(hub: LocalHub, call: Call) -> Answer:
    """PUT of one part."""
    _check_link(hub, call)
    etag = hub.store.objects.add_part(call.groups["oid"], int(call.groups["part"]), call.body.chunks())
    return Answer(headers={"ETag": f'"{etag}"'})


def complete(hub: LocalHub, call: Call) -> Answer:
    """POST that says all parts are there."""
    _check_link(hub, call)
    numbers = sorted(int(part["partNumber"]) for part in call.json().get("parts", []))
    pointer = _linked(call)
    if numbers != list(range(1, _part_count(hub, pointer) + 1)):
        raise Refusal(400, f"parts {numbers} are not all the parts of {pointer.sha256}")
    _store(lambda: hub.store.objects.join_parts(pointer, len(numbers)))
    return json_answer({})


def verify(hub: LocalHub, call: Call) -> Answer:
    """POST …/verify: whether the object has arrived."""
    hub.repo(call)
    pointer = _pointer(call.json())
    if not hub.store.objects.has(pointer):
        raise Refusal(404, f"the LFS object {pointer.sha256} of {pointer.size} bytes is not here")
    return json_answer({})


def cdn_file(hub: LocalHub, call: Call) -> Answer:
    """GET of an object on the CDN's port; a link that has expired is a plain 403."""
    _check_link(hub, call)
    oid = call.groups["oid"]
    return Answer(200, FileBody(hub.store.objects.path(oid)), {"ETag": f'"{oid}"'}, ranges=True)


def _whole(hub: LocalHub, call: Call, pointer: Pointer) -> dict[str, Any]:
    return {"href": _link(hub, call, f"/lfs/{pointer.sha256}/{pointer.size}")}


def _parts(hub: LocalHub, call: Call, pointer: Pointer) -> dict[str, Any]:
    path = f"/lfs/{pointer.sha256}/{pointer.size}/parts"
    header = {"chunk_size": str(hub.part_size)}
    for number in range(1, _part_count(hub, pointer) + 1):
        header[f"{number:05d}"] = _link(hub, call, f"{path}/{number}")
    return {"href": _link(hub, call, path), "header": header}


def _part_count(hub: LocalHub, pointer: Pointer) -> int:
    return math.ceil(pointer.size / hub.part_size)


def _link(hub: LocalHub, call: Call, path: str) -> str:
    return hub.base(call) + hub.signer.sign(path, _LINK_SECONDS)


def _check_link(hub: LocalHub, call: Call) -> None:
    if not hub.signer.valid(call.link):
        raise Refusal(403, "the link is not valid or has expired")


def _linked(call: Call) -> Pointer:
    return Pointer(call.groups["oid"], int(call.groups["size"]))


def _pointer(item: dict[str, Any]) -> Pointer:
    try:
        return Pointer(str(item["oid"]), int(item["size"]))
    except (KeyError, ValueError) as error:
        raise Refusal(422, f"an LFS object has an oid and a size: {error!r}") from error


def _store(store: Any) -> None:
    try:
        store()
    except RejectedObject as error:
        raise Refusal(400, str(error)) from error
