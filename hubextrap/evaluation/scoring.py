"""Scoring of our own tasks; lm-eval calls these functions with one problem and its samples.

A problem has a ``question`` and an ``answer``. One sample gives one figure; several give avg@n, maj@n and
pass@k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.evaluation.metrics import figures_of_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

_QUESTIONS, _ANSWERS = ("question", "problem", "Problem", "prompt"), ("answer", "Answer")


def as_problems(rows: Dataset) -> Dataset:
    """``rows`` with the fields question and answer only, whatever the dataset calls them.

    GSM8K's answers end in ``#### 1,234``, which is what is kept of them.
    """
    from datasets import Dataset

    problems = []
    for row in rows:
        question = next(row[name] for name in _QUESTIONS if name in row)
        answer = str(next(row[name] for name in _ANSWERS if name in row)).strip()
        if "#### " in answer:
            answer = answer.rpartition("#### ")[2].replace(",", "").strip()
        problems.append({"question": question, "answer": answer})
    return Dataset.from_list(problems)


def text_answers(doc: Mapping[str, Any], results: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Right is what equals the answer, spaces around it aside."""
    answers = [sample.strip() for sample in _samples(results)]
    right = [answer == str(doc["answer"]).strip() for answer in answers]
    return _figures("exact_match", answers, right)


def math_answers(doc: Mapping[str, Any], results: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Right is what math-verify finds equal to the answer: ``\\boxed{0.5}`` for ``\\frac{1}{2}``.

    Needs the main thread, as math-verify stops parsing and comparing after 5 s by a signal.
    """
    from math_verify import parse, verify

    gold = parse(f"\\boxed{{{doc['answer']}}}")
    votes: list[int | None] = []
    right: list[bool] = []
    kinds: list[tuple[list[Any], bool]] = []  # one a distinct answer
    known: dict[str, int] = {}
    for sample in _samples(results):
        answer = parse(sample)
        if not answer:
            votes.append(None)
            right.append(False)
            continue
        text = str(answer[-1])
        if text not in known:
            is_right = verify(gold, answer)
            for kind, (other, other_is_right) in enumerate(kinds):
                if is_right == other_is_right and (is_right or verify(other, answer)):
                    known[text] = kind
                    break
            else:
                known[text] = len(kinds)
                kinds.append((answer, is_right))
        votes.append(known[text])
        right.append(kinds[known[text]][1])
    return _figures("math_verify", votes, right)


def _samples(results: Sequence[str | Sequence[str]]) -> list[str]:
    """lm-eval hands over a text for one sample (filter take_first), a list for several (take_first_k)."""
    return [results[0]] if isinstance(results[0], str) else list(results[0])


def _figures(name: str, answers: Sequence[Any], right: Sequence[bool]) -> dict[str, float]:
    return {name: float(right[0])} if len(right) == 1 else figures_of_samples(answers, right)
