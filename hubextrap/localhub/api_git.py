"""git clone and fetch over HTTP: git's own upload-pack answers. Nothing is pushed this way."""

from __future__ import annotations

import os
import re
import subprocess
import zlib

from hubextrap.localhub.access import check_content
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import HubRepo
from hubextrap.localhub.wire import Answer, Call, Refusal

_SERVICE = "git-upload-pack"
_GIT_SECONDS = 600
_WANTED_MAX = 1 << 24  # bytes; what a client has and wants is a line for each commit


def refs(hub: HubContext, call: Call) -> Answer:
    """GET /R[.git]/info/refs?service=git-upload-pack: what there is to fetch."""
    if call.query.get("service") != [_SERVICE]:
        raise Refusal(403, "this hub serves git clone and fetch only; to push, use huggingface_hub or hf")
    line = f"# service={_SERVICE}\n".encode()
    head = b"%04x%s0000" % (len(line) + 4, line)
    listed = _upload_pack(_repo(hub, call), call, b"", "--advertise-refs")
    return _answer("advertisement", head + listed)


def upload_pack(hub: HubContext, call: Call) -> Answer:
    """POST /R[.git]/git-upload-pack: the objects that the client lacks."""
    repo, wanted = _repo(hub, call), call.body.read()
    if call.headers.get("Content-Encoding") == "gzip":
        unpacking = zlib.decompressobj(wbits=31)
        try:
            wanted = unpacking.decompress(wanted, _WANTED_MAX)
        except zlib.error as error:
            raise Refusal(400, f"the body is not gzip: {error}") from error
        if not unpacking.eof:
            raise Refusal(413, f"the body is cut, or holds more than {_WANTED_MAX} bytes")
    return _answer("result", _upload_pack(repo, call, wanted))


def _repo(hub: HubContext, call: Call) -> HubRepo:
    try:
        repo = hub.repo(call)
        check_content(repo, hub.account(call))
    except Refusal as refusal:
        if refusal.status == 401:  # git asks for a password then
            refusal.headers["WWW-Authenticate"] = 'Basic realm="user and token"'
        raise
    return repo


def _upload_pack(repo: HubRepo, call: Call, wanted: bytes, *options: str) -> bytes:
    folder = str(repo.folder.resolve())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # The repos may belong to another user than the one who serves them.
    config = f"safe.directory={folder}"
    protocol = call.headers.get("Git-Protocol", "")
    if re.fullmatch(r"[\w=:.-]{1,100}", protocol, re.ASCII):
        environment["GIT_PROTOCOL"] = protocol
    try:
        ran = subprocess.run(
            ["git", "-c", config, "upload-pack", "--stateless-rpc", *options, folder],
            input=wanted,
            capture_output=True,
            env=environment,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Refusal(504, f"git upload-pack took more than {_GIT_SECONDS} s") from None
    except FileNotFoundError:
        raise Refusal(501, "git clone needs git on the hub's machine; huggingface_hub needs none") from None
    if ran.returncode and not ran.stdout:
        raise Refusal(400, f"git upload-pack failed: {ran.stderr.decode(errors='replace').strip()}")
    return ran.stdout


def _answer(what: str, body: bytes) -> Answer:
    headers = {"Content-Type": f"application/x-{_SERVICE}-{what}", "Cache-Control": "no-cache"}
    return Answer(200, body, headers)
