"""The task of the bundled runs: adding two 3-digit numbers, the sum's digits written units first.

`526+850=` is answered by `6731` and the end-of-sequence token. What is here is shared by the trainer
(`demo/grpo.py`) and by the demonstration that runs it (`demo/reground.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

DATA = Path(__file__).resolve().parent / "data" / "rlvr-C"
MAX_NEW_TOKENS = 6


class Problem(NamedTuple):
    """A question, and the only completion of it that earns a reward."""

    question: str
    answer: str


class Accuracy(NamedTuple):
    """How one checkpoint did on a list of problems.

    `greedy` is 0 or 1 a problem, `sampled` the share of samples that were right, in [0, 1].
    """

    greedy: list[float]
    sampled: list[float]


def held_out_problems() -> list[Problem]:
    """The 500 problems that all reported accuracies are measured on."""
    lines = (DATA / "problems.jsonl").read_text().splitlines()
    return [Problem(**json.loads(line)) for line in lines]


def training_problems(first_step: int, steps: int, per_step: int, seed: int) -> list[Problem]:
    """Random problems for the RL steps from `first_step` on, `per_step` each; none is a held-out one.

    A step's problems depend on the seed and the step alone: a run that is cut into rounds sees what the
    uncut run sees.
    """
    return problems_by_step(
        lambda random: _problem(*random.integers(100, 1000, size=2)),
        {problem.question for problem in held_out_problems()},
        range(first_step, first_step + steps),
        per_step,
        seed,
    )


def problems_by_step(
    draw: Callable[[np.random.Generator], Problem],
    held_out: Collection[str],
    steps: Iterable[int],
    per_step: int,
    seed: int,
) -> list[Problem]:
    """`per_step` problems for each step, whose question is not among those held out."""
    problems: list[Problem] = []
    for step in steps:
        random = np.random.default_rng([seed, step])
        of_step: list[Problem] = []
        while len(of_step) < per_step:
            problem = draw(random)
            if problem.question not in held_out:
                of_step.append(problem)
        problems += of_step
    return problems


def exact_match(completion_ids: Sequence[Sequence[int]], answer_ids: Sequence[Sequence[int]]) -> list[float]:
    """1.0 for each completion that is the answer's tokens, end-of-sequence token included; else 0.0."""
    return [
        float(list(completion) == list(answer))
        for completion, answer in zip(completion_ids, answer_ids, strict=True)
    ]


def columns(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> dict[str, list[object]]:
    """What the reward takes beside the completions, for each problem."""
    answers = [problem.answer + tokenizer.eos_token for problem in problems]
    return {"answer_ids": tokenizer(answers)["input_ids"]}


def rewarder(tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[float]]:
    """TRL's form of the task's reward."""

    def reward(completion_ids: list[list[int]], answer_ids: list[list[int]], **_: object) -> list[float]:
        return exact_match(completion_ids, answer_ids)

    return reward


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (fp32) and tokenizer of a checkpoint folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    samples: int = 16,
    seed: int = 0,
) -> Accuracy:
    """Greedy and sampled (temperature 1, nothing cut off) exact match a problem."""
    greedy = _completions_right(model, tokenizer, problems, do_sample=False)
    torch.manual_seed(seed)
    sampled = _completions_right(
        model, tokenizer, problems, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=samples
    )
    return Accuracy(greedy.mean(1).tolist(), sampled.mean(1).tolist())


@torch.no_grad()
def expected_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> float:
    """Mean probability that a sample at temperature 1 is right: what `sampled` estimates, without its noise.

    One forward pass over questions with their answers, so it is cheap enough for a probe.
    """
    questions, answers = _token_ids(tokenizer, problems)
    ids = torch.cat([questions, answers], 1)
    scored = answers != tokenizer.pad_token_id
    logits = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
    log_probabilities = logits[:, questions.shape[1] - 1 : -1].log_softmax(-1)
    of_answer = log_probabilities.gather(-1, answers[..., None])[..., 0].masked_fill(~scored, 0.0)
    return float(of_answer.sum(1).exp().mean())


@torch.no_grad()
def _completions_right(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    **generation: object,
) -> torch.Tensor:
    """Whether each completion is right: (problems, completions a problem), float32."""
    questions, answers = _token_ids(tokenizer, problems)
    prompt_length = questions.shape[1]
    completions = model.generate(
        questions,
        attention_mask=torch.ones_like(questions),
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **generation,
    )[:, prompt_length:]
    # generate() stops as soon as all rows have ended, so it may return fewer columns than the answers have
    width = max(completions.shape[1], answers.shape[1])
    completions, answers = (
        torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=tokenizer.pad_token_id)
        for ids in (completions, answers)
    )
    grouped = completions.reshape(len(problems), -1, width)
    return (grouped == answers[:, None]).all(-1).float()


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Questions (all of one length), and answers with their end, padded on the right: (problems, tokens)."""
    questions = tokenizer([problem.question for problem in problems], return_tensors="pt")["input_ids"]
    answers = tokenizer(
        [problem.answer + tokenizer.eos_token for problem in problems],
        return_tensors="pt",
        padding=True,
        padding_side="right",
    )["input_ids"]
    return questions, answers


def _problem(left: int, right: int) -> Problem:
    return Problem(f"{left}+{right}=", str(left + right)[::-1])
