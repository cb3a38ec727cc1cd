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
_HEAD_MAX = 500_000  # characters; PyYAML reads some 100,000 per second
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
SDKS = ("gradio", "streamlit", "docker", "static")
_MISSING = object()
_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass(frozen=True)
class Findings:
    """What is wrong with a card: errors keep it out of the repo, warnings are only told."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def card_data(readme: str) -> dict[str, Any]:
    """The metadata at the head of a README, or nothing. Raises ValueError where it is no YAML mapping."""
    head = _HEAD.match(readme)
    text = head[1] if head else ""
    metadata = parse_yaml(text, "Invalid YAML", error=ValueError, remedy="correct it", limit=_HEAD_MAX)
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
        errors += _model_errors(metadata)
        if metadata.get("model-index") is not None:
            _check_model_index(metadata["model-index"], errors)
    if kind == "space":
        errors += _one_of(metadata, "sdk", SDKS)
        errors += [*_one_of(metadata, "colorFrom", _COLORS), *_one_of(metadata, "colorTo", _COLORS)]
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
    for name, kind in (("datasets", "dataset"), ("base_model", "model")):
        if name in metadata:
            yield from _strings(metadata[name], name)
            for value in _listed(metadata[name]):
                if isinstance(value, str) and value and not _REPO.fullmatch(value):
                    remedy = f"Use a {kind} id from https://hf.co/{kind}s."
                    yield f'"{name}" with value "{value}" is not valid. {remedy}'
    yield from _one_of(metadata, "base_model_relation", _RELATIONS)


def _check_model_index(index: Any, errors: list[str]) -> None:
    """Add to ``errors`` what is wrong with a card's ``model-index``."""
    for entry, where in _objects(index, "model-index", errors):
        _field(entry, "name", str, where, errors)
        results = _field(entry, "results", None, where, errors)
        for result, at in _objects(results, f"{where}.results", errors):
            for name, fields in (("task", ("type",)), ("dataset", ("type", "name"))):
                part = _field(result, name, dict, at, errors)
                for field in fields if isinstance(part, dict) else ():
                    _field(part, field, str, f"{at}.{name}", errors)
            metrics = _field(result, "metrics", None, at, errors)
            for metric, metric_at in _objects(metrics, f"{at}.metrics", errors):
                _field(metric, "type", str, metric_at, errors)
                _field(metric, "value", None, metric_at, errors)


def _field(entry: dict[str, Any], name: str, kind: type | None, where: str, errors: list[str]) -> Any:
    """A field that has to be there, of this kind where one is given; ``_MISSING`` if it is not there."""
    value = entry.get(name, _MISSING)
    if value is _MISSING:
        errors.append(f'"{where}.{name}" is required')
    elif kind and not isinstance(value, kind):
        errors.append(f'"{where}.{name}" must be {"a string" if kind is str else "of type object"}')
    return value


def _objects(value: Any, where: str, errors: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each mapping in a list with its place."""
    if value is not _MISSING and not isinstance(value, list):
        errors.append(f'"{where}" must be an array')
    for number, entry in enumerate(value if isinstance(value, list) else ()):
        at = f"{where}[{number}]"
        if isinstance(entry, dict):
            yield entry, at
        else:
            errors.append(f'"{at}" must be of type object')


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
