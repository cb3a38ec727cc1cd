"""JSON and YAML that others wrote: the one place where either becomes Python data, within bounds.

Whatever the text is, an answer comes in time and memory linear in its size: the size, the depth, the digits
of a number and what aliases grow to are bounded. What two readers may take for different things is refused: a
key that is there twice, bytes that are not UTF-8, NaN and Infinity (unless asked for), YAML's tags. Dates
stay text.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from hubextrap.errors import CorruptFile, HubExtrapError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import yaml

JSON_LIMIT = 16_000_000
"""Longest JSON text in bytes, where the caller says nothing else."""
YAML_LIMIT = 1_000_000
"""Longest YAML text in bytes; PyYAML reads some 100 kB a second."""
DEPTH = 64
"""Deepest nesting: far below what Python's stack takes, which later readers of the data use too."""
DIGITS = 100
"""Longest number: a tokenizer's 1e30 is written out in 31 digits."""

_SHOWN = 200
_PROBLEM = 300
_TAG = "tag:yaml.org,2002:"
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    data: bytes | str,
    where: str,
    *,
    error: type[Exception] = CorruptFile,
    remedy: str = "download it again",
    file: str | None = None,
    limit: int = JSON_LIMIT,
    nan: bool = False,
    parse_int: Callable[[str], int] | None = None,
) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8 without a byte order mark.
        where: names the file in messages; one line of many as "FILE, line 3".
        error: what is raised.
        remedy: what the message tells to do.
        file: what the error has as its file, if not FILE of ``where``.
        limit: bytes, or characters of a str.
        nan: take NaN, Infinity and numbers that no float holds.
        parse_int: reads a whole number instead of ``int``; ValueError refuses it.

    Raises:
        error: it is not valid JSON, or is beyond a bound; the message names ``where`` and the line, if known.
    """
    try:
        text = _text(data, limit)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=parse_int or _whole_number,
            parse_float=None if nan else _finite,
            parse_constant=None if nan else _refused_constant,
        )
        _check_depth(value)
        if _LONE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as problem:
        what = f"line {problem.lineno}, column {problem.colno}: {problem.msg}"
    except UnicodeEncodeError:
        what = "a text in it is half a character"
    except RecursionError:
        what = f"nested more than {DEPTH} deep"
    except ValueError as problem:
        what = shorten(str(problem))
    else:
        return value
    raise _refusal(error, where, f"not valid JSON ({what}); {remedy}", file)


def parse_yaml(
    data: bytes | str,
    where: str,
    *,
    error: type[Exception] = CorruptFile,
    remedy: str = "download it again",
    limit: int = YAML_LIMIT,
    nan: bool = False,
) -> Any:
    """The value of a YAML text as PyYAML's safe loader has it (None for an empty one), but dates stay text.

    Args:
        data: UTF-8; a byte order mark may stand before it. The rest is as `parse_json` takes it.

    Raises:
        error: it is not valid YAML, or is beyond a bound; the message names ``where`` and the line, if known.
    """
    import yaml

    try:
        text = _text(data, limit, mark=True)
        node = compose_yaml(text, yaml.SafeLoader)
        return None if node is None else _Values(10 * len(text) + 10_000, nan).of(node, 0)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = place + shorten(", ".join(part for part in (problem.context, problem.problem) if part))
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        what = f"line {line}: {problem.reason}"
    except (yaml.YAMLError, ValueError) as problem:
        what = shorten(str(problem))
    raise _refusal(error, where, f"not valid YAML ({what}); {remedy}")


def _refusal(error: type[Exception], where: str, message: str, file: str | None = None) -> Exception:
    if issubclass(error, HubExtrapError):
        return error(f"{where}: {message}", file=file or where.partition(", line ")[0])
    return error(f"{where}: {message}")


def compose_yaml(
    text: str, loader: type[yaml.SafeLoader], *, depth: int = DEPTH, aliases: bool = True
) -> yaml.Node | None:
    """The nodes of a YAML text, None for an empty one; an alias is the node that it stands for.

    ``loader`` decides what plain text is taken for.

    Raises:
        yaml.YAMLError: it is not valid, or beyond a bound.
    """
    import yaml

    class Bounded(loader):  # type: ignore[misc, valid-type]
        level = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            event = self.peek_event()
            mark: Any = event.start_mark
            if isinstance(event, yaml.AliasEvent) and not aliases:
                what = f"write out what the alias *{shorten(str(event.anchor))} stands for"
                raise yaml.composer.ComposerError(None, None, what, mark)
            if self.level > depth:
                raise yaml.composer.ComposerError(None, None, f"nested more than {depth} deep", mark)
            self.level += 1
            node: yaml.Node | None = super().compose_node(parent, index)
            self.level -= 1
            return node

    try:
        return yaml.compose(text, Loader=Bounded)
    except (ValueError, OverflowError) as error:  # an escape beyond the last character
        raise yaml.YAMLError(str(error)) from error


class _Values:
    """Python data from the nodes of one text; what aliases repeat counts each time."""

    def __init__(self, budget: int, nan: bool) -> None:
        import yaml

        self._scalars = yaml.constructor.SafeConstructor()
        self._budget = budget
        self._nan = nan

    def of(self, node: Any, depth: int) -> Any:
        self._budget -= 1 + (len(node.value) if node.id == "scalar" else 0)
        if self._budget < 0:
            raise self._problem(node, "its aliases repeat too much")
        if depth > DEPTH:
            raise self._problem(node, f"nested more than {DEPTH} deep")
        kind = node.tag.removeprefix(_TAG)
        if node.id == "mapping" and kind == "map":
            return dict(self._items(node, depth))
        if node.id == "sequence" and kind == "seq":
            return [self.of(item, depth + 1) for item in node.value]
        if node.id == "scalar":
            return self._scalar(node, kind)
        raise self._problem(node, f"the tag {shorten(node.tag)} has no place here")

    def _items(self, node: Any, depth: int) -> Iterator[tuple[Any, Any]]:
        """Its own keys and, ahead of them, those that it merges in (``<<``) and does not have itself."""
        own: dict[Any, yaml.Node] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.id != "scalar":
                raise self._problem(key_node, "a key has to be text")
            if key_node.tag == _TAG + "merge":
                sources = value_node.value if value_node.id == "sequence" else [value_node]
                for source in sources:
                    if source.id != "mapping":
                        raise self._problem(source, "only keys and values can be merged in")
                    value = self.of(source, depth + 1)
                    for key, item in value.items():
                        merged.setdefault(key, item)
                continue
            key = self.of(key_node, depth + 1)
            if key in own:
                raise self._problem(key_node, f"the key {shorten(repr(key))} is there twice")
            own[key] = value_node
        yield from ((key, value) for key, value in merged.items() if key not in own)
        for key, value_node in own.items():
            yield key, self.of(value_node, depth + 1)

    def _scalar(self, node: Any, kind: str) -> Any:
        if kind in ("str", "timestamp", "value"):
            return node.value
        if kind == "null":
            return None
        if kind not in ("bool", "int", "float"):
            raise self._problem(node, f"the tag {shorten(node.tag)} has no place here")
        if len(node.value) > DIGITS:
            raise self._problem(node, f"a number of more than {DIGITS} digits")
        read = getattr(self._scalars, f"construct_yaml_{kind}")
        try:
            value = read(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise self._problem(node, f"{node.value!r} is no {kind}") from None
        if isinstance(value, float) and not math.isfinite(value) and not self._nan:
            raise self._problem(node, f"{node.value!r} is not a finite number")
        return value

    def _problem(self, node: Any, what: str) -> Exception:
        import yaml

        return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _text(data: bytes | str, limit: int, *, mark: bool = False) -> str:
    """``data`` as text; ``mark``: whether a byte order mark may stand before it."""
    if len(data) > limit:
        raise ValueError(f"longer than {limit:,} bytes")
    if isinstance(data, bytes):
        try:
            data = data.decode()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ValueError(f"line {line}: not UTF-8; save it as UTF-8") from None
    if data.startswith("\ufeff"):
        if not mark:
            raise ValueError("it starts with a byte order mark; save it as UTF-8 without one")
        data = data[1:]
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shorten(repr(twice))} is there twice")
    return result


def _whole_number(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of more than {DIGITS} digits: {shorten(text, 20)}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shorten(text, 20)} is more than a number can be")
    return value


def _refused_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise RecursionError


def shorten(text: str, limit: int = _SHOWN) -> str:
    """``text`` as a message shows it: a hostile file may hold names of megabytes."""
    return text if len(text) <= limit else text[:limit] + "…"


def first_problem(error: Exception) -> str:
    """What is wrong with data, as a message shows it: of pydantic's ValidationError the first field."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return shorten(str(error), _PROBLEM)
    problem = error.errors(include_url=False)[0]
    where, said = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    return shorten(f"{where}: {said}" if where else said, _PROBLEM)
