"""YAML as plain data with the line of every key, read by the YAML 1.2 core rules.

PyYAML alone follows YAML 1.1, where 0100 is 64, ``no`` is False and 1e3 is text; here numbers are decimal,
``yes`` and ``no`` are text, and 1e3 is 1000. Tags, anchors and duplicate keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from hubextrap.foreign_data import compose_yaml

Place = tuple[str | int, ...]
"""Keys and list positions from the root to a value."""

_CORE_TYPES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9](?:_?[0-9]){0,99}|0x[0-9a-fA-F]{1,99}", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_TAG = "tag:yaml.org,2002:"
_DEPTH_LIMIT = 20
_SEVERAL = (
    "a second YAML document begins here, and a recipe is one: give each a file of its own (mergekit's such "
    "files are for `mergekit-multi CONFIG --out-path OUT`)"
)


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, PyYAML's own registry


class _CoreDumper(yaml.SafeDumper):
    """Quotes what either reading, 1.1 or 1.2, would take for something other than text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


for _name, _pattern, _first in _CORE_TYPES:
    for _class in (_CoreLoader, _CoreDumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class Document:
    """What a text holds."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    """Line, from 1, of every key and list item."""
    problems: list[tuple[Place, int, str]] = field(default_factory=list)
    """(place, line, what is wrong)."""

    def refuse(self, place: Place, node: yaml.Node, what: str) -> None:
        self.problems.append((place, node.start_mark.line + 1, what))


def read_yaml(text: str) -> Document:
    """The data of ``text`` and where it stands; whatever is wrong with the YAML itself is in ``problems``."""
    document = Document()
    try:
        root = compose_yaml(text, _CoreLoader, depth=_DEPTH_LIMIT, aliases=False)
        if root is None:
            document.problems.append(((), 1, "the file is empty"))
        else:
            document.lines[()] = root.start_mark.line + 1
            document.data = _value(root, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        what = _SEVERAL if "another document" in said else f"not valid YAML: {said}"
        document.problems.append(((), mark.line + 1 if mark else 1, what))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(((), line, f"not valid YAML: {error.reason}"))
    except yaml.YAMLError as error:
        document.problems.append(((), 1, f"not valid YAML: {error}"))
    return document


def dump_yaml(data: Any) -> str:
    """``data`` as YAML that every reader takes for the same values."""
    return yaml.dump(data, Dumper=_CoreDumper, sort_keys=False, width=100)


def _value(node: yaml.Node, place: Place, document: Document) -> Any:
    if not isinstance(node, yaml.ScalarNode) and node.tag not in (_TAG + "map", _TAG + "seq"):
        document.refuse(place, node, f"the tag {node.tag} is not allowed in a recipe")
    if isinstance(node, yaml.MappingNode):
        return dict(_items(node, place, document))
    if isinstance(node, yaml.SequenceNode):
        values = []
        for index, item in enumerate(node.value):
            document.lines[(*place, index)] = item.start_mark.line + 1
            values.append(_value(item, (*place, index), document))
        return values
    return _scalar(node, place, document)


def _items(node: yaml.MappingNode, place: Place, document: Document) -> Iterator[tuple[str, Any]]:
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.refuse(place, key_node, "a key must be text")
            continue
        key = str(key_node.value)
        here = (*place, key)
        if here in document.lines:
            document.refuse(here, key_node, f"appears twice, first in line {document.lines[here]}")
            continue
        document.lines[here] = key_node.start_mark.line + 1
        yield key, _value(value_node, here, document)


def _scalar(node: yaml.Node, place: Place, document: Document) -> Any:
    text = str(node.value)
    kind = node.tag.removeprefix(_TAG)
    if kind != "str" and not any(kind == name and re.fullmatch(rule, text) for name, rule, _ in _CORE_TYPES):
        document.refuse(place, node, f"the tag {node.tag} is not allowed in a recipe")
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        digits = text.lstrip("+-")
        if re.fullmatch("0[0-9_]+", digits):
            what = f"{text} is octal to some YAML readers; write {int(digits)}, or quote it if it is text"
            document.refuse(place, node, what)
        return int(text, 16 if text.startswith("0x") else 10)
    if kind == "float":
        number = float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        # 1e3 is how people write whole numbers too.
        return int(number) if "." not in text and number.is_integer() else number
    return text
