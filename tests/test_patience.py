from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hubextrap.hub_client import asked_wait
from hubextrap.patience import Attempts, Patience, is_passing, retried


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 120 "}, 120.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "Fri, 31 Dec 99999999999 23:59:59 GMT"}, None),
        ({"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"Retry-After": "Fri, 31 Dec 2026 23:59:59 +99999999999999"}, None),
        ({"Retry-After": "Fri, 31 Dec 2026 99:99:99 +9999", "RateLimit-Reset": "9"}, 9.0),
        ({"Retry-After": "9" * 5000}, float("inf")),
        ({"RateLimit": f'"api";r=0;t={"9" * 5000}', "Retry-After": "1"}, 1.0),
        ({"ratelimit": '"resolvers";r=0;t=55', "Retry-After": "1"}, 55.0),
        ({"RateLimit": '"resolvers";r=3;t=55', "Retry-After": "1"}, 1.0),
        ({"RateLimit-Reset": "9"}, 9.0),
    ],
)
def test_what_a_response_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers) == seconds


def test_a_date_counts_from_now() -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    seconds = asked_wait({"Retry-After": date})
    assert seconds is not None
    assert 57 < seconds <= 60


def test_waits_grow_and_end() -> None:
    attempts = Attempts(Patience(attempts=6, seconds=1000, first_wait=1, longest_wait=4))
    waits = [attempts.wait() for _ in range(6)]
    for wait, longest in zip(waits, [1, 2, 4, 4, 4], strict=False):
        assert wait is not None
        assert longest / 2 <= wait <= longest
    assert waits[5] is None


def test_a_server_is_given_the_time_it_asks_for_but_not_for_ever() -> None:
    attempts = Attempts(Patience(seconds=100, first_wait=1))
    wait = attempts.wait(asked=30)
    assert wait is not None
    assert 30 < wait <= 31
    assert attempts.wait(asked=300) is None


def test_what_may_pass() -> None:
    closed = httpx2.Client()
    closed.close()
    with pytest.raises(RuntimeError) as used:
        closed.get("http://127.0.0.1:9")
    wrapped = RuntimeError("Error while uploading 'x' to the Hub.")
    wrapped.__cause__ = httpx2.ConnectError("refused")
    gateway = json.JSONDecodeError("Expecting value", "<html>", 0)
    for error in (
        used.value,
        wrapped,
        gateway,
        ConnectionResetError(),
        *map(answer, (408, 429, 500, 503, 520)),
    ):
        assert is_passing(error), error
    offline = OfflineModeIsEnabled("HF_HUB_OFFLINE")
    for error in (RuntimeError("x"), ValueError("x"), offline, *map(answer, (400, 403, 404, 412, 501, 507))):
        assert not is_passing(error), error


def answer(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("x", response=httpx2.Response(status, request=httpx2.Request("GET", "http://x")))


def test_what_passes_is_tried_again_as_long_as_patience_lasts() -> None:
    failures = [answer(503), answer(429), answer(404)]

    def call() -> str:
        raise failures.pop(0)

    with pytest.raises(HfHubHTTPError, match="x") as last:
        retried(call, Patience(first_wait=0.01))
    assert last.value.response.status_code == 404
    failures = [answer(503), answer(500), answer(404)]
    with pytest.raises(HfHubHTTPError) as last:
        retried(call, Patience(attempts=2, first_wait=0.01))
    assert last.value.response.status_code == 500
    failures = [answer(404), answer(500)]
    with pytest.raises(HfHubHTTPError) as last:
        retried(call, Patience(attempts=2, first_wait=0.01), worth=lambda error: True)
    assert not failures
