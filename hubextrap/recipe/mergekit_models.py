"""References to models as mergekit writes them: a model, or ``base+adapter``, a LoRA on its base.

As `ModelReference` of mergekit 0.1.5 (mergekit/common.py): text, or a mapping where text would need quotes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from hubextrap.foreign_data import shorten
from hubextrap.recipe.mergekit_programs import AS_IT_IS
from hubextrap.recipe.parts import RecipeSection, Text

_FORMS = "me/run@step_100, or BASE+ADAPTER for a LoRA adapter on its base"


class ModelReference(RecipeSection):
    """A model, or an adapter and the model that it belongs to."""

    model: Text
    lora: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_its_forms(cls, value: Any) -> Any:
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, str):
            return _of_text(value)
        if isinstance(value, dict) and "override_architecture" in value:
            raise ValueError(f"override_architecture: a recipe takes checkpoints as they are; {AS_IT_IS}")
        if not isinstance(value, dict) or "model" not in value or not value.keys() <= {"model", "lora"}:
            raise ValueError(f"has to be text here, as in {_FORMS}; {AS_IT_IS}")
        return {key: _of_path(each) for key, each in value.items() if each is not None}

    @property
    def checkpoint(self) -> str:
        """What of it is a checkpoint of the run, and says the step: the adapter, where there is one."""
        return self.model if self.lora is None else self.lora

    def __str__(self) -> str:
        return self.model if self.lora is None else f"{self.model}+{self.lora}"


def _of_text(value: str) -> dict[str, str]:
    parts = [value] if Path(value).exists() else value.split("+")
    if len(parts) > 2 or not all(parts):
        raise ValueError(f"has to be {_FORMS}, not {shorten(repr(value))}" if value else "must not be empty")
    return dict(zip(("model", "lora"), parts, strict=False))


def _of_path(value: object) -> str:
    """The text of mergekit's ``{path: …, revision: …}``."""
    found = value
    if isinstance(value, dict) and value.keys() <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        found = path if revision is None else f"{path}@{revision}"
        if not isinstance(path, str) or not isinstance(revision, (str, type(None))):
            found = None
    if not isinstance(found, str) or not found:
        raise ValueError(
            f"has to be text, or {{path: …, revision: …}}, both text, not {shorten(repr(value))}; {AS_IT_IS}"
        )
    return found
