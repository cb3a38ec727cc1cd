"""The demonstration `make reground`: its task, its reward, its tables; and, slow, a small form of it."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE, KEPT = ROOT / "docs" / "reground.md", ROOT / "docs" / "reground-demo"


def demo_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    return __import__(name)


@pytest.fixture
def addition(monkeypatch: pytest.MonkeyPatch) -> Any:
    return demo_module("addition", monkeypatch)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    return demo_module("reground_report", monkeypatch)


def rows(table: str) -> list[list[str]]:
    """The cells of a markdown table, its rule left out."""
    lines = [line.strip("|\n ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [line for line in lines if set(line) != {"---"}]


def test_training_never_sees_a_held_out_problem(addition: Any) -> None:
    held_out = {problem.question for problem in addition.held_out_problems()}
    assert len(held_out) == 500
    # of so many draws about a dozen would be held out if nothing left them out
    problems = addition.training_problems(first_step=0, steps=100, per_step=200, seed=3)
    assert len(problems) == 20_000
    assert not held_out & {problem.question for problem in problems}
    for question, answer in problems:
        left, right = re.fullmatch(r"(\d{3})\+(\d{3})=", question).groups()  # type: ignore[union-attr]
        assert int(answer[::-1]) == int(left) + int(right)


def test_a_run_in_rounds_sees_the_problems_of_the_uncut_run(addition: Any) -> None:
    whole = addition.training_problems(0, 6, per_step=4, seed=1)
    assert addition.training_problems(0, 2, 4, 1) + addition.training_problems(2, 4, 4, 1) == whole
    assert addition.training_problems(0, 6, 4, seed=2) != whole


def test_only_the_exact_answer_and_its_end_are_rewarded(addition: Any) -> None:
    pad, end = 0, 2
    answer = [9, 10, 6, 4, end]
    wrong = [
        [9, 10, 6, 4],  # never ended
        [9, 10, 6, 4, 4, end],
        [9, 10, 6, end],
        [9, 10, pad, 6, 4, end],  # decodes to the answer's text
        [10, 9, 6, 4, end],
        [],
    ]
    completions = [answer, *wrong]
    assert addition.exact_match(completions, [answer] * len(completions)) == [1.0] + [0.0] * len(wrong)


def test_both_accuracies_are_those_of_the_bundled_run(addition: Any) -> None:
    """Step 400 was measured at .984 greedy and .663 sampled over all 500 problems when the run was made."""
    model, tokenizer = addition.load(addition.DATA / "step_400")
    problems = addition.held_out_problems()[:100]
    measured = addition.accuracy(model.eval(), tokenizer, problems, samples=8)
    greedy, sampled = np.array(measured.greedy), np.array(measured.sampled)
    assert greedy.mean() == pytest.approx(0.984, abs=0.04)
    probability = addition.expected_accuracy(model, tokenizer, problems)
    noise = np.sqrt((sampled * (1 - sampled)).sum() / 7) / 100
    assert sampled.mean() == pytest.approx(probability, abs=4 * noise)
    assert sampled.mean() == pytest.approx(0.663, abs=0.08)


@pytest.fixture
def curves(report: Any) -> list[Any]:
    plain, jumping = report.Arm(2e-6, steps=40), report.Arm(2e-6, steps=40, m=20, n=60, guard="probe")
    decision = {"rl_steps": 20, "n_wanted": 60, "action": "rolled_back", "reason": "harm"}
    scored = np.array([[0.0, 0.5, 0.25, 0.25], [0.5, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]])
    gained = np.array([[0.0], [0.25], [0.0]])
    return [
        report.Curve(plain, 0, (0, 20, 40), np.round(scored), scored, []),
        report.Curve(jumping, 0, (0, 20, 40), np.round(scored), scored + gained, [decision]),
    ]


def test_the_tables_say_what_was_measured(report: Any, curves: list[Any], tmp_path: Path) -> None:
    plain, jumping = (curve.arm for curve in curves)
    compared = [report.Comparison(jumping, 20, plain, 40)]
    tables = report.write_report(tmp_path, curves, compared, every=20)
    assert (tmp_path / "tables.md").read_text() == tables + "\n"
    accuracy, comparison, decisions = map(rows, tables.split("\n\n"))
    assert accuracy == [
        ["learning rate", "training", "sampled at 20", "sampled at 40", "greedy at 40"],
        ["2e-6", "plain RL", ".500 ± .000", ".625 ± .125", ".250"],
        ["2e-6", "(20, +60), guard: probe", ".750 ± .000", ".625 ± .125", ".250"],
    ]
    described = ["(20, +60), guard: probe, lr 2e-6, at 20", "plain RL, lr 2e-6, at 40"]
    assert comparison[1:] == [[*described, "+.125 ± .125"]]
    assert decisions[1:] == [["(20, +60), guard: probe, lr 2e-6", "20", "60", "rolled back", "harm"]]
    assert '"plain RL",2e-6,0,40,0.2500,0.6250,0.1250' in (tmp_path / "accuracy.csv").read_text()
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_is_between_the_marks_is_replaced(report: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for tables in ("| \\1 |", "| new |"):
        report.insert_tables(page, tables)
        assert page.read_text() == f"before\n{report.BEGIN}\n{tables}\n{report.END}\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match=r"the marks .* restore them"):
        report.insert_tables(page, "new")
    assert page.read_text() == "no marks\n"


def test_the_page_holds_the_tables_that_were_measured(report: Any) -> None:
    tables = (KEPT / "tables.md").read_text().strip()
    assert f"{report.BEGIN}\n{tables}\n{report.END}" in PAGE.read_text()
    check_against_csv(tables, KEPT / "accuracy.csv")


def check_against_csv(tables: str, file: Path) -> None:
    """Every sampled accuracy of the first table, and its standard error, is the file's."""
    with file.open(newline="") as stream:
        kept = {
            (line["arm"], line["learning_rate"], int(line["rl_steps"]), int(line["seed"])): line
            for line in csv.DictReader(stream)
        }
    head, *body = rows(tables.split("\n\n")[0])
    seen = 0
    for lr, arm, *cells in body:
        for column, cell in zip(head[2:-1], cells, strict=False):
            step = int(column.removeprefix("sampled at "))
            for seed, figure in enumerate(cell.split(" / ")):
                if figure != "–":
                    mean, error = (float(part) for part in figure.split(" ± "))
                    line = kept[arm, lr, step, seed]
                    assert float(line["sampled"]) == pytest.approx(mean, abs=6e-4)
                    assert float(line["standard_error"]) == pytest.approx(error, abs=6e-4)
                    seen += 1
    assert seen >= len(body)


@pytest.mark.slow
def test_the_demonstration_runs_in_small(tmp_path: Path) -> None:
    """Trains three runs of 8 steps; run again, it trains and measures nothing and reports the same."""

    def quick() -> str:
        command = [sys.executable, "demo/reground.py", "--quick", "--work", str(tmp_path / "runs")]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    first = quick()
    assert len(re.findall(r"^training ", first, re.MULTILINE)) == 3
    tables = (tmp_path / "runs" / "tables.md").read_text().strip()
    assert tables in first
    check_against_csv(tables, tmp_path / "runs" / "accuracy.csv")
    _, comparison, decisions = map(rows, tables.split("\n\n"))
    # every jump of 1000 steps was undone, so the run is the plain one to the last bit
    assert [row[3] for row in decisions[1:]] == ["rolled back"] * 3 + ["skipped"]
    assert all("harm above the margin" in row[4] for row in decisions[1:-1])
    assert comparison[-1][-1] == "+.000 ± .000"
    again = quick()
    assert not re.findall(r"^training |: sampled ", again, re.MULTILINE)
    assert tables in again
