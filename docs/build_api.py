"""Write docs/api.md, what each room offers, from signatures and docstrings: python docs/build_api.py"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

ROOMS = (
    "hubextrap",
    "hubextrap.api",
    "hubextrap.regrounding",
    "hubextrap.trajectory",
    "hubextrap.recipe",
    "hubextrap.methods",
    "hubextrap.scans",
    "hubextrap.statistics",
    "hubextrap.evaluation",
    "hubextrap.logits",
    "hubextrap.hub",
    "hubextrap.errors",
    "hubextrap.localhub",
)
PAGE = Path(__file__).with_name("api.md")
INTRODUCTION = (
    "Written by `python docs/build_api.py` from the signatures and docstrings; change those. A name is "
    "described where its home is, and the package `hubextrap` offers the most used ones.\n\n"
    'Names will do for things: a recipe\'s file (`hubextrap.merge("recipe.yaml", out="predicted")`), a '
    'run\'s reference (`hubextrap.backtest("me/run", options=TrajectoryOptions(max_step=200))`), a '
    'scan\'s file, and `push="me/model@step_400"`. Anything else is a `WrongArgument` that names the '
    "argument. At Python's prompt a result is one line; in a notebook a trajectory, a plan, a backtest "
    "and an evaluation are small tables."
)


def main() -> None:
    PAGE.write_text(build(), encoding="utf-8")
    print(f"wrote {PAGE}")


def build() -> str:
    """The whole page."""
    parts = ["# Python API", INTRODUCTION]
    described: set[int] = set()
    for room in ROOMS:
        module = import_module(room)
        parts += [f"## {room}", inspect.cleandoc(module.__doc__ or "")]
        for name in _public(module):
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isroutine(thing)):
                parts.append(f"### `{name}`\n\nA constant of type `{type(thing).__name__}`.")
            elif room == "hubextrap":
                parts.append(f"- `{name}`: {_summary(thing)}")
            elif id(thing) not in described:
                described.add(id(thing))
                parts.append(_described(name, thing))
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)) + "\n"


def _public(module: Any) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        ]
        names = [name for name in own if inspect.isclass(getattr(module, name))]
    return [name for name in names if not name.startswith("_")]


def _summary(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _described(name: str, thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"### `{name}({thing.__base__.__name__})`\n\n{_summary(thing)}"
    head = f"### `{name}`\n\n```python\n{_signature(name, thing)}\n```\n\n{_text(thing)}"
    if not inspect.isclass(thing):
        return head
    members = [
        f"- `{_one_line(f'{member}{_parameters(value)}')}`: {_summary(value)}"
        for member, value in _methods(thing)
        if value.__doc__
    ]
    return head + ("\n\n" + "\n".join(members) if members else "")


def _methods(thing: type) -> list[tuple[str, Any]]:
    found = []
    own = [kind for kind in reversed(thing.__mro__) if kind.__module__.startswith("hubextrap.")]
    for member, value in {member: value for kind in own for member, value in vars(kind).items()}.items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not member.startswith("_") and inspect.isfunction(value):
            found.append((member, value))
    return found


def _signature(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        fields = _fields(thing)
        return f"class {name}" + (f"({', '.join(fields)})" if fields else "")
    return f"def {name}{_parameters(thing)}"


def _fields(thing: type) -> list[str]:
    if dataclasses.is_dataclass(thing):
        return [f"{field.name}: {field.type}" for field in dataclasses.fields(thing)]
    if hasattr(thing, "model_fields"):
        kinds: dict[str, Any] = {}
        for one in reversed(thing.__mro__):
            kinds |= inspect.get_annotations(one)
        return [f"{key}: {kinds.get(key, '')}".rstrip(": ") for key in thing.model_fields]
    return []


def _parameters(thing: Any) -> str:
    # annotations are text everywhere; repr puts quotes around them, and adds addresses to some defaults
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)).replace("'", ""))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("(self, ", "(").replace("(cls, ", "(").replace("(self)", "()"))


def _text(thing: Any) -> str:
    """The docstring as Markdown: sections become bold, their indented lists stay as they are."""
    text = inspect.cleandoc(thing.__doc__ or "")
    paragraphs = []
    for block in text.split("\n\n"):
        heading, _, rest = block.partition("\n")
        if heading in ("Args:", "Raises:", "Returns:", "Attributes:") and rest:
            paragraphs.append(f"**{heading}**\n\n```text\n{textwrap.dedent(rest)}\n```")
        else:
            paragraphs.append(block)
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    main()
