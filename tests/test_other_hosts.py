"""Nothing reaches another machine than the one that HF_ENDPOINT names; conftest.py looks after every test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from hubextrap.hub_access import keep_to_the_endpoint

SOMEWHERE = "192.0.2.1"  # reserved for documentation


def test_a_test_that_reaches_out_fails(other_hosts: Callable[[], list[str]]) -> None:
    with pytest.raises(OSError, match=f"{SOMEWHERE}: a test must not reach another machine"):
        socket.create_connection((SOMEWHERE, 9), timeout=1)
    program = f"import socket; socket.getaddrinfo('{SOMEWHERE}', 9)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "a test must not reach another machine" in ended.stderr
    assert [note.partition(" ")[0] for note in other_hosts()] == [SOMEWHERE, SOMEWHERE]


def test_libraries_that_count_loads_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    config = pytest.importorskip("datasets").config
    for name in ("HF_UPDATE_DOWNLOAD_COUNTS", "DISABLE_SAFETENSORS_CONVERSION", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(config, "USE_PARQUET_EXPORT", True)
    keep_to_the_endpoint()
    assert os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] == "0"
    assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert not config.HF_UPDATE_DOWNLOAD_COUNTS
    assert not config.USE_PARQUET_EXPORT
    # the public Hub has a server for details of its own, and a user may want to be counted
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "1")
    monkeypatch.setattr(config, "USE_PARQUET_EXPORT", True)
    keep_to_the_endpoint()
    assert config.HF_UPDATE_DOWNLOAD_COUNTS
    assert config.USE_PARQUET_EXPORT
