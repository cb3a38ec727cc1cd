"""What an installed wheel holds: nothing of it names a file that only the sources have."""

from __future__ import annotations

import email
import re
from email.message import Message
from pathlib import Path

import pytest
from harness import ROOT
from markdown_it import MarkdownIt


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    (file,) = wheel.glob("*.dist-info/METADATA")
    return email.message_from_bytes(file.read_bytes())


def test_it_holds_the_package_the_recipes_and_nothing_else(wheel: Path, names: list[str]) -> None:
    package = {name for name in names if name.startswith("hubextrap/")}
    recipes = {f"hubextrap/{name}" for name in names if name.startswith("merge_configs/")}
    held = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    assert {name for name in held if ".dist-info/" not in name} == package | recipes


def test_no_text_in_it_names_a_file_that_only_the_sources_have(wheel: Path, names: list[str]) -> None:
    """Help, messages, docstrings, comments. Recipes may: `recipes cp` says what they name of demo/."""
    folders = {name.partition("/")[0] for name in names if "/" in name} - {"hubextrap", "merge_configs"}
    path = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, sorted(folders)))})/[\w./-]*\w")
    found = {
        f"{file.relative_to(wheel)}: {name}"
        for file in wheel.glob("hubextrap/**/*")
        if file.is_file() and file.suffix in (".py", ".yaml", ".css", ".js", ".html")
        for name in path.findall(file.read_text(encoding="utf-8"))
        if not name.startswith("demo/")
    }
    assert not found


def test_the_description_has_no_relative_link(metadata: Message) -> None:
    """As an index shows it. Text that names a file stays."""
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    tokens = [child for token in MarkdownIt().parse(text) for child in token.children or []]
    targets = [token.attrGet("href") or token.attrGet("src") for token in tokens]
    assert all(target.startswith("https://") for target in targets if target)
    assert not re.search(r"<[a-z]+[^>]*(?:href|src)=", text)
    assert "(`docs/methods.md`)" in text
    assert "https://arxiv.org/abs/2601.04537" in targets


def test_a_link_in_code_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from hatch_build import without_relative_links

    given = "[`docs/a.md`](docs/a.md), [a](a.md#b), ![plot](a.png), [x](https://x)\n```\n[a](b)\n```\n"
    wanted = "`docs/a.md`, a (`a.md#b`), plot (`a.png`), [x](https://x)\n```\n[a](b)\n```\n"
    assert without_relative_links(given) == wanted
