"""A hub for the whole session, and an environment in which no test can reach another one.

huggingface_hub and torch read these variables when they are imported, so they are set first of all.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import NoReturn

import pytest
import typer.main
from harness import Lines

from hubextrap.errors import HubExtrapError
from hubextrap.patience import Patience

try:
    from hubextrap.localhub import LocalHub
except HubExtrapError as error:
    raise pytest.UsageError(f"the tests need what hubextrap[dev] brings: {error}") from error

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored

# a process builds its commands once, and so do the thousands of commands that this one runs
typer.main.get_command = cache(typer.main.get_command)

_HOME = Path(tempfile.mkdtemp(prefix="hubextrap-tests-"))
_TOKEN = "hf_" + "testtoken" * 3
_HUB = LocalHub(_HOME / "hub", tokens={_TOKEN: "me"})
_HUB.start()

for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "HUGGINGFACE_"))]:
    del os.environ[_name]
os.environ.pop("COLUMNS", None)  # a terminal's, or a test runner's: lines would be folded
os.environ.pop("GITHUB_ACTIONS", None)  # where it is set, commands annotate, and typer draws in colours
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": str(_HOME / "hf"),
    "HF_TOKEN": "",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_LOOPBACK = Path(__file__).parent / "loopback" / "sitecustomize.py"
_OTHER_HOSTS = _HOME / "other-hosts"
os.environ |= {
    "HUBEXTRAP_TESTS_OTHER_HOSTS": str(_OTHER_HOSTS),
    "PYTHONPATH": os.pathsep.join(filter(None, [str(_LOOPBACK.parent), os.environ.get("PYTHONPATH")])),
}
run_path(str(_LOOPBACK))  # refuses connections from now on


_OPTIONAL = {
    "evaluate": ("lm_eval", "math_verify"),
    "logits/test_lm_eval_model.py": ("lm_eval",),
    "mergekit_plugin": ("mergekit",),
    "reground/callback": ("accelerate", "peft", "trl"),
    "report": ("matplotlib",),
}
"""What tests about an optional part of hubextrap need, by folder or file."""


def _lacking(file: Path) -> list[str]:
    """The packages that a test file needs and that are not installed."""
    here = file.relative_to(Path(__file__).parent)
    needed = [name for place, names in _OPTIONAL.items() if here.is_relative_to(place) for name in names]
    return [name for name in needed if not _is_installed(name)]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it was blocked in sys.modules
        return False


class _Skipped(pytest.Module):
    """A test file that is skipped, and seen to be."""

    def collect(self) -> NoReturn:
        pytest.skip(f"{', '.join(_lacking(self.path))} not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _Skipped.from_parent(parent, path=module_path) if _lacking(module_path) else None


def pytest_configure(config: pytest.Config) -> None:
    # huggingface_hub's own LFS upload; nothing that its callers could change
    config.addinivalue_line(
        "filterwarnings", "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"
    )


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules stay: no collection looks through them again


def pytest_unconfigure() -> None:
    _HUB.stop()
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """The session's hub, LFS only; faults and request log are cleared around each test."""
    _HUB.faults.clear()
    _HUB.requests.clear()
    yield _HUB
    _HUB.faults.clear()
    _HUB.requests.clear()


@pytest.fixture
def other_hosts() -> Callable[[], list[str]]:
    """The attempts so far at reaching another machine, each reported once; none was let through."""

    def attempts() -> list[str]:
        found = _OTHER_HOSTS.read_text().splitlines() if _OTHER_HOSTS.exists() else []
        _OTHER_HOSTS.unlink(missing_ok=True)
        return found

    return attempts


@pytest.fixture(autouse=True)
def _no_other_host(other_hosts: Callable[[], list[str]]) -> Iterator[None]:
    """No test and nothing that it starts reaches another machine."""
    yield
    found = other_hosts()
    assert not found, f"reached for another machine: {'; '.join(found)}"


@pytest.fixture(autouse=True)
def _brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts at a call to the Hub, where the Hub asks for no more."""
    monkeypatch.setattr("hubextrap.patience.CALLS", Patience(attempts=5, first_wait=0.01))


@pytest.fixture(scope="session")
def _cdn_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("cdn-hub"), tokens={_TOKEN: "me"}, cdn=True) as hub:
        yield hub


@pytest.fixture
def cdn_hub(_cdn_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that redirects to storage on another port; the client is logged in to it as user "me"."""
    import huggingface_hub.constants  # not before the variables above are set

    _cdn_hub.faults.clear()
    _cdn_hub.requests.clear()
    # The client reads HF_ENDPOINT when it is imported, for the session's hub.
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, _cdn_hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", _cdn_hub.url)
    monkeypatch.setenv("HF_TOKEN", _TOKEN)
    yield _cdn_hub
    _cdn_hub.faults.clear()
    _cdn_hub.cdn_expiry = 3600.0


@pytest.fixture
def token() -> str:
    """A token with which user "me" writes; tests that need it everywhere set HF_TOKEN to it."""
    return _TOKEN


@pytest.fixture
def logged_in(token: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """HF_TOKEN holds that token."""
    monkeypatch.setenv("HF_TOKEN", token)
    return token


@pytest.fixture
def repo_id() -> str:
    """A name that no other test uses; the repo is not created."""
    return f"me/test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def rlvr() -> Path:
    """The folder of full trajectories (rlvr-A, rlvr-C), which the repository does not hold."""
    folder = os.environ.get("HUBEXTRAP_DATA")
    if not folder:
        pytest.skip("HUBEXTRAP_DATA is not set: it names the folder with the full trajectories")
    assert Path(folder).is_dir(), f"HUBEXTRAP_DATA is not a folder: {folder}"
    return Path(folder)


@pytest.fixture
def demo_data() -> Path:
    """The part of a real trajectory that the repository holds."""
    folder = Path(__file__).parents[1] / "demo" / "data"
    assert folder.is_dir(), f"{folder} is missing; it is part of the repository"
    return folder


@pytest.fixture
def lines() -> Lines:
    """A Progress whose ``said`` lists the lines told to the user."""
    return Lines()
