"""`--summary`: what a job's page shows, whatever the names hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubextrap.cli.markdown import append_summary
from hubextrap.errors import OutputError
from hubextrap.foreign_text import markdown_code as code

Run = Callable[..., object]


def test_code_cannot_be_left() -> None:
    assert code("me/run@step_1") == "`me/run@step_1`"
    assert code("a`b``c") == "``` a`b``c ```"
    assert code("a|b\nc\t<img>") == "`a\\|b c <img>`"


def test_summaries_add_up(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    append_summary(file, "one\n\n")
    append_summary(file, "two")
    assert file.read_text() == "one\n\ntwo\n\n"
    with pytest.raises(OutputError, match="summary cannot be written"):
        append_summary(tmp_path, "three")


def test_plan_and_merge_write_one(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    summary, out = tmp_path / "summary.md", tmp_path / "out"
    assert cli("plan", recipe_file(checkpoints), "--summary", summary, "-q").code == 0
    assert cli("merge", recipe_file(checkpoints), "--out", out, "--summary", summary, "-q").code == 0
    assert cli("plan", recipe_file(checkpoints), "--out", out, "--summary", summary, "-q").code == 1
    first, _, rest = summary.read_text().partition("### Predicted")
    assert "✅ no problems found" in first
    assert "-1 × step 0, +2 × step 30" in first
    assert f"- step 60 from steps up to 30, horizon 1, in `{out}`" in rest
    assert "❌ 1 problem\n\n```text\n" in rest
    assert "not empty" in rest


def test_problems_are_known_before_the_work(
    cli: Run, checkpoints: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file(checkpoints)
    judged = cli("run", recipe, "--out", tmp_path / "out", "--max-loss", "0.1", "-q")
    assert (judged.code, judged.err) == (
        1,
        "error: --max-loss: the recipe has no evaluate section, so there will be nothing to judge\n",
    )
    recipe = recipe_file(checkpoints, evaluate={"tasks": ["gsm8k"], "against": ["base"]})
    assert (
        "no last observed checkpoint" in cli("run", recipe, "--out", tmp_path / "out", "--max-loss", "0").err
    )
    nowhere = cli("run", recipe, "--out", tmp_path / "out", "--summary", tmp_path / "not" / "there.md")
    assert "there is no folder" in nowhere.err
    for bound in (
        ("--max-loss", "nan"),
        ("--min-score", "x"),
        ("--min-score", "gsm8k="),
        ("--min-score", "1,2"),
    ):
        assert cli("run", recipe, "--out", tmp_path / "out", *bound).code == 2
    assert not (tmp_path / "out").exists()
