"""Devices by name, where torch is and where it is not."""

from __future__ import annotations

import sys

import pytest

from hubextrap.errors import MissingExtra
from hubextrap.tensors.devices import CUDA_LIBRARIES, cuda_libraries, device_problem


@pytest.fixture
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("_no_torch")
def test_without_torch() -> None:
    """What is no device on any machine is refused as such, not for want of torch."""
    assert device_problem("cpu") is None
    assert cuda_libraries("cpu") == 0
    for name in ("", "CUDA:", "cuda:", "cuda:-1", "cuda:01", "cuda 0", "cuda:0:1", "1", "x" * 300 + "!"):
        assert "there is no such device" in str(device_problem(name)), name
    assert "holds no numbers" in str(device_problem("meta"))
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(
            MissingExtra, match=rf"^device {name} needs torch: pip install 'hubextrap\[cuda\]'$"
        ):
            device_problem(name)
        assert cuda_libraries(name) == 0, "a plan is not kept from listing what is wrong with it"


@pytest.mark.parametrize(
    "name", ["", "cuda:", "cuda:-1", "cuda:01", "gpu", "CPU", "cuda:99999999999", "cpu:x"]
)
def test_what_torch_does_not_take_is_no_device(name: str) -> None:
    assert "there is no such device" in str(device_problem(name))


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cpu:1"])
def test_processors(name: str) -> None:
    assert device_problem(name) is None


def test_cuda_s_libraries_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert cuda_libraries("cpu") == 0
    assert cuda_libraries("cuda") == (CUDA_LIBRARIES if torch.version.cuda else 0)
