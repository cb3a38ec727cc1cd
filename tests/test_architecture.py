"""The house rules that a machine can check: imports go down only, files stay short, extras stay optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hubextrap"
LEVELS = (
    ("cli", "__main__"),
    ("lm_eval_plugin",),
    ("api",),
    ("reground",),
    ("report",),
    ("evaluate", "mergekit_plugin"),
    ("logits",),
    ("hub",),
    ("opening",),
    ("engine",),
    ("statistics",),
    ("tensors",),
    ("trajectory",),
    ("recipe",),
    ("methods",),
    ("patience",),
    ("hub_access", "progress"),
    ("hub_client", "hub_settings"),
    ("foreign_data",),
    ("errors", "_version"),
    ("foreign_text", "output_files"),
    ("redaction", "claims", "containment"),
    ("known_secrets",),
)
OWN_DUNDERS = ("_version", "__version__")
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(module: Path) -> set[tuple[str, str]]:
    """(room, imported name) of every import from our own package, lazy and type-only ones included."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hubextrap":
            path = node.module.split(".")[1:]
            for alias in node.names:
                full = [*path, alias.name]
                found.add((full[0], ".".join(full)))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                path = alias.name.split(".")
                if path[0] == "hubextrap" and len(path) > 1:
                    found.add((path[1], ".".join(path[1:])))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(module: Path) -> None:
    here = room_of(module)
    if here == "__init__":
        return
    for room, name in imports_of(module):
        if here == "localhub" or room == "localhub":
            assert here in ("localhub", "cli"), f"{module}: only the CLI may import localhub"
            known = ("localhub", "errors", "_version", "redaction", "foreign_data", "foreign_text")
            assert room in known or here == "cli", f"localhub imports {name}"
            continue
        if room.startswith("__"):
            continue
        assert LEVEL_OF[room] >= LEVEL_OF[here], f"{here} imports {name}, which is above it"
        if room != here:
            private = [part for part in name.split(".") if part.startswith("_") and part not in OWN_DUNDERS]
            assert not private, f"{module}: {name} is private to {room}"


PARSERS = {"json": {"load", "loads", "JSONDecoder"}, "yaml": {"load", "load_all", "compose", "parse", "scan"}}
PARSERS["yaml"] |= {f"{speed}_load{many}" for speed in ("safe", "full", "unsafe") for many in ("", "_all")}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_json_and_yaml_are_parsed_in_one_place(module: Path) -> None:
    if module.name in ("foreign_data.py", "foreign_text.py"):  # the latter reads what we have just written
        return
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in PARSERS.get(node.value.id, ()), (
                f"{module}:{node.lineno}: foreign_data does"
            )
        if isinstance(node, ast.ImportFrom) and node.module in PARSERS:
            taken = {alias.name for alias in node.names}
            assert not taken & PARSERS[node.module], f"{module}:{node.lineno}: foreign_data parses"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 420


HEAVY = (
    "torch",
    "transformers",
    "lm_eval",
    "mergekit",
    "huggingface_hub",
    "numpy",
    "pygit2",
    "pydantic",
    "yaml",
)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; import hubextrap, hubextrap.cli.main; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_imports_without_extras() -> None:
    program = (
        "import sys\n"
        "for absent in ('lm_eval', 'mergekit', 'pygit2', 'matplotlib', 'plotly', 'accelerate', 'peft'):\n"
        "    sys.modules[absent] = None\n"
        "import hubextrap, hubextrap.api, hubextrap.cli.main, hubextrap.evaluate, hubextrap.engine\n"
        "import hubextrap.tensors, hubextrap.trajectory, hubextrap.recipe, hubextrap.methods\n"
        "for name in dir(hubextrap): getattr(hubextrap, name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
