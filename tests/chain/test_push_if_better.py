"""`run --push-if-better` as whole processes: measured on the disk, then pushed as it is, or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubextrap.localhub import LocalHub

pytestmark = pytest.mark.slow
GOOD, BAD = 100, 0
"""Where the line starts: from step 0 it multiplies the run's first steps, and scores far below step 200."""


@pytest.fixture
def command(
    demo_data: Path,
    on_hub: Callable[..., str],
    recipe_file: Callable[..., Path],
    repo_id: str,
    logged_in: str,
    tmp_path: Path,
) -> Callable[..., list[str]]:
    """A command line: the demo's job, from a line that starts at some step, 100 problems."""

    def write(base_step: int, *options: str) -> list[str]:
        path = recipe_file(
            demo_data / "rlvr-C",
            trajectory={"repo": str(demo_data / "rlvr-C"), "steps": {"max": 200}},
            parameters={"target_step": 400, "base_step": base_step},
            push={"repo": repo_id, "revision": "step_{target_step}"},
            evaluate={
                "tasks": ["radd"],
                "include_path": "demo/tasks",
                "against": ["last"],
                "limit": 100,
                "batch_size": 100,
            },
        )
        places = ["--out", str(tmp_path / "out"), "--summary", str(tmp_path / "page.md")]
        return [
            *(sys.executable, "-m", "hubextrap", "run", str(path), *places, "--push-if-better"),
            *options,
        ]

    return write


def ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_what_is_better_is_pushed_as_it_was_judged(
    command: Callable[..., list[str]], hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    hub.requests.clear()
    done = ended(command(GOOD, "--json"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (prediction,), (figure,) = found["predictions"], found["gate"]["figures"]
    assert found["gate"]["passed"]
    assert figure["value"] > figure["last"]
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("✅ radd exact")
    assert f"at `{repo_id}@step_400` as `{prediction['push']['commit'][:8]}`" in page
    branch = {"repo_id": repo_id, "revision": "step_400"}
    assert HfApi().model_info(**branch).sha == prediction["push"]["commit"]
    for file in HfApi().list_repo_files(**branch):
        if file in (".gitattributes", "README.md"):
            continue
        there = Path(HfApi().hf_hub_download(filename=file, **branch)).read_bytes()
        made = (tmp_path / "out" / file).read_bytes()
        assert hashlib.sha256(there).digest() == hashlib.sha256(made).digest(), file
    assert not (tmp_path / ".out.partial").exists()


def test_what_is_worse_stays_where_it_is(
    command: Callable[..., list[str]], hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    done = ended(command(BAD))
    assert done.returncode == 3, done.stderr
    assert not HfApi().repo_exists(repo_id)
    said = " ".join(done.stderr.split())  # lines are folded
    assert re.search(r"error: radd exact\S* fell by \S+, more than chance \(", said), said
    assert (tmp_path / "page.md").read_text().startswith("❌ radd exact")
    out = tmp_path / "out"
    told = f"not pushed: it stays in {out}; `hubextrap push {out} {repo_id}@step_400` pushes it all the same"
    assert told in said
    assert not (tmp_path / ".out.partial").exists()
    pushed = ended([sys.executable, "-m", *told.split("`")[1].split()])
    assert pushed.returncode == 0, pushed.stderr


def test_bounds_take_the_place_of_chance(
    command: Callable[..., list[str]], hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    """What passes the bounds is pushed, though it is worse; what is better, but not by enough, is not."""
    refused = ended(command(GOOD, "--max-loss", "-0.9", "--min-score", "radd=0.5"))
    assert refused.returncode == 3, refused.stderr
    page = (tmp_path / "page.md").read_text()
    assert re.match(r"❌ radd \S+ rose by \S+; --max-loss -0\.9 asks for a gain of at least 0\.9 \(", page)
    assert "✅ radd exact" in page.split("###")[0]
    assert not HfApi().repo_exists(repo_id)
    (tmp_path / "out").rename(tmp_path / "before")
    passed = ended(command(BAD, "--max-loss", "0.9"))
    assert passed.returncode == 0, passed.stderr
    assert HfApi().repo_exists(repo_id)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on_after_a_stop(
    sign: signal.Signals, command: Callable[..., list[str]], hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    """Stopped while it is measured, when the prediction is whole and nothing pushed."""
    line = command(GOOD)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "out" / "hubextrap.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(sign)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if sign == signal.SIGKILL else 143), said
    made = (tmp_path / "out" / "hubextrap.json").stat().st_mtime_ns
    assert not HfApi().repo_exists(repo_id)
    if sign == signal.SIGTERM:
        assert (tmp_path / "page.md").read_text() == "❌ terminated\n\n"
    done = ended(line)
    assert done.returncode == 0, done.stderr
    assert "is whole since an earlier run; going on with what was to follow" in done.stderr
    assert (tmp_path / "out" / "hubextrap.json").stat().st_mtime_ns == made, "nothing was predicted again"
    assert HfApi().repo_exists(repo_id)
    assert not (tmp_path / ".out.partial").exists()
