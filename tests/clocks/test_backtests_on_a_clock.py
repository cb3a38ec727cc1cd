"""A backtest by the learning rate knows at each origin what was known there, and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from backtest_runs import exact_accuracy, protocol
from command_lines import run_main
from harness import Lines
from runs_on_a_clock import PEAK, STATE, Moving, constant, linear, recipe, state

from hubextrap.api import backtest, merge, scan
from hubextrap.clocks import STEPS
from hubextrap.errors import ClockError
from hubextrap.scans import Scan
from hubextrap.statistics import Backtest, judge_run
from hubextrap.trajectory import find_trajectory

ORIGIN = 50
FURTHER: dict[str, Callable[[float], float]] = {
    "falls on": linear,
    "stays": lambda at: linear(at) if at <= ORIGIN else linear(ORIGIN),
    "a new peak": lambda at: linear(at) if at <= ORIGIN else 5 * PEAK,
    "wild": lambda at: linear(at) if at <= ORIGIN else PEAK * (1 + at % 7) / 7,
}


@pytest.fixture(scope="module")
def long(turning: Moving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To step 100; logged every 4 steps, so that rates at checkpoints are interpolated."""
    return turning.run(tmp_path_factory.mktemp("long") / "run", range(0, 101, 10), every=4)


@pytest.fixture(scope="module")
def scanned(long: Path) -> Scan:
    return scan(find_trajectory(str(long)))


def with_rates(found: Scan, path: Path, rate: Callable[[float], float]) -> Backtest:
    path.write_text(json.dumps(state(100, rate, every=4)))
    return backtest(found, clock=str(path))


@pytest.mark.parametrize("further", [name for name in FURTHER if name != "falls on"])
def test_what_comes_behind_an_origin_changes_no_row_of_it(
    further: str, scanned: Scan, tmp_path: Path
) -> None:
    """Not by a digit, and nothing that was expected there either: not even a rate that is interpolated."""
    found = [
        [asdict(row) for row in with_rates(scanned, tmp_path / f"{place}.json", FURTHER[name]).rows]
        for place, name in enumerate(("falls on", further))
    ]
    early = [[row for row in rows if row["last_step"] <= ORIGIN] for rows in found]
    assert early[0] == early[1]
    assert {row["last_step"] for row in early[0]} >= {40, 50}
    assert any(row["expected_relative_error"] is not None for row in early[0])
    assert found[0] != found[1]  # later ones differ


def test_rows_of_an_origin_are_those_of_a_run_that_ended_there(
    turning: Moving, long: Path, scanned: Scan, tmp_path: Path
) -> None:
    """As far as targets were observed then."""
    until = 80
    for step in range(0, until + 1, 10):
        shutil.copytree(long / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    short = backtest(find_trajectory(str(tmp_path / "run")))
    wanted = {(row.method, row.last_step, row.target_step): row for row in backtest(scanned).rows}
    assert {row.last_step for row in short.rows} >= {40, 50, 60, 70}
    for row in short.rows:
        same = wanted[row.method, row.last_step, row.target_step]
        assert row.horizon == same.horizon
        assert row.relative_error == pytest.approx(same.relative_error, rel=1e-12)
        assert row.expected_relative_error == same.expected_relative_error


def test_a_merge_expects_what_the_backtest_expected(long: Path, scanned: Scan, tmp_path: Path) -> None:
    """One clock and one horizon everywhere."""
    found = merge(recipe(long, 80, "calibrated", trajectory={"steps": {"max": 60}}), out=tmp_path / "out")
    row = next(
        row
        for row in backtest(scanned).rows
        if (row.method, row.last_step, row.target_step) == ("calibrated", 60, 80)
    )
    made = found.predictions[0].provenance
    assert made.expected_relative_error == pytest.approx(row.expected_relative_error, abs=1e-6)
    assert made.horizon == pytest.approx(row.horizon, rel=1e-12)


def test_the_rates_of_a_file_that_a_user_gives_are_known_at_every_origin(
    scanned: Scan, tmp_path: Path
) -> None:
    """As those of a stated schedule are: nothing else says when a run ends whose rates are CSV."""
    file = tmp_path / "rates.csv"
    file.write_text("step,learning_rate\n" + "".join(f"{at},{linear(at)}\n" for at in range(101)))
    by_file = backtest(scanned, clock=str(file))
    by_schedule = backtest(scanned, clock={"schedule": "linear", "warmup_steps": 20, "total_steps": 100})
    assert by_file.unforeseen == by_schedule.unforeseen == ()
    assert len(by_file.rows) == len(by_schedule.rows) > 100
    for one, other in zip(by_file.rows, by_schedule.rows, strict=True):
        assert one.horizon == pytest.approx(other.horizon, abs=1e-6)


def test_where_no_target_could_be_foreseen_no_method_is_judged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run / "checkpoint-60" / STATE).write_text(json.dumps(state(60, every=30)))
    said = run_main("backtest", "run", "--clock", "learning_rate").out
    assert said.startswith("? Nothing could be rehearsed: ")
    assert "no method beats" not in said
    found = judge_run(backtest(find_trajectory(str(run)), clock="learning_rate"))
    assert found.level == "unknown"
    assert "differ" not in found.headline


def test_along_the_rate_errors_are_smaller(scanned: Scan) -> None:
    along = [
        np.mean(
            [row.relative_error for row in backtest(scanned, clock=clock).rows if row.method == "two_point"]
        )
        for clock in ("steps", "learning_rate")
    ]
    assert along[1] < 0.6 * along[0]


def test_a_constant_rate_changes_no_row(turning: Moving, tmp_path: Path) -> None:
    run = turning.run(tmp_path / "run", range(0, 81, 10), times=float, rate=constant, every=2)
    trajectory = find_trajectory(str(run))
    by = {clock: backtest(trajectory, clock=clock) for clock in ("auto", "steps", "learning_rate")}
    assert by["auto"].clock == STEPS
    assert by["auto"].rows == by["steps"].rows == by["learning_rate"].rows
    assert "clock" not in by["auto"].as_rows()[0]


def test_a_scan_keeps_the_rates(long: Path, scanned: Scan, tmp_path: Path, lines: Lines) -> None:
    scanned.save(tmp_path / "scan.safetensors")
    kept = Scan.load(tmp_path / "scan.safetensors")
    assert kept.rates == scanned.rates is not None
    of_scan, of_run = backtest(kept, progress=lines), backtest(find_trajectory(str(long)))
    assert of_scan.rows == of_run.rows
    assert of_scan.as_rows()[0]["clock"] == of_run.as_rows()[0]["clock"]
    assert any(line.startswith("clock: learning rate (") for line in lines.said)


def test_a_scan_of_before_there_were_clocks(long: Path, scanned: Scan, tmp_path: Path, lines: Lines) -> None:
    path = tmp_path / "scan.safetensors"
    replace(scanned, rates=None).save(path)
    old = Scan.load(path)
    assert old.rates is None
    assert backtest(old).clock == STEPS
    with pytest.raises(ClockError, match=r"the scan holds no learning rates: .* scan again"):
        backtest(old, clock="learning_rate")
    scan(find_trajectory(str(long)), out=path, progress=lines)  # reads no weight once more
    assert any("holds a scan of these checkpoints already" in line for line in lines.said)
    assert backtest(Scan.load(path), clock="learning_rate").rows == backtest(scanned).rows


@pytest.mark.parametrize("max_step", [60, 100])
def test_a_longer_run_s_scan_serves_a_merge(max_step: int, long: Path, scanned: Scan, tmp_path: Path) -> None:
    """Its Gram matrices: the clock is of what the recipe observes."""
    given = recipe(long, {"full_rate_steps": 10}, "calibrated", trajectory={"steps": {"max": max_step}})
    merge(given, out=tmp_path / "without")
    merge(given, out=tmp_path / "with", scan=scanned)
    for file in ("model.safetensors", "hubextrap.json"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


def test_origins_that_could_not_know_have_no_rows(turning: Moving, tmp_path: Path) -> None:
    """Of a wild history no schedule is recognised: rows there are none, and nothing is invented."""
    run = turning.run(tmp_path / "run", range(0, 81, 10))
    last = run / "checkpoint-80" / STATE
    last.write_text(json.dumps(state(80, FURTHER["wild"], max_steps=-1)))
    found = backtest(find_trajectory(str(run)))
    assert found.unforeseen
    assert not {row.last_step for row in found.rows} & set(found.unforeseen)
    ended = run_main("backtest", str(run), "-q")
    assert f"From step {', '.join(map(str, found.unforeseen))} some targets are left out" in ended.out
    assert not found.rows
    assert "state the schedule in a recipe" in " ".join(ended.out.split())
    assert ended.out.startswith("? Nothing could be rehearsed: ")
    answered = judge_run(found)
    assert answered.level == "unknown"
    assert "checkpoints" not in answered.headline  # they are there


@pytest.mark.slow
def test_a_real_cosine_run(rlvr: Path) -> None:
    """rlvr-E2: warm-up of 20 steps, a cosine to 0 at step 400."""
    found = scan(find_trajectory(str(rlvr / "rlvr-E2")))
    along = {}
    for clock in ("steps", "auto"):
        tested = backtest(found, clock=clock)
        rows = protocol([row for row in tested.rows if row.method == "calibrated"], tested.steps)
        along[clock] = float(np.mean([row.relative_error for row in rows]))
        expected = float(np.mean([row.expected_relative_error or np.nan for row in rows]))
    assert along["auto"] <= 0.45
    assert along["auto"] <= 0.6 * along["steps"]
    assert abs(expected - along["auto"]) <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rlvr-A", "rlvr-C"])
def test_a_real_run_at_a_constant_rate(name: str, rlvr: Path, tmp_path: Path) -> None:
    run = rlvr / name
    rates = tmp_path / "rates.csv"
    rates.write_text("step,learning_rate\n" + "".join(f"{step},3e-6\n" for step in range(0, 1001, 10)))
    found = scan(find_trajectory(str(run)))
    assert (
        backtest(found, clock=str(rates)).rows == backtest(found).rows == backtest(found, clock="steps").rows
    )
    made = []
    for clock in ("auto", "steps", str(rates)):
        given = recipe(run, 300, "calibrated", trajectory={"clock": clock, "steps": {"max": 200}})
        (prediction,) = merge(given, out=tmp_path / f"of {Path(clock).stem}", scan=found).predictions
        made.append((prediction.provenance.shards, prediction.provenance.coefficients))
    assert made[0] == made[1] == made[2]


@pytest.mark.slow
def test_a_finished_real_run_goes_on(rlvr: Path, tmp_path: Path) -> None:
    """rlvr-E2 from its last checkpoint, where the rate is 0: 100 full-rate steps more do better by .03."""
    run = rlvr / "rlvr-E2"
    merge(recipe(run, {"full_rate_steps": 100}, "calibrated"), out=tmp_path / "out")
    problems = run / "problems.jsonl"
    before, after = (exact_accuracy(folder, problems) for folder in (run / "step_400", tmp_path / "out"))
    assert after >= before + 0.03
