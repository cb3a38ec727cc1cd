"""Every page: its recipes parse, its workflows follow the schema, its commands and links are real."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hubextrap.cli.app import app
from hubextrap.recipe import parse_recipe, parse_reground_recipe, parse_watch_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
COMMAND = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    """Command lines as a reader would paste them: continuation lines joined, prompts and comments gone."""
    for block in blocks(page, "bash", "console", "sh"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.removeprefix("$ ").strip()
            if re.match(r"(hubextrap|hf|make|lm-eval|pip) ", line) and "…" not in line:
                yield line


def inline_commands(page: Path) -> Iterator[str]:
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for text in re.findall(r"`([^`]+)`", outside):
        if re.match(r"hubextrap [a-z]", text.replace("\n", " ")):
            yield text.replace("\n", " ")


def parse(arguments: list[str]) -> None:
    """Parse a command line as the CLI does, down to the types of options, without running anything."""
    command: Any = COMMAND
    context = command.make_context("hubextrap", [], resilient_parsing=True)
    while hasattr(command, "resolve_command"):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None, f"no command {name}"
        if not hasattr(found, "resolve_command"):
            found.make_context(name, arguments, parent=context)
            return
        command, context = found, found.make_context(name, [], parent=context, resilient_parsing=True)


def check(line: str) -> None:
    try:
        parse(shlex.split(line, comments=True)[1:])
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if "Exit" not in kinds:  # --help and --version end here
            pytest.fail(f"`{line}`: {error}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_real(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == "hubextrap":
            check(line)
        elif words[:2] == ["hf", "extrap"]:
            check(" ".join(["hubextrap", *words[2:]]))
        elif words[0] == "make":
            assert set(words[1:]) <= targets, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_real(page: Path) -> None:
    """Verbs and options; arguments are left out as often as not."""
    for text in inline_commands(page):
        command: Any = COMMAND
        words = re.split(r"[\s|\[\]]+", text)[1:]
        while words and hasattr(command, "commands") and re.fullmatch(r"[a-z-]+", words[0]):
            assert words[0] in command.commands, f"`{text}`: no command {words[0]}"
            command = command.commands[words.pop(0)]
        if command.name in ("mergekit-yaml", "lm-eval"):  # the options are another program's
            continue
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            option = word.partition("=")[0]
            assert not option.startswith("--") or option in known, f"`{text}`: no option {option}"


def yaml_kind(text: str) -> str:
    content = yaml.safe_load(text)
    if isinstance(content, list) and all("uses" in step or "run" in step for step in content):
        return "steps"
    if "jobs" in content:
        return "workflow"
    # filters under a parameter are mergekit's own form, which recipes do not take
    return "mergekit" if "filter:" in text else "recipe"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_blocks_are_what_they_are_for(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    workflows = []
    for number, text in enumerate(blocks(page, "yaml")):
        kind = yaml_kind(text)
        if kind == "recipe" and "reground" in yaml.safe_load(text):
            parse_reground_recipe(text, f"{page.name}, block {number}")
            continue
        if kind == "recipe" and "watch" in yaml.safe_load(text):
            parse_watch_recipe(text, f"{page.name}, block {number}")
            continue
        if kind == "recipe":
            parse_recipe(text, f"{page.name}, block {number}")
            continue
        if kind == "mergekit":
            assert page.name == "mergekit.md"  # tests/mergekit_plugin runs these
            continue
        content = yaml.safe_load(text)
        if kind == "steps":
            content = {"jobs": {"job": {"runs-on": "ubuntu-latest", "steps": content}}}
        workflows.append(tmp_path / f"{number}.yml")
        content = {"on" if key is True else key: value for key, value in content.items()}  # as YAML reads on
        workflows[-1].write_text(yaml.safe_dump({"on": "push", **content}))
        check_inputs(content)
    if workflows:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
        done = subprocess.run([*command, *workflows], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def check_inputs(workflow: dict[str, Any]) -> None:
    """What a page hands to our action or workflow, they take."""
    for job in workflow["jobs"].values():
        for step in [job, *job.get("steps", [])]:
            used = re.fullmatch(r"OWNER/hf-extrap/(\.github/\S+)@SHA", step.get("uses", ""))
            if not used:
                continue
            path = ROOT / used[1]
            content = yaml.safe_load((path / "action.yml" if path.is_dir() else path).read_text())
            inputs = content["inputs"] if path.is_dir() else content[True]["workflow_call"]["inputs"]
            assert set(step.get("with", {})) <= set(inputs)


def test_every_input_and_output_of_the_action_is_described() -> None:
    action = yaml.safe_load((ROOT / ".github" / "actions" / "hubextrap" / "action.yml").read_text())
    text = (ROOT / "docs" / "guides" / "ci.md").read_text()
    for name in [*action["inputs"], *action["outputs"]]:
        assert f"`{name}`" in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_import_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        if page.name == "api.md":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hubextrap":
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            }
            assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_rows_of_tables_have_as_many_cells_as_their_heads(page: Path) -> None:
    """GitHub drops what is beyond."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        for row in rows:
            assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", rows[0])), row


def test_every_command_is_in_the_docs() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name, command in COMMAND.commands.items():  # type: ignore[attr-defined]
        for full in [f"{name} {sub}" for sub in getattr(command, "commands", {})] or [name]:
            assert f"hubextrap {full}" in text, f"hubextrap {full} is on no page"


def test_the_api_page_is_up_to_date() -> None:
    """In a fresh process, where no test has registered or imported anything."""
    program = "import sys; sys.path.insert(0, 'docs'); import build_api; sys.stdout.write(build_api.build())"
    built = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout
    assert built.decode() == (ROOT / "docs" / "api.md").read_text(), "run: python docs/build_api.py"


def test_everything_public_has_a_docstring() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert not re.findall(r"^### `(\w+)`\n\n```python\n[^\n]*\n```\n\n(?=#)", text, re.MULTILINE)
    assert not re.findall(r"^- `(\w+)`: \n", text, re.MULTILINE)
