"""What a model is asked for its own answers: a file's prompts or a task's, and which answers are right.

Imports lm-eval inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.digests import sha256_of_json
from hubextrap.errors import EvaluationError, RecipeError
from hubextrap.evaluation.options import Answering
from hubextrap.evaluation.own_answers import BATCH_SIZE, MAX_ANSWER_TOKENS, OwnAnswers, draw_answers
from hubextrap.evaluation.own_tasks import MATH_TOKENS, ends_of, packaged_tasks, read_problems, task_specs
from hubextrap.evaluation.quiet import quiet_libraries, quiet_lm_eval
from hubextrap.evaluation.scores import config_sha256, docs_sha256
from hubextrap.evaluation.scoring import math_answers, text_answers
from hubextrap.evaluation.tasks import load_tasks
from hubextrap.extras import require
from hubextrap.hub_access import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hubextrap.recipe import EvaluateSection
    from hubextrap.recipe.targets import TargetWalk

_GENERATION_TOKENS = 256
"""What lm-eval lets a task that does not say generate."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts of one file or task, in order."""

    name: str
    prompts: tuple[str, ...]
    sha256: str
    """Of all that the answers and what they are worth depend on, beside the model."""
    max_tokens: int
    """Of an answer."""
    stops: tuple[str, ...] = ()
    """Texts that end one."""
    grade: Callable[[int, str], float] | None = None
    """What a text is worth as an answer to the i-th prompt, 1 being right; None where nothing says."""


@dataclass(frozen=True, slots=True)
class Questions:
    """All that is asked."""

    parts: tuple[Asked, ...]
    chat: bool = False
    """As a user's messages in the tokenizer's chat template."""

    @property
    def count(self) -> int:
        """Prompts."""
        return sum(len(part.prompts) for part in self.parts)

    @property
    def most_tokens(self) -> int:
        """Of one answer to each."""
        return sum(len(part.prompts) * part.max_tokens for part in self.parts)

    def fingerprint(self) -> str:
        """sha256 of all that is asked, and how."""
        asked = [(part.sha256, part.prompts, part.max_tokens, part.stops) for part in self.parts]
        return sha256_of_json([asked, self.chat, BATCH_SIZE])

    def draw(
        self,
        model: Any,
        tokenizer: Any,
        *,
        samples: int | None,
        seed: int = 0,
        advance: Callable[[int], None] | None = None,
    ) -> OwnAnswers:
        """Answers to all; see `draw_answers`.

        Raises:
            MissingExtra, EvaluationError, UnsupportedCheckpoint: as there.
        """
        drawn = [
            draw_answers(
                model,
                tokenizer,
                part.prompts,
                samples=samples,
                max_tokens=part.max_tokens,
                seed=seed,
                stops=part.stops,
                chat=self.chat,
                advance=advance,
            )
            for part in self.parts
        ]
        prompts = tuple(prompt for each in drawn for prompt in each.prompts)
        return OwnAnswers(prompts, tuple(answer for each in drawn for answer in each.answers), self.chat)

    def grades(self, answers: OwnAnswers, tokenizer: Any) -> list[float]:
        """What each answer is worth, of those that `draw` gave.

        Raises:
            EvaluationError: a task cannot judge one.
        """
        each = len(answers.answers) // self.count
        texts = iter(answers.texts(tokenizer))
        found = []
        for part in self.parts:
            assert part.grade is not None
            for place in range(len(part.prompts)):
                for _ in range(each):
                    found.append(part.grade(place, _without_end(next(texts), part.stops)))
        return found


def questions_of(walk: TargetWalk, evaluate: EvaluateSection | None) -> Questions:
    """What a recipe's walk asks.

    Args:
        evaluate: the recipe's, which says how a file's answers are judged where the walk does not, and what
            is asked where the walk names neither a file nor tasks.

    Raises:
        RecipeError: nothing says what to ask.
        MissingExtra: lm-eval, or math-verify, is needed and cannot be imported.
        EvaluationError: the file or a task does not serve; names the file and the line.
    """
    judged = walk.chosen_by != "own_answers"
    if walk.prompts is not None:
        kind = None
        if judged:
            kind = walk.format or (evaluate.format if evaluate and evaluate.task_files else "exact")
        part = _of_file(Path(walk.prompts), kind, walk.max_tokens, walk.limit)
        return Questions((part,), walk.apply_chat_template)
    if walk.tasks:
        parts = _of_tasks(walk.tasks, walk.include_path or (), walk.max_tokens, walk.limit)
        return Questions(parts, walk.apply_chat_template)
    if evaluate is None:
        raise RecipeError(
            "a walk has nothing to ask: give prompts, a file with a JSON object per line (--prompts, or in "
            "the recipe's target_step), or tasks; or add an evaluate section, whose problems it asks then"
        )
    limit, kind = walk.limit or evaluate.limit, evaluate.format if judged else None
    max_tokens = walk.max_tokens or evaluate.max_tokens
    files = tuple(_of_file(Path(file), kind, max_tokens, limit) for file in evaluate.task_files)
    tasks = _of_tasks(evaluate.tasks, evaluate.include_path or (), walk.max_tokens, limit)
    return Questions((*files, *tasks), walk.apply_chat_template or evaluate.apply_chat_template)


def _of_tasks(
    names: Sequence[str], include_path: Sequence[str], max_tokens: int | None, limit: int | None
) -> tuple[Asked, ...]:
    if not names:
        return ()
    ours = set(packaged_tasks())
    specs = [
        spec
        for name in dict.fromkeys(names)
        for spec in task_specs([name], answering=Answering(repeats=1) if name in ours else None)
    ]
    manager = load_tasks(specs, [Path(folder) for folder in include_path])
    with quiet_libraries():
        tasks = manager.load(specs)["tasks"]
        return tuple(_of_task(name, task, max_tokens, limit) for name, task in tasks.items())


def _of_file(path: Path, kind: Any, max_tokens: int | None, limit: int | None) -> Asked:
    if kind == "choice":
        raise EvaluationError(
            f"{path}: the recipe's evaluate.format is choice, and choices are scored, not answered; choose "
            "by own_answers, or give another format",
            file=path,
        )
    problems = read_problems(path, kind)
    rows = problems.rows[:limit]
    prompts = tuple(str(row["question"]) for row in rows)
    if kind is None:
        digest = sha256_of_json(prompts)
        return Asked(path.name, prompts, digest, max_tokens or MAX_ANSWER_TOKENS)
    tokens, stops = ends_of(problems)
    compare, figure = text_answers, "exact_match"
    if kind == "math":
        require("math", f"{path}, whose answers math-verify compares,")
        tokens, stops, compare, figure = MATH_TOKENS, [], math_answers, "math_verify"

    def grade(place: int, text: str) -> float:
        return compare(rows[place], [text])[figure]

    digest = sha256_of_json([kind, list(rows)])
    return Asked(path.name, prompts, digest, max_tokens or tokens, tuple(stops), grade)


def asked_of_tasks(
    tasks: Mapping[str, Any], *, limit: int | None, num_fewshot: int | None = None
) -> tuple[Asked, ...]:
    """The prompts of those of an evaluation's tasks that are answered by text; none of the others.

    Raises:
        EvaluationError: a task cannot make its prompts.
    """
    with quiet_libraries():
        return tuple(
            _of_task(name, task, None, limit, num_fewshot)
            for name, task in tasks.items()
            if task.OUTPUT_TYPE == "generate_until"
        )


def _of_task(
    name: str, task: Any, max_tokens: int | None, limit: int | None, num_fewshot: int | None = None
) -> Asked:
    """As an evaluation puts its problems, with examples where the task has some."""
    if task.OUTPUT_TYPE != "generate_until":
        raise EvaluationError(
            f"{name}: its problems are scored and not answered; take a task that is answered by text, or put "
            "prompts into a file"
        )
    try:
        if num_fewshot is None:
            num_fewshot = task.get_config("num_fewshot") or 0
        if task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=0)
        with quiet_lm_eval():
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        requests = list(task.instances)
        settings = dict(requests[0].args[1])
        prompts = tuple(str(request.args[0]) for request in requests)
    except Exception as error:  # a task's own code runs in there
        raise EvaluationError(f"{name}: lm-eval cannot make its prompts: {reason(error)}") from error
    until = settings.get("until") or []
    stops = tuple(dict.fromkeys(filter(None, [until] if isinstance(until, str) else until)))
    tokens = settings.get("max_gen_toks") or settings.get("max_new_tokens") or _GENERATION_TOKENS
    docs = docs_sha256(request.doc for request in requests)
    digest = sha256_of_json([config_sha256(task.dump_config()), docs])
    return Asked(name, prompts, digest, max_tokens or int(tokens), stops, _grader(name, task, requests))


def _grader(name: str, task: Any, requests: Sequence[Any]) -> Callable[[int, str], float]:
    """The task's own judgement: its first filter, and the first figure of it that had better be high."""
    better = task.higher_is_better()

    def grade(place: int, text: str) -> float:
        request = requests[place]
        request.resps, request.filtered_resps = [text], {}
        try:
            with quiet_libraries():
                task._instances = [request]
                task.apply_filters()
                filtered = next(iter(request.filtered_resps.values()))
                figures = task.process_results(request.doc, [filtered])
        except Exception as error:  # a task's own code runs in there
            raise EvaluationError(f"{name}: lm-eval cannot judge an answer: {reason(error)}") from error
        for metric, value in figures.items():
            if better.get(metric) and isinstance(value, Real):
                return float(value)
        raise EvaluationError(
            f"{name}: has no figure per answer that had better be high, so nothing says which answers are "
            "right; choose by own_answers"
        )

    return grade


def _without_end(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of the texts that end it, as lm-eval cuts it."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
