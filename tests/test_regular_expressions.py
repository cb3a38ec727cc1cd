"""Every regular expression of the package takes time linear in the text, whatever the text is."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hubextrap"
LENGTH = 20_000
PUMPS = (
    *(
        "a",
        "1",
        "\u0663",
        " ",
        "\n",
        "-",
        "_",
        ".",
        "/",
        ":",
        "\\",
        "'",
        '"',
        "{",
        "#",
        "=",
        "`",
        "?",
        "*",
        "[",
        "<",
    ),
    *(
        "step",
        "1k",
        "-1",
        "1.",
        "a-",
        "a.",
        "a/",
        "a:",
        "\n-",
        "\n---",
        "\n---\n",
        "\n ",
        " \t",
        "http://",
        "http://a?",
    ),
    *(
        "hf_",
        "hf_a",
        "Bearer ",
        "?a=1&",
        "model-index:\n",
        "model-index",
        "tokens1",
        "tokens",
        "-1.1k",
        "1.1",
        "step-1k",
    ),
    *(
        '"dtype": ',
        "LICENSE",
        "/home/",
        "C:\\",
        "from_pretrained(",
        '("\\a',
        '"\\',
        "{{a}}",
        "{a",
        "task: ",
        "demo/",
        "<svg ",
    ),
    *(
        "LMHeadModel",
        "ForCausalLM",
        ".layers.",
        "<metadata>",
        "token=",
        "password",
        "@",
        "://",
        "a@",
        "a:b@",
        "%41",
        "scale",
    ),
)
ENDS = ("", "\x00", "!", "\n", " x", "1", "a")


def expressions() -> Iterator[tuple[str, re.Pattern[str], bool]]:
    """Name, expression, and whether it only ever reads a text from its start."""
    for module in sorted(PACKAGE.rglob("*.py")):
        source = module.read_text()
        if "re.compile" not in source:
            continue
        name = ".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts)
        pending = [(f"{name}.{key}", value) for key, value in vars(importlib.import_module(name)).items()]
        while pending:
            key, value = pending.pop()
            if isinstance(value, (list, tuple)):
                pending += [(f"{key}[{index}]", item) for index, item in enumerate(value)]
            elif isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                used = set(re.findall(rf"\b{re.escape(key.rpartition('.')[2])}\.(\w+)\(", source))
                yield key, value, bool(used) and used <= {"match", "fullmatch"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expression", "anchored"), [pytest.param(*one, id=one[0]) for one in expressions()]
)
def test_takes_linear_time(name: str, expression: re.Pattern[str], anchored: bool) -> None:
    for pump in PUMPS:
        text = pump * (LENGTH // len(pump))
        for end in ENDS:
            start = time.process_time()
            if not anchored:
                for _ in expression.finditer(text + end):
                    pass
            expression.match(text + end)
            expression.fullmatch(text + end)
            assert time.process_time() - start < 0.5, f"{name}: {pump!r} … {end!r}"
