"""What is taken over of lm-eval's results, and which numbers it is given."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubextrap.errors import EvaluationError
from hubextrap.evaluation import EvaluationOptions, Harness, MeasurementSettings, TaskFile
from hubextrap.evaluation.scores import scores_of


def found(value: float, figures: list[Any], **others: Any) -> dict[str, Any]:
    """lm-eval's results of one task, whose problems have these figures."""
    return {
        "results": {"a": {"acc,none": value, "acc_stderr,none": 0.01, "alias": "a"}},
        "higher_is_better": {"a": {"acc": True}},
        "samples": {"a": [{"filter": "none", "acc": figure} for figure in figures]},
    } | others


@pytest.mark.parametrize("size", [0.5, 5000.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_figure_is_the_mean_of_its_problems_within_a_thousand_millionth(size: float, sign: int) -> None:
    """Of itself, or of 1; else it is another kind of figure, and its problems say nothing of it."""
    allowed = 1e-9 * max(1.0, size)
    (score,) = scores_of(found(size + sign * 0.9 * allowed, [0.0, 2 * size]))
    assert score.problems == (0.0, 2 * size)
    (score,) = scores_of(found(size + sign * 1.2 * allowed, [0.0, 2 * size]))
    assert score.problems is None
    assert score.value == size + sign * 1.2 * allowed


@pytest.mark.parametrize("sample", [math.nan, math.inf, None, "1", [1.0]])
def test_problems_without_a_number_are_none(sample: Any) -> None:
    (score,) = scores_of(found(0.5, [0.0, sample]))
    assert score.problems is None


def test_problems_of_another_filter_and_of_a_groups_members() -> None:
    samples = [{"filter": "none", "acc": True}, {"filter": "strict", "acc": False}]
    (score,) = scores_of(found(1.0, [], samples={"a": samples}))
    assert score.problems == (1.0,)
    members = {"b": [{"filter": "none", "acc": 0.0}], "c": [{"filter": "none", "acc": 1.0}]}
    (score,) = scores_of(found(0.5, [], samples=members, group_subtasks={"a": ["b", "c"]}))
    assert score.problems == (0.0, 1.0)
    assert (score.task, score.metric, score.filter, score.stderr) == ("a", "acc", "none", 0.01)


@pytest.mark.parametrize(("name", "low"), [("seed", 0), ("limit", 1), ("batch_size", 1), ("num_fewshot", 0)])
def test_numbers_are_from_0_or_1_to_what_a_seed_may_be(name: str, low: int, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "1+1=", "answer": "2"}))
    options = EvaluationOptions(task_files=[TaskFile(tmp_path / "p.jsonl", "exact")])

    def settings(value: int) -> MeasurementSettings:
        return Harness(replace(options, **{name: value})).settings

    for number in (low - 1, 2**32):
        with pytest.raises(EvaluationError, match=rf"{name} {number}: .* {low} to {2**32 - 1}"):
            settings(number)
    if name != "num_fewshot":  # of which there are as many as there are problems
        for number in (low, 2**32 - 1):
            assert getattr(settings(number), name) == number
