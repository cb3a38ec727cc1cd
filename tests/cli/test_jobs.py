"""What a job of a CI is told of a command that fails: its page begins with it, and GitHub annotates it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import Ground, run_main
from hostile_texts import HOSTILE, MIRROR, refuse_secrets

from hubextrap.cli.markdown import append_summary, check_summary
from hubextrap.foreign_text import own_lines, runner_command

TYPO = "trajectory: {repo: run}\nmerge_metod: two_point\nparameters:\n  target_stp: 60\n"


def understood(line: str) -> tuple[str, dict[str, str], str] | None:
    """A line of output as the runner of GitHub Actions reads it: command, properties, message."""
    line = line.lstrip()
    if not line.startswith("::") or (end := line.find("::", 2)) < 0:
        return None
    name, _, given = line[2:end].partition(" ")
    pairs = [pair.split("=", 1) for pair in given.strip().split(",") if pair]

    def decoded(text: str, *escapes: str) -> str:
        for escape in ("%0D", "%0A", *escapes, "%25"):
            text = text.replace(escape, chr(int(escape[1:], 16)))
        return text

    return name, {key: decoded(value, "%3A", "%2C") for key, value in pairs}, decoded(line[end + 2 :])


def annotations(output: str) -> list[tuple[dict[str, str], str]]:
    found = [understood(line) for line in output.splitlines()]
    assert {one[0] for one in found if one} <= {"error"}
    return [one[1:] for one in found if one]


@pytest.fixture
def on_actions(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
    import typer.rich_utils  # noqa: F401 - it reads the variable once, when it is imported

    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(ground.folder))
    return ground


def test_a_typing_error_as_a_job_sees_it(on_actions: Ground) -> None:
    """The whole process: the page, one annotation for each line of the recipe, and nothing on stdout."""
    Path("configs").mkdir()
    Path("configs/a,b:c%.yaml").write_text(TYPO)
    Path("page.md").write_text("of an earlier step\n\n")
    line = ["merge", "a,b:c%.yaml", "--out", "o", "--json", "--summary", "../page.md"]
    done = subprocess.run(
        [sys.executable, "-m", "hubextrap", *line], cwd="configs", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "merge_metod: unknown key; did you mean merge_method?" in done.stderr
    (first, said), (second, _) = annotations(done.stderr)
    assert first == {"file": "configs/a,b:c%.yaml", "line": "2", "title": "hubextrap"}
    assert said == "a,b:c%.yaml:2: merge_metod: unknown key; did you mean merge_method?"
    assert second["line"] == "3"
    page = Path("page.md").read_text()
    assert page.startswith("of an earlier step\n\n❌ a,b:c%.yaml has 2 problems:\n\n```text\na,b:c%.yaml:2: ")


def test_a_plan_annotates_the_line_of_what_cannot_be_measured(on_actions: Ground) -> None:
    recipe = on_actions.recipe(evaluate={"task_files": "absent.jsonl", "against": ["last", "me/nope"]})
    ended = run_main("plan", recipe, "-q")
    assert ended.code == 1
    told = {place["line"] for place, _ in annotations(ended.err)}
    lines = [line.strip() for line in Path(recipe).read_text().splitlines()]
    assert told == {str(1 + lines.index(key)) for key in ("task_files: absent.jsonl", "against:")}


LINES = {
    "a typing error": "plan typo.yaml",
    "a missing recipe": "merge absent.yaml --out o",
    "a missing repo": "eval me/absent --tasks gsm8k --no-against",
    "no such run": "backtest me/absent",
    "an unknown option": "plan recipe.yaml --otu o",
    "a wrong value": "merge recipe.yaml --out o --workers 0",
    "a bound that is none": "run evaluate.yaml --out o --max-loss much",
    "an idle option": "run recipe.yaml --out o --min-score 0.5",
    "a second argument": "plan recipe.yaml a b",
    "nothing to run": "run",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_whatever_fails_is_on_the_page_and_annotated(line: str, on_actions: Ground) -> None:
    Path("typo.yaml").write_text(TYPO)
    for words in (["--summary=page.md", *line.split()[1:]], [*line.split()[1:], "--summary", "page.md"]):
        ended = run_main(line.split()[0], *words, "-q")
        assert ended.code in (1, 2), ended
        assert not ended.out
        page = Path("page.md").read_text()
        assert page.startswith("❌ ")
        assert page.count("❌") == 1
        told = annotations(ended.err)
        assert told
        assert all("\x1b" not in said for _, said in told)
        Path("page.md").unlink()


def test_only_on_actions_and_only_where_there_is_a_page(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("typo.yaml").write_text(TYPO)
    for value in (None, "false", "1"):
        if value is not None:
            monkeypatch.setenv("GITHUB_ACTIONS", value)
        ended = run_main("plan", "typo.yaml", "--summary", "page.md")
        assert not annotations(ended.err)
    before = sorted(Path().iterdir())
    for line in (
        "steps absent --summary other.md",
        "lm-eval run --summary o.md",
        "plan -- --summary o.md",
    ):
        assert run_main(*line.split()).code
    assert sorted(Path().iterdir()) == before


def test_problems_of_a_plan_are_annotated(on_actions: Ground) -> None:
    ended = run_main("plan", "recipe.yaml", "--out", "run", "--json", "-q", "--summary", "page.md")
    assert ended.code == 1
    (problem,) = json.loads(ended.out)["problems"]
    assert annotations(ended.err) == [({"file": "recipe.yaml", "title": "hubextrap"}, problem)]
    assert Path("page.md").read_text().count("❌") == 1


def test_what_cannot_be_done_with_a_recipe_is_annotated_there(on_actions: Ground) -> None:
    ended = run_main("run", "evaluate.yaml", "--out", "o", "--push-if-better", "-q")
    ((given, said),) = annotations(ended.err)
    assert given == {"file": "evaluate.yaml", "title": "hubextrap"}
    assert said.startswith("--push-if-better: the recipe has no push section")


def test_a_page_that_cannot_be_written_is_the_error(on_actions: Ground) -> None:
    ended = run_main("plan", "recipe.yaml", "--summary", "absent/page.md", "-q")
    assert ended.code == 1
    ((_, said),) = annotations(ended.err)
    assert "there is no folder absent" in said


def test_what_comes_first_on_a_page_stands_behind_what_others_wrote(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("of another\n\n")
    check_summary(page)
    append_summary(page, "tables ü\n")
    append_summary(page, "❌ failed", first=True)
    append_summary(page, "more")
    assert page.read_text() == "of another\n\n❌ failed\n\ntables ü\n\nmore\n\n"
    other = tmp_path / "other.md"
    append_summary(other, "✅ alone", first=True)
    assert other.read_text() == "✅ alone\n\n"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_leaves_its_command(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", MIRROR)
    line = runner_command("error", text, file=text, line=3, title=f"{text}::error::x")
    assert len(line.splitlines()) == 1
    name, given, said = understood(line) or ("", {}, "")
    assert (name, list(given), given["line"]) == ("error", ["file", "line", "title"], "3")
    assert "\n" not in said
    refuse_secrets(line)
    several = understood(runner_command("error", own_lines(text, "ours"))) or ("", {}, "")
    assert several[2].split("\n")[-1] == "ours"
    assert several[2].count("\n") == 1


def test_json_stays_json_where_a_runner_would_act(on_actions: Ground) -> None:
    """A folder's name that begins a command, and one that is a command anywhere in a line."""
    name = "##[error]x ::error::y"
    Path("run/step_30").rename(f"run/{name} step_30")
    ended = run_main("steps", "run", "--json", "--fast", "--pattern", f"{name} step_{{step}}")
    assert ended.code == 0, ended
    assert name in str(json.loads(ended.out))
    assert "##[" not in ended.out
    assert "::error" not in ended.out
