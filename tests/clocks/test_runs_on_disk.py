"""Runs on disk with a trainer's state beside their checkpoints: which clock they go by, and what it makes."""

# ruff: noqa: E501 - a table

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Lines
from runs_on_a_clock import PEAK, STATE, STEPS, Moving, area, linear, recipe, state

from hubextrap import Run
from hubextrap.api import merge, plan, verify
from hubextrap.errors import ClockError, HubExtrapError, RecipeError
from hubextrap.hub import Provenance
from hubextrap.recipe import load_recipe, parse_recipe

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("two_point", {}),
    ("least_squares", {"window": "half", "through_last": True, "damping": "auto"}),
    ("low_rank", {}),
    ("calibrated", {}),
    ("ema", {}),
]


def made(found: Any) -> Provenance:
    (prediction,) = found.predictions
    provenance: Provenance = prediction.provenance
    return provenance


def test_weights_that_move_with_the_rate_are_hit(
    moving: Moving, run: Path, tmp_path: Path, lines: Lines
) -> None:
    provenance = made(merge(recipe(run), out=tmp_path / "out", progress=lines))
    assert moving.is_at(tmp_path / "out", area(80))
    said = [line for line in lines.said if line.startswith("clock: ")]
    assert len(said) == 1
    assert f"learning rate ({run}/checkpoint-60/{STATE} up to step 60; linear to step 100" in said[0]
    assert provenance.clock is not None
    assert provenance.clock.said.startswith(f"learning rate ({STATE} up to step 60; linear to step 100")
    assert provenance.clock.times == pytest.approx([area(step) for step in STEPS], abs=1e-4)
    assert provenance.clock.target_time == pytest.approx(area(80), abs=1e-4)
    assert provenance.horizon == pytest.approx((area(80) - area(60)) / area(60), abs=1e-5)

    lines.said.clear()
    provenance = made(
        merge(recipe(run, trajectory={"clock": "steps"}), out=tmp_path / "steps", progress=lines)
    )
    assert provenance.clock is None
    assert provenance.horizon == pytest.approx(20 / 60)
    assert not moving.is_at(tmp_path / "steps", area(80))
    assert any("the learning rate changed in this run" in line for line in lines.said)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "parameters"), METHODS, ids=[method for method, _ in METHODS])
def test_a_constant_rate_changes_no_byte(
    method: str, parameters: dict[str, Any], at_a_constant_rate: Path, tmp_path: Path, lines: Lines
) -> None:
    run = at_a_constant_rate

    def files(folder: str, **own: Any) -> dict[str, bytes]:
        found = recipe(run, 75, method, parameters=parameters, **own)
        merge(found, out=tmp_path / folder, progress=lines)
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    with_states = files("with")
    asked = files("asked", trajectory={"clock": "learning_rate"})
    for folder in run.iterdir():
        (folder / STATE).unlink()
    assert files("without") == with_states
    assert "clock" not in json.loads(with_states["hubextrap.json"])
    assert asked["model.safetensors"] == with_states["model.safetensors"]
    one, other = (json.loads(each["hubextrap.json"]) for each in (asked, with_states))
    for key in ("coefficients", "horizon", "expected_relative_error", "shards"):
        assert one[key] == other[key]
    assert one["clock"]["times"] == list(STEPS)


def test_only_what_was_logged_up_to_the_last_checkpoint_counts(moving: Moving, tmp_path: Path) -> None:
    whole = moving.run(tmp_path / "whole", range(0, 101, 10))
    observed = recipe(whole, trajectory={"steps": {"max": 60}})
    merge(observed, out=tmp_path / "before")
    for step in (70, 80, 90, 100):
        (whole / f"checkpoint-{step}" / STATE).write_text("poison")
    beside = whole / "checkpoint-60" / STATE
    later = state(100, lambda at: linear(at) if at <= 60 else 7 * PEAK)
    beside.write_text(json.dumps(later | {"global_step": 60}))
    merge(observed, out=tmp_path / "after")
    for file in ("model.safetensors", "hubextrap.json", "README.md"):
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()


def _only(run: Path, keep: int | None) -> None:
    for step in STEPS:
        if step != keep:
            (run / f"checkpoint-{step}" / STATE).unlink()


def _write(run: Path, content: str | dict[str, Any]) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (run / "checkpoint-60" / STATE).write_text(text)


TROUBLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda run: _write(run, ""), f"checkpoint-60/{STATE}"),
    "corrupt": (lambda run: _write(run, '{"log_history": ['), f"checkpoint-60/{STATE}"),
    "no history": (lambda run: _write(run, {"global_step": 60}), "no list log_history"),
    "no rate": (lambda run: _write(run, {"global_step": 60, "log_history": [{"step": 5, "loss": 1}]}), "no learning rate"),
    "not a number": (lambda run: _write(run, {"log_history": [{"step": 5, "learning_rate": "x"}]}), "record 1"),
    "of another step": (lambda run: _write(run, state(50)), "this file is from step 50, but its checkpoint is step 60"),
    "a folder": (lambda run: ((run / "checkpoint-60" / STATE).unlink(), (run / "checkpoint-60" / STATE).mkdir()), "beside step 50, and none beside step 60"),
    "a link out": (lambda run: ((run / "checkpoint-60" / STATE).unlink(), (run / "checkpoint-60" / STATE).symlink_to("/etc/passwd")), f"checkpoint-60/{STATE}"),
    "only an earlier one": (lambda run: _only(run, 30), "lies beside step 30, and none beside step 60"),
    "a pickle": (lambda run: (_only(run, None), (run / "checkpoint-60" / "scheduler.pt").write_bytes(b"\x80")), "scheduler.pt beside step 60 is a pickle"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TROUBLE)
def test_what_cannot_be_read_is_told(kind: str, run: Path, tmp_path: Path, lines: Lines) -> None:
    spoil, said = TROUBLE[kind]
    spoil(run)
    merged = merge(recipe(run), out=tmp_path / "out", progress=lines)
    (warning,) = [line for line in lines.said if line.startswith("warning: ")]
    assert said in warning
    assert "so steps are the clock" in warning
    assert "trajectory.clock" in warning
    assert made(merged).clock is None
    with pytest.raises(ClockError, match="clock: learning_rate: ") as refused:
        merge(recipe(run, trajectory={"clock": "learning_rate"}), out=tmp_path / "asked")
    assert said in str(refused.value)
    assert not (tmp_path / "asked").exists()


def test_nothing_beside_is_no_news(run: Path, tmp_path: Path, lines: Lines) -> None:
    _only(run, None)
    merge(recipe(run), out=tmp_path / "out", progress=lines)
    assert not [line for line in lines.said if "clock" in line]
    with pytest.raises(ClockError, match=f"there is no {STATE} in it; state the clock"):
        merge(recipe(run, trajectory={"clock": "learning_rate"}), out=tmp_path / "asked")


def test_names_that_count_something_else(moving: Moving, tmp_path: Path) -> None:
    """By its scale a name becomes the step that the state is of."""
    root = moving.run(tmp_path / "run")
    for step in STEPS:
        (root / f"checkpoint-{step}").rename(root / f"step_{step // 10}")
    scaled = {"steps": {"scale": 10}}
    merge(recipe(root, trajectory=scaled), out=tmp_path / "out")
    assert moving.is_at(tmp_path / "out", area(80))
    with pytest.raises(ClockError, match=r"this file is from step 60, but its checkpoint is step 6"):
        merge(recipe(root, trajectory={"clock": "learning_rate"}), out=tmp_path / "other")


CLOCKS: dict[str, Callable[[Path], Any]] = {
    "rates.csv": lambda path: path.write_text(
        "step,learning_rate\n" + "".join(f"{at},{linear(at)}\n" for at in range(0, 101, 5))
    ),
    "rates.jsonl": lambda path: path.write_text(
        "".join(json.dumps({"step": at, "learning_rate": linear(at)}) + "\n" for at in range(0, 101, 5))
    ),
    "state.json": lambda path: path.write_text(json.dumps(state(60))),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_file_of_rates(name: str, moving: Moving, tmp_path: Path) -> None:
    run = moving.run(tmp_path / "run", rate=None)
    CLOCKS[name](tmp_path / name)
    provenance = made(merge(recipe(run, trajectory={"clock": str(tmp_path / name)}), out=tmp_path / "out"))
    assert moving.is_at(tmp_path / "out", area(80))
    assert str(tmp_path) not in (tmp_path / "out" / "hubextrap.json").read_text()
    assert provenance.clock is not None
    assert name in provenance.clock.said


def test_a_file_of_rates_that_is_not_there(run: Path, tmp_path: Path) -> None:
    found = recipe(run, trajectory={"clock": str(tmp_path / "absent.csv")})
    report = plan(found, out=tmp_path / "out")
    assert len(report.problems) == 1
    assert "absent.csv" in report.problems[0]
    with pytest.raises(ClockError) as refused:
        merge(found, out=tmp_path / "out")
    assert str(refused.value) == report.problems[0]


def test_a_schedule_by_name(moving: Moving, tmp_path: Path) -> None:
    run = moving.run(tmp_path / "run", rate=None)
    stated = {"schedule": "linear", "warmup_steps": 20, "total_steps": 100}
    provenance = made(merge(recipe(run, trajectory={"clock": stated}), out=tmp_path / "out"))
    assert moving.is_at(tmp_path / "out", area(80))
    assert provenance.clock is not None
    assert "as stated" in provenance.clock.said
    with pytest.raises(RecipeError, match=r"total_stops.*total_steps"):
        recipe(run, trajectory={"clock": {"schedule": "linear", "total_stops": 100}})


def test_a_stated_schedule_that_is_not_the_one_of_the_state_is_warned_of(run: Path, tmp_path: Path) -> None:
    for total, warned in ((100, 0), (90, 1), (200, 1)):
        stated = {"schedule": "linear", "warmup_steps": 20, "total_steps": total}
        lines = Lines()
        plan(recipe(run, trajectory={"clock": stated}), out=tmp_path / "out", progress=lines)
        said = [line for line in lines.said if "the stated schedule (linear) does not fit" in line]
        assert len(said) == warned, total


@pytest.mark.parametrize("method", ["two_point", "least_squares"])
def test_full_rate_steps(method: str, moving: Moving, run: Path, tmp_path: Path) -> None:
    """As if the rate had stayed at its peak: also where the schedule never gets so far."""
    several = recipe(run, {"full_rate_steps": [15, 40]}, method)
    report = plan(several, out=tmp_path / "out")
    assert report.problems == ()
    assert report.target_steps == (75, 100)
    assert report.horizons == pytest.approx([15 / area(60), 40 / area(60)], abs=1e-5)
    assert any("15 and 40 full-rate steps after step 60" in note for note in report.notes)
    found = merge(several, out=tmp_path / "out")
    for prediction, count in zip(found.predictions, (15, 40), strict=True):
        assert prediction.folder is not None
        assert moving.is_at(prediction.folder, area(60) + count)
        assert prediction.provenance.full_rate_steps == count
        assert f"{count} full-rate steps after step 60" in (prediction.folder / "README.md").read_text()
        assert verify(prediction.folder).problems == ()


def test_full_rate_steps_without_a_rate_are_steps(at_a_constant_rate: Path, tmp_path: Path) -> None:
    one = made(merge(recipe(at_a_constant_rate, {"full_rate_steps": 15}), out=tmp_path / "one"))
    other = made(merge(recipe(at_a_constant_rate, 75), out=tmp_path / "other"))
    assert one.coefficients == other.coefficients
    assert one.shards == other.shards


@pytest.mark.slow
def test_a_prediction_is_made_again_from_its_own_recipe(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(run.parent)
    for target in (80, {"full_rate_steps": 30}):
        folder = tmp_path / f"of {target}"
        first = made(merge(recipe(run.name, target, "calibrated"), out=folder))
        again = made(merge(parse_recipe(first.recipe), out=tmp_path / f"again {target}"))
        assert again == first


def test_a_target_behind_the_end_of_the_schedule(moving: Moving, run: Path, tmp_path: Path) -> None:
    found = recipe(run, 120)
    report = plan(found, out=tmp_path / "out")
    assert len(report.problems) == 1
    assert "full_rate_steps" in report.problems[0]
    with pytest.raises(HubExtrapError) as refused:
        merge(found, out=tmp_path / "out")
    assert str(refused.value) == report.problems[0]
    assert not (tmp_path / "out").exists()
    merge(recipe(run, 100), out=tmp_path / "end")
    assert moving.is_at(tmp_path / "end", area(100))


def test_checkpoints_after_the_end_of_a_stated_schedule(run: Path, tmp_path: Path) -> None:
    """Whatever the target: another one would not help."""
    stated = {"schedule": "linear", "total_steps": 50}
    for target in (120, {"full_rate_steps": 10}):
        found = recipe(run, target, trajectory={"clock": stated})
        (problem,) = plan(found, out=tmp_path / "out").problems
        assert (
            "there is a checkpoint at step 60; correct the clock, or leave out the checkpoints after"
            in problem
        )
        assert "full_rate_steps" not in problem
    left_out = recipe(run, {"full_rate_steps": 10}, trajectory={"clock": stated, "steps": {"max": 50}})
    assert plan(left_out, out=tmp_path / "out").problems == ()


def test_a_finished_run_goes_on_at_full_rate(moving: Moving, tmp_path: Path) -> None:
    run = moving.run(tmp_path / "run", range(0, 101, 20))
    (problem,) = plan(recipe(run, 120), out=tmp_path / "out").problems
    assert "; ask for `target: {full_rate_steps: N}`" in problem  # no step is left to ask for
    merge(recipe(run, {"full_rate_steps": 25}), out=tmp_path / "out")
    assert moving.is_at(tmp_path / "out", area(100) + 25)


def test_two_checkpoints_between_which_nothing_was_trained(moving: Moving, tmp_path: Path) -> None:
    run = moving.run(tmp_path / "run", (0, 40, 80, 100, 110))
    with pytest.raises(
        ClockError, match=r"step 100 and step 110 have the same time: .* leave one of them out"
    ):
        merge(recipe(run, {"full_rate_steps": 10}), out=tmp_path / "out")
    without = recipe(run, {"full_rate_steps": 10}, trajectory={"steps": {"max": 100}})
    merge(without, out=tmp_path / "out")
    assert moving.is_at(tmp_path / "out", area(100) + 10)


def test_a_mergekit_config_counts_steps(run: Path, tmp_path: Path) -> None:
    """mergekit reads nothing beside the weights, so both make the same bytes."""
    (tmp_path / "config.yaml").write_text(
        "merge_method: two_point\nmodels:\n"
        + "".join(
            f"  - {{model: {run}/checkpoint-{step}, parameters: {{step: {step}}}}}\n" for step in (0, 30, 60)
        )
        + "parameters: {target_step: 80}\ndtype: float32\n"
    )
    config = load_recipe(tmp_path / "config.yaml")
    assert made(merge(config, out=tmp_path / "out")).clock is None
    merge(
        recipe(run, trajectory={"clock": "steps", "steps": {"only": [0, 30, 60]}}), out=tmp_path / "sections"
    )
    bytes_of = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "sections")]
    assert bytes_of[0] == bytes_of[1]
    again = parse_recipe(config.to_yaml())
    assert again.trajectory.clock == "steps"


def test_base_step_goes_on_naming_a_checkpoint(moving: Moving, run: Path, tmp_path: Path) -> None:
    merge(recipe(run, parameters={"base_step": 30}), out=tmp_path / "out")
    assert moving.is_at(tmp_path / "out", area(80))


def test_a_merge_is_not_gone_on_with_on_another_clock(run: Path, tmp_path: Path) -> None:
    from hubextrap.api.fingerprint import merge_fingerprint
    from hubextrap.api.preparing import merge_options, prepare

    def parts() -> dict[str, str]:
        with Run.of(recipe(run)) as opened:
            return merge_fingerprint(prepare(recipe(run), opened, merge_options(None), read_weights=True))

    before = parts()
    assert parts() == before
    _write(run, state(60, lambda at: linear(at) if at <= 20 else PEAK))
    after = parts()
    assert {name for name in before if before[name] != after[name]} == {"the coefficients"}
