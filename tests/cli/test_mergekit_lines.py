"""Command lines of people who come with mergekit and its configs, and what lies there then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import Ground, run_main
from typer.testing import CliRunner

from hubextrap.cli.passed_on import MERGEKIT_OPTIONS

CONFIG = """\
merge_method: two_point
base_model: run/step_0
models:
  - model: run/step_20
  - model: run/step_30
    parameters: {step: 30}
parameters:
  target_step: 60
dtype: float32
"""
THEIRS = """\
merge_method: task_arithmetic
base_model: run/step_0
models:
  - model: run/step_30
    parameters: {weight: 1.5, density: 0.5}
parameters: {normalize: false}
tokenizer_source: base
dtype: bfloat16
"""


@pytest.fixture
def config(ground: Ground) -> Path:
    path = ground.folder / "c.yaml"
    path.write_text(CONFIG)
    return path


def weights(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))]


def steps_in(folder: str) -> list[int]:
    return [one["step"] for one in json.loads(Path(folder, "hubextrap.json").read_text())["inputs"]]


def test_mergekits_own_config_in_a_process_of_its_own(ground: Ground) -> None:
    Path("c.yaml").write_text(THEIRS)
    before = sorted(ground.folder.rglob("*"))
    ended = subprocess.run(
        [sys.executable, "-m", "hubextrap", "merge", "c.yaml", "out"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        "error: c.yaml:1: merge_method: task_arithmetic is mergekit's own method: `hubextrap mer"
    )
    assert "run/step_30 with parameters: {step: 30}, and for α = 1.5 parameters: {target_step: 45}" in line
    assert sorted(ground.folder.rglob("*")) == before


@pytest.mark.parametrize("verb", ["plan", "merge", "run", "recipes validate", "scan", "backtest"])
def test_every_command_says_it(verb: str, ground: Ground) -> None:
    Path("c.yaml").write_text(THEIRS)
    ended = run_main(*verb.split(), "c.yaml")
    assert ended.code == 1
    assert ended.err.startswith("error: c.yaml:1: merge_method: task_arithmetic is mergekit's own method")
    assert len(ended.err.splitlines()) == 1


def test_the_second_argument_is_the_folder(config: Path) -> None:
    for line in ("merge c.yaml one", "merge c.yaml --out two", "run c.yaml three"):
        assert run_main(*line.split(), "-q").code == 0, line
    assert weights("one") == weights("two") == weights("three") != []
    assert steps_in("one") == [0, 20, 30]
    ended = run_main("plan", "c.yaml", "one", "-q", "--json")
    assert ended.code == 1
    assert any("one" in problem for problem in json.loads(ended.out)["problems"])


@pytest.mark.parametrize("verb", ["plan", "merge", "run"])
def test_two_folders_are_one_too_many(verb: str, config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    for line in ("c.yaml out --out other", "c.yaml out --out out", "--out other c.yaml out"):
        ended = run_main(verb, *line.split(), "-q")
        assert ended.code == 2
        assert "both say where to write" in " ".join(ended.err.replace("│", " ").split())
    assert sorted(config.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "option", ["--cuda", "--lazy-unpickle", "--no-copy-tokenizer", "--out-shard-size=5B"]
)
@pytest.mark.parametrize("verb", ["plan", "merge", "run"])
def test_an_option_of_mergekits(verb: str, option: str, config: Path) -> None:
    ended = run_main(verb, "c.yaml", "out", option)
    assert ended.code == 2
    said = " ".join(ended.err.replace("│", " ").split())
    assert (
        f"{option.partition('=')[0]} is mergekit's option; leave it out, or give it to `hubextrap mer" in said
    )
    assert not Path("out").exists()


@pytest.mark.slow
def test_every_option_of_the_mergekit_that_is_installed() -> None:
    run_yaml = pytest.importorskip("mergekit.scripts.run_yaml")
    theirs = {
        name.removeprefix("--").removeprefix("no-")
        for parameter in run_yaml.main.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    assert theirs - {"device", "quiet"} == MERGEKIT_OPTIONS


def test_the_step_is_what_the_name_says(ground: Ground) -> None:
    """Of a folder, of verl's folders in a folder, of a Trainer's."""
    for number, name in ((20, "verl/global_step_20/actor/huggingface"), (30, "trainer/checkpoint-30")):
        Path(name).parent.mkdir(parents=True)
        Path(name).symlink_to(ground.folder / f"run/step_{number}")
    text = CONFIG.replace("run/step_20", "verl/global_step_20/actor/huggingface")
    text = text.replace("run/step_30\n    parameters: {step: 30}", "trainer/checkpoint-30")
    Path("c.yaml").write_text(text)
    Path("ours.yaml").write_text(
        "trajectory: {checkpoints: [{model: run/step_0}, {model: verl/global_step_20/actor/huggingface}, "
        "{model: trainer/checkpoint-30, step: 30}], clock: steps}\n"
        "merge_method: two_point\nparameters: {target_step: 60}\nout_dtype: float32\n"
    )
    for name in ("c", "ours"):
        assert run_main("merge", f"{name}.yaml", name, "-q").code == 0
        assert steps_in(name) == [0, 20, 30]
    assert weights("c") == weights("ours")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("run/step_20", "merged"),
            "c.yaml:4: models[0]: no step for merged, nor in its name; write it beside",
        ),
        (
            ("step: 30", "step: 40"),
            "c.yaml:6: models[1].parameters.step: run/step_30 says step 30 by its name, and 40",
        ),
    ],
)
def test_a_step_that_no_name_says_or_another(change: tuple[str, str], said: str, config: Path) -> None:
    config.write_text(CONFIG.replace(*change))
    for line in ("merge c.yaml out", "plan c.yaml", "recipes validate c.yaml"):
        ended = run_main(*line.split(), "-q" if "validate" not in line else "./c.yaml")
        assert ended.code == 1
        assert said in ended.err
    assert not Path("out").exists()


def test_filters_are_rules(config: Path) -> None:
    conditions = (
        "  damping:\n    - {filter: mlp, value: 0.5}\n    - {filter: norm, value: 0}\n    - value: 0.9\n"
    )
    config.write_text(CONFIG.replace("dtype", f"{conditions}dtype"))
    Path("ours.yaml").write_text(
        "trajectory: {repo: run, steps: {only: [0, 20, 30]}, clock: steps}\nmerge_method: two_point\n"
        "parameters:\n  target_step: 60\n  damping: 0.9\n  tensors:\n"
        "    - {match: '*mlp*', method: two_point, damping: 0.5}\n"
        "    - {match: '*norm*', method: two_point, damping: 0}\nout_dtype: float32\n"
    )
    for name in ("c", "ours"):
        assert run_main("merge", f"{name}.yaml", name, "-q").code == 0
    assert weights("c") == weights("ours") != []


def test_help_shows_the_second_argument() -> None:
    from hubextrap.cli.app import app

    for verb in ("plan", "merge", "run"):
        assert "[OUT]" in CliRunner().invoke(app, [verb, "-h"]).output
