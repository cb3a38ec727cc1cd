"""A task of long answers with many right ones: a sum worked out step by step, in any order.

`4+9+2+7+3+8=` may be answered by `9+3=12 12+4=16 16+8=24 24+7=31 31+2=33` and the end-of-sequence token:
each step adds two numbers that are still there and leaves their sum in their place. Which two is free, so a
problem has up to 86,400 right answers, most of them of 35 to 39 tokens. The tokenizer is the addition runs'.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from addition import Problem, problems_by_step
from transformers import PreTrainedModel, PreTrainedTokenizerBase

DATA = Path(__file__).resolve().parent / "data" / "rlvr-L"
TERMS = 6
MAX_NEW_TOKENS = 44
HELD_OUT = 200
HELD_OUT_SEED = 20_251_129


@cache
def held_out_problems() -> list[Problem]:
    """The problems that all reported accuracies are measured on."""
    random = np.random.default_rng(HELD_OUT_SEED)
    of_question: dict[str, Problem] = {}
    while len(of_question) < HELD_OUT:
        problem = draw(random)
        of_question[problem.question] = problem
    return list(of_question.values())


def training_problems(first_step: int, steps: int, per_step: int, seed: int) -> list[Problem]:
    """Random problems for the RL steps from `first_step` on, `per_step` each; none is a held-out one.

    A step's problems depend on the seed and the step alone.
    """
    held_out = {problem.question for problem in held_out_problems()}
    return problems_by_step(draw, held_out, range(first_step, first_step + steps), per_step, seed)


def draw(random: np.random.Generator) -> Problem:
    """A problem of distinct digits, worked out as a demonstration is: term after term, in a random order."""
    terms = random.permutation(np.arange(1, 10))[:TERMS].tolist()
    total, *others = random.permutation(terms).tolist()
    lines = []
    for term in others:
        lines.append(f"{total}+{term}={total + term}")
        total += term
    return Problem("+".join(map(str, terms)) + "=", " ".join(lines))


def is_right(question: str, answer: str) -> bool:
    """Whether each line adds two numbers that are still there, and rightly, until one number is left."""
    left = Counter(question.removesuffix("=").split("+"))
    for line in answer.split(" "):
        operands, equals, total = line.partition("=")
        pair = operands.split("+")
        if not equals or len(pair) != 2 or Counter(pair) - left:
            return False
        if total != str(int(pair[0]) + int(pair[1])):
            return False
        left = left - Counter(pair) + Counter([total])
    return left.total() == 1


def columns(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> dict[str, list[object]]:
    """What the reward takes beside the completions, for each problem."""
    return {"question": [problem.question for problem in problems]}


def rewarder(tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[float]]:
    """TRL's form of the task's reward: 1.0 for each completion that is right and ended, else 0.0."""

    def reward(completion_ids: Sequence[Sequence[int]], question: Sequence[str], **_: object) -> list[float]:
        return [
            float(ids[-1:] == [tokenizer.eos_token_id] and is_right(asked, tokenizer.decode(ids[:-1])))
            for ids, asked in zip(map(list, completion_ids), question, strict=True)
        ]

    return reward


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    samples: int = 16,
    seed: int = 0,
) -> list[float]:
    """The share of samples at temperature 1 that were right, in [0, 1], for each problem."""
    torch.manual_seed(seed)
    questions = [problem.question for problem in problems for _ in range(samples)]
    answers = completions(model, tokenizer, questions)
    right = rewarder(tokenizer)(answers, questions)
    return np.reshape(right, (len(problems), samples)).mean(1).tolist()


def expected_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> float:
    """Mean probability that a sample at temperature 1 is right, estimated from one sample a problem."""
    return float(np.mean(accuracy(model, tokenizer, problems, samples=1)))


@torch.no_grad()
def completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    greedy: bool = False,
) -> list[list[int]]:
    """A completion of each question, up to its end-of-sequence token, sampled at temperature 1 or greedy."""
    ids = tokenizer(list(questions), return_tensors="pt")["input_ids"]
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **how,
    )[:, ids.shape[1] :].tolist()
    end = tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in made]


def write_problems(file: Path) -> None:
    """The held-out problems as JSON lines of question and answer (one right answer of many)."""
    file.write_text("".join(json.dumps(problem._asdict()) + "\n" for problem in held_out_problems()))
