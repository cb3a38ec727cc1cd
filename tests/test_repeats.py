"""No piece of code stands twice in the package: what has to be changed in two places is forgotten in one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hubextrap"
LINES, TOKENS = 8, 50
"""A repeat is a run of so many equal lines with so many tokens in them (jscpd's default), anywhere."""

WORDS = re.compile(r"\w+|[^\w\s]")
COMMENT = re.compile(r"(^|  )#.*")

Line = tuple[int, tuple[str, ...]]


def code_lines(source: str) -> list[Line]:
    """Number and words of each line that holds code: no comments, docstrings, imports or blank lines."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if said or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), start=1)
    words = [
        (at, tuple(WORDS.findall(COMMENT.sub("", line.strip())))) for at, line in lines if at not in left_out
    ]
    return [(number, found) for number, found in words if found]


def repeats(files: dict[str, str]) -> list[str]:
    """Each pair of places that hold the same lines, as long as they are the same."""
    code = {name: code_lines(source) for name, source in files.items()}
    places: dict[tuple[tuple[str, ...], ...], list[tuple[str, int]]] = defaultdict(list)
    for name, lines in code.items():
        for at in range(len(lines) - LINES + 1):
            places[tuple(words for _, words in lines[at : at + LINES])].append((name, at))
    found, done = [], set()
    for window in places.values():
        for other, (name, at) in ((other, one) for i, one in enumerate(window) for other in window[:i]):
            if (name, at, *other) in done:
                continue
            ours, theirs, size = code[name], code[other[0]], 0
            while at + size < len(ours) and other[1] + size < len(theirs):
                if ours[at + size][1] != theirs[other[1] + size][1]:
                    break
                done.add((name, at + size, other[0], other[1] + size))
                size += 1
            if sum(len(words) for _, words in ours[at : at + size]) >= TOKENS:
                first, last = ours[at][0], ours[at + size - 1][0]
                found.append(f"{name}:{first}-{last} stands in {other[0]}:{theirs[other[1]][0]} too")
    return found


def test_no_code_stands_twice() -> None:
    files = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    assert repeats(files) == []


def test_a_repeat_is_found_however_it_is_laid_out() -> None:
    body = [f"    total = combine(total, weights[{i}], steps[{i}] * scale)" for i in range(LINES)]
    one = "def one(total, weights, steps, scale):\n" + "\n".join(body) + "\n    return total\n"
    inside = [
        line.replace("    total", "        total  # as above") if i == 3 else f"    {line}"
        for i, line in enumerate(body)
    ]
    two = (
        'class Two:\n    def two(self, total):\n        """Else."""\n'
        + "\n\n".join(inside).replace("  # as above", "")
        + "\n"
    )
    assert repeats({"one.py": one, "two.py": two}) == [f"two.py:4-{2 + 2 * LINES} stands in one.py:2 too"]
    assert repeats({"one.py": one, "short.py": "\n".join(["def two():", *body[1:]]) + "\n"}) == []
    assert len(repeats({"one.py": one + "\n\n" + one.replace("one", "again")})) == 1
