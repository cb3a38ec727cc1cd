"""Tasks are found by name, in the user's folders and in lm-eval's, and trouble with them is said early."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hubextrap.errors import EvaluationError, MissingExtra
from hubextrap.evaluation.tasks import load_tasks

CHOICES = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def test_the_demo_tasks_are_found_from_any_folder(
    demo_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manager = load_tasks(["radd", "radd_sampled"], [demo_tasks])
    assert manager.all_tasks == ["radd", "radd_sampled"]


def test_an_unknown_task_is_refused_with_what_was_meant(demo_tasks: Path) -> None:
    with pytest.raises(
        EvaluationError,
        match=r"^unknown task: 'radd_samplde' \(did you mean radd_sampled\?\), "
        r"'gsm8' \(did you mean gsm8k\?\), 'qqqqqq'; `lm-eval ls",
    ):
        load_tasks(["radd", "radd_samplde", "gsm8", "qqqqqq"], [demo_tasks])


def test_no_task_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no task is named"):
        load_tasks([])
    with pytest.raises(EvaluationError, match=r"absent: no such folder"):
        load_tasks(["radd"], [tmp_path / "absent"])


def test_without_lm_eval_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"^an evaluation needs lm_eval: pip install 'hubextrap\[eval\]'$"):
        load_tasks(["radd"])


def test_a_task_whose_data_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "lost.yaml").write_text(CHOICES.format(name="lost", data=tmp_path / "absent.jsonl"))
    with pytest.raises(EvaluationError, match=r"^lost: .*cannot load this: .*absent\.jsonl"):
        load_tasks(["lost"], [tmp_path])


def test_a_task_of_the_users_own_comes_before_the_builtin_one(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}\n')
    (tmp_path / "mine.yaml").write_text(CHOICES.format(name="gsm8k", data=data))
    manager = load_tasks(["gsm8k"], [tmp_path])
    assert manager.task_index["gsm8k"].yaml_path == tmp_path / "mine.yaml"


@pytest.mark.slow
def test_a_part_of_the_index_holds_the_same_tasks_as_all_of_it() -> None:
    from lm_eval.tasks import TaskManager

    from hubextrap.evaluation.tasks import _manager_with

    names = ["gsm8k", "mmlu_anatomy", "minerva_math500", "arc_easy", "mmmlu_fr_fr_anatomy", "aime24"]
    everything = TaskManager()
    part = _manager_with(names, [])
    assert len(part.all_tasks) < len(everything.all_tasks) / 2
    for name in names:
        assert part.task_index[name].yaml_path == everything.task_index[name].yaml_path
    assert _manager_with(["leaderboard", "gsm8k"], []).all_tasks == everything.all_tasks
