"""The house rules that a machine can check: imports go down only, files stay short, extras stay optional."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from hubextrap import errors

PACKAGE = Path(__file__).parent.parent / "hubextrap"
LEVELS = (
    ("cli", "__main__"),
    ("lm_eval_plugin",),
    ("api",),
    ("executors",),
    ("work",),
    ("watching",),
    ("regrounding",),
    ("reporting",),
    ("evaluation", "mergekit_plugin"),
    ("logits",),
    ("hub",),
    ("opening",),
    ("timing", "given", "sampling", "reading"),
    ("adapters",),
    ("engine",),
    ("scans",),
    ("statistics",),
    ("tensors", "polling"),
    ("trajectory",),
    ("recipe",),
    ("step_names",),
    ("step_pattern", "sample_sizes"),
    ("methods",),
    ("clocks",),
    ("patience",),
    ("hub_access", "progress"),
    ("hub_client", "hub_settings"),
    ("durable",),
    ("foreign_data", "extras", "compiling", "notebooks", "narrow", "figures"),
    ("errors", "_version"),
    ("foreign_text", "output_files"),
    ("redaction", "claims", "containment"),
    ("known_secrets", "lazy", "digests", "licenses", "addresses"),
)
OPEN_TO_LOCALHUB = ("localhub", "errors", "_version", "redaction", "foreign_data", "foreign_text", "licenses")
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
            known = (
                "localhub",
                "errors",
                "extras",
                "_version",
                "redaction",
                "foreign_data",
                "foreign_text",
                "lazy",
                "licenses",
            )
            assert room in known or here == "cli", f"localhub imports {name}"
            continue
        if room.startswith("__"):
            continue
        assert LEVEL_OF[room] >= LEVEL_OF[here], f"{here} imports {name}, which is above it"
        if room != here:
            private = [part for part in name.split(".") if part.startswith("_") and part not in OWN_DUNDERS]
            assert not private, f"{module}: {name} is private to {room}"


def modules_imported_by(module: Path) -> set[Path]:
    """The modules of our own that one imports, lazily and for types too; a package is its __init__."""
    found = set()
    for _, name in imports_of(module):
        place, *rest = name.split(".")
        path = PACKAGE / place
        while rest and ((path / rest[0]).is_dir() or (path / f"{rest[0]}.py").is_file()):
            path /= rest.pop(0)
        found.add(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    return found & set(MODULES)


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """The strongly connected components of two modules or more, by Tarjan's algorithm."""
    index: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found = []

    def visit(module: Path) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            place = stack.index(module)
            if len(circle := stack[place:]) > 1:
                found.append(sorted(circle))
            del stack[place:]

    for module in graph:
        if module not in index:
            visit(module)
    return found


ROOMS = sorted({room_of(module) for module in MODULES if module.parent != PACKAGE})


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_circle_inside_a_room(room: str) -> None:
    """Nor through the room's __init__, which is for other rooms: a module names the one that it needs."""
    inside = {module for module in MODULES if room_of(module) == room}
    graph = {module: modules_imported_by(module) & inside for module in inside}
    assert [[path.name for path in circle] for circle in circles(graph)] == []
    init = PACKAGE / room / "__init__.py"
    assert [module.name for module in inside - {init} if init in graph[module]] == []


def test_a_circle_is_found_whatever_its_length() -> None:
    a, b, c, d = (Path(name) for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {a}, d: {a}}) == [[a, b, c]]
    assert circles({a: {b, c, d}, b: {c}, c: {d}, d: set()}) == []


MOST_LINES, MOST_PARAMETERS = 60, 8


@pytest.mark.parametrize("room", ["api", "engine"])
def test_functions_stay_small(room: str) -> None:
    """In the rooms that wire the others together, where functions grow and arguments are only passed on."""
    large = []
    for module in MODULES:
        if room_of(module) != room:
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args]
            count = (
                len(given) + len(node.args.kwonlyargs) - any(one.arg in ("self", "cls") for one in given[:1])
            )
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_LINES or count > MOST_PARAMETERS:
                large.append(f"{module.name}, {node.name}: {lines} lines, {count} parameters")
    assert large == []


OF_ONE_FILE = re.compile(r"""f(['"])\{(?:where|path|[\w.]+\}/\{[^{}]+)\}: """)


@pytest.mark.parametrize("room", ["hub", "logits", "tensors"])
def test_errors_about_one_file_carry_it(room: str) -> None:
    """For programs, and for tests, which need not match on the sentence then."""
    without = []
    for module in sorted((PACKAGE / room).glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            kind = getattr(errors, node.func.id, None)
            if not isinstance(kind, type) or not OF_ONE_FILE.match(ast.unparse(node.args[0])):
                continue
            if "file" not in {keyword.arg for keyword in node.keywords}:
                without.append(f"{module.name}:{node.lineno}")
    assert without == []


def test_models_and_tokenizers_are_loaded_in_one_place() -> None:
    """There their files are checked, no log tells a secret, and no code from the Hub runs."""
    loading = {
        str(module.relative_to(PACKAGE))
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    }
    assert loading == {"logits/loading.py"}


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


def test_the_engine_needs_torch_for_other_devices_alone() -> None:
    """`torch_kernels` imports it, which is for such a device, and for rooms that have torch's tensors."""
    for module in (PACKAGE / "engine").glob("*.py"):
        tree = ast.parse(module.read_text())
        names = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert module.name == "torch_kernels.py" or "torch" not in names, module
        at_once = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert "hubextrap.engine.torch_kernels" not in at_once, module


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 420
