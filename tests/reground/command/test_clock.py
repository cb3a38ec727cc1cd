"""Rounds and jumps by the learning rates that the trainer left beside its checkpoints, or that are stated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command_lines import run_main
from harness import Lines

from hubextrap import api
from hubextrap.claims import unsealed
from hubextrap.durable.atomic import write_sealed
from hubextrap.errors import ClockError, CommandFailed, CorruptFile, MethodError, RecipeError
from hubextrap.recipe import load_reground_recipe, parse_reground_recipe
from hubextrap.regrounding.round_rates import rates_of_round

Setting = Any
FALLING = [1.0 - step / 16 for step in range(16)]


def run(setting: Setting, **arguments: Any) -> api.RegroundResult:
    return api.reground(load_reground_recipe(setting.recipe), setting.out, **arguments)


@pytest.fixture
def with_rates(setting: Callable[..., Setting]) -> Callable[..., Setting]:
    """``with_rates(rates, own_steps=…, …)``: the trainer goes by these rates and logs them."""

    def make(rates: list[float], own_steps: bool = False, **section: Any) -> Setting:
        made = setting(**section)
        train = load_reground_recipe(made.recipe).reground.train
        more = ["--rates", json.dumps(rates), *(["--own-steps"] if own_steps else [])]
        made.change(train=[*train, *more])
        return made

    return make


def shares(decision: dict[str, Any]) -> float:
    """How far the jump goes along the last window, in units of it."""
    return float(decision["coefficients"]["*"][-1]) - 1.0


def test_a_jump_stands_for_steps_at_the_rate_that_the_trainer_left(with_rates: Any) -> None:
    setting = with_rates(FALLING)
    run(setting)
    history = setting.history()
    assert [line["clock"] for line in history] == ["learning_rate"] * 3
    for number, line in enumerate(history):
        window = FALLING[4 * number : 4 * number + 4]
        # the area under the entries, a line from one to the next
        edges = [*(FALLING[4 * number - 1 : 4 * number] or window[:1]), *window]
        area = sum((one + other) / 2 for one, other in pairwise(edges))
        assert shares(line) == pytest.approx(4 * (edges[-1] + edges[-2]) / 2 / area, rel=0.02)
    assert history[0]["full_rate_steps"] == pytest.approx(sum(FALLING[:4]) + 4 * FALLING[3], rel=0.05)
    assert "4 steps at the current learning rate are " in history[0]["reason"]
    made = json.loads((setting.out / "round-001" / "extrapolated" / "hubextrap.json").read_text())
    assert made["parameters"]["clock"] == "learning_rate"


def test_a_schedule_that_begins_anew_in_every_round_stands_for_rounds_like_it(with_rates: Any) -> None:
    """Each round falls from 1 to a quarter: four steps more are as much as the window was."""
    setting = with_rates([1.0, 0.75, 0.5, 0.25] * 3, own_steps=True)
    run(setting)
    for line in setting.history():
        assert line["clock"] == "learning_rate"
        assert shares(line) == pytest.approx(1.0)


@pytest.mark.slow
def test_so_does_one_that_ends_with_each_round(with_rates: Any) -> None:
    """The run's steps are counted on, and the trainer lets each round fall to 0."""
    setting = with_rates([1.0, 0.75, 0.5, 0.25], iterations=1)
    run(setting)
    assert shares(setting.history()[0]) == pytest.approx(1.0)


def test_rounds_at_rates_of_their_own_are_as_long_as_these(with_rates: Any) -> None:
    """Twice the rate in the second round, by either count of steps; anchored weighs both windows."""
    for own_steps in (False, True):
        setting = with_rates(
            [0.5] * 4 + [1.0] * 4 + [1.0] * 4, own_steps=own_steps, rule="anchored", iterations=2
        )
        run(setting)
        first, second = setting.history()
        assert first["clock"] == "steps"
        assert first["full_rate_steps"] == 8.0
        assert second["clock"] == "learning_rate"
        # windows of 2 and 4 full-rate steps, a jump of 4: slope over −6 and −4, by least squares
        weights = [-4 * -6 / 52, -4 * -4 / 52]
        a, _, c, _ = second["coefficients"]["*"]
        assert (-a, -c) == pytest.approx((weights[0], sum(weights)), rel=1e-5)
        shutil.rmtree(setting.out)


@pytest.mark.slow
def test_at_a_constant_rate_all_is_as_without_the_file(with_rates: Any, undisturbed: Setting) -> None:
    setting = with_rates([1.0] * 8, iterations=2)
    run(setting)
    for one, other in zip(setting.history(), undisturbed.history(), strict=True):
        different = {key for key in one if one[key] != other[key]}
        assert different <= {"full_rate_steps", "digest"}
        assert one["full_rate_steps"] == one["represented_steps"]
    for path in undisturbed.out.rglob("*.safetensors"):
        assert path.read_bytes() == (setting.out / path.relative_to(undisturbed.out)).read_bytes()


def test_steps_are_the_clock_where_they_are_asked_for(with_rates: Any, undisturbed: Setting) -> None:
    setting = with_rates(FALLING, clock="steps")
    run(setting)
    for line in setting.history():
        assert (line["clock"], line["full_rate_steps"]) == ("steps", None)
        assert shares(line) == 1.0


@pytest.mark.slow
def test_a_file_of_rates_and_a_schedule_are_by_the_run_s_steps(
    with_rates: Any, setting: Callable[..., Setting], tmp_path: Path
) -> None:
    rates = tmp_path / "rates.csv"
    rows = [f"{step},{1e-5 * (1 - step / 20)}" for step in range(1, 21)]
    rates.write_text("step,learning_rate\n" + "\n".join(rows) + "\n")
    found = []
    for clock in (str(rates), {"schedule": "linear", "total_steps": 20}):
        made = setting(clock=clock, iterations=2)
        run(made)
        assert [line["clock"] for line in made.history()] == ["learning_rate"] * 2
        found.append([shares(line) for line in made.history()])
        made.out.rename(tmp_path / f"kept-{len(found)}")
    for of_file, of_schedule in zip(*found, strict=True):
        assert of_file == pytest.approx(of_schedule, rel=0.1)
        assert of_file < 1.0


def test_the_command_line_has_the_last_word(setting: Callable[..., Setting], tmp_path: Path) -> None:
    rates = tmp_path / "rates.jsonl"
    lines = [json.dumps({"step": step, "learning_rate": 1 / step}) for step in range(1, 20)]
    rates.write_text("\n".join(lines))
    made = setting(clock="steps", iterations=1)
    result = run_main("reground", str(made.recipe), "--out", str(made.out), "--clock", str(rates), "-q")
    assert result.code == 0, result.stderr
    assert made.history()[0]["clock"] == "learning_rate"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; reground.clock and --clock take"),
        ("step,rate\n1,2\n", "no header with step and learning_rate"),
    ],
)
def test_a_file_that_is_none_is_said_before_training(
    setting: Callable[..., Setting], tmp_path: Path, content: str | None, said: str
) -> None:
    rates = tmp_path / "rates.csv"
    if content is not None:
        rates.write_text(content)
    made = setting(clock=str(rates))
    with pytest.raises(ClockError, match=said):
        run(made)
    assert not made.out.exists()


def test_a_file_that_ends_before_the_round_is_an_error_that_another_clock_mends(
    setting: Callable[..., Setting], tmp_path: Path
) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("step,learning_rate\n1,1e-5\n2,7e-6\n")
    made = setting(clock=str(rates), iterations=2)
    with pytest.raises(ClockError):
        run(made)
    made.change(clock="steps")
    assert [decision.clock for decision in run(made).decisions] == ["steps", "steps"]


def test_rates_that_are_not_there_are_an_error_where_they_were_asked_for(
    setting: Callable[..., Setting], lines: Lines
) -> None:
    made = setting(clock="learning_rate", iterations=2)
    with pytest.raises(CorruptFile, match=r"checkpoint-4/trainer_state.json: it has no list log_history"):
        run(made)
    state = made.out / "round-001" / "output" / "checkpoint-4" / "trainer_state.json"
    state.unlink()
    with pytest.raises(
        ClockError, match=r"there is no trainer_state.json in .*checkpoint-4; make the trainer"
    ):
        run(made)
    made.change(clock="auto")
    result = run(made, progress=lines)
    assert [decision.clock for decision in result.decisions] == ["steps", "steps"]
    # round 1 has no file; that of round 2 holds no rates, which is told
    warned = [line for line in lines.said if "warning" in line]
    assert len(warned) == 1
    assert (
        "round 2: warning: the learning rates of this round are not known, so it counts by steps" in warned[0]
    )


@pytest.mark.slow
def test_steps_of_another_count_are_told_of(with_rates: Any) -> None:
    """As where {steps} are batches to the trainer: the file ends at no step of the round's or the run's."""
    setting = with_rates(FALLING, iterations=1)
    run(setting)
    state = setting.out / "round-001" / "output" / "checkpoint-4" / "trainer_state.json"
    logged = [{"step": step, "learning_rate": 1e-5} for step in (40, 80)]
    state.write_text(json.dumps({"log_history": logged}))
    said: list[str] = []
    assert rates_of_round("auto", state.parent, 4, 4, said.append) == (None, None)
    assert "its learning rates end at step 80, but the round is steps 5 to 8 of the run" in said[0]
    with pytest.raises(ClockError, match="or 1 to 4 of its own; make the trainer log them"):
        rates_of_round("learning_rate", state.parent, 4, 4, said.append)


@pytest.mark.slow
def test_a_run_that_was_stopped_knows_what_time_it_is(with_rates: Any, tmp_path: Path) -> None:
    """After the second round's decision; and what that round had trained is gone then, so it trains again."""
    score = tmp_path / "score"
    probe = f"case {{model}} in *round-002*) cat {score};; *) echo 1.0;; esac"
    setting = with_rates(FALLING, guard={"max_error": "off", "shell": True, "probe": probe, "margin": 0.0})
    score.write_text("1.0\n")
    run(setting)
    expected = setting.history()
    assert [line["clock"] for line in expected if line["action"] == "jumped"] == ["learning_rate"] * 2
    shutil.rmtree(setting.out)
    score.unlink()
    with pytest.raises(CommandFailed):
        run(setting)
    shutil.rmtree(setting.out / "round-002" / "output")
    score.write_text("1.0\n")
    run(setting)
    assert setting.history() == expected


def test_a_run_of_an_older_version_goes_on(with_rates: Any) -> None:
    """Its state knows nothing of rates, nor its recipe of the keys that came since."""
    setting = with_rates(FALLING, iterations=2)
    run(setting)
    path = setting.out / "state.json"
    state = unsealed(json.loads(path.read_text()))
    for key in (
        "reground.clock",
        *(f"reground.guard.{key}" for key in ("prompts", "max_tokens", "apply_chat_template")),
    ):
        del state["recipe"][key]
    for part in [state, *state["windows"]]:
        for key in ("rates", "rate", "passed"):
            part.pop(key, None)
    for decision in state["decisions"]:
        for key in ("clock", "full_rate_steps", "own_answers_before", "own_answers_after"):
            del decision[key]
    write_sealed(path, state, indent=1, remedy="")
    setting.change(iterations=4)
    result = run(setting)
    assert [decision.clock for decision in result.decisions] == ["steps"] * 3 + ["learning_rate"]
    assert [decision.full_rate_steps for decision in result.decisions] == [None] * 4


def test_a_clock_that_is_none_is_refused_with_its_line() -> None:
    text = (
        "reground:\n  model: m\n  train: t {model} {steps} {output}\n  checkpoint: c\n  window: 4\n"
        "  jump: 4\n  iterations: 1\n  clock: "
    )
    for clock, said in (
        ("3", "must be auto, steps"),
        ("{schedule: cosin}", "schedule"),
        ("[a]", "must be auto"),
    ):
        with pytest.raises(RecipeError, match=said):
            parse_reground_recipe(text + clock + "\n")


def test_learning_rate_for_windows_whose_rates_were_not_kept_is_refused(with_rates: Any) -> None:
    setting = with_rates(FALLING, clock="steps", iterations=1)
    run(setting)
    setting.change(clock="learning_rate", iterations=2)
    with pytest.raises(
        MethodError, match="the rates of the windows at hand are not known; choose auto or steps"
    ):
        run(setting)
