"""Tasks of our own: those that come with hubextrap, and a file of problems with a line for each.

Both become lm-eval configurations, so that one option says how often and how a problem is answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hubextrap.containment import read_named
from hubextrap.digests import sha256_of_json
from hubextrap.errors import EvaluationError
from hubextrap.evaluation.options import Answering, Format, TaskFile
from hubextrap.evaluation.scoring import math_answers, means, sample_metrics, text_answers
from hubextrap.extras import require
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import DatasetDict

FOLDER = Path(__file__).parents[1] / "tasks"
"""Our task files; ``lm-eval --include_path`` takes it too."""
MATH_TOKENS = 2048
_SPARE_TOKENS = 8
"""Beyond the longest answer of a file: spaces, and the token that ends it."""


def packaged_tasks() -> tuple[str, ...]:
    """The names of the tasks that come with hubextrap."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def task_specs(
    tasks: Sequence[str | Mapping[str, Any]],
    files: Sequence[TaskFile] = (),
    answering: Answering | None = None,
) -> list[str | Mapping[str, Any]]:
    """What lm-eval is to load: a configuration for each task of our own, the name of any other.

    Args:
        tasks: names; what is a configuration already stays as it is.

    Raises:
        EvaluationError: ``answering`` is given and a task is not ours, two tasks have one name, a file cannot
            be read.
        MissingExtra: math-verify is needed and cannot be imported.
    """
    answering = answering or Answering()
    ours = set(packaged_tasks())
    names = [task for task in tasks if isinstance(task, str)]
    if answering and (others := [name for name in names if name not in ours]):
        raise EvaluationError(
            f"{others[0]}: repeats, temperature and max_tokens (--repeats, …) hold for files of problems and "
            f"for {', '.join(sorted(ours))}; any other task says in its own file how it is answered "
            "(lm-eval's keys repeats and generation_kwargs)"
        )
    stems = [file.name for file in files]
    for name in stems:
        if name in names or stems.count(name) > 1:
            raise EvaluationError(f"{name}: two tasks of this name; rename the file of problems")
    return [
        *(_packaged(task, answering) if isinstance(task, str) and task in ours else task for task in tasks),
        *(_from_file(file, answering) for file in files),
    ]


def _packaged(name: str, answering: Answering) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    require("math", f"{name}, whose answers math-verify compares,")
    config: dict[str, Any] = load_yaml(FOLDER / f"{name}.yaml")
    generation = config["generation_kwargs"]
    defaults = Answering(config["repeats"], generation["temperature"], generation["max_gen_toks"])
    return config | _answered(_filled(answering, defaults), generation["until"], "math_verify")


def _from_file(file: TaskFile, answering: Answering) -> dict[str, Any]:
    problems = read_problems(file.path, file.format)
    config: dict[str, Any] = {
        "task": file.name,
        "custom_dataset": problems,
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metadata": {"version": 1},
    }
    if file.format == "choice":
        if answering:
            said = "choices are scored and not answered; leave out repeats, temperature, max_tokens"
            raise EvaluationError(f"{file.path}: {said}", file=file.path)
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": means(["acc"]),
        }
    config["output_type"] = "generate_until"
    if file.format == "math":
        require("math", f"{file.path}, whose answers math-verify compares,")
        filled = _filled(answering, Answering(1, None, MATH_TOKENS))
        return config | {"process_results": math_answers} | _answered(filled, [], "math_verify")
    longest, until = ends_of(problems)
    filled = _filled(answering, Answering(1, None, longest))
    return config | {"process_results": text_answers} | _answered(filled, until, "exact_match")


def _filled(given: Answering, defaults: Answering) -> Answering:
    """What is given, the rest from ``defaults``; one answer is greedy unless a temperature is given."""
    repeats = given.repeats if given.repeats is not None else defaults.repeats
    temperature = given.temperature
    if temperature == 0:
        repeats = 1
    elif temperature is None:
        temperature = (defaults.temperature or 1.0) if repeats != 1 else 0.0
    return Answering(repeats, temperature, given.max_tokens or defaults.max_tokens)


def _answered(answering: Answering, until: list[str], metric: str) -> dict[str, Any]:
    """The part of a configuration that says how answers are drawn and which figures they give."""
    n = answering.repeats or 1
    generation: dict[str, Any] = {"until": until, "max_gen_toks": answering.max_tokens, "do_sample": False}
    if answering.temperature:
        # transformers would cut sampling to the 50 likeliest tokens
        generation |= {
            "do_sample": True,
            "temperature": float(answering.temperature),
            "top_k": 0,
            "top_p": 1.0,
        }
    take: dict[str, Any] = {"function": "take_first"} if n == 1 else {"function": "take_first_k", "k": n}
    return {
        "generation_kwargs": generation,
        "repeats": n,
        "filter_list": [{"name": "none", "filter": [take]}],
        "metric_list": sample_metrics(n) if n > 1 else means([metric]),
    }


def ends_of(problems: Problems) -> tuple[int, list[str]]:
    """Tokens that an answer may have, and what ends it before, where it has to equal the file's."""
    answers = [str(row["answer"]) for row in problems.rows]
    longest = max(len(answer.encode()) for answer in answers)
    return longest + _SPARE_TOKENS, [] if any("\n" in answer.strip() for answer in answers) else ["\n"]


@dataclass(frozen=True)
class Problems:
    """A file's problems, as lm-eval's ``custom_dataset``; what is printed of them is their sha256."""

    sha256: str
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)

    def __call__(self, **_: Any) -> DatasetDict:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list([dict(row) for row in self.rows])})


def read_problems(path: Path, kind: Format | None) -> Problems:
    """The file's problems; where ``kind`` is None its prompts alone, answers or not.

    Raises:
        EvaluationError: it cannot be read, or a line is not a problem; names the line.
    """
    if kind not in (None, *get_args(Format)):
        *others, last = get_args(Format)
        raise EvaluationError(f"--format {kind}: has to be {', '.join(others)} or {last}")
    try:
        lines = read_named(path).decode().split("\n")  # splitlines() would cut texts at U+2028
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror})", file=path) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: is not UTF-8 text; save it as UTF-8", file=path) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_problem(line, f"{path}, line {number}", kind))
            except ValueError as error:
                raise EvaluationError(str(error), file=path, line=number) from error
    if not rows:
        said = "holds no problem; write one JSON object per line"
        raise EvaluationError(f"{path}: {said}", file=path)
    return Problems(sha256_of_json(rows), tuple(rows))


def _problem(line: str, where: str, kind: Format | None) -> dict[str, Any]:
    """Raise ValueError, which says where, for a line that is no problem."""
    found = parse_json(line, where, error=ValueError, remedy="write one object per line")
    if not isinstance(found, dict):
        raise ValueError(f"{where}: has to be a JSON object, not {type(found).__name__}")
    questions = [found[name] for name in ("question", "prompt") if name in found]
    if len(questions) != 1 or not isinstance(questions[0], str):
        raise ValueError(f"{where}: needs one text, in the field question or prompt")
    if kind is None:
        if not questions[0].strip():
            raise ValueError(f"{where}: the text is empty")
        return {"question": questions[0]}
    answer = found.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise ValueError(f"{where}: needs an answer, a text or a number, in the field answer")
    if kind != "choice":
        if not str(answer).strip():
            raise ValueError(f"{where}: the answer is empty")
        return {"question": questions[0], "answer": str(answer)}
    choices = found.get("choices")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice for choice in choices)
        or len(set(choices)) < len(choices)
    ):
        raise ValueError(f"{where}: needs at least two different texts in the field choices")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"{where}: the answer has to be one of the choices, or its place, from 0 on")
    return {"question": questions[0], "choices": choices, "answer": answer}
