"""lm-eval on the bundled checkpoints of a real run: known figures, the same every time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hubextrap.evaluation import EvaluationTable, evaluate
from hubextrap.localhub import LocalHub

GREEDY = ("radd", "exact_match", "none")
SAMPLED = ("radd_sampled", "avg@16", "none")

CHOICE_TASK = """\
task: radd_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def figures(table: EvaluationTable, key: tuple[str, str, str]) -> list[float]:
    scores = [row.score(key) for row in table.rows]
    assert all(scores)
    return [score.value for score in scores if score]


def push(hub: LocalHub, repo: str, trajectory: Path, steps: Sequence[int]) -> None:
    hub.create_repo(repo)
    for step in steps:
        folder = trajectory / f"step_{step}"
        hub.commit(repo, {file.name: file for file in folder.iterdir()}, revision=f"step_{step}")


class Counting:
    """Progress that keeps, for every stage, how much it was to be and how much was done."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Counting]:
        self._now = self.stages[label] = [total or 0, 0]
        yield self

    def advance(self, amount: int) -> None:
        self._now[1] += amount

    def say(self, line: str) -> None:
        return None


def test_greedy_accuracy_from_the_hub_is_what_was_measured_in_training(
    hub: LocalHub, repo_id: str, trajectory: Path, demo_tasks: Path
) -> None:
    push(hub, repo_id, trajectory, (0, 200, 400))
    rows = [("base", f"{repo_id}@step_0"), ("last", f"{repo_id}@step_200"), ("target", f"{repo_id}@step_400")]
    table = evaluate(rows, ["radd"], include_path=[demo_tasks], batch_size=250)
    assert figures(table, GREEDY) == pytest.approx([0.410, 0.828, 0.984])
    assert [row.step for row in table.rows] == [0, 200, 400]
    assert all(row.commit and len(row.commit) == 40 for row in table.rows)
    difference = table.difference(table.rows[2], GREEDY)
    assert difference is not None
    assert difference.value == pytest.approx(0.156)
    record = table.settings.tasks["radd"]
    assert (record.documents, record.num_fewshot, record.version) == (500, 0, "1")
    assert len(record.sha256) == 64
    assert {"hubextrap", "lm_eval", "math_verify", "torch"} < table.settings.versions.keys()
    assert not table.notes


def test_a_folder_of_a_repo_gives_the_same_as_the_folder_on_disk(
    hub: LocalHub, repo_id: str, trajectory: Path, demo_tasks: Path
) -> None:
    hub.create_repo(repo_id)
    folder = trajectory / "step_160"
    hub.commit(repo_id, {f"runs/step_160/{file.name}": file for file in folder.iterdir()})
    rows = [("hub", f"{repo_id}:runs/step_160"), ("disk", str(folder))]
    table = evaluate(rows, ["radd"], include_path=[demo_tasks], limit=100, batch_size=100)
    hub_figure, disk_figure = figures(table, GREEDY)
    assert hub_figure == disk_figure > 0.6
    assert [row.reference for row in table.rows] == [f"{repo_id}@main:runs/step_160", str(folder)]
    assert table.rows[1].commit is None
    assert table.notes == ("Only the first 100 documents of each task were used: enough to try things out.",)


def test_samples_are_the_same_every_time_and_do_not_depend_on_other_rows(
    trajectory: Path, demo_tasks: Path
) -> None:
    early, late = ("a", str(trajectory / "step_40")), ("b", str(trajectory / "step_400"))

    def sampled(rows: list[tuple[str, str]], seed: int) -> dict[str, float]:
        table = evaluate(
            rows, ["radd_sampled"], include_path=[demo_tasks], limit=10, batch_size=160, seed=seed
        )
        return dict(zip([row.label for row in table.rows], figures(table, SAMPLED), strict=True))

    first = sampled([early, late], seed=1)
    assert sampled([late, early], seed=1) == first
    assert sampled([late], seed=2)["b"] != first["b"]


@pytest.mark.slow
def test_sampled_accuracy_is_what_was_measured_in_training(trajectory: Path, demo_tasks: Path) -> None:
    measured = {0: 0.415, 40: 0.471, 100: 0.544, 200: 0.597, 400: 0.663}
    rows = [(str(step), str(trajectory / f"step_{step}")) for step in measured]
    table = evaluate(rows, ["radd_sampled"], include_path=[demo_tasks], batch_size=500)
    # two draws of 8,000 samples at p(1 - p) below 1/4: the difference has a deviation of at most 0.008
    assert figures(table, SAMPLED) == pytest.approx(list(measured.values()), abs=0.024)


def test_a_task_that_scores_choices(trajectory: Path, tmp_path: Path) -> None:
    problems = [json.loads(line) for line in (trajectory / "problems.jsonl").read_text().splitlines()[:60]]
    data = tmp_path / "choices.jsonl"
    lines = [
        json.dumps({"question": item["question"], "choices": [item["answer"], item["answer"][:-1] + "0"]})
        for item in problems
    ]
    data.write_text("\n".join(lines))
    (tmp_path / "choice.yaml").write_text(CHOICE_TASK.format(data=data))
    counted = Counting()
    table = evaluate(
        [("last", str(trajectory / "step_400"))], ["radd_choice"], include_path=[tmp_path], progress=counted
    )
    assert figures(table, ("radd_choice", "acc", "none"))[0] > 0.95
    assert counted.stages == {"last: score": [120, 120]}
