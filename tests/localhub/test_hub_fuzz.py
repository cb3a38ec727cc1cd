"""Requests by chance, whole and broken, with a token and without: the hub stays, within its folder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from raw_requests import address_of, ask, request, status_of

from hubextrap.localhub import LocalHub

TOKEN = "hf_fuzz" * 5
METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "get",
    "",
    "CONNECT",
    "X" * 40,
    "GE\0T",
)
PATHS = (
    *(
        "/api/models/me/a",
        "/api/models/me/a/tree/main",
        "/me/a/resolve/main/a.txt",
        "/api/models/me/a/commit/main",
    ),
    *(
        "/api/models/me/a/preupload/main",
        "/api/models/me/a/paths-info/main",
        "/me/a.git/info/lfs/objects/batch",
    ),
    *("/me/a.git/info/lfs/objects/verify", "/api/repos/create", "/api/repos/delete", "/api/repos/move"),
    *("/api/models/me/a/duplicate", "/api/models/me/a/lfs-files/duplicate", "/api/models/me/a/settings"),
    *("/api/models/me/a/branch/x", "/api/models/me/a/tag/main", "/api/models/me/a/super-squash/main"),
    *(
        "/api/models/me/a/discussions",
        "/api/models/me/a/discussions/1",
        "/api/models/me/a/discussions/1/merge",
    ),
    *("/api/models/me/a/discussions/1/comment", "/api/models/me/a/discussions/1/title", "/oauth/token"),
    *(
        "/api/models/me/a/discussions/1/status",
        "/me/a.git/info/refs",
        "/me/a.git/git-upload-pack",
        "/",
        "*",
        "//",
    ),
    *(
        "/api/validate-yaml",
        "/api/whoami-v2",
        f"/lfs/models/me/a/{'0' * 64}/5",
        "/api/models/me/a/commits/main",
    ),
    *(
        "/api/models",
        "/api/settings/repositories",
        "/api/models/me/a/auth-check/write",
        "/api/models/me/a/refs",
    ),
    *(
        f"/lfs/models/me/a/{'0' * 64}/5/1",
        "/api/models/me/a/xet-write-token/main",
        "/me/a/resolve/main/..%2fa.txt",
    ),
)
PIECES = (
    *(
        "%00",
        "%0a",
        "%0d%0a",
        "%2e%2e%2f",
        "..",
        "/",
        "//",
        "%2f",
        "%5c",
        "\\",
        "%c0%ae",
        "%ff",
        "%",
        "%zz",
        "?",
    ),
    *(
        "?limit=9",
        "?limit=-1&cursor=-5",
        "?expand=x",
        "?cursor=%c2%b2",
        "&&&",
        "=",
        "?a=%00",
        ";",
        "#",
        "\xe9",
        " ",
    ),
    *(
        "?limit=" + "9" * 5000,
        "x" * 3000,
        "?service=git-upload-pack",
        "?create_pr=1",
        "?recursive=1",
        "9" * 30,
    ),
)
HEADERS = (
    *(
        "Content-Length: 5",
        "Content-Length: -1",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length: \xb2",
    ),
    *(
        "Content-Length: 99999999999999",
        "Content-Length : 5",
        "Transfer-Encoding: chunked",
        "Connection: keep-alive",
    ),
    *(
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "transfer-encoding:\tchunked",
        " folded: x",
    ),
    *(
        "Range: bytes=0-",
        "Range: bytes=\xb2-",
        "Range: bytes=5-1",
        "Range: bytes=-",
        "Range: bytes=" + "9" * 5000,
    ),
    *(
        "Host: evil.example",
        "Origin: http://evil.example",
        "Expect: 100-continue",
        "X: \x00",
        "X\x01: y",
        "no colon",
    ),
    *(
        "Content-Type: application/json",
        "Content-Encoding: gzip",
        "Accept: text/plain",
        "X-Request-Id: a\x0bb",
    ),
    *(
        "Git-Protocol: version=2",
        "Authorization: Basic !!",
        "Authorization: Bearer x\xff",
        "A: " + "x" * 9000,
    ),
)
VALUES = (
    *(
        None,
        True,
        -1,
        0,
        2**70,
        1.5,
        "",
        "x",
        "main",
        "me/b",
        "../..",
        "x" * 300,
        "\ud800",
        "a\0b",
        "a\nb",
        "ü",
    ),
    *([], [[]], [None], ["x"], [{}], {}, {"x": {}}, [{"path": "p", "size": 3, "sample": "!"}], ["x"] * 50),
    *([{"path": "a.txt"}], [{"oid": "0" * 64, "size": -1}], [{"oid": "0" * 64, "size": 5}], {"name": "me/a"}),
)
KEYS = (
    *(
        "name",
        "organization",
        "type",
        "fromRepo",
        "toRepo",
        "files",
        "paths",
        "objects",
        "operation",
        "transfers",
    ),
    *(
        "parts",
        "tag",
        "startingPoint",
        "message",
        "title",
        "description",
        "comment",
        "status",
        "repository",
        "target",
    ),
    *(
        "visibility",
        "private",
        "gated",
        "content",
        "repoType",
        "grant_type",
        "subject_token",
        "resource",
        "gitIgnore",
    ),
    *(
        "pullRequest",
        "expand",
        "oid",
        "size",
        "sdk",
        "summary",
        "path",
        "encoding",
        "parentCommit",
        "key",
        "value",
    ),
)


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "deep" / "er" / "hub", tokens={TOKEN: "me"}) as hub:
        renew(hub)
        yield hub


def renew(hub: LocalHub) -> None:
    """What the requests work on, made anew where they have deleted it."""
    try:
        hub.create_repo("me/a")
    except FileExistsError:
        return
    hub.commit("me/a", {"a.txt": b"a", "w.safetensors": b"\0" * 100})


def body_of(chance: random.Random) -> bytes:
    def mapping() -> dict[str, object]:
        return {key: chance.choice(VALUES) for key in chance.sample(KEYS, chance.randrange(1, 6))}

    kind = chance.randrange(5)
    if kind == 0:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(60)))
    if kind == 1:  # the lines of a commit
        key = chance.choice(("header", "file", "lfsFile", "deletedFile", "deletedFolder", "x"))
        lines = [{"key": key, "value": chance.choice((mapping(), chance.choice(VALUES)))} for _ in range(3)]
        return "\n".join(json.dumps(line) for line in lines).encode()
    if kind == 2:  # with the words that endpoints look at first
        words = {
            "operation": chance.choice(("upload", "download")),
            "status": chance.choice(("open", "closed")),
        }
        return json.dumps({**mapping(), **words}).encode()
    return json.dumps(chance.choice((mapping(), mapping(), chance.choice(VALUES)))).encode()


def random_request(chance: random.Random, own: str) -> bytes:
    """One or several requests in one piece, most with one thing odd."""
    method = chance.choice(METHODS[:5] if chance.random() < 0.85 else METHODS)
    path = chance.choice(PATHS)
    if chance.random() < 0.4:
        at = chance.randrange(len(path) + 1)
        path = path[:at] + chance.choice(PIECES) + path[at:]
    body = body_of(chance)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {own if chance.random() < 0.97 else 'evil.example'}"]
    if chance.random() < 0.7:
        lines.append(f"Authorization: Bearer {TOKEN}")
    odd = chance.sample(HEADERS, chance.choice((0, 0, 1, 2)))
    framed = chance.random()
    if framed < 0.7:
        lines.append(f"Content-Length: {len(body)}")
    elif framed < 0.9:
        lines.append("Transfer-Encoding: chunked")
        size = chance.choice(
            (f"{len(body):x}", f"{len(body):x};x=y", f"0x{len(body):x}", f"-{len(body):x}", "fffffffff")
        )
        body = (
            f"{size}\r\n".encode()
            + body
            + chance.choice((b"\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n0\r\nX: y\r\n\r\n", b""))
        )
    if chance.random() < 0.05:
        lines[0] = chance.choice(
            ("", "GET", "GET  / HTTP/1.1", "GET / HTTP/0.9", "GET / HTTP/2.0", "\x16\x03\x01", path)
        )
    text = "\r\n".join([*lines, *odd, "", ""]).encode("latin-1")
    if chance.random() < 0.05:
        text = text.replace(b"\r\n", chance.choice((b"\n", b"\r")))
    whole = text + body
    if chance.random() < 0.1:
        whole = whole[: chance.randrange(len(whole) + 1)]
    return whole * chance.choice((1, 1, 1, 3))


def fuzz(hub: LocalHub, seed: int, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    own = ":".join(map(str, address_of(hub)))
    above = hub.store.root.parents[1]
    outside = {path for path in above.rglob("*") if not path.is_relative_to(hub.store.root)}
    before = psutil.Process().memory_info().rss
    seen = set()
    for number in range(count):
        sent = random_request(chance, own)
        answer = ask(hub, sent)
        if answer:
            assert answer.startswith(b"HTTP/1.1 "), (number, sent, answer)
            seen.add(status_of(answer))
        for part in answer.split(b"HTTP/1.1 ")[1:]:
            assert part[:3] != b"500", (number, sent, answer)
            assert b"text/html" not in part
        if number % 50 == 0:
            renew(hub)
            assert status_of(request(hub, "GET /api/models")) == 200
    assert {200, 400, 401, 403, 404, 421} <= seen
    assert psutil.Process().memory_info().rss - before < 300 << 20
    assert {path for path in above.rglob("*") if not path.is_relative_to(hub.store.root)} == outside
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    renew(hub)
    assert b"a" in request(hub, "GET /me/a/resolve/main/a.txt")


def test_requests_by_chance(fuzzed: LocalHub, capfd: pytest.CaptureFixture[str]) -> None:
    fuzz(fuzzed, 11, 1_000, capfd)


@pytest.mark.slow
def test_more_requests_by_chance(fuzzed: LocalHub, capfd: pytest.CaptureFixture[str]) -> None:
    fuzz(fuzzed, 12, 20_000, capfd)
