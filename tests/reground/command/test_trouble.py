"""What goes wrong around a run: one clear error each, and the run goes on once it is mended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Lines, Warm

from hubextrap import api
from hubextrap.errors import (
    CheckpointError,
    CheckpointMismatch,
    CommandFailed,
    CorruptFile,
    HubExtrapError,
    NonFinite,
    OutputError,
    RecipeError,
    ReferenceNotFound,
    UnsupportedCheckpoint,
)
from hubextrap.executors.testing_run import is_alive
from hubextrap.recipe import load_reground_recipe

Setting = Any


def run(setting: Setting, **arguments: Any) -> api.RegroundResult:
    return api.reground(load_reground_recipe(setting.recipe), setting.out, **arguments)


def fails(setting: Setting, error: type[HubExtrapError], **arguments: Any) -> str:
    with pytest.raises(error) as caught:
        run(setting, **arguments)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.fixture
def expected(undisturbed: Setting) -> Callable[[Setting], None]:
    """``expected(setting)``: run to the end now, and look that all is as if nothing had ever gone wrong."""

    def check(mended: Setting) -> None:
        mended.fault.unlink(missing_ok=True)
        result = run(mended)
        assert [d.action for d in result.decisions] == ["jumped", "skipped"]
        assert undisturbed.history() == mended.history()
        for path in undisturbed.out.rglob("*.safetensors"):
            assert path.read_bytes() == (mended.out / path.relative_to(undisturbed.out)).read_bytes()

    return check


def test_a_failing_trainer_speaks_for_itself(
    setting: Callable[..., Setting], expected: Callable[[Setting], None], capfdbinary: Any
) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text("exit 3")
    message = fails(setting, CommandFailed)
    assert message.startswith("round 1: the trainer ended with exit code 3; its last lines:\n  line 29\n")
    assert "\n  line 39\n  ValueError: the reward model is gone\n" in message
    log = setting.out / "round-001" / "train.log"
    assert f"its whole output is in {log}; fix the cause, then run the same command again" in message
    assert "line 0\n" in log.read_text()
    assert capfdbinary.readouterr().out == b""
    expected(setting)
    assert "line 0\n" in log.read_text()  # what the first attempt said is still there


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("signal SIGTERM", "round 1: the trainer ended with SIGTERM; its last lines:\n  training from"),
        (
            "signal SIGKILL",
            "round 1: the trainer ended with SIGKILL (often because memory ran out); its last",
        ),
    ],
)
def test_a_trainer_that_somebody_ended(fault: str, said: str, setting: Callable[..., Setting]) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text(fault)
    assert fails(setting, CommandFailed).startswith(said)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (
            "nothing",
            UnsupportedCheckpoint,
            r"no checkpoint like checkpoint-\{step\} in .*output; there is: n",
        ),
        ("truncated", CorruptFile, r"checkpoint-4/model.safetensors: is cut short: its header describes"),
        ("nan", NonFinite, r"model.safetensors: 1 weights of model.embed_tokens.weight are NaN or infinite"),
        ("shape", CheckpointMismatch, r"not a checkpoint of the model that the round started from:\n.*embed"),
        ("no config", CorruptFile, r"checkpoint-4: no config.json; a model cannot be loaded without one"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(
    fault: str,
    error: type[HubExtrapError],
    said: str,
    setting: Callable[..., Setting],
    expected: Callable[[Setting], None],
    lines: Lines,
) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text(fault)
    message = fails(setting, error)
    assert re.search(said, message)
    assert message.startswith("round 1: ")
    assert message.endswith(
        "run the same command again: it looks for the checkpoint again, and trains again if there is none"
    )
    with pytest.raises(error):
        run(setting, progress=lines)  # nothing was mended: trained again, and no better
    assert any(line.endswith("; the round is trained again") for line in lines.said)
    if fault in ("nothing", "shape"):
        expected(setting)


def test_a_pattern_that_fits_nothing_costs_no_training(
    setting: Callable[..., Setting], expected: Callable[[Setting], None]
) -> None:
    setting = setting(checkpoint="step-{steps}/actor", iterations=2)
    message = fails(setting, UnsupportedCheckpoint)
    assert "no checkpoint step-4/actor in" in message
    assert "there is: checkpoint-4\n" in message
    setting.change(checkpoint="checkpoint-{steps}")
    setting.fault.write_text("exit 1")  # the first round's training is not asked for again …
    assert fails(setting, CommandFailed).startswith("round 2: the trainer ended with exit code 1")
    expected(setting)


def test_a_trainer_that_stopped_early(setting: Callable[..., Setting]) -> None:
    setting = setting(iterations=1)
    setting.recipe.write_text(setting.recipe.read_text().replace("'{steps}'", "'3{steps}'"))
    message = fails(setting, UnsupportedCheckpoint)
    assert "is checkpoint-34, but the round had to end at step 4; make the trainer save one there" in message


def test_a_program_that_is_not_there(setting: Callable[..., Setting]) -> None:
    setting = setting(train="pyhton train.py {model} {steps} {output}")
    assert fails(setting, CommandFailed) == (
        "round 1: the trainer: the program 'pyhton' was not found; check the command and PATH"
    )


def test_a_probe_without_a_number(
    setting: Callable[..., Setting], expected: Callable[[Setting], None]
) -> None:
    setting = setting(guard={"max_error": "off", "probe": "echo accuracy=.5 {model}", "margin": 0.1})
    message = fails(setting, CommandFailed)
    assert message.startswith("round 1: the probe before the jump printed no line that is a number; its last")
    assert "\n  accuracy=.5 " in message


def test_a_shell_is_there_when_asked_for(
    setting: Callable[..., Setting], start: Path, tmp_path: Path
) -> None:
    """Values stay one word each, whatever is in them."""
    model = Path(shutil.copytree(start, tmp_path / "it's $HOME; a `model`"))
    setting = setting(iterations=1, model=str(model))
    command = [
        word if "{" in word else f"'{word}'" for word in load_reground_recipe(setting.recipe).reground.train
    ]
    setting.change(shell=True, train=f"echo begun && {' '.join(command)} | cat")
    run(setting)
    assert (setting.out / "round-001" / "train.log").read_text() == f"begun\ntraining from {model}\n"


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up(setting: Callable[..., Setting], expected: Callable[[Setting], None]) -> None:
    """While the trainer writes, and while the jump is written."""
    setting = setting(iterations=2)
    with full_disk(6_000):
        message = fails(setting, CommandFailed)
    assert "the trainer ended with exit code 1" in message
    assert "File too large" in message
    setting.fault.write_text("own disk")
    with full_disk(6_000):
        message = fails(setting, OutputError)
    assert "extrapolated.partial/model/model.safetensors: no room: " in message
    expected(setting)
    log = (setting.out / "round-001" / "train.log").read_text()
    assert log.count("training from") == 2  # the jump alone was made again


def test_a_state_that_cannot_be_written(
    setting: Callable[..., Setting], expected: Callable[[Setting], None]
) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text("own disk")
    with full_disk(1000):
        message = fails(setting, OutputError)
    assert "state.json: cannot be written: File too large; make room, then run the same" in message
    expected(setting)


def test_room_is_looked_for_before_each_round(
    setting: Callable[..., Setting], expected: Callable[[Setting], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting(iterations=2)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1234))
        message = fails(setting, OutputError)
    assert re.fullmatch(
        r"round 1: [\d,]+ bytes are needed in .*run \(twice the model: trained and extrapolated\), and 1,234 "
        r"are free; make room \(keep: last removes old rounds' weights\), then run the same command again",
        message,
    )
    assert not (setting.out / "round-001" / "train.log").exists()
    expected(setting)


def test_another_recipe_over_an_old_run(
    setting: Callable[..., Setting], lines: Lines, tmp_path: Path, start: Path
) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text("exit 1")
    fails(setting, CommandFailed)
    setting.change(jump=6)  # nothing is trained yet, so nothing is lost
    fails(setting, CommandFailed, progress=lines)
    assert f"{setting.out}: starting over, as reground.jump was 4 and is 6" in lines.said
    setting.fault.unlink()
    run(setting)
    setting.change(jump=8, rule="anchored", iterations=5)
    message = fails(setting, RecipeError)
    model = setting.out / "round-002" / "output" / "checkpoint-4"
    assert message == (
        f"{setting.out}: its 2 trained rounds had another recipe: reground.jump was 6 and is 8; "
        "reground.rule was 'two_point' and is 'anchored'. Put that back to go on, or give another "
        f"--out; with reground.model: {model} it starts where this run is"
    )


def test_every_key_that_decided_a_round_counts_and_none_that_did_not(
    setting: Callable[..., Setting], start: Path, tmp_path: Path
) -> None:
    setting = setting(iterations=1)
    run(setting)
    before = setting.recipe.read_text()
    train = yaml.safe_load(before)["reground"]["train"]
    changes = {
        "model": str(shutil.copytree(start, tmp_path / "other")),
        "train": [*train, "--pause", "0"],
        "window": 5,
        "jump": 5,
        "rule": "anchored",
        "guard": {"max_error": 0.5},
    }
    for key, value in changes.items():
        setting.change(**{key: value})
        assert f"its 1 trained round had another recipe: reground.{key}" in fails(setting, RecipeError)
        setting.recipe.write_text(before)
    for free in (
        {"checkpoint": "checkpoint-*"},
        {"max_rl_steps": 9},
        {"max_represented_steps": 99},
        {"max_skipped": 9},
        {"keep": "last"},
    ):
        setting.change(**free)
        assert len(run(setting).decisions) == 1
        setting.recipe.write_text(before)


def test_a_folder_with_something_else_in_it(setting: Callable[..., Setting]) -> None:
    setting = setting()
    setting.out.mkdir()
    (setting.out / "thesis.tex").touch()
    assert fails(setting, OutputError) == (
        f"{setting.out}: is there already and holds no run; remove it, or choose another --out"
    )
    (setting.out / "state.json").write_text('{"round": 1')
    assert "state.json: cannot be read as the state of a run (" in fails(setting, CorruptFile)


def test_a_start_that_is_none(setting: Callable[..., Setting], start: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(start, tmp_path / "broken"))
    size = (broken / "model.safetensors").stat().st_size
    os.truncate(broken / "model.safetensors", size - 10)
    assert "is cut short" in fails(setting(model=str(broken)), CorruptFile)
    assert fails(setting(model="./nowhere"), ReferenceNotFound).startswith("./nowhere: no such local folder")


def test_a_checkpoint_that_changed_after_it_was_checked(
    setting: Callable[..., Setting], expected: Callable[[Setting], None]
) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text("own disk")
    with full_disk(6_000):
        fails(setting, OutputError)
    weights = setting.out / "round-001" / "output" / "checkpoint-4" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(HubExtrapError, match="changed after it was checked") as changed:
        run(setting)
    assert changed.value.file == str(weights)
    weights.write_bytes(whole)
    with full_disk(6_000):
        fails(setting, OutputError)  # restored, so it is at the jump again
    weights.write_bytes(whole[:-1])
    message = fails(setting, CheckpointError)
    assert message.endswith(f"restore it, or remove {weights.parent} to train the round again")
    shutil.rmtree(weights.parent)
    expected(setting)


def pid_in(setting: Setting) -> int:
    """The trainer's pid, as soon as it waits."""
    path = setting.out / "round-001" / "output" / "pid"
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def is_gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
    ids=lambda x: str(x),
)
def test_a_signal_ends_the_trainer_too(
    sign: signal.Signals,
    code: int,
    warm: Warm,
    setting: Callable[..., Setting],
    expected: Callable[[Setting], None],
) -> None:
    setting = setting(iterations=2)
    setting.fault.write_text("wait")
    process = warm.start("reground", setting.recipe, "--out", setting.out)
    trainer = pid_in(setting)
    message = fails(setting, OutputError)
    assert message.endswith(
        f"run: another run is writing it (process {process}); wait for it to end, or stop it"
    )
    ended = warm.end(process, after=0.0, sign=sign)
    assert ended.code == code
    if sign != signal.SIGKILL:
        assert f"{sign.name} passed on to process group" in ended.output
    assert is_gone(trainer, within=5.0)
    expected(setting)


@pytest.mark.slow
def test_a_trainer_that_does_not_want_to_end(
    warm: Warm, setting: Callable[..., Setting], lines: Lines, expected: Callable[[Setting], None]
) -> None:
    """After a SIGKILL of hubextrap it has its grace; the next run waits for that."""
    setting = setting(iterations=2)
    setting.fault.write_text("stubborn")
    process = warm.start("reground", setting.recipe, "--out", setting.out)
    trainer = pid_in(setting)
    warm.end(process, after=0.0)
    setting.fault.unlink()
    run(setting, progress=lines)
    assert f"{setting.out}: waiting for the command of a run that was killed to end" in lines.said
    assert is_gone(trainer, within=0.1)
    expected(setting)
