"""Step names: what the names of branches, folders, commits and repos say about the training step.

A name says a step by a counter word with a number: ``step_100``, ``global_step_100``, ``iter_0001000``,
``update_011250``, ``checkpoint-500``, ``step-50K``, or a number that carries the word, ``9500step``. What
surrounds the number, with ``{step}`` in its place, is the pattern; names of one pattern are one series:

    stage2-ingredient1-step3000-tokens13B    step 3000 of stage2-ingredient1-step{step}-tokens{tokens}
    global_step_100/actor/huggingface        step 100 of global_step_{step}/actor/huggingface

Nothing here asks the Hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from hubextrap.errors import StepError, TrajectoryError
from hubextrap.step_pattern import STEP, StepPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MOST_DIGITS = 15
"""A longer number is a date with a time, or a hash; it counts nothing."""

# Most telling first: in `checkpoint-5-step-100` the step is 100.
_WORDS = (r"(?:global[-_ ]?)?steps?", r"iter(?:ation)?s?", r"updates?", r"(?:checkpoint|ckpt)s?")
_COUNTERS = tuple(
    # No letter before the word (timestep), none after the number (tokens252B, pct010, 2BT) and no decimals.
    re.compile(rf"(?<![a-z]){word}[-_= ]?(?P<number>\d+k?)(?![a-z0-9%]|\.\d)", re.IGNORECASE)
    for word in _WORDS
)
_BARE_COUNTER = re.compile(
    rf"[-_.](?:(?:{'|'.join(_WORDS)})[-_]?\{{step\}}|\{{step\}}steps?)(?:[-_](?:tokens[-_]?)?\{{tokens\}})?",
    re.IGNORECASE,
)
_ANY_COUNTER = re.compile(
    r"(?<![-_. ])[-_. ]*(?:"  # begun once for each run of them, not at each of them
    rf"(?:(?:{'|'.join(_WORDS)})[-_= ]?)?\{{step\}}(?:steps?)?|(?:tokens?[-_]?)?\{{tokens\}})",
    re.IGNORECASE,
)
_NUMBER_FIRST = re.compile(rf"(?<![a-z\d.])(?P<number>\d{{1,{_MOST_DIGITS}}}k?)steps?$", re.IGNORECASE)
_BARE_NUMBER = re.compile(rf"[0-9]{{1,{_MOST_DIGITS}}}")
_NAMED_TOKENS = re.compile(r"(tokens?[-_]?)\d+(?:\.\d+)?[kmbt]?(?![a-z0-9])", re.IGNORECASE)
_TOKENS = re.compile(rf"{_NAMED_TOKENS.pattern}|(?<=[-_])\d+(?:\.\d+)?[kmbt]t(?![a-z0-9])", re.IGNORECASE)
_PIPELINE_STAGE = re.compile(r"[-_](?!tokens)[a-z]", re.IGNORECASE)


INNER_FOLDERS = (
    *("huggingface", "actor", "lora_adapter"),
    *("policy", "weights", "model", "consolidated", "pytorch_model_fsdp_0"),
)
"""Where trainers put a step's weights, or its adapter: verl, then SkyRL, NeMo and accelerate; folders further
up on a disk may say a step by accident."""
_ON_THE_HUB = re.compile(
    r"(?P<scheme>hf://)?(?P<repo>[^@:/]+(?:/[^@:/]+)?)(?P<folder>/[^@:]*)?(?:@(?P<revision>[^:]*))?(?::(?P<path>.*))?"
)


@dataclass(frozen=True, slots=True)
class StepName:
    """A name that says a step."""

    pattern: str
    """The name with ``{step}`` for its number, and ``{tokens}`` for a token count: what a series shares."""
    step: int
    unit: str
    """The leading folders up to the one that says the step; what lies under it belongs to this step."""


def read_step(name: str) -> StepName | None:
    """The step that a branch, tag, repo or folder name says, or None.

    In a path the outermost folder that says a step counts: ``checkpoint-600/global_step1200`` is step 600.
    """
    parts = name.split("/")
    for index, part in enumerate(parts):
        number = _number_in(part)
        if number is None:
            continue
        pattern = [_without_tokens(outer, "") for outer in parts[:index]]
        pattern.append(_without_tokens(part[: number.start("number")], STEP, part[number.end("number") :]))
        pattern.extend(_without_inner_step(inner) for inner in parts[index + 1 :])
        return StepName("/".join(pattern), _integer(number["number"]), "/".join(parts[: index + 1]))
    return None


def read_bare_number(name: str) -> StepName | None:
    """The step of a folder whose name is a number and nothing else, the innermost of them, or None.

    Numbers are seeds and dates too: nobody asks this of names before it is known that no other says a step.
    """
    parts = name.split("/")
    for index in reversed(range(len(parts))):
        if _BARE_NUMBER.fullmatch(parts[index]):
            pattern = "/".join((*parts[:index], STEP, *parts[index + 1 :]))
            return StepName(pattern, int(parts[index]), "/".join(parts[: index + 1]))
    return None


def read_title(title: str) -> StepName | None:
    """The step that a commit's title ends in, e.g. ``Training in progress, step 500``, or None.

    The Trainer's ``…, step 500, checkpoint`` says none: it adds the optimizer's state to the same weights.
    """
    number = _number_in(title)
    if number is None or number.end() != len(title):
        return None
    return StepName(title[: number.start("number")] + STEP, _integer(number["number"]), title)


@lru_cache(4096)
def step_in_reference(text: str) -> StepName | None:
    """The step that a checkpoint's reference says, by its folder, else its revision, else its repo; or None.

    Only the text is read; the pattern is the whole of it, so that references of one run share theirs.
    """
    bare = text.rstrip("/")
    parts = bare.split("/")
    while parts[-1] in INNER_FOLDERS:
        parts.pop()
    found = _ON_THE_HUB.fullmatch("/".join(parts))
    names = [parts[-1] if parts else ""]
    if (
        found is not None
        and not text.startswith((".", "/", "~"))
        and (found["scheme"] or not found["folder"])
    ):
        folder = (found["path"] or found["folder"] or "").strip("/")
        names = [folder, found["revision"] or "", found["repo"].rpartition("/")[2]]
    for name in filter(None, names):
        if (said := read_step(name)) is not None:
            before, _, after = bare.rpartition(name)
            return StepName(before + said.pattern + after, said.step, said.unit)
    return None


def no_step(*models: str) -> str:
    """What is said of models of a list that have no step."""
    names = "its name" if len(models) == 1 else "their names"
    return (
        f"no step for {', '.join(models)}, nor in {names}; write it beside the model: "
        "parameters: {step: 100} (only base_model may go without, it is step 0)"
    )


def settled_step(model: str, stated: int | None, others: Iterable[str] = (), *, is_base: bool = False) -> int:
    """The step of a model of a list: what is stated, or what its name says.

    Args:
        others: the other models of the list. A name alone in its series may count another run's steps: such a
            checkpoint can be step 0, and a base without a step is.

    Raises:
        StepError: its name says another step than the one stated, or none is stated and its name says none.
    """
    said = step_in_reference(model)
    if (
        said is not None
        and (stated == 0 or (stated is None and is_base))
        and not any(
            (other := step_in_reference(each)) is not None and other.pattern == said.pattern
            for each in others
        )
    ):
        said = None
    if stated is None:
        if said is None and not is_base:
            raise StepError(no_step(model))
        return 0 if said is None else said.step
    if said is not None and said.step != stated:
        raise StepError(
            f"{model} says step {said.step} by its name, and {stated} is stated; leave the step out, or "
            "correct it (a commit, or a link, in place of the name says no step)",
            step=stated,
        )
    return stated


def pattern_reader(pattern: str) -> Callable[[str], StepName | None]:
    """A reader like ``read_step`` for names of one pattern that the user gave.

    ``{step}`` stands for the number (``50k`` is 50000), any other ``{word}`` for whatever varies beside it.
    Folders under the matched ones are part of the series: ``step_{step}`` reads ``step_100/actor``.

    Raises:
        TrajectoryError: ``{step}`` is not there exactly once.
    """
    if pattern.count(STEP) != 1:
        raise TrajectoryError(f"pattern {pattern!r}: it needs {STEP} exactly once, e.g. 'step_{STEP}'")
    matcher, depth = StepPattern(pattern), pattern.count("/") + 1

    def read(name: str) -> StepName | None:
        parts = name.split("/")
        if len(parts) < depth:
            return None
        outer, inner = "/".join(parts[:depth]), parts[depth:]
        number = matcher.number_in(outer)
        if number is None or len(number) > _MOST_DIGITS:
            return None
        rest = [_without_inner_step(part) for part in inner]
        return StepName("/".join([pattern, *rest]), _integer(number), outer)

    return read


def without_step(name: str) -> str:
    """A name without what counts in it, ``grpo`` of ``grpo-step-100-2BT``; itself where it says no step."""
    said = read_step(name)
    return name if said is None else _ANY_COUNTER.sub("", said.pattern).strip("-_. =")


def is_bare_counter(rest: str) -> bool:
    """Whether what follows a repo's name in a sibling's pattern is only a counter: ``-step-{step}``."""
    return _BARE_COUNTER.fullmatch(rest) is not None


def _number_in(part: str) -> re.Match[str] | None:
    """The number that counts in one folder's name: the one of the most telling word, the last of these."""
    for counter in _COUNTERS:
        matches = [
            match
            for match in counter.finditer(part)
            if len(match["number"]) <= _MOST_DIGITS and not _is_pipeline_stage(part, match)
        ]
        if matches:
            return matches[-1]
    return _NUMBER_FIRST.search(part)


def _is_pipeline_stage(part: str, match: re.Match[str]) -> bool:
    """`step01-sft`, `step02-rm`: two digits with a leading zero before a word number stages, not steps."""
    number = match["number"]
    return len(number) == 2 and number[0] == "0" and _PIPELINE_STAGE.match(part, match.end()) is not None


def _without_tokens(before: str, step: str, after: str = "") -> str:
    # A bare 7B before the number is a model's size; tokens are named, or follow the step as in -2BT.
    before = _NAMED_TOKENS.sub(r"\1{tokens}", before)
    return before + step + _TOKENS.sub(lambda match: (match[1] or "") + "{tokens}", after)


def _without_inner_step(part: str) -> str:
    number = _number_in(part)
    return (
        part if number is None else part[: number.start("number")] + "{inner}" + part[number.end("number") :]
    )


def _integer(number: str) -> int:
    return int(number[:-1]) * 1000 if number[-1] in "kK" else int(number)
