"""The comment on a pull request: made once, then written anew; by a stand-in for GitHub's own `gh`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT

GH = """#!/usr/bin/env python3
import json, os, pathlib, sys
store = pathlib.Path(os.environ["COMMENTS"])
comments = json.loads(store.read_text())
given = sys.argv[2:]
fields = [given[place + 1] for place, word in enumerate(given) if word == "-F"]
path = given[-1]
assert sys.argv[1] == "api" and os.environ["GH_TOKEN"] == "job-token", sys.argv
if not fields:
    assert path == "repos/me/mine/issues/7/comments", path
    jq = given[given.index("--jq") + 1]
    assert "github-actions[bot]" in jq and "startswith($ENV.MARKER)" in jq, jq
    for one in comments:
        if one["login"] == "github-actions[bot]" and one["body"].startswith(os.environ["MARKER"]):
            print(one["id"])
else:
    body = pathlib.Path(fields[0].removeprefix("body=@")).read_text()
    if "PATCH" in given:
        (changed,) = [one for one in comments if path == f"repos/me/mine/issues/comments/{one['id']}"]
        changed["body"] = body
    else:
        comments.append({"id": 100 + len(comments), "login": "github-actions[bot]", "body": body})
store.write_text(json.dumps(comments))
"""


@pytest.fixture
def comments(runner: Any, tmp_path: Path) -> Path:
    """The pull request's comments, where the stand-in keeps them."""
    program = tmp_path / "bin" / "gh"
    program.parent.mkdir()
    program.write_text(GH)
    program.chmod(0o755)
    store = tmp_path / "comments.json"
    others = [
        {"id": 1, "login": "somebody", "body": "<!-- hubextrap: comment plans -->\nmine"},
        {"id": 2, "login": "github-actions[bot]", "body": "<!-- hubextrap: comment other -->\nplans"},
    ]
    store.write_text(json.dumps(others))
    runner.environment = {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "COMMENTS": str(store),
        "GITHUB_REPOSITORY": "me/mine",
    }
    return store


def commented(runner: Any, summary: Path, name: str = "plans", number: object = 7) -> Any:
    event = {"pull_request": {"number": number}}
    return runner.action("comment", {"summary": str(summary), "name": name}, event=event, token="job-token")


def test_it_is_written_anew_and_no_other(runner: Any, comments: Path, tmp_path: Path) -> None:
    before = json.loads(comments.read_text())
    summary = tmp_path / "summary.md"
    for text in ("❌ one", "✅ two ${{ x }} $(id)"):
        summary.write_text(f"{text}\n")
        ran = commented(runner, summary)
        assert ran.code == 0, ran.log
        *others, ours = json.loads(comments.read_text())
        assert others == before
        assert ours["body"] == f"<!-- hubextrap: comment plans -->\n{text}\n"


def test_a_long_one_is_cut_between_letters(runner: Any, comments: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("x" + "ü" * 70_000)
    ran = commented(runner, summary)
    assert ran.code == 0, ran.log
    body = json.loads(comments.read_text())[-1]["body"]
    assert body.count("ü") == 59_999
    assert body.endswith("… the rest is on the page of the job.\n")


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"summary": Path("absent")}, 0, "no summary, so no comment"),
        ({"name": "a -->\n::error::x"}, 2, "the input name has letters, digits, dots and dashes only"),
        ({"number": ""}, 2, "a comment goes to a pull request: run this on pull_request"),
    ],
)
def test_what_is_no_comment(
    given: dict[str, Any], code: int, said: str, runner: Any, comments: Path, tmp_path: Path
) -> None:
    before = comments.read_text()
    (tmp_path / "summary.md").write_text("x\n")
    ran = commented(runner, **{"summary": tmp_path / "summary.md"} | given)
    log = f"::error::hubextrap: {said}\n" if code else f"{said}\n"
    assert (ran.code, ran.log, comments.read_text()) == (code, log, before)


def test_plans_are_shown_in_one(runner: Any, comments: Path) -> None:
    """merge.yml, after its plans: those of this repository's own branches."""
    for number in (0, 10, 2):
        folder = runner.temp / "plans" / f"plan-{number}"
        folder.mkdir(parents=True)
        (folder / "summary.md").write_text(f"plan {number}\n\n")
    github = {
        "event_name": "pull_request",
        "repository": "me/mine",
        "token": "job-token",
        "event": {"pull_request": {"number": 7, "head": {"repo": {"full_name": "me/mine"}}}},
    }
    needs = {"plan": {"result": "failure"}}
    ran = runner.job("merge.yml", "comment", github=github, needs=needs)
    assert ran.code == 0, ran.log
    assert json.loads(comments.read_text())[-1]["body"].endswith("-->\nplan 0\n\nplan 2\n\nplan 10\n\n")
    fork = github | {"event": {"pull_request": {"number": 7, "head": {"repo": {"full_name": "you/mine"}}}}}
    push = github | {"event_name": "push"}
    for other, result in ((fork, "success"), (push, "success"), (github, "skipped")):
        needs = {"plan": {"result": result}}
        assert not runner.runs("merge.yml", "comment", github=other, needs=needs)


def test_the_guide_shows_it() -> None:
    """The workflow in the guide is a whole one, and asks for no more than it needs."""
    guide = (ROOT / "docs" / "guides" / "ci.md").read_text()
    (shown,) = [block for block in guide.split("```yaml\n")[1:] if "actions/comment@" in block]
    workflow = yaml.safe_load(shown.partition("```")[0])
    assert "pull_request" in workflow[True]
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}
    comment = job["steps"][-1]
    assert comment["if"].startswith("always() && ")
    assert comment["with"]["summary"] == "${{ steps.hubextrap.outputs.summary }}"
