"""The metadata at the head of a README, and what the Hub objects to in it, in the Hub's words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hubextrap.foreign_data import parse_json, parse_yaml
from hubextrap.licenses import LICENSES
from hubextrap.localhub.repository import Kind

_HEAD = re.compile(r"\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)", re.DOTALL)
_REPO = re.compile(r"(?:[\w-]+/)?[\w.-]+")
_HEAD_MAX = 500_000  # characters; PyYAML reads some 100,000 a second
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
SDKS = ("gradio", "streamlit", "docker", "static")
_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass(frozen=True)
class Findings:
    """What is wrong with a card: errors keep it out of the repo, warnings are only told."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def card_data(readme: str) -> dict[str, Any]:
    """The metadata at the head of a README; empty if it has none.

    Raises:
        ValueError: it is not a YAML mapping.
    """
    head = _HEAD.match(readme)
    metadata = (
        parse_yaml(head[1], "Invalid YAML", error=ValueError, remedy="correct it", limit=_HEAD_MAX)
        if head
        else None
    )
    if not isinstance(metadata, dict | None):
        raise ValueError("the metadata must be an object")
    # What JSON does not know as text.
    written = json.dumps(metadata or {}, default=str, skipkeys=True)
    plain: dict[str, Any] = parse_json(
        written, "the metadata", error=ValueError, remedy="correct it", nan=True
    )
    return plain


def check_card(readme: str, kind: Kind = "model") -> Findings:
    """What the Hub says of a README of a repo of this kind."""
    try:
        metadata = card_data(readme)
    except ValueError as error:
        return Findings(errors=(str(error),))
    if not metadata:
        return Findings(warnings=("empty or missing yaml metadata in repo card",))
    errors = list(_common_errors(metadata))
    if kind == "model":
        errors += [*_model_errors(metadata), *_model_index_errors(metadata.get("model-index"))]
    if kind == "space":
        errors += _one_of(metadata, "sdk", SDKS)
        errors += [
            problem for name in ("colorFrom", "colorTo") for problem in _one_of(metadata, name, _COLORS)
        ]
    warnings = []
    if _listed(metadata.get("license")) == ["other"] and not metadata.get("license_name"):
        warnings.append('"license_name" should name the license if "license" is other')
    return Findings(tuple(errors), tuple(warnings))


def _common_errors(metadata: dict[str, Any]) -> Iterator[str]:
    if "license" in metadata:
        yield from _strings(metadata["license"], "license")
        if any(isinstance(name, str) and name not in LICENSES for name in _listed(metadata["license"])):
            yield f'"license" must be one of [{", ".join(LICENSES)}]'
    for name in ("license_name", "license_link", "pipeline_tag", "library_name", "new_version"):
        if name in metadata and not isinstance(metadata[name], str):
            yield f'"{name}" must be a string'
    for name in ("language", "tags", "metrics"):
        if name in metadata:
            yield from _strings(metadata[name], name)


def _model_errors(metadata: dict[str, Any]) -> Iterator[str]:
    for name, where in (("datasets", "datasets"), ("base_model", "models")):
        if name in metadata:
            yield from _strings(metadata[name], name)
            for value in _listed(metadata[name]):
                if isinstance(value, str) and value and not _REPO.fullmatch(value):
                    singular = where.removesuffix("s")
                    yield (
                        f'"{name}" with value "{value}" is not valid. '
                        f"Use a {singular} id from https://hf.co/{where}."
                    )
    yield from _one_of(metadata, "base_model_relation", _RELATIONS)


def _model_index_errors(index: Any) -> Iterator[str]:
    if index is None:
        return
    for entry, where in _objects(index, "model-index"):
        if isinstance(entry, str):
            yield entry
            continue
        yield from _required(entry, "name", where)
        if "results" not in entry:
            yield f'"{where}.results" is required'
            continue
        for result, at in _objects(entry["results"], f"{where}.results"):
            if isinstance(result, str):
                yield result
                continue
            yield from _part(result, "task", ("type",), at)
            yield from _part(result, "dataset", ("type", "name"), at)
            if "metrics" not in result:
                yield f'"{at}.metrics" is required'
                continue
            for metric, metric_at in _objects(result["metrics"], f"{at}.metrics"):
                if isinstance(metric, str):
                    yield metric
                    continue
                yield from _required(metric, "type", metric_at)
                if "value" not in metric:
                    yield f'"{metric_at}.value" is required'


def _part(result: dict[str, Any], name: str, fields: tuple[str, ...], where: str) -> Iterator[str]:
    if name not in result:
        yield f'"{where}.{name}" is required'
    elif not isinstance(result[name], dict):
        yield f'"{where}.{name}" must be of type object'
    else:
        for field in fields:
            yield from _required(result[name], field, f"{where}.{name}")


def _required(entry: dict[str, Any], name: str, where: str) -> Iterator[str]:
    if name not in entry:
        yield f'"{where}.{name}" is required'
    elif not isinstance(entry[name], str):
        yield f'"{where}.{name}" must be a string'


def _objects(value: Any, where: str) -> Iterator[tuple[dict[str, Any] | str, str]]:
    """Each mapping in a list with its place; in place of what is none, the problem."""
    if not isinstance(value, list):
        yield f'"{where}" must be an array', where
        return
    for number, entry in enumerate(value):
        at = f"{where}[{number}]"
        yield (entry if isinstance(entry, dict) else f'"{at}" must be of type object'), at


def _strings(value: Any, name: str) -> Iterator[str]:
    """A string or a list of strings, none of them empty."""
    for number, entry in enumerate(_listed(value)):
        at = f"{name}[{number}]" if isinstance(value, list) else name
        if not isinstance(entry, str):
            yield f'"{at}" must be a string'
        elif not entry:
            yield f'"{at}" is not allowed to be empty'


def _one_of(metadata: dict[str, Any], name: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if name in metadata and metadata[name] not in allowed:
        yield f'"{name}" must be one of [{", ".join(allowed)}]'


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
