"""What commands print at 80 columns: no line is longer, and no name, number or word is broken in two."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml
from command_lines import Ground, run_main
from harness import ROOT
from rich.console import Console, RenderableType

from hubextrap.evaluation.render import to_rich
from hubextrap.evaluation.sweep_report import GridPoint, report_sweep, sweep_rich
from hubextrap.evaluation.table import EvaluationTable, MeasurementSettings, Row, Score, TaskRecord
from hubextrap.evaluation.walk_report import WalkPoint, WalkReport, walk_rich
from hubextrap.localhub import LocalHub
from hubextrap.narrow import NarrowTable, fitted, without_middle
from hubextrap.statistics import as_recipe, candidates, plain_name

LONG = "an-organisation/Qwen2.5-Math-7B-grpo-with-a-name-that-says-all-of-its-settings"


@pytest.fixture
def at_80(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setenv("COLUMNS", "80")
    return ground


def broken(text: str, whole: list[str]) -> list[str]:
    """Those of the words that do not stand in one piece, nor with a middle that was left out."""
    found = text.split()
    missing = []
    for word in whole:
        begins, ends = word[:2], word[-2:]
        short = [one for one in found if "…" in one and one.startswith(begins) and one.endswith(ends)]
        if word not in text and not short:
            missing.append(word)
    return missing


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("steps run -q", ["checkpoint", "commit", "size", "F32", "step_30"]),
        (
            "scan run --out new.safetensors --reference-share 0.5 -q",
            ["post_attention_layernorm", "‖last", "first‖"],
        ),
        ("backtest run -q", [plain_name(one.name) for one in candidates()] + ["expected", "farther"]),
        ("plan recipe.yaml --out predicted -q", ["predicted", "two_point:", "problems"]),
        ("plan recipe.yaml --out a/rather/deep/folder/that/is/not/there/predicted-at-60 -q", ["observe"]),
        ("merge recipe.yaml --out predicted -q", ["predicted"]),
        ("verify merged -q", ["hubextrap.json"]),
        ("recipes ls", ["relex_qwen2.5_math_1.5b", "mergekit_least_squares"]),
        ("recipes cp calibrated other.yaml", ["other.yaml"]),
    ],
    ids=lambda each: each.partition(" ")[0] if isinstance(each, str) else "",
)  # fmt: skip
def test_no_line_is_longer_and_no_word_broken(line: str, whole: list[str], at_80: Ground) -> None:
    ended = run_main(*line.split())
    assert ended.code in (0, 1), ended
    assert ended.out.strip()
    assert [one for one in ended.out.splitlines() if len(one) > 80 and " " in one.strip()] == []
    assert broken(ended.out, whole) == []


def test_names_that_are_too_long_lose_their_middle(at_80: Ground, hub: LocalHub) -> None:
    branch = "a-branch-that-says-rather-a-lot-about-all-of-the-settings-of-the-run-{step}"
    hub.create_repo(at_80.repo)
    for step in (10, 200):
        files = {file.name: file for file in (at_80.folder / "run" / "step_10").iterdir()}
        hub.commit(at_80.repo, files, revision=branch.format(step=f"step_{step}"))
    rows = run_main("steps", at_80.repo, "-q").out.splitlines()[-2:]
    assert [row for row in rows if len(row) > 80 or "…" not in row] == []
    assert len({row.split()[1] for row in rows}) == 2
    assert [row.split()[1][:8] for row in rows] == ["a-branch"] * 2


def test_the_legend_of_a_backtest_is_yaml_to_paste(at_80: Ground) -> None:
    shown = run_main("backtest", "run", "-q").out.partition("write it into a recipe:\n")[2]
    blocks = re.split(r"\n(?=  merge_method)", shown.rstrip("\n"))
    named = {block.partition("# ")[2].partition("\n")[0]: yaml.safe_load(block) for block in blocks}
    assert named == {
        plain_name(one.name): yaml.safe_load("\n".join(as_recipe(one.name))) for one in candidates()
    }


def test_a_recipe_stays_one(at_80: Ground) -> None:
    shown = run_main("predict", "run", "--to", "40", "--dry-run", "-q").out
    recipe = yaml.safe_load(shown[shown.index("trajectory:") :])
    assert recipe["parameters"]["target_step"] == 40
    assert yaml.safe_load(shown[shown.index("# Written") :]) == recipe
    assert max(map(len, shown.splitlines())) <= 80


def test_a_wider_terminal_shows_more(at_80: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = run_main("plan", "recipe.yaml", "--out", "predicted", "-q").out
    monkeypatch.delenv("COLUMNS")
    piped = run_main("plan", "recipe.yaml", "--out", "predicted", "-q").out
    assert max(map(len, piped.splitlines())) > 80
    assert max(len(line) for line in narrow.splitlines() if " " in line.strip()) <= 80
    assert "run/step_30" in piped
    assert "run/step_30" in narrow


@pytest.mark.slow
@pytest.mark.parametrize("words", ["steps", "backtest"])
def test_in_a_terminal(words: str, ground: Ground) -> None:
    """As a whole process, in a pseudo-terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "dumb", "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    line = [sys.executable, "-m", "hubextrap", words, "run", "--quiet"]
    process = subprocess.Popen(line, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert lines
    assert max(map(len, lines)) <= 80


def printed(what: RenderableType, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(what)
    assert max(map(len, out.getvalue().splitlines())) <= width
    return out.getvalue()


def evaluation(*labels: str) -> EvaluationTable:
    def scores(right: int) -> tuple[Score, ...]:
        answers = tuple(float(k < right) for k in range(8))
        return tuple(
            Score(
                task=task, metric="exact_match", filter="none", value=right / 8, stderr=0.017,
                higher_is_better=True, problems=answers,
            )
            for task in ("hubextrap_math500", "gsm8k")
        )  # fmt: skip

    record = TaskRecord(version="1", sha256="0" * 64, num_fewshot=0, documents=8, problems_sha256="0" * 64)
    settings = MeasurementSettings(
        seed=0, batch_size=1, limit=None, num_fewshot=None, apply_chat_template=False, device="cpu",
        dtype="auto", versions={}, tasks={"hubextrap_math500": record, "gsm8k": record},
    )  # fmt: skip
    rows = [
        Row(
            label=label,
            step=1200 + place,
            reference=f"{LONG}@step_{place}",
            commit="1" * 40,
            scores=scores(place),
        )
        for place, label in enumerate(labels)
    ]
    return EvaluationTable(settings=settings, rows=tuple(rows))


def test_an_evaluation() -> None:
    shown = printed(to_rich(evaluation("prediction", "last", "target")))
    assert broken(shown, ["hubextrap_math500", "exact_match", "prediction", "difference", "0.125"]) == []
    assert f"{LONG}@step_0" in shown.replace("\n", "")


@pytest.mark.parametrize("stderr", [None, 0.012])
def test_a_sweep(stderr: float | None) -> None:
    labels = [f"step {step}, damping {damping}" for step in (1500, 1800) for damping in (0.5, 1)]
    points = [
        GridPoint(
            label=label, step=1500, damping=1.0, horizon=0.25, expected_relative_error=0.578,
            expected_relative_error_stderr=stderr,
            trusted_up_to="step 400 + 50 full-rate steps", own_answers=-1.25,
        )
        for label in labels
    ]  # fmt: skip
    shown = printed(sweep_rich(report_sweep(evaluation(*labels, "last"), points)))
    assert ("0.012" in shown) == ("a sample of the weights" in shown) == (stderr is not None)
    assert broken(shown, ["hubextrap_math500", "full-rate", "expected", "(chosen)", "damping"]) == []


def test_a_walk() -> None:
    curve = tuple(WalkPoint(step=400 + 10 * k, horizon=k / 40, value=-30.0 + k) for k in range(4))
    report = WalkReport(
        by="correct_answers", up_to=500, at_peak_rate=True, prompts=64, answers=512, answer_tokens=9000,
        curve=curve, chosen=430, method="two_point",
    )  # fmt: skip
    assert broken(printed(walk_rich(report)), ["log-probability", "checkpoint", "-27.000", "chosen"]) == []


@pytest.mark.parametrize("width", [20, 40, 79, 80, 200])
@pytest.mark.parametrize("lines", [False, True])
def test_any_width(width: int, lines: bool) -> None:
    table = NarrowTable(
        ("name", "a title\nof two lines", "n"), [(LONG, "1.0", "2"), ("b", "", "")], "lrr", lines
    )
    shown = printed(table, width)
    assert (LONG in shown) == (width == 200)
    assert "title" in shown or width == 20


def test_words_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = f"  output    {Path('/a') / ('b' * 60)} and what comes behind it, in words"
    assert max(map(len, fitted(text, None).splitlines()[2:])) <= 40
    assert "b" * 60 in fitted(text, None)
    assert fitted("  note      one two three four five six seven", None).splitlines()[1].startswith(" " * 10)
    comment = fitted("# a comment in a recipe that is longer than the terminal is wide", None).splitlines()
    assert len(comment) > 1
    assert all(line.startswith("# ") for line in comment)
    assert fitted(text, sys.stderr) == text  # no terminal: a log
    monkeypatch.setenv("COLUMNS", "no number")
    assert fitted(text, None) == text
    assert [len(without_middle("x" * 30, width)) for width in (8, 9, 30, 40)] == [8, 9, 30, 30]


def test_a_command_to_copy_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = "`hubextrap run myrun-step_400.yaml --out DIR --max-loss 0.02`"
    text = f"  recipe     somewhere/myrun-step_400.yaml; {command} makes it again, if need be"
    lines = fitted(text, sys.stdout).splitlines()
    assert any(command in line for line in lines)
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
