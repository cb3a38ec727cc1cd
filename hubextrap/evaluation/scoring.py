"""Scoring of our own tasks; lm-eval calls these functions with one problem and its samples.

A problem has a ``question`` and an ``answer``. One sample gives one figure; several give avg@n, maj@n and
pass@k, of which scores are the means over problems.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

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


def avg_at_n(right: Sequence[bool]) -> float:
    """The share of the samples that is right; its mean over problems is also called mean@n, or pass@1."""
    return sum(right) / len(right)


def pass_at_k(right: Sequence[bool], k: int) -> float:
    """The chance that at least one of k samples is right, without bias from the n ≥ k that were drawn.

    1 − C(n−c, k) / C(n, k) with c right ones, as a product: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: k is not in 1 … n.
    """
    n, wrong = len(right), len(right) - sum(right)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples, and k at least 1; {n} were drawn")
    if wrong < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(wrong + 1, n + 1))


def maj_at_n(answers: Sequence[Hashable | None], right: Sequence[bool]) -> float:
    """Whether the commonest answer is right; the share of right ones where several are commonest.

    Args:
        answers: what makes two samples the same vote; None is no answer and no vote.
        right: of each sample; equal answers are equally right.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    verdict = dict(zip(answers, right, strict=True))
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(verdict[answer] for answer in winners) / len(winners)


def figures_of_samples(answers: Sequence[Hashable | None], right: Sequence[bool]) -> dict[str, float]:
    """Every figure of one problem by the name that tables show, for lm-eval's ``process_results``."""
    n = len(right)
    several = {f"pass@{k}": pass_at_k(right, k) for k in pass_ks(n)}
    return {f"avg@{n}": avg_at_n(right), f"maj@{n}": maj_at_n(answers, right)} | several


def pass_ks(n: int) -> tuple[int, ...]:
    """The k of pass@k that are reported for n samples: 4, 16, 64 … below n, and n."""
    ks, k = [], 4
    while k < n:
        ks.append(k)
        k *= 4
    return (*ks, n)


def sample_metrics(n: int) -> list[Mapping[str, object]]:
    """lm-eval's ``metric_list`` for what `figures_of_samples` gives."""
    return means([f"avg@{n}", f"maj@{n}", *(f"pass@{k}" for k in pass_ks(n))])


def means(names: Sequence[str]) -> list[Mapping[str, object]]:
    """lm-eval's ``metric_list`` for figures whose mean over problems had better be high."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]
