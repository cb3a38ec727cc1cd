"""What an extra brings, and how it is said that it is not there: the table, and `require`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from installations import PROJECT, brought_by, modules_of

from hubextrap.errors import MissingExtra
from hubextrap.extras import MODULES, require

EXTRAS = set(PROJECT["optional-dependencies"]) - {"all", "dev"}


def test_every_extra_is_in_the_table() -> None:
    assert MODULES.keys() == EXTRAS
    for everything in ("all", "dev"):
        listed = next(one for one in PROJECT["optional-dependencies"][everything] if "hubextrap[" in one)
        assert set(listed.removeprefix("hubextrap[").rstrip("]").split(",")) >= EXTRAS - {"report"}


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_it_brings_what_is_asked_for(extra: str) -> None:
    assert set(MODULES[extra]) <= modules_of(brought_by(extra))


def test_the_base_brings_none_of_it() -> None:
    asked = {module for modules in MODULES.values() for module in modules}
    assert not asked & modules_of(brought_by())


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The extra ``made-up`` with the modules whole_part and other_part; the folder is what is installed."""
    monkeypatch.setitem(MODULES, "made-up", ("whole_part", "other_part"))
    monkeypatch.syspath_prepend(tmp_path)
    for module in MODULES["made-up"]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "whole_part.py").touch()
    return tmp_path


def said() -> str:
    with pytest.raises(MissingExtra) as found:
        require("made-up", "this")
    assert found.value.extra == "made-up"
    return str(found.value)


def test_all_there(packages: Path) -> None:
    (packages / "other_part.py").touch()
    require("made-up", "this")


def test_looking_for_it_imports_nothing(packages: Path) -> None:
    (packages / "other_part.py").write_text("raise OSError")
    require("made-up", "this", load=False)
    (packages / "other_part.py").unlink()
    with pytest.raises(MissingExtra, match=r"^this needs other_part: "):
        require("made-up", "this", load=False)
    assert "whole_part" not in sys.modules


def test_half_of_it(packages: Path) -> None:
    assert said() == "this needs other_part: pip install 'hubextrap[made-up]'"


def test_a_part_that_lacks_what_it_needs_itself(packages: Path) -> None:
    (packages / "other_part.py").write_text("import deeper_part")
    assert said() == "this needs deeper_part (for other_part): pip install 'hubextrap[made-up]'"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise OSError('no libthat.so\\nmore')", "OSError: no libthat.so"),
        ("raise RuntimeError", "RuntimeError: "),
        ("from whole_part import gone", "ImportError: cannot import name 'gone' from 'whole_part'"),
        ("import whole_part.gone", "ModuleNotFoundError: No module named 'whole_part.gone'"),
    ],
)
def test_one_that_does_not_work(text: str, why: str, packages: Path) -> None:
    (packages / "other_part.py").write_text(text)
    told = said()
    assert told.startswith(f"this needs other_part, which is installed and cannot be imported ({why}")
    assert told.endswith("): pip install --force-reinstall 'hubextrap[made-up]'")
