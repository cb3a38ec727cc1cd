"""Our task files and files of problems, run by lm-eval itself on data from the loopback Hub and from disk."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubextrap.errors import EvaluationError, MissingExtra
from hubextrap.evaluation import Answering, TaskFile, evaluate
from hubextrap.evaluation.own_tasks import packaged_tasks, task_specs
from hubextrap.evaluation.quiet import quiet_libraries, quiet_lm_eval
from hubextrap.evaluation.tasks import load_tasks
from hubextrap.localhub import LocalHub

AIME24 = [
    {"ID": "2024-I-1", "Problem": "Walk?", "Solution": "…", "Answer": 204},
    {"ID": "2024-I-2", "Problem": "Log?", "Solution": "…", "Answer": 25},
]
AIME25 = [{"problem": "Base?", "answer": "070", "id": "0"}, {"problem": "Area?", "answer": "588", "id": "1"}]
MATH500 = [
    {
        "problem": "Convert $(0,3)$.",
        "solution": "…",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    },
    {
        "problem": "Define p.",
        "solution": "…",
        "answer": "p - q",
        "subject": "Intermediate Algebra",
        "level": 5,
        "unique_id": "test/intermediate_algebra/1994.json",
    },
]
GSM8K = [
    {"question": "Eggs?", "answer": "16 - 7 = 9.\n#### 18"},
    {"question": "Pounds?", "answer": "Many.\n#### 1,800"},
]
DATASETS = {
    "hubextrap_aime24": ("Maxwell-Jia/AIME_2024", "default", "train", AIME24),
    "hubextrap_aime25": ("math-ai/aime25", "default", "test", AIME25),
    "hubextrap_math500": ("HuggingFaceH4/MATH-500", "default", "test", MATH500),
    "hubextrap_gsm8k": ("openai/gsm8k", "main", "test", GSM8K),
}
RIGHT = {"Walk": "204", "Log": "25", "Base": "70", "Area": "588", "Convert": "(3, \\pi/2)", "Define": "p-q"}
RIGHT |= {"Eggs": "18", "Pounds": "1800"}


def serve(hub: LocalHub, name: str) -> None:
    """Two rows of a task's data set as Parquet, in the form that the data set is documented to have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    repo, config, split, rows = DATASETS[name]
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    card = (
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
        f"  - split: {split}\n    path: data/x.parquet\n---\n"
    )
    hub.create_repo(repo, repo_type="dataset")
    files: dict[str, bytes | Path | None] = {"data/x.parquet": content.getvalue(), "README.md": card.encode()}
    hub.commit(repo, files, repo_type="dataset")


def scripted(answers: Callable[[str, int], str]) -> Any:
    """A model for lm-eval that answers by a function of the prompt and the number of the sample."""
    from lm_eval.api.model import LM

    class Scripted(LM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.requests: list[tuple[str, dict[str, Any]]] = []

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.requests += [request.args for request in requests]
            seen: dict[str, int] = {}
            replies = []
            for request in requests:
                prompt = request.args[0]
                seen[prompt] = seen.get(prompt, -1) + 1
                replies.append(answers(prompt, seen[prompt]))
            return replies

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise AssertionError("no task asks for it")

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise AssertionError("no task asks for it")

    return Scripted()


def run(model: Any, name: str, answering: Answering | None = None) -> dict[str, float]:
    from lm_eval.evaluator import simple_evaluate

    specs = task_specs([name], answering=answering)
    with quiet_libraries(), quiet_lm_eval():
        results = simple_evaluate(model, tasks=specs, task_manager=load_tasks(specs))
    found: dict[str, float] = {
        key: value for key, value in results["results"][name].items() if "," in key and "stderr" not in key
    }
    return found


def half_right(prompt: str, sample: int) -> str:
    """The first problem is answered right by every fourth sample, the second one always."""
    word = next(word for word in RIGHT if word in prompt)
    is_first = word in ("Walk", "Base", "Convert", "Eggs")
    return f"So it is \\boxed{{{RIGHT[word] if not is_first or sample % 4 == 0 else '999'}}}."


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_our_tasks_on_data_from_the_hub(hub: LocalHub, name: str) -> None:
    serve(hub, name)
    model = scripted(half_right)
    found = run(model, name)
    n = 16 if "aime" in name else 4
    # first problem: n/4 of n right, and the rest agree on another answer; second problem: all right
    assert found[f"avg@{n},none"] == pytest.approx((0.25 + 1) / 2)
    assert found[f"maj@{n},none"] == 0.5
    expected = 1 - (12 * 11 * 10 * 9) / (16 * 15 * 14 * 13) if n == 16 else 1.0
    assert found["pass@4,none"] == pytest.approx((expected + 1) / 2)
    assert found[f"pass@{n},none"] == 1.0
    assert len(model.requests) == 2 * n
    prompt, generation = model.requests[0]
    question = next(
        iter(
            DATASETS[name][3][0][key]
            for key in ("Problem", "problem", "question")
            if key in DATASETS[name][3][0]
        )
    )
    assert (
        prompt == f"{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    )
    drawn = {key: generation[key] for key in ("do_sample", "temperature", "top_k", "top_p")}
    assert drawn == {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    model = scripted(half_right)
    found = run(model, name, Answering(repeats=8, temperature=0.6, max_tokens=77))
    assert found["avg@8,none"] == pytest.approx((2 / 8 + 1) / 2)
    assert set(found) == {f"{figure},none" for figure in ("avg@8", "maj@8", "pass@4", "pass@8")}
    assert model.requests[0][1]["temperature"] == 0.6
    assert model.requests[0][1]["max_gen_toks"] == 77

    model = scripted(half_right)
    assert run(model, name, Answering(repeats=1)) == {"math_verify,none": 1.0}
    assert model.requests[0][1]["do_sample"] is False
    assert len(model.requests) == 2


def test_every_task_that_comes_along_is_tried() -> None:
    assert set(packaged_tasks()) == set(DATASETS)


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_file_of_problems_greedy_and_sampled(trajectory: Path) -> None:
    rows = [("last", str(trajectory / "step_200")), ("prediction", str(trajectory / "step_400"))]
    file = TaskFile(trajectory / "problems.jsonl", "exact")
    table = evaluate(rows, task_files=[file], limit=100, batch_size=100)
    greedy = [row.score(("problems", "exact_match", "none")) for row in table.rows]
    assert [score.value for score in greedy if score] == pytest.approx([0.82, 0.97], abs=0.03)
    difference = table.difference(table.rows[1], ("problems", "exact_match", "none"))
    assert difference is not None
    assert difference.verdict == "better"

    sampled = evaluate(
        rows[:1], task_files=[file], answering=Answering(repeats=8), limit=50, batch_size=400, seed=3
    )
    scores = {score.metric: score for score in sampled.rows[0].scores}
    assert set(scores) == {"avg@8", "maj@8", "pass@4", "pass@8"}
    assert 0.45 < scores["avg@8"].value < 0.75 < scores["pass@8"].value
    assert scores["avg@8"].value < scores["pass@4"].value < scores["pass@8"].value
    problems = scores["avg@8"].problems
    assert problems is not None
    assert len(problems) == 50
    assert {round(value * 8, 9) % 1 for value in problems} == {0.0}
    record = sampled.settings.tasks["problems"]
    assert record.repeats == 8
    assert record.generation["top_k"] == 0
    assert record.generation["max_gen_toks"] == 12
    assert record.dataset is None
    assert str(trajectory) not in sampled.model_dump_json().replace(str(trajectory / "step_200"), "")


def test_the_file_is_what_counts_and_not_where_it_lies(trajectory: Path, tmp_path: Path) -> None:
    def record(path: Path) -> tuple[str, str | None]:
        table = evaluate([("a", str(trajectory / "step_0"))], task_files=[TaskFile(path, "exact")], limit=2)
        found = table.settings.tasks["p"]
        return found.sha256, found.problems_sha256

    rows = [
        {"question": "1+1=", "answer": 2},
        {"prompt": "1+2=", "answer": "3"},
        "",
        {"prompt": "4", "answer": 4},
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = record(write(tmp_path / "a" / "p.jsonl", *rows))
    assert record(write(tmp_path / "b" / "p.jsonl", *rows)) == first
    other = record(write(tmp_path / "b" / "p.jsonl", {"question": "1+1=", "answer": 3}, *rows[1:]))
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_only_a_line_end_ends_a_line(tmp_path: Path) -> None:
    """JSON allows other separators as they are in its texts."""
    (tmp_path / "p.jsonl").write_bytes('{"question": "a\u2028b\x85c", "answer": "1"}\r\n\r\n'.encode())
    (spec,) = task_specs([], [TaskFile(tmp_path / "p.jsonl", "exact")])
    assert not isinstance(spec, str)
    assert spec["custom_dataset"].rows == ({"question": "a\u2028b\x85c", "answer": "1"},)


def test_choices(trajectory: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (trajectory / "problems.jsonl").read_text().splitlines()[:30]]
    rows = [
        {"question": item["question"], "choices": [item["answer"][:-1] + "0", item["answer"]], "answer": 1}
        for item in lines
    ]
    file = TaskFile(write(tmp_path / "choices.jsonl", *rows), "choice")
    table = evaluate([("a", str(trajectory / "step_400"))], task_files=[file])
    (score,) = table.rows[0].scores
    assert score.title == "choices acc"
    assert score.value > 0.9


def test_mathematics_from_a_file(tmp_path: Path) -> None:
    from lm_eval.evaluator import simple_evaluate

    file = write(
        tmp_path / "halves.jsonl",
        {"question": "Half?", "answer": "\\frac12"},
        {"question": "Two?", "answer": 2},
    )
    specs = task_specs([], [TaskFile(file, "math")])
    with quiet_libraries(), quiet_lm_eval():
        results = simple_evaluate(
            scripted(lambda prompt, _: "\\boxed{0.5}"), tasks=specs, task_manager=load_tasks(specs)
        )
    assert results["results"]["halves"]["math_verify,none"] == 0.5


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("{", "exact", r"line 2: not valid JSON .*one object per line"),
        ([1], "exact", "line 2: has to be a JSON object, not list"),
        ({"answer": "1"}, "exact", "line 2: needs one text"),
        ({"question": "a", "prompt": "b", "answer": "1"}, "exact", "line 2: needs one text"),
        ({"question": "a"}, "exact", "line 2: needs an answer"),
        ({"question": "a", "answer": " "}, "math", "line 2: the answer is empty"),
        (
            {"question": "a", "answer": 0},
            "choice",
            "line 2: needs at least two different texts",
        ),
        (
            {"question": "a", "answer": 2, "choices": ["x", "y"]},
            "choice",
            "line 2: the answer has to be one of",
        ),
        (
            {"question": "a", "answer": "z", "choices": ["x", "y"]},
            "choice",
            "line 2: the answer has to be one",
        ),
    ],
)
def test_a_line_that_is_no_problem(tmp_path: Path, line: object, kind: Any, message: str) -> None:
    good = {"question": "a", "answer": 0, "choices": ["x", "y"]}
    file = write(tmp_path / "problems.jsonl", good, line)
    with pytest.raises(EvaluationError, match=message) as caught:
        task_specs([], [TaskFile(file, kind)])
    assert caught.value.file == str(file)


def test_what_does_not_go_together(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(EvaluationError, match=r"radd: repeats, .* hold for files"):
        task_specs(["radd"], answering=Answering(repeats=4))
    with pytest.raises(EvaluationError, match="p: two tasks of this name; rename the file"):
        task_specs(["p"], [TaskFile(file, "exact")])
    with pytest.raises(EvaluationError, match="temperature 0 gives the same answer"):
        Answering(repeats=4, temperature=0)
    with pytest.raises(EvaluationError, match=r"repeats 0: .* at least once"):
        Answering(repeats=0)
    with pytest.raises(EvaluationError, match=r"--format essay: .*exact, math or choice"):
        task_specs([], [TaskFile(file, "essay")])  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"absent\.jsonl: cannot be read \(No such file"):
        task_specs([], [TaskFile(tmp_path / "absent.jsonl", "exact")])
    with pytest.raises(EvaluationError, match=r"empty\.jsonl: holds no problem"):
        task_specs([], [TaskFile(write(tmp_path / "empty.jsonl", ""), "exact")])


def test_math_verify_is_asked_for_before_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtra, match=r"^hubextrap_aime24, .* needs math_verify: .*hubextrap\[math\]"):
        task_specs(["hubextrap_aime24"])
