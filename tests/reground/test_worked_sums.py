"""The demo's task of long answers: what is right, and the bundled run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
QUESTION = "4+9+2+7+3+8="


@pytest.fixture
def worked_sums(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    return __import__("worked_sums")


@pytest.fixture
def addition(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    return __import__("addition")


@pytest.mark.parametrize(
    "answer",
    [
        "9+3=12 12+4=16 16+8=24 24+7=31 31+2=33",
        "4+9=13 13+2=15 15+7=22 22+3=25 25+8=33",  # another order
        "3+9=12 4+12=16 8+16=24 7+24=31 2+31=33",  # the operands changed over
        "4+9=13 2+7=9 3+8=11 9+11=20 20+13=33",  # a tree, which no demonstration shows
    ],
)
def test_any_order_that_works_out_is_right(worked_sums: Any, answer: str) -> None:
    assert worked_sums.is_right(QUESTION, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "9+3=12 12+4=16 16+8=24 24+7=31 31+2=34",  # wrong at the end
        "9+3=13 13+4=17 17+8=25 25+7=32 32+1=33",  # wrong on the way, and 1 is no term
        "9+3=12 12+4=16 16+8=24 24+7=31",  # one is left over
        "9+3=12 12+4=16 16+8=24 24+9=33",  # 9 taken twice, 7 and 2 never
        "9+3=12 12+4=16 16+8=24 24+7=31 31+2=33 33+0=33",
        "9+3=12 12+4=16 16+8=24 24+7=31 31+2=33 ",
        "9+3=12  12+4=16 16+8=24 24+7=31 31+2=33",
        "9+3+4=16 16+8=24 24+7=31 31+2=33",
        "9+3=12=12 12+4=16 16+8=24 24+7=31 31+2=33",
        "9+3=012 12+4=16 16+8=24 24+7=31 31+2=33",
        "33",
        "",
    ],
)
def test_what_does_not_work_out_is_wrong(worked_sums: Any, answer: str) -> None:
    assert not worked_sums.is_right(QUESTION, answer)


def test_demonstrations_are_right_long_and_of_random_orders(worked_sums: Any) -> None:
    random = np.random.default_rng(0)
    problems = [worked_sums.draw(random) for _ in range(300)]
    assert all(worked_sums.is_right(*problem) for problem in problems)
    lengths = [len(problem.answer) + 1 for problem in problems]
    assert min(lengths) >= 30
    assert max(lengths) <= worked_sums.MAX_NEW_TOKENS
    first_terms = [problem.question[::2].index(problem.answer[0]) for problem in problems]
    assert min(np.bincount(first_terms, minlength=worked_sums.TERMS)) > 20


def test_training_never_sees_a_held_out_problem(worked_sums: Any) -> None:
    held_out = {problem.question for problem in worked_sums.held_out_problems()}
    assert len(held_out) == worked_sums.HELD_OUT
    # of so many draws about thirty would be held out if nothing left them out
    problems = worked_sums.training_problems(0, steps=50, per_step=200, seed=3)
    assert not held_out & {problem.question for problem in problems}
    assert worked_sums.training_problems(49, 1, 200, seed=3) == problems[-200:]


def test_a_reward_asks_for_the_end(worked_sums: Any, addition: Any) -> None:
    _, tokenizer = addition.load(worked_sums.DATA / "step_0")
    right = tokenizer("9+3=12 12+4=16 16+8=24 24+7=31 31+2=33")["input_ids"]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    completions = [[*right, end], right, [*right, end, end], [*right[:9], pad, *right[9:], end], [end], []]
    reward = worked_sums.rewarder(tokenizer)
    assert reward(completions, [QUESTION] * len(completions)) == [1.0] + [0.0] * 5


def test_the_bundled_run_is_of_this_task(worked_sums: Any, addition: Any) -> None:
    """Accuracies as they were measured when the run was made, within the noise of fewer samples."""
    lines = (worked_sums.DATA / "problems.jsonl").read_text().splitlines()
    assert [worked_sums.Problem(**json.loads(line)) for line in lines] == worked_sums.held_out_problems()
    results = json.loads((worked_sums.DATA / "results.json").read_text())
    steps = sorted(int(folder.name.removeprefix("step_")) for folder in worked_sums.DATA.glob("step_*"))
    assert set(steps) <= set(map(int, results["accuracy"]))
    model, tokenizer = addition.load(worked_sums.DATA / f"step_{steps[-1]}")
    found = worked_sums.accuracy(model.eval(), tokenizer, worked_sums.held_out_problems(), samples=2, seed=1)
    measured = results["accuracy"][str(steps[-1])]["sampled16"]
    assert np.mean(found) == pytest.approx(measured, abs=4 * np.sqrt(0.25 / 400))


@pytest.mark.slow
def test_the_run_is_made_in_small(tmp_path: Path) -> None:
    """Warm-up, training and measurements, of four steps: a trajectory comes out, and training moved it."""
    out = tmp_path / "rlvr-L"
    small = ["--warm-up-to", "0", "--steps", "4", "--save-every", "2", "--prompts", "2"]
    command = [sys.executable, str(ROOT / "demo" / "long_run.py"), "--output", str(out), *small]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    assert sorted(path.name for path in out.iterdir()) == [
        "problems.jsonl",
        "results.json",
        *(f"step_{step}" for step in (0, 2, 4)),
    ]
    bundled = {path.name for path in (ROOT / "demo" / "data" / "rlvr-L" / "step_0").iterdir()}
    assert {path.name for path in (out / "step_4").iterdir()} == bundled
    weights = {(out / f"step_{step}" / "model.safetensors").read_bytes() for step in (0, 2, 4)}
    assert len(weights) == 3
    assert set(json.loads((out / "results.json").read_text())["accuracy"]) == {"0", "2", "4"}
