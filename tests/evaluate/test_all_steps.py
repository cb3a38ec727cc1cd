"""`eval RUN --all-steps`: every checkpoint once, what the trainer logged, and predictions beside them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_lines import Ended, run_main
from harness import Lines, held

import hubextrap
from hubextrap.errors import EvaluationError, OutputError
from hubextrap.evaluation import EvaluationTable, Harness
from hubextrap.localhub import LocalHub

LOG = [{"step": step, "reward": step / 500, "learning_rate": 1e-6} for step in range(10, 401, 10)]
LOG += [{"step": step, "eval_loss": 1 - step / 1000, "eval_runtime": 3.0} for step in range(100, 401, 100)]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was measured before."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(trajectory: Path, tmp_path: Path) -> Path:
    """The bundled run up to step 200."""
    for step in (0, 40, 80, 120, 200):
        shutil.copytree(trajectory / f"step_{step}", tmp_path / "run" / f"step_{step}")
    return tmp_path / "run"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of what was really measured."""
    labels: list[str] = []
    real = Harness.measure

    def counting(self: Harness, label: str, checkpoint: Any) -> Any:
        labels.append(label)
        return real(self, label, checkpoint)

    monkeypatch.setattr(Harness, "measure", counting)
    return labels


@pytest.fixture
def problems(trajectory: Path) -> list[str]:
    """Options that measure little."""
    return ["--task-file", str(trajectory / "problems.jsonl"), "--limit", "40", "--batch-size", "40"]


def grown(run: Path, trajectory: Path, step: int = 400) -> None:
    shutil.copytree(trajectory / f"step_{step}", run / f"step_{step}")


def log_beside(folder: Path, step: int, log: list[dict[str, Any]] = LOG) -> None:
    state = {
        "global_step": step,
        "max_steps": 400,
        "log_history": [one for one in log if one["step"] <= step],
    }
    (folder / "trainer_state.json").write_text(json.dumps(state))


def told(ended: Ended) -> str:
    return " ".join(ended.out.split())


@pytest.mark.slow
def test_a_run_that_grew_has_only_its_new_checkpoints_measured(
    run: Path, trajectory: Path, problems: list[str], measured: list[str], tmp_path: Path
) -> None:
    log_beside(run / "step_200", 200)
    arguments = ["eval", "run", "--all-steps", *problems, "--output", "r.json", "--plot", "p.png"]
    ended = run_main(*arguments)
    assert ended.code == 0, ended
    assert measured == ["step 0", "step 40", "step 80", "step 120", "last"]
    assert "run: 5 checkpoints, steps 0 to 200" in ended.out
    assert "problems exact_match still rises: +0." in told(ended)
    assert "per 100 steps over steps 80–200 (3 checkpoints, 40 problems)" in told(ended)
    assert "the trainer's reward still rises: +0.200 [" in told(ended)
    for heading in ("95 % interval", "reward", "eval_loss"):
        assert heading in ended.out
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"
    table = EvaluationTable.load(Path("r.json"))
    assert [row.step for row in table.rows] == [0, 40, 80, 120, 200]

    measured.clear()
    grown(run, trajectory)
    log_beside(run / "step_400", 400)
    ended = run_main(*arguments, "--json", "--summary", "summary.md")
    assert ended.code == 0, ended
    assert measured == ["last"]
    assert "5 of 6 checkpoints were measured before" in ended.err
    found = json.loads(ended.out)
    assert found["steps"] == [0, 40, 80, 120, 200, 400]
    labels = ["step 0", "step 40", "step 80", "step 120", "step 200", "last"]
    assert [row["label"] for row in found["table"]["rows"]] == labels
    assert found["table"] == json.loads(Path("r.json").read_text())
    assert [(one["title"], one["last_step"], one["count"]) for one in found["slopes"]] == [
        ("problems exact_match", 400, 3),
        ("the trainer's reward", 400, 20),
        ("the trainer's eval_loss", 400, 4),
    ]
    assert [column["name"] for column in found["logged"]] == ["reward", "eval_loss"]
    assert "| step | checkpoint | problems exact_match | 95 % interval | reward | eval_loss |" in (
        Path("summary.md").read_text()
    )


@pytest.mark.slow
def test_what_figures_depend_on_has_them_measured_again(
    run: Path, problems: list[str], measured: list[str], tmp_path: Path
) -> None:
    arguments = ["eval", "run", "--all-steps", *problems, "--output", "r.json"]
    assert run_main(*arguments, "--quiet").code == 0
    measured.clear()
    assert (
        run_main(*arguments, "--min-step", "80", "--quiet").code == 1
    )  # results of other steps would be lost
    assert run_main("eval", "run", "--all-steps", *problems, "--min-step", "80", "--quiet").code == 0
    assert measured == []
    (run / "step_200" / "generation_config.json").write_text('{"do_sample": false}')
    assert run_main(*arguments, "--quiet").code == 0
    assert measured == ["last"]  # somebody wrote to it
    assert run_main("eval", "run", "--all-steps", *problems, "--seed", "1", "--quiet").code == 0
    assert len(measured) == 6  # other settings, other figures
    scores = tmp_path / "home" / "hubextrap" / "scores"
    assert len(list(scores.iterdir())) == 5 + 1 + 5

    page = (
        run_main("scan", "run", "--out", "scan.safetensors", "--quiet").code
        or run_main("report", "scan.safetensors", "--evaluation", "r.json").code
    )
    assert page == 0


@pytest.mark.slow
def test_on_the_hub_figures_are_kept_by_commit(
    hub: LocalHub, repo_id: str, trajectory: Path, measured: list[str], lines: Lines
) -> None:
    hub.create_repo(repo_id)

    def commit(step: int, *, of: int) -> None:
        files = {file.name: file.read_bytes() for file in (trajectory / f"step_{of}").iterdir()}
        state = json.dumps({"global_step": step, "log_history": LOG[: step // 10]}).encode()
        hub.commit(repo_id, files | {"trainer_state.json": state}, revision=f"step_{step}")

    for step in (0, 100, 200):
        commit(step, of=step)
    options = hubextrap.EvaluationOptions(
        task_files=[hubextrap.TaskFile(trajectory / "problems.jsonl", "exact")], limit=20, batch_size=20
    )
    found = hubextrap.evaluate_steps(repo_id, options, progress=lines)
    assert measured == ["step 0", "step 100", "last"]
    assert found.table is not None
    assert all(row.commit and row.reference == f"{repo_id}@step_{row.step}" for row in found.table.rows)
    assert [column.name for column in found.logged] == ["reward"]
    assert found.logged[0].steps[-1] == 200

    measured.clear()
    again = hubextrap.evaluate_steps(repo_id, options)
    assert (measured, again) == ([], found)
    commit(100, of=120)  # the branch has moved on
    hubextrap.evaluate_steps(repo_id, options)
    assert measured == ["step 100"]


@pytest.mark.slow
def test_without_tasks_the_trainer_s_columns_are_shown(run: Path, measured: list[str]) -> None:
    none = run_main("eval", "run", "--all-steps", "--quiet")
    assert none.code == 1
    assert (
        "step_200: there is no trainer_state.json that holds a reward or eval_* column; give tasks"
        in none.err
    )
    log_beside(run / "step_200", 200)
    ended = run_main("eval", "run", "--all-steps", "--plot", "p.png")
    assert ended.code == 0, ended
    assert measured == []
    rows = [line.replace("│", " ").split() for line in ended.out.splitlines() if line.startswith("│")]
    assert rows == [
        ["0"],
        ["40", "0.080"],
        ["80", "0.160"],
        ["120", "0.240", "0.900"],
        ["200", "0.400", "0.800"],
    ]
    assert "the trainer's reward still rises" in ended.out
    assert Path("p.png").is_file()
    log_beside(run / "step_200", 200, [{"step": 200, "rewards/length/mean": 1.0}])
    assert run_main("eval", "run", "--all-steps", "--plot", "p.png", "--quiet").code == 0
    log_beside(run / "step_200", 200, [{"step": 200, **{f"eval_{n}": 1.0 for n in range(150)}}])
    ended = run_main("eval", "run", "--all-steps", "--plot", "p.png", "--quiet")
    assert ended.code == 0
    assert "eval_11" in ended.out
    assert "eval_12" not in ended.out
    log_beside(run / "step_200", 160)
    other = run_main("eval", "run", "--all-steps", "--quiet")
    assert other.code == 1
    assert "from step 160, but its checkpoint is step 200" in other.err


def test_a_log_that_cannot_be_read_costs_no_scores(run: Path, problems: list[str]) -> None:
    (run / "step_200" / "trainer_state.json").write_text("{")
    ended = run_main("eval", "run", "--all-steps", *problems, "--min-step", "120", "--quiet")
    assert ended.code == 0, ended
    assert "trainer_state.json" in ended.out.replace("\n", "")  # folded at 80 columns
    assert "2 checkpoints: too few to say whether the score still rises; that takes 3." in told(ended)


@pytest.mark.slow
def test_predictions_stand_beside_what_they_were_made_from(
    run: Path, trajectory: Path, problems: list[str], tmp_path: Path
) -> None:
    recipe = {"trajectory": {"repo": "run"}, "merge_method": "two_point", "parameters": {"target_step": 400}}
    for name, most in (("predicted", 200), ("other", 120)):
        (tmp_path / "r.yaml").write_text(
            json.dumps(recipe | {"trajectory": {"repo": "run", "steps": {"max": most}}})
        )
        assert run_main("merge", "r.yaml", "--out", name, "--force", "--quiet").code == 0
    grown(run, trajectory)
    ended = run_main("eval", "run", "predicted", "run/step_40", "--all-steps", *problems, "--json", "--quiet")
    assert ended.code == 0, ended
    rows = json.loads(ended.out)["table"]["rows"]
    assert [(row["label"], row["step"]) for row in rows] == [
        ("step 0", 0), ("step 40", 40), ("step 80", 80), ("step 120", 120), ("last", 200), ("target", 400),
        ("prediction", 400),
    ]  # fmt: skip
    shown = run_main("eval", "run", "predicted", "--all-steps", *problems, "--quiet")
    assert "the last observed checkpoint on problems exact_match" in told(shown)
    two = run_main("eval", "run", "predicted", "other", "--all-steps", *problems, "--quiet")
    assert two.code == 1
    assert "evaluate them one by one" in two.err
    beyond = run_main("eval", "run", "predicted", "--all-steps", *problems, "--max-step", "120")
    assert beyond.code == 0, beyond
    assert "its last one, step 200, is not among them; it is compared with step 120" in beyond.err


def test_what_cannot_end_well_is_refused_beforehand(
    run: Path, problems: list[str], measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("notes.txt").write_text("mine")
    for arguments, said in (
        (["--plot", "notes.txt"], "notes.txt: is there already and is no picture"),
        (["--plot", "absent/p.png"], "there is no folder"),
        (["--output", "notes.txt"], "holds no results"),
        (["--output", "run"], "a folder"),
    ):
        ended = run_main("eval", "run", "--all-steps", *problems, *arguments, "--quiet")
        assert ended.code == 1, arguments
        assert said in ended.err
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "notes.txt"))
    ended = run_main("eval", "run", "--all-steps", *problems, "--quiet")
    assert ended.code == 1
    assert "choose another HF_HOME" in ended.err
    assert measured == []
    with pytest.raises(EvaluationError, match=r"^predicted: there is nothing to measure it with; give tasks"):
        hubextrap.evaluate_steps(run, beside=["predicted"])
    with pytest.raises(EvaluationError, match=r"^r\.json: there is nothing to save"):
        hubextrap.evaluate_steps(run, output="r.json")
    chosen = hubextrap.find_trajectory(str(run))
    with pytest.raises(EvaluationError, match="trajectory has no effect"):
        hubextrap.evaluate_steps(chosen, trajectory=hubextrap.TrajectoryOptions(max_step=9))
    with pytest.raises(OutputError):
        hubextrap.evaluate_steps(chosen, plot=tmp_path)


@pytest.mark.slow
def test_an_interrupted_command_goes_on(run: Path, problems: list[str], tmp_path: Path) -> None:
    """As a whole process, stopped by Ctrl-C once a figure is kept."""
    arguments = ["eval", "run", "--all-steps", *problems]
    stopped = [*held("hubextrap.evaluation:Harness.measure", 5), *arguments]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(stopped, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=reset)
    scores = tmp_path / "home" / "hubextrap" / "scores"
    until = time.monotonic() + 120
    while time.monotonic() < until and not list(scores.glob("*.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0, said
    assert "Traceback" not in said
    kept = len(list(scores.glob("*.json")))
    assert 0 < kept < 5
    command = [sys.executable, "-m", "hubextrap", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended
    assert f"{kept} of 5 checkpoints were measured before" in ended.stderr
    assert "problems exact_match still rises" in " ".join(ended.stdout.split())
