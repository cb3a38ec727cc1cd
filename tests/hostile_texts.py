"""Texts as an attacker puts them into names, titles and answers; what may come of them, and what not."""

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from html.parser import HTMLParser
from urllib.parse import quote

from markdown_it import MarkdownIt

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
MIRROR = "zq7.value+/of~a_Mirror"
"""In use as HF_TOKEN; like no token of the Hub."""
SIGNATURE = "S3cretS1gnatur3" * 2
SECRETS = (TOKEN[3:], MIRROR, quote(MIRROR, safe=""), SIGNATURE, TOKEN[5:12], MIRROR[2:12])
_BASIC = b64encode(f"me:{MIRROR}".encode()).decode()

HOSTILE = {
    "colours": "\x1b[31mred\x1b[2J\x1b[1A\x1b[2K",
    "osc 8": "\x1b]8;;https://evil.example\x07here\x1b]8;;\x07",
    "osc 52": "\x1b]52;c;ZXZpbA==\x1b\\",
    "title": "\x1b]0;owned\x07\x08\x08\x7f",
    "c1": "\x9b31m\x9d0;owned\x9c\x85\x90",
    "bidi": "\u202egpj.exe\u2066x\u2069\u200f\u061c",
    "right to left": "שלום_step_1",
    "zero width": "a\u200bb\u2060c\ufeffd\u00ade\u3164f\U000e0041",
    "lines": "a\nFORGED: ok\r\nFORGED\u2028FORGED\u2029FORGED\x0bFORGED\x0cFORGED\x1cFORGED\x85FORGED",
    "image tag": "<img src=x onerror=alert(1)>",
    "script": "</td></code></svg><script>alert(1)</script>",
    "comment": "a <!-- b",
    "mark": "<!-- hubextrap: results -->",
    "mark on a line": "x\n<!-- hubextrap: results -->\nFORGED\n<!-- hubextrap: end of results -->\n",
    "end mark": "<!-- hubextrap: end of results -->",
    "loading mark": "x\n<!-- hubextrap: how to load -->\n<!-- hubextrap: end -->",
    "table": "a | FORGED |\n| FORGED | d |\n|---|---|\n| FORGED |",
    "escaped pipe": "\\| x \\\\| y | z \\",
    "ticks": "``` `x` `` ` FORGED",
    "fence": "x\n```\nFORGED\n~~~\n<script>alert(1)</script>",
    "link": "[x](javascript:alert(1)) [y](../../settings) [z][1]",
    "image": "![x](https://evil.example/beacon.png)",
    "definition": "[1]: https://evil.example",
    "autolink": "<https://evil.example> https://evil.example www.evil.example @someone",
    "heading": "# FORGED",
    "alert": "> [!WARNING]",
    "rule": "---",
    "list": "- FORGED",
    "number": "1. FORGED",
    "emphasis": "**bold** _em_ ~~gone~~ __init__",
    "entity": "&lt;script&gt;&#60;b&#62;&amp;",
    "yaml": "x: {y\n---\n- &a [*a, *a]\nlicense: FORGED",
    "front matter": "\n---\nlicense: mit\n---\n# FORGED",
    "runner": "::set-output name=x::y\n::add-mask::z\n::error::FORGED%0A ##[error]w ##vso[task.x]",
    "expression": "${{ secrets.HF_TOKEN }} $(id) `id` ;id",
    "rich": "[bold]x[/bold][/]{task.description}",
    "format": "%s %(x)s {} {0}",
    "formula": "$\\frac{$ $x^$ \\$",
    "underscore": "_hidden",
    "nul": "a\0b\0",
    "surrogates": "\ud800\udcff\udfff",
    "marks": "Z" + "\u0301\u0337" * 40,
    "long": "x" * 10_000,
    "long and hidden": "\u200b\x1b" * 5_000,
    "token": f"saw {TOKEN} here",
    "token with zero width": f"{TOKEN[:9]}\u200b{TOKEN[9:20]}\u2060{TOKEN[20:]}",
    "token with colours": f"{TOKEN[:9]}\x1b[1m{TOKEN[9:20]}\x1b]8;;x\x07{TOKEN[20:]}",
    "token in use": f"refused: {MIRROR}!",
    "token in use, hidden": f"{MIRROR[:5]}\u200b{MIRROR[5:9]}\x1b[0m{MIRROR[9:]}",
    "token in use, wrapped": f"│ {MIRROR[:9]} │\n│ {MIRROR[9:]} │",
    "token in use, encoded": f"q={quote(MIRROR, safe='')}&r={quote(quote(MIRROR, safe=''), safe='')}",
    "token in use, basic": f"sent {_BASIC}",
    "credentials": f"https://me:{SIGNATURE}@host.example/x",
    "signed": f"https://cdn.example/x?X-Amz-Signature={SIGNATURE}&b=c",
    "signed, encoded": quote(f"https://me:{SIGNATURE}@cdn.example/x?X-Amz-Signature={SIGNATURE}", safe=""),
    "option": f"error: unrecognized arguments: --token {TOKEN} --api-key={SIGNATURE}",
}
HARMLESS = (
    "step_100",
    "me/run@step_1:a/b",
    "模型 é ñ",
    "gsm8k exact_match (strict-match)",
    "👩‍💻 ❤️",
    "a-b.c+d, e: f",
)

_RUNNER = re.compile(r"(?i)^\s*::[a-z-]+(?: |::)|##\w*\[")
OWN_MARKS = {
    "<!-- hubextrap: results -->",
    "<!-- hubextrap: end of results -->",
    "<!-- hubextrap: how to load -->",
    "<!-- hubextrap: end -->",
    "<details>\n<summary>The coefficient c of each step</summary>",
    "</details>",
}


def refuse_secrets(text: str) -> None:
    for secret in SECRETS:
        place = text.find(secret)
        assert place < 0, f"{secret} is in {text[max(0, place - 200) : place + 100]!r}"


def refuse_on_a_terminal(text: str) -> None:
    """No control character, no line that others made, no command for a CI runner, no secret."""
    for character in text:
        kind = unicodedata.category(character)
        assert kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in "\n\u200d", (character, text[:500])
    assert not re.search("[\u0300-\u036f]{6}", text)
    for line in text.split("\n"):
        assert not line.startswith("FORGED"), text[:500]
        assert not _RUNNER.search(line), line[:500]
    assert max(map(len, text.split("\n"))) <= 100_000
    refuse_secrets(text)


def blocks(markdown: str) -> list[tuple[str, str, int]]:
    """What a text consists of: headings, tables with their cells, lists, blocks of code."""
    return [(token.type, token.tag, token.level) for token in _parsed(markdown)]


def refuse_in_markdown(markdown: str, like: str) -> None:
    """The same parts as in ``like``, no HTML but our marks, no link and no picture, no secret."""
    assert blocks(markdown) == blocks(like)
    for token in _parsed(markdown):
        for part in (token, *(token.children or ())):
            assert part.type not in ("link_open", "image"), part
            assert part.type not in ("html_block", "html_inline") or part.content.strip() in OWN_MARKS, part
            assert part.type not in ("strong_open", "em_open", "s_open") or part.type in _inline(like), part
    refuse_secrets(markdown)
    for character in markdown:
        kind = unicodedata.category(character)
        assert kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in "\t\n\u200d", repr(character)


def _inline(markdown: str) -> set[str]:
    return {part.type for token in _parsed(markdown) for part in (token.children or ())}


def _parsed(markdown: str) -> list:  # type: ignore[type-arg]
    body = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes; those of plots apart."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=False)
        self.page: list[tuple[str, tuple[str, ...]]] = []
        self.plots: set[str] = set()
        self._inside = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside += tag == "svg"
        if self._inside:
            self.plots.add(tag)
        else:
            self.page.append((tag, tuple(name for name, _ in attributes)))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        (self.plots.add(tag) if self._inside else self.page.append((tag, ())))

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "svg"
