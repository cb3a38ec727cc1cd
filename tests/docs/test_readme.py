"""README.md's tables and lists hold what the package has: extras, commands, pages."""

from __future__ import annotations

import io
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from harness import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which hatchling brings

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_table_of_extras() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("Install"), re.MULTILINE)
    assert sorted(rows) == sorted(EXTRAS)


def test_all_is_every_extra_that_a_user_has() -> None:
    (every,) = EXTRAS["all"]
    assert every == f"hubextrap[{','.join(name for name in EXTRAS if name not in ('dev', 'all'))}]"


def test_every_page_is_listed() -> None:
    linked = set(re.findall(r"\]\(([^)]*)\)", section("Documentation")))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert linked == pages - {"docs/reground-demo/tables.md"} | {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    }  # of docs/reground.md


def test_every_script_is_in_the_docs() -> None:
    text = README + (ROOT / "docs" / "hf-extension.md").read_text()
    for name in PROJECT["scripts"]:
        assert f"`{name}" in text


def test_the_python_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", section("Use"), re.MULTILINE | re.DOTALL)
    run = ROOT / "demo" / "data" / "rlvr-C"
    (tmp_path / "recipe.yaml").write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: persistence\nparameters: {{target_step: 500}}\n"
    )
    for step in (0, 40, 80, 100, 120, 160, 200):
        shutil.copytree(run / f"step_{step}", tmp_path / "me" / "run" / f"step_{step}")
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    with redirect_stdout(shown):
        exec(code, {})
    answer, made = shown.getvalue().splitlines()
    assert answer.startswith("✓ Extrapolation looks promising: step 400 by the ")
    assert made == "500 prediction 1"
