"""How mergekit comes to know our methods, and what the command passes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from typer.testing import CliRunner

import hubextrap.methods.registry as ours
from hubextrap.cli.app import app
from hubextrap.errors import MethodError
from hubextrap.mergekit_plugin import TrajectoryMergeMethod, register_methods
from hubextrap.methods import method_names, register_method

Config = dict[str, Any]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test register methods that are gone afterwards."""
    monkeypatch.setattr(ours, "_targets", dict(ours._targets))
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield
    ours.find_method.cache_clear()


def last_slope(steps: Sequence[int], target_step: float, *, gain: float) -> np.ndarray:
    rise = gain * (target_step - steps[-1]) / (steps[-1] - steps[-2])
    return np.array([0.0] * (len(steps) - 2) + [-rise, 1 + rise])


def test_every_method_is_there() -> None:
    for name in method_names():
        assert isinstance(registry.get(name), TrajectoryMergeMethod)


@pytest.mark.usefixtures("registries")
def test_a_new_method_appears_by_itself_and_registering_again_changes_nothing() -> None:
    register_method("last_slope", last_slope)
    register_methods()
    method = registry.get("last_slope")
    register_methods()
    assert registry.get("last_slope") is method
    group = TensorGroup.from_tensors(
        [torch.tensor([5.0]), torch.tensor([2.0]), torch.tensor([1.0])], ids=["c", "b", "a"], name="w"
    )
    settings = {"step": {"a": 0, "b": 10, "c": 20}, "target_step": 30.0}
    assert method([group], parameters=settings | {"gain": 2})[0].tolist() == [11.0]
    with pytest.raises(MethodError, match="last_slope: gain is missing"):
        method([group], parameters=settings)
    with pytest.raises(MethodError, match="gain must be a number, not 'much'"):
        method([group], parameters=settings | {"gain": "much"})


@pytest.mark.usefixtures("registries")
def test_a_name_that_mergekit_has_is_an_error() -> None:
    register_method("alpha_slope", last_slope)
    register_method("slerp", last_slope)
    with pytest.raises(MethodError, match="a merge method slerp already, from mergekit"):
        register_methods()
    with pytest.raises(RuntimeError, match="alpha_slope"):  # nothing was registered
        registry.get("alpha_slope")


def test_sums_in_float64_where_the_weights_are() -> None:
    tiny = 2.0**-40
    group = TensorGroup.from_tensors(
        [torch.tensor([1.0], dtype=torch.float64), torch.tensor([1 + tiny], dtype=torch.float64)],
        ids=["a", "b"],
    )
    settings = {"step": {"a": 0, "b": 10}, "target_step": 20}
    (result,) = registry.get("two_point")([group], parameters=settings)
    assert result.item() == 1 + 2 * tiny


def test_transposed_and_empty_tensors() -> None:
    square = torch.arange(6.0).reshape(2, 3)
    group = TensorGroup.from_tensors([square.T, 2 * square.T], ids=["a", "b"], base_index=0)
    settings = {"step": {"a": None, "b": 10}, "target_step": 20}
    (result,) = registry.get("two_point")([group], parameters=settings)
    assert torch.equal(result, 3 * square.T)
    group = TensorGroup.from_tensors([torch.ones(0, 3), torch.ones(0, 3)], ids=["a", "b"], base_index=0)
    assert registry.get("least_squares")([group], parameters=settings)[0].shape == (0, 3)


def test_slices_work_as_ever(
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Callable[..., dict[str, torch.Tensor]],
    assert_same_bits: Callable[..., None],
) -> None:
    config = config_of(sharded, "least_squares", window=2)
    expected = through_mergekit(config)
    sources = [*config.pop("models"), {"model": config["base_model"]}]
    config["slices"] = [{"sources": [source | {"layer_range": [0, 2]} for source in sources]}]
    assert_same_bits(through_mergekit(config), expected)


@pytest.mark.slow
def test_the_command_is_mergekit_s_own(
    sharded: Path, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    """Once as users start it: options, files and exit codes are mergekit's."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(sharded, "two_point")))
    command = [sys.executable, "-m", "hubextrap", "mergekit-yaml"]
    options = ["--out-shard-size", "5K", "--no-write-model-card", "-v"]
    done = subprocess.run(
        [*command, *options, str(config), str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Planning operations" in done.stderr
    assert len(list((tmp_path / "out").glob("model-0*.safetensors"))) > 2
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "Usage: hubextrap mergekit-yaml [OPTIONS] CONFIG_FILE OUT_PATH"),
        (["a.yaml", "out", "--nope"], 2, "No such option"),
        (["--help"], 0, "--out-shard-size"),
    ],
)
def test_usage_is_left_to_mergekit(arguments: list[str], code: int, text: str) -> None:
    result = CliRunner().invoke(app, ["mergekit-yaml", *arguments])
    assert (result.exit_code, text in result.output) == (code, True), result.output


def test_errors_of_mergekit_stay_its_own(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["mergekit-yaml", str(tmp_path / "absent.yaml"), str(tmp_path / "out")])
    assert (result.exit_code, type(result.exception)) == (1, FileNotFoundError)


@pytest.mark.slow
def test_without_mergekit_or_with_an_old_one(tmp_path: Path) -> None:
    """0.1.4 has other names in merge_methods; the error says what to install."""
    (tmp_path / "mergekit" / "merge_methods").mkdir(parents=True)
    for package in ("mergekit", "mergekit/merge_methods"):
        (tmp_path / package / "__init__.py").write_text("class MergeMethod: ...\n")
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "for absent in (False, True):\n"
        "    if absent: sys.modules['mergekit'] = sys.modules['mergekit.merge_methods'] = None\n"
        "    sys.modules.pop('hubextrap.mergekit_plugin', None)\n"
        "    sys.argv = ['hubextrap', 'mergekit-yaml', 'a.yaml', 'out']\n"
        "    from hubextrap.cli.main import main\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
    old, absent = done.stderr.splitlines()
    assert old.startswith("error: mergekit cannot be used (cannot import name 'BasePolicy' from 'mergekit.m")
    assert old.endswith("mergekit 0.1.5, which 0.1.4 does not have: pip install 'hubextrap[mergekit]'")
    assert absent == "error: the plugin for mergekit needs mergekit: pip install 'hubextrap[mergekit]'"
