"""``trajectory.tensors``: what to do where the checkpoints of a run do not hold the same tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from hubextrap.digests import sha256_of_json
from hubextrap.errors import RecipeError
from hubextrap.foreign_data import shorten
from hubextrap.recipe.parts import OneOrMoreTexts, RecipeSection, Text

WILDCARD = "*"
RENAMED = "; renamed "
PLACE = ("trajectory", "tensors")


class TensorNames(RecipeSection):
    """``trajectory.tensors``. Globs match whole names, the last checkpoint's; ``*`` crosses dots."""

    ignore: OneOrMoreTexts | None = None
    """Tensors that earlier checkpoints have and the last one has not: they take no part."""
    copied: OneOrMoreTexts | None = Field(default=None, alias="copy")
    """Tensors that are taken from the last checkpoint as they are; earlier ones may lack them."""
    rename: Annotated[dict[Text, Text], Field(min_length=1)] | None = None
    """A name in earlier checkpoints → the last one's; a ``*`` on both sides stands for the same text."""

    @field_validator("rename")
    @classmethod
    def _one_wildcard(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for old, new in (value or {}).items():
            if (old.count(WILDCARD), new.count(WILDCARD)) not in ((0, 0), (1, 1)):
                raise ValueError(
                    f"{old!r}: {new!r} needs one * on both sides, or none: 'visual.*': 'model.visual.*'"
                )
            if old == new:
                raise ValueError(f"{old!r} is renamed to itself; leave it out")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> TensorNames:
        if self.ignore is None and self.copied is None and self.rename is None:
            raise ValueError("says nothing; give ignore, copy or rename, or leave it out")
        return self


@dataclass(frozen=True, slots=True)
class Naming:
    """What a recipe says of names, and where in its file it says so."""

    ignore: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Of each glob and each renaming, by key and text."""

    @classmethod
    def of(
        cls, section: TensorNames | None, file: str | None, lines: Mapping[tuple[str | int, ...], int]
    ) -> Naming:
        """What a section says.

        Args:
            lines: of the keys of the recipe's text.
        """
        if section is None:
            return cls()
        place = PLACE
        ignore, copied, rename = section.ignore or (), section.copied or (), section.rename or {}
        known = {
            (key, text): lines.get((*place, key, number), lines.get((*place, key), 0))
            for key, texts in (("ignore", ignore), ("copy", copied))
            for number, text in enumerate(texts)
        }
        known |= {("rename", old): lines.get((*place, "rename", old), 0) for old in rename}
        return cls(ignore, copied, rename, file, known)

    def __bool__(self) -> bool:
        return bool(self.ignore or self.copied or self.rename)

    @property
    def pin(self) -> str:
        """What a checkpoint's fingerprint ends with: the same bytes under other names are other tensors."""
        return f"{RENAMED}{sha256_of_json(dict(self.rename))[:16]}" if self.rename else ""

    def error(self, key: str, text: str, what: str) -> RecipeError:
        """That one of the globs or renamings is wrong."""
        line = self.lines.get((key, text)) or None
        place = f"{self.file}:{line}: " if self.file and line else ""
        said = f"{place}{'.'.join(PLACE)}.{key}: {shorten(repr(text))} {what}"
        return RecipeError(said, file=self.file, line=line)

    def check_unused(self, why: str) -> None:
        """Refuse what has no effect.

        Raises:
            RecipeError: something is said of names.
        """
        for key, texts in (("ignore", self.ignore), ("copy", self.copied), ("rename", tuple(self.rename))):
            if texts:
                raise self.error(key, texts[0], f"has no effect: {why}; leave {'.'.join(PLACE)} out")
