"""`hubextrap predict`: one command from a run to an answer, a model and the recipe that made it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command_lines import run_main
from huggingface_hub import HfApi
from kinds_of_runs import DEMO, ROOT, Weights, early_transient, hubextrap, random_walk, straight, write_run

from hubextrap import api
from hubextrap.errors import MethodError, OutputError, RecipeError
from hubextrap.recipe import load_recipe
from hubextrap.statistics import candidates, judge_run
from hubextrap.trajectory import TrajectoryOptions, find_trajectory

EVERY_10 = range(0, 80, 10)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse_to_read(*_: object, **__: object) -> None:
    pytest.fail("weights were read")


def test_the_answer_the_model_and_the_recipe(here: Path) -> None:
    done = hubextrap("predict", DEMO, "--to", "400", "--max-step", "200", at=here)
    assert done.returncode == 0, done
    first, *rest = done.stdout.splitlines()
    assert first.startswith(
        "✓ Extrapolation looks promising: step 400 by the last-half line, damped, expected "
    )
    said = "\n".join(rest)
    assert "best of 8 methods in 8 shared rehearsals" in said
    assert "trust      up to step 400 (horizon 1)" in said
    assert (here / "rlvr-C-step_400" / "model.safetensors").is_file()
    recipe = here / "rlvr-C-step_400.yaml"
    assert f"recipe     {recipe.name}; `hubextrap run {recipe.name} --out DIR` makes it again" in said
    assert run_main("run", recipe.name, "--out", "again", "-q").code == 0
    for name in ("model.safetensors", "hubextrap.json"):
        made, remade = (folder / name for folder in (here / "rlvr-C-step_400", here / "again"))
        assert made.read_bytes() == remade.read_bytes()


def test_a_dry_run_is_the_answer_without_weights(here: Path) -> None:
    run = write_run(here / "run", straight, EVERY_10)
    ended = run_main("predict", str(run), "--dry-run", "-q")
    assert ended.code == 0, ended
    assert ended.out.startswith("✓ Extrapolation looks promising: step 140 by ")
    assert "predicts   step 140 (horizon 1)" in ended.out
    assert "merge_method: " in ended.out
    assert [path.name for path in here.iterdir()] == ["run"]
    assert run_main("predict", str(run), "--dry-run", "-q", "--write-recipe", "mine.yaml").code == 0
    assert load_recipe("mine.yaml").target_steps == (140,)
    assert sorted(path.name for path in here.iterdir()) == ["mine.yaml", "run"]


def test_backtest_predict_plan_and_merge_say_the_same(here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    found = api.scan(find_trajectory("run"), out="run.safetensors")
    assert found.steps[-1] == 70
    backtest = json.loads(run_main("backtest", "run", "--json", "-q", "--write-recipe", "b.yaml").out)
    answer = json.loads(run_main("predict", "run", "--json", "-q", "--out", "p").out)
    plan = json.loads(run_main("plan", "p.yaml", "--json", "-q", "--scan", "run.safetensors").out)
    (merged,) = json.loads(run_main("merge", "b.yaml", "--json", "-q", "--out", "q").out)
    assert backtest["verdict"]["level"] == answer["verdict"]["level"] == "good"
    assert answer["verdict"] == plan["verdicts"][0] == merged["verdict"]
    assert backtest["verdict"]["method"] == answer["method"]
    assert backtest["verdict"]["reach_step"] == answer["target_step"] == merged["step"] == 140
    assert load_recipe("b.yaml").rules == load_recipe("p.yaml").rules
    assert backtest["recipe"] == Path("b.yaml").read_text()


@pytest.mark.parametrize(
    ("count", "level", "said"),
    [
        (2, "unknown", "2 checkpoints cannot be judged: a rehearsal needs 3"),
        (3, "unknown", "Too few rehearsals to judge: only 1 within a horizon of 1 (from here, step 40)"),
        (4, "unknown", "Too few rehearsals to judge: only 1 within a horizon of 1 (from here, step 60)"),
        (5, "care", "Extrapolate with care: "),
        (8, "good", "Extrapolation looks promising: "),
    ],
)
def test_with_so_many_checkpoints(count: int, level: str, said: str, here: Path) -> None:
    steps = range(0, 10 * count, 10)
    write_run(here / "run", straight, steps)
    target = steps[-1] + 5
    found = api.predict("run", target, out="p")
    assert found.verdict.level == level
    assert found.verdict.headline.startswith(said)
    assert found.prediction is not None
    if level == "unknown":  # no past, so no step of its own accord
        with pytest.raises(MethodError, match=r"supports no step after .* --to STEP"):
            api.predict("run", out="q")
        assert not Path("q").exists()
        assert api.predict("run", dry_run=True).recipe is None
        told = run_main("predict", "run", "--dry-run", "-q")
        assert "predicts   no step, as the run's past supports none; name one with --to STEP" in told.out
        assert ("The prediction was 0." in told.out) == (count > 2)  # one is no average


def test_a_random_walk_is_told_to_be_one(here: Path) -> None:
    write_run(here / "run", random_walk, EVERY_10)
    ended = run_main("predict", "run", "--out", "p", "-q")
    assert ended.code == 1
    assert "error: ✕ Keep the last checkpoint: in " in ended.err
    assert "name it with --to STEP" in ended.err
    assert not Path("p").exists()
    assert not Path("p.yaml").exists()
    said = run_main("predict", "run", "--to", "90", "--out", "p", "-q")
    assert said.code == 0
    assert said.out.startswith("✕ ")
    assert Path("p/model.safetensors").is_file()


def test_an_early_transient_is_no_reason_for_a_line_from_step_0(here: Path) -> None:
    write_run(here / "run", early_transient, EVERY_10)
    found = api.predict("run", 100, dry_run=True)
    assert found.verdict.level == judge_run(api.backtest("run")).level == "good"
    assert found.chosen.startswith("least_squares(window=half, through_last=true")


def test_what_is_wrong_is_found_before_a_weight_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(here / "run", straight, EVERY_10)
    monkeypatch.setattr(
        "hubextrap.opening.Run.scan_weights", lambda *_, **__: pytest.fail("weights were read")
    )
    Path("there").mkdir()
    Path("there/file").touch()
    Path("mine.yaml").write_text("mine: 1\n")
    with pytest.raises(RecipeError, match="there: is there already"):
        api.predict("run", 100, out="there")
    with pytest.raises(OutputError, match=r"mine.yaml: is there already and was not written by hubextrap"):
        api.predict("run", 100, out="p", write_recipe="mine.yaml")
    ended = run_main("predict", "run", "--to", "9000", "-q")
    assert ended.code == 1, ended
    assert "--force" in ended.err
    ended = run_main("predict", "run", "--to", "100", "--eval", "no_such_task", "-q")
    assert ended.code == 1, ended
    assert ended.err.startswith("error: ")
    assert "--eval: " in ended.err
    assert "(line" not in ended.err


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_step_that_is_not_ahead_is_an_error_and_how_to_rehearse_it(dry: list[str], here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    for to, back in ((70, "--max-step 60 "), (65, "--max-step 60 "), (30, "--max-step 20 "), (0, None)):
        ended = run_main("predict", "run", "--to", str(to), "-q", *dry)
        assert ended.code == 1, ended
        assert f"step {to} is not after the last checkpoint, step 70; choose a later one" in ended.err
        assert ("--max-step" in ended.err) == (back is not None)
        assert (back or "") in ended.err
    assert run_main("predict", "run", "--to", "70", "--max-step", "60", "-q", *dry).code == 0


def test_a_walk_needs_no_step_to_look_up_to(here: Path) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "1+1="}\n')
    run = ["predict", str(DEMO), "--max-step", "200", "-q", "--dry-run", "--walk", "prompts.jsonl"]
    ended = run_main(*run)
    assert ended.code == 0, ended
    assert "looks      up to step 400 (horizon 1)" in ended.out


def test_one_checkpoint_is_told_what_it_lacks(here: Path) -> None:
    write_run(here / "run", straight, [10])
    ended = run_main("predict", "run", "--to", "20", "-q")
    assert ended.code == 1
    assert "needs two checkpoints, and only step 10 is there; observe one more, or name" in ended.err
    assert "--base REF" in ended.err


def test_the_folder_of_the_output_is_made_for_its_recipe_too(here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    assert run_main("predict", "run", "--to", "100", "--out", "deep/er/p", "-q").code == 0
    assert sorted(path.name for path in Path("deep/er").iterdir()) == ["p", "p.yaml"]


def test_a_scan_spares_the_pass_and_changes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(here / "run", straight, EVERY_10)
    read = api.predict("run", 100, out="p")
    api.scan(find_trajectory("run"), out="s.safetensors")
    monkeypatch.setattr(
        "hubextrap.opening.Run.scan_weights", lambda *_, **__: pytest.fail("weights were read")
    )
    from_scan = api.predict("run", 100, out="q", scan="s.safetensors")
    assert from_scan.verdict == read.verdict
    assert Path("p/model.safetensors").read_bytes() == Path("q/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_trajectory_is_listed_in_its_recipe(here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    run = find_trajectory("run", max_step=50)
    found = api.predict(run, 60, out="p")
    assert found.recipe is not None
    assert found.recipe.trajectory.checkpoints is not None
    assert [entry.step for entry in found.recipe.trajectory.checkpoints] == [0, 10, 20, 30, 40, 50]
    with pytest.raises(RecipeError, match="options have no effect"):
        api.predict(run, 60, options=TrajectoryOptions(max_step=40))
    api.merge(load_recipe("p.yaml"), out="q")
    assert Path("p/model.safetensors").read_bytes() == Path("q/model.safetensors").read_bytes()


@pytest.mark.slow
def test_what_lands_later_takes_no_part_when_the_recipe_runs_again(here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    api.predict("run", 100, out="p")
    shutil.copytree("run/step_70", "run/step_80")
    api.run(load_recipe("p.yaml"), out="q")
    assert Path("p/model.safetensors").read_bytes() == Path("q/model.safetensors").read_bytes()


@pytest.mark.usefixtures("logged_in")
def test_straight_to_the_hub(here: Path, repo_id: str) -> None:
    write_run(here / "run", straight, EVERY_10)
    ended = run_main("predict", "run", "--to", "100", "--push", f"{repo_id}@step_100", "-q")
    assert ended.code == 0, ended
    assert f"push       pushed to {repo_id}@step_100 as " in ended.out
    recipe = load_recipe("run-step_100.yaml")
    assert recipe.push is not None
    assert (recipe.push.repo, recipe.push.revision) == (repo_id, "step_100")
    assert sorted(path.name for path in here.iterdir()) == ["run", "run-step_100.yaml"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--private"], "--push"),
        (["--limit", "3"], "--eval"),
        (["--output", "r.json"], "--eval"),
        (["--include-path", "."], "--eval"),
        (["--dry-run", "--out", "p"], "--dry-run"),
        (["--dry-run", "--eval", "radd"], "--dry-run"),
        (["--eval", ","], "names nothing"),
    ],
)
def test_an_option_without_effect_is_an_error(options: list[str], said: str, here: Path) -> None:
    ended = run_main("predict", "run", *options, "-q")
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.slow
def test_the_bundled_run_ends_near_its_best_method(here: Path) -> None:
    """Within .02 of the accuracy that the best of all methods has at step 400."""
    tasks = ["--include-path", str(ROOT / "demo" / "tasks"), "--batch-size", "128"]
    done = hubextrap(
        "predict", DEMO, "--to", "400", "--max-step", "200", "--out", "p", "--eval", "radd", *tasks,
        "--json", "-q", at=here,
    )  # fmt: skip
    assert done.returncode == 0, done
    answer = json.loads(done.stdout)
    assert answer["verdict"]["level"] == "good"
    assert answer["verdict"]["headline"].startswith("The prediction scored better than the last checkpoint")
    (score,) = answer["verdict"]["scores"]
    every = []
    for number, one in enumerate(candidates()):
        (rule,) = one.rules
        parameters = {"target_step": 400, **rule.parameters}
        if rule.damping != 1:
            parameters["damping"] = rule.damping
        Path("r.yaml").write_text(
            json.dumps(
                {
                    "trajectory": {"repo": str(DEMO), "steps": {"max": 200}},
                    "merge_method": rule.method,
                    "parameters": parameters,
                }
            )
        )
        if rule.method not in ("persistence", "average", "ema"):
            api.merge(load_recipe("r.yaml"), out=f"m{number}")
            every.append(f"m{number}")
    measured = hubextrap("eval", *every, "--no-against", "--tasks", "radd", *tasks, "--json", "-q", at=here)
    assert measured.returncode == 0, measured
    best = max(row["scores"][0]["value"] for row in json.loads(measured.stdout)["rows"])
    assert score["value"] >= best - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("steps", [EVERY_10, (13, 17, 29, 30, 55, 61, 90, 140), (0, 10, 20, 30), (5, 6, 90)])
@pytest.mark.parametrize("weights", [straight, random_walk, early_transient])
def test_a_backtest_and_a_prediction_rest_on_the_same_rehearsals(
    steps: Sequence[int], weights: Weights, here: Path
) -> None:
    write_run(here / "run", weights, steps)
    run = find_trajectory("run")
    of_all, answer = api.backtest(run), api.predict(run, steps[-1] + 3, dry_run=True)
    verdict, predicted = judge_run(of_all), answer.verdict
    assert predicted.rehearsals.near == verdict.rehearsals.near
    assert (predicted.level == "unknown") == (verdict.level == "unknown")
    if verdict.method == answer.chosen:
        # a backtest takes tensors and candidates at once, a prediction its own: last digits may differ
        said, theirs = predicted.rehearsals, verdict.rehearsals
        assert said.mean_error == pytest.approx(theirs.mean_error, rel=1e-6)
        assert said.worst_error == pytest.approx(theirs.worst_error, rel=1e-6)
        assert predicted.reach == verdict.reach


def test_the_answer_says_what_a_backtest_warns_of(here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    shutil.copy("run/step_60/model.safetensors", "run/step_70")
    assert any(
        line.startswith("Beware: step 60 holds the same weights as step 70")
        for line in api.predict("run", 80, dry_run=True).verdict.sentences
    )
    write_run(here / "still", lambda _, steps: np.ones((len(steps), 900)), EVERY_10)
    ended = run_main("predict", "still", "--to", "80", "--dry-run", "-q")
    assert ended.out.startswith("? Nothing could be rehearsed: its 8 checkpoints do not differ enough")


def test_the_answer_says_how_large_the_rounding_is(here: Path) -> None:
    def slow(rng: np.random.Generator, steps: Sequence[int]) -> np.ndarray:
        return np.asarray(rng.standard_normal(900) + 2e-5 * straight(rng, steps))

    write_run(here / "run", slow, EVERY_10, dtype="float16")
    of_all, answer = api.backtest("run"), api.predict("run", 80, dry_run=True)
    assert of_all.rounded
    said = f"Rounding makes up {of_all.rounding_share:.0%} of what differs"
    assert any(said in line for line in answer.verdict.sentences)


def test_too_few_rehearsals_say_nothing_of_trust(here: Path) -> None:
    write_run(here / "run", straight, range(0, 40, 10))
    assert "  trust " not in run_main("predict", "run", "--to", "40", "--dry-run", "-q").out


def test_the_last_step_is_there_already(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(here / "run", straight, EVERY_10)
    monkeypatch.setattr("hubextrap.opening.Run.scan_weights", refuse_to_read)
    ended = run_main("predict", "run", "--to", "70", "-q")
    assert ended.code == 1
    assert ended.err.startswith(
        "error: step 70 is not after the last checkpoint, step 70; choose a later one"
    )


def test_models_that_do_not_load_are_a_problem_each(here: Path) -> None:
    write_run(here / "run", straight, EVERY_10)
    tasks = ("--eval", "radd", "--include-path", str(ROOT / "demo" / "tasks"))
    ended = run_main("predict", "run", "--to", "80", *tasks, "-q")
    assert ended.code == 1
    lines = [line for line in ended.err.splitlines() if "transformers cannot load it" in line]
    assert len(lines) == 2
    assert sorted(path.name for path in here.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-score", "0.5"], "goes with --eval TASKS"),
        (["--max-loss", "0"], "goes with --eval TASKS"),
        (["--eval", "radd", "--push-if-better", "--out", "p"], "goes with --push REPO"),
        (["--eval", "radd", "--push-if-better", "--push", "me/p"], "give a folder (--out DIR) and a repo"),
        (["--eval", "radd", "--min-score", "raddd=0.5"], "raddd is not evaluated, but radd"),
        (["--eval", "radd", "--min-score", "nan"], "has to end with a number"),
    ],
)
def test_a_gate_that_would_judge_nothing_is_refused_at_once(
    options: list[str], said: str, here: Path
) -> None:
    ended = run_main("predict", "no-such-run", *options, "-q")
    assert ended.code in (1, 2)
    assert said in " ".join(ended.err.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.usefixtures("logged_in")
def test_what_is_judged_is_pushed_after_it_alone(here: Path, repo_id: str) -> None:
    """A prediction that scores too little stays on the disk; with a lower bound it is pushed."""
    line = [
        "predict", DEMO, "--to", "400", "--max-step", "200", "--out", "p", "--push", f"{repo_id}@step_400",
        "--eval", "radd", "--include-path", str(ROOT / "demo" / "tasks"), "--limit", "40",
        "--batch-size", "40", "--push-if-better", "--summary", "page.md", "--json", "-q",
    ]  # fmt: skip
    refused = hubextrap(*line, "--min-score", "radd=0.999", at=here)
    assert refused.returncode == 3, refused
    answer = json.loads(refused.stdout)
    assert not answer["gate"]["passed"]
    assert answer["prediction"]["push"] is None
    assert Path("page.md").read_text().startswith("❌ radd exact")
    assert f"not pushed: it stays in p; `hubextrap push p {repo_id}@step_400` pushes it" in refused.stderr
    assert not HfApi().repo_exists(repo_id)
    shutil.rmtree("p")
    Path("page.md").unlink()
    passed = hubextrap(*line, "--min-score", "radd=0.1", at=here)
    assert passed.returncode == 0, passed
    assert Path("page.md").read_text().startswith("✅ radd exact")
    commit = json.loads(passed.stdout)["prediction"]["push"]["commit"]
    assert HfApi().model_info(repo_id, revision="step_400").sha == commit


def test_where_the_recipe_goes_is_checked_before_a_weight_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(here / "run", straight, EVERY_10)
    Path("p.yaml").write_text("mine: 1\n")
    Path("run-step_100.yaml").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("hubextrap.opening.Run.scan_weights", refuse_to_read)
        for options, said in (
            (["--out", "p"], "p.yaml: is there already and was not written by hubextrap"),
            (["--to", "100"], "run-step_100.yaml: cannot be written: it is a folder"),
            (
                ["--write-recipe", "absent/r.yaml"],
                "absent/r.yaml: cannot be written: there is no folder absent",
            ),
        ):
            ended = run_main("predict", "run", *options, "-q")
            assert ended.code == 1, ended
            assert said in ended.err
    assert run_main("predict", "run", "--to", "90", "--out", "made/p", "-q").code == 0
    assert sorted(path.name for path in Path("made").iterdir()) == ["p", "p.yaml"]
    assert Path("p.yaml").read_text() == "mine: 1\n"


@pytest.mark.parametrize("name", ["-dash", "it's", "a $(touch x) `b` run"])
def test_the_next_command_can_be_copied(name: str, here: Path) -> None:
    write_run(here / name, straight, EVERY_10)
    said = run_main("predict", f"./{name}", "--to", "80", "-q").out
    (command,) = re.findall("`(hubextrap run .*) --out DIR`", said)
    recipe = shlex.split(command)[2]
    assert load_recipe(recipe).target_steps == (80,)
    assert not recipe.startswith("-")
    said = run_main("backtest", f"./{name}", "-q", "--write-recipe", f"./{name}.yaml").out
    (command,) = re.findall("`(hubextrap merge .*) --out DIR`", said)
    assert load_recipe(shlex.split(command)[2]).target_steps == (140,)


@pytest.mark.parametrize(("last", "named"), [(70, "step 70 + "), (40, "step ")])
def test_a_step_that_is_never_reached_is_not_named(last: int, named: str, here: Path) -> None:
    """The learning rate ends at step 100."""
    for step in range(0, last + 10, 10):
        folder = write_run(here / "run", straight, [step]) / f"step_{step}"
        rates = [{"step": at, "learning_rate": 1e-5 * (1 - at / 100)} for at in range(1, step + 1)]
        state = {"global_step": step, "max_steps": 100, "log_history": rates}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    ended = run_main("predict", "run", "--dry-run", "-q", *(["--to", "60"] if last == 40 else []))
    assert ended.code == 0, ended
    (predicts,) = [line for line in ended.out.splitlines() if line.startswith("  predicts")]
    assert ("full-rate" in predicts) == (last == 70)
    assert f"predicts   {named}" in predicts


@pytest.mark.usefixtures("logged_in")
def test_no_prediction_takes_the_place_of_a_checkpoint_of_its_run(
    here: Path, repo_id: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HfApi(token=token)
    hub.create_repo(repo_id)
    for step in EVERY_10:
        folder = write_run(here / "run", straight, [step]) / f"step_{step}"
        hub.create_branch(repo_id, branch=f"step_{step}")
        hub.upload_folder(repo_id=repo_id, folder_path=folder, revision=f"step_{step}")
    with monkeypatch.context() as patched:
        patched.setattr("hubextrap.opening.Run.scan_weights", refuse_to_read)
        ended = run_main("predict", repo_id, "--to", "80", "--push", f"{repo_id}@step_70", "-q")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {repo_id}@step_70: step 70 of the run lies there")
    assert run_main("predict", repo_id, "--to", "80", "--push", f"{repo_id}@step_80", "-q").code == 0
    assert find_trajectory(repo_id).steps == tuple(EVERY_10)


def test_a_walk_that_stays_predicts_no_farther_step(here: Path) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    asked = ("predict", str(DEMO), "--max-step", "200", "--to", "400", "--walk", "prompts.jsonl", "-q")
    said = run_main(*asked).out.splitlines()
    assert said[0] == "✕ Keep the last checkpoint: the walk found no farther step to be better"
    assert said[1] == "  predicted  step 200"
    assert Path("rlvr-C-up_to_400/model.safetensors").is_file()
    assert load_recipe("rlvr-C-up_to_400.yaml").walk is not None
