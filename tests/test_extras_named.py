"""What an extra brings, and how it is said that it is not there: the table, and `require`."""

from __future__ import annotations

import sys
from importlib import invalidate_caches
from pathlib import Path

import pytest
from installations import PROJECT, brought_by, modules_of
from packaging.requirements import Requirement

from hubextrap.errors import MissingExtra
from hubextrap.evaluation.curve import drawing_problem
from hubextrap.extras import LOWEST, MODULES, require

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


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    """Of each module that an extra asks for by a version of its own; what others bring, they bound."""
    found = {}
    for extra in EXTRAS:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            module = requirement.name.replace("-", "_")
            if any(module in modules for modules in MODULES.values()):
                found[module] = str(requirement.specifier).removeprefix(">=")
    assert found == LOWEST


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


def test_a_folder_of_that_name_is_no_package(packages: Path) -> None:
    """What pip leaves behind, or somebody's clone in the current folder: Python imports it, empty."""
    (packages / "other_part").mkdir()
    invalidate_caches()
    for load in (True, False):
        with pytest.raises(
            MissingExtra, match=r"^this needs other_part: pip install 'hubextrap\[made-up\]'$"
        ):
            require("made-up", "this", load=load)


@pytest.mark.parametrize(("version", "enough"), [("2.5.9", False), ("2.6", True), ("2.6.0a0+git1", True)])
@pytest.mark.parametrize("told_by", ["the installation", "the module"])
def test_an_older_one(
    told_by: str, version: str, enough: bool, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which pip leaves alone where it installs hubextrap without the extra, and which may not even import."""
    monkeypatch.setitem(LOWEST, "other_part", "2.6")
    (packages / "other_part").mkdir()
    text = "" if enough else "raise ImportError"
    if told_by == "the module":
        text = f"__version__ = {version!r}"
    else:
        (place := packages / f"other_part-{version}.dist-info").mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: other-part\nVersion: {version}\n")
    (packages / "other_part" / "__init__.py").write_text(text)
    invalidate_caches()
    if enough:
        require("made-up", "this")
    else:
        assert said() == (
            "this needs other_part 2.6 or later, and 2.5.9 is installed: pip install 'hubextrap[made-up]'"
        )


def test_a_file_of_that_name(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOWEST, "other_part", "2.6")
    (packages / "other_part.py").touch()
    place = packages / "other_part.py"
    assert said() == (f"this needs other_part, but Python finds {place} under that name: rename it")


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert drawing_problem() is None
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert drawing_problem() == "a plot needs matplotlib: pip install 'hubextrap[report]'"
