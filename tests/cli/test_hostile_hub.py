"""Every command that talks to the Hub, while its answers turn hostile: one error in our words, soon."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants as constants
import pytest
import yaml
from command_lines import Ended, Ground, run_main
from hostile_hub import HEADERS, Hostile, HostileHub, hostile_answers, hostile_hub

from hubextrap.localhub import LocalHub
from hubextrap.patience import Patience

COMMANDS = {
    "steps": ("steps", "{repo}"),
    "plan": ("plan", "hub.yaml"),
    "merge": ("merge", "hub.yaml", "--out", "out", "-q"),
    "merge --cache": ("merge", "hub.yaml", "--out", "out", "--cache", "-q"),
    "merge --push": ("merge", "hub.yaml", "--push", "{other}@x", "-q"),
    "scan": ("scan", "{repo}", "--out", "other.safetensors", "-q"),
    "backtest": ("backtest", "{repo}", "-q"),
    "push": ("push", "merged", "{other}", "-q"),
    "verify": ("verify", "{repo}@predicted"),
}


@pytest.fixture
def server(
    ground: Ground, hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HostileHub]:
    """In front of the session's hub, which has a run and a prediction; waits are brief."""
    hub.create_repo(repo_id)
    for folder in sorted(Path("run").iterdir()):
        hub.commit(repo_id, {file.name: file for file in sorted(folder.iterdir())}, folder.name)
    hub.commit(repo_id, {file.name: file for file in sorted(Path("merged").iterdir())}, "predicted")
    recipe = {
        "trajectory": {"repo": repo_id, "steps": {"pattern": "step_{step}"}},
        "merge_method": "two_point",
        "parameters": {"target_step": 60},
    }
    Path("hub.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("hubextrap.patience.CALLS", Patience(attempts=2, first_wait=0.002))
    monkeypatch.setattr("hubextrap.hub.uploading._TWICE", Patience(attempts=2, first_wait=0.002))
    quick = Patience(attempts=2, first_wait=0.002, longest_wait=0.01)
    monkeypatch.setattr("hubextrap.tensors.remote.Patience", lambda: quick)
    monkeypatch.setattr("hubextrap.hub_client.MOST_PAGES", 20)
    with hostile_hub(hub.url) as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def run(words: tuple[str, ...], server: HostileHub, repo: str, answer: Hostile | None, first: int) -> Ended:
    server.answer, server.first, server.requests = answer, first, 0
    shutil.rmtree("out", ignore_errors=True)
    named = {"repo": repo, "other": f"{repo}-other"}
    return run_main(*(word.format_map(named) for word in words))


def problem(ended: Ended, seconds: float) -> str | None:
    if "Traceback" in ended.out + ended.err:
        return "a traceback"
    if ended.code not in (0, 1):
        return f"exit code {ended.code}"
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.code and len(errors) != 1 and "problem" not in ended.out:
        return f"{len(errors)} errors"
    if len(ended.err) > 4_000:
        return f"{len(ended.err)} characters of error"
    if seconds > 20:
        return f"{seconds:.0f} s"
    return None


def campaign(name: str, server: HostileHub, repo: str, seed: int, count: int) -> None:
    start = run(COMMANDS[name], server, repo, None, 0)
    assert start.code == 0, start.err
    requests = server.requests
    choose = random.Random(seed)
    problems = []
    for answer in hostile_answers(seed, count):
        first = min(choose.randrange(requests), choose.randrange(requests))
        began = time.monotonic()
        ended = run(COMMANDS[name], server, repo, answer, first)
        if found := problem(ended, time.monotonic() - began):
            problems.append(f"{name}, request {first}, {answer}: {found}: {ended.err[-600:]}")
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems[:8])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4_000_000  # kB; torch takes much of it


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_hostile_answers(name: str, server: HostileHub, repo_id: str) -> None:
    campaign(name, server, repo_id, seed=2, count=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers", HEADERS[4:], ids=lambda headers: f"{headers[0][0][:20]}: {headers[0][1][:30]}"
)
def test_every_header(headers: tuple[tuple[str, str], ...], server: HostileHub, repo_id: str) -> None:
    for status in (200, 302, 429):
        for body in (b"[]", b"{}"):
            began = time.monotonic()
            ended = run(COMMANDS["steps"], server, repo_id, Hostile(status, body, headers), 1)
            assert problem(ended, time.monotonic() - began) is None, (status, body, ended)


def test_a_captive_portal(server: HostileHub, repo_id: str) -> None:
    portal = Hostile(200, b"<!doctype html><title>Log in</title>", (("Content-Type", "text/html"),))
    ended = run(COMMANDS["plan"], server, repo_id, portal, 0)
    assert ended.code == 1
    assert "the Hub's answer is not JSON; perhaps a proxy or a captive portal" in ended.err


def test_pages_without_end(server: HostileHub, repo_id: str) -> None:
    for link in ("<{self}>", "<{self}?cursor={count}>"):
        ended = run(
            COMMANDS["plan"], server, repo_id, Hostile(200, b"[]", (("Link", f"{link}; rel=next"),)), 1
        )
        assert ended.code == 1
        assert "lists page after page without end" in ended.err
        assert server.requests < 60


def test_a_bomb(server: HostileHub, repo_id: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bomb = next(
        one
        for one in hostile_answers(0, 10_000)
        if one.headers == (("Content-Encoding", "gzip"),) and one.status == 200 and len(one.body) > 10_000
    )
    ended = run(COMMANDS["plan"], server, repo_id, bomb, 0)
    assert ended.code == 1
    assert "sent an answer packed as 'gzip'" in ended.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_the_token_stays_at_the_endpoint(server: HostileHub, hub: LocalHub, repo_id: str) -> None:
    """The session's hub stands for another host that a listing's next page is said to be on."""
    link = (("Link", f'<{hub.url}/elsewhere>; rel="next"'),)
    hub.requests.clear()
    run(COMMANDS["plan"], server, repo_id, Hostile(200, b"[]", link), 1)
    went = [request for request in hub.requests if request.path == "/elsewhere"]
    assert went
    assert not any("Authorization" in request.headers for request in went)


def test_others_in_this_process_keep_their_own_hub(ground: Ground, tmp_path: Path) -> None:
    """The client is one for all of a program; of its other requests, nothing is anybody's business."""
    assert run_main("steps", ground.repo).code in (0, 1)  # the client is ours now
    with LocalHub(tmp_path / "other", tokens={"hf_of_another": "you"}) as other:
        client = huggingface_hub.HfApi(endpoint=other.url, token="hf_of_another")
        client.create_repo("you/there")
        assert [repo.id for repo in client.list_models(author="you")] == ["you/there"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "is not a number of seconds; set it to, e.g., 30"),
        ("HF_HUB_ETAG_TIMEOUT", "-1", "is not a number of seconds"),
        ("HF_ENDPOINT", "garbage", "is not an address; set it to, e.g., https://huggingface.co"),
        ("HF_ENDPOINT", "http://[", "is not an address"),
        ("HF_ENDPOINT", "https://host:99999", "is not an address"),
        ("HF_ENDPOINT", "ftp://host", "is not an address"),
        ("HTTPS_PROXY", "http://[", "is not the address of a proxy"),
        ("HTTPS_PROXY", "nonsense://host", "is not the address of a proxy"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "is a SOCKS proxy, which needs: pip install socksio"),
        ("HF_TOKEN", "hf_\u00fc\u2192" + "a" * 20, "holds characters that a token cannot have"),
        ("HF_TOKEN", "hf_a b", "holds characters that a token cannot have"),
    ],
)
def test_a_setting_that_cannot_be_used(
    name: str, value: str, says: str, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    for words in (("steps", "me/absent"), ("push", "merged", "me/absent", "-q")):
        ended = run_main(*words)
        assert ended.code == 1
        assert ended.err.startswith(f"error: {name}")
        assert says in ended.err


def test_a_setting_that_breaks_an_import(ground: Ground) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hubextrap", "steps", "me/absent"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "abc"},
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: HF_HUB_DOWNLOAD_TIMEOUT='abc' is not a number of seconds; set it to, e.g., 30\n",
    )


def start(server: HostileHub, *words: str) -> subprocess.Popen[str]:
    """A command in a process of its own, which knows the server from its environment."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hubextrap.cli.main import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_ENDPOINT": server.url},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "options"),
    [
        pytest.param(signal.SIGTERM, (), id="SIGTERM-ranges"),
        pytest.param(signal.SIGINT, (), id="SIGINT-ranges"),
        pytest.param(signal.SIGTERM, ("--cache",), id="SIGTERM-cache"),
        pytest.param(signal.SIGINT, ("--cache",), id="SIGINT-cache"),
    ],
)
def test_a_signal_while_the_storage_drips(
    sign: signal.Signals, options: tuple[str, ...], server: HostileHub, repo_id: str
) -> None:
    server.drip = "/resolve/"
    process = start(server, "merge", "hub.yaml", "--out", "out", *options)
    assert server.dripping.wait(60)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5  # a drip is 20 s, its whole wait a minute
    assert process.returncode == 128 + sign
    assert "Traceback" not in said
    assert said.endswith(("interrupted\n", "terminated\n"))
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_signal_while_a_name_is_resolved(ground: Ground) -> None:
    """The main thread is in the C library then, and hears of no signal."""
    program = (
        "import ctypes, os, signal, socket, sys, threading\n"
        "def resolve(*given, **options):\n"
        "    print('resolving', flush=True)\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    ctypes.CDLL(None).sleep(30)\n"
        "socket.getaddrinfo = resolve\n"
        "sys.argv = ['hubextrap', 'steps', 'me/absent']\n"
        "from hubextrap.cli.main import main\nmain()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "resolving\n"
    began = time.monotonic()  # it has started and imported what it needs, however long that took
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said == "terminated\n"
    assert time.monotonic() - began < 12


@pytest.mark.slow
def test_a_drip_is_given_up(server: HostileHub, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubextrap.hub_client.WINDOW", 2.0)
    monkeypatch.setattr("hubextrap.hub_client.LEAST_PACE", 20)
    server.drip = "/resolve/"
    began = time.monotonic()
    ended = run(COMMANDS["merge"], server, repo_id, None, 0)
    assert ended.code == 1
    assert "bytes arrived in" in ended.err
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("words", ["steps", "merge"])
def test_interim_answers_without_end(
    words: str, server: HostileHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any pace: nothing of them is an answer."""
    monkeypatch.setattr("hubextrap.hub_client.WINDOW", 1.0)
    began = time.monotonic()
    ended = run(COMMANDS[words], server, repo_id, Hostile(0, b"interim answers"), 0)
    assert ended.code == 1
    assert "did not finish the head of its answer in 1 s" in ended.err
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
def test_a_name_for_the_cache_that_leads_out_of_it(header: str, server: HostileHub, repo_id: str) -> None:
    for name in ('"../../../../escaped/x"', 'W/"/escaped/x"', "../x"):
        ended = run(COMMANDS["merge --cache"], server, repo_id, Hostile(200, b"{}", ((header, name),)), 1)
        assert ended.code == 1
        assert f"{header} that is a path" in ended.err
