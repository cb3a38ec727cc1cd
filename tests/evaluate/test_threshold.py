"""What `--max-loss` refuses: literal figures, no models."""

from __future__ import annotations

import pytest
from evaluations import SETTINGS

from hubextrap.errors import EvaluationError, PredictionWorse
from hubextrap.evaluation import EvaluationTable, Row, Score, check_judgeable, check_loss


def score(task: str, value: float, higher: bool | None = True, metric: str = "acc") -> Score:
    return Score(task=task, metric=metric, filter="none", value=value, stderr=0.01, higher_is_better=higher)


def row(label: str, *scores: Score) -> Row:
    return Row(label=label, step=1, reference=f"me/run@{label}", commit="0" * 40, scores=scores)


def table(*rows: Row) -> EvaluationTable:
    return EvaluationTable(settings=SETTINGS, rows=rows)


def test_loss_up_to_the_threshold_is_allowed() -> None:
    rows = row("prediction", score("a", 0.75)), row("last", score("a", 1.0))
    check_loss([table(*rows)], 0.25, ["a"])
    check_loss([table(row("prediction", score("a", 0.08)), row("last", score("a", 0.1)))], 0.02, ["a"])
    with pytest.raises(PredictionWorse) as caught:
        check_loss([table(*rows)], 0.2, ["a"])
    assert str(caught.value) == (
        "the prediction is worse than the last observed checkpoint by more than 0.2 on a acc: "
        "0.750 against 1.000 (-0.250)"
    )


def test_every_task_table_and_prediction_is_told_of() -> None:
    first = table(
        row("prediction x", score("a", 0.1), score("b", 9.0, higher=False)),
        row("prediction y", score("a", 0.9), score("b", 1.0, higher=False)),
        row("last", score("a", 0.8), score("b", 2.0, higher=False)),
        row("base", score("a", 0.0), score("b", 99.0, higher=False)),
    )
    second = table(row("prediction", score("a", 0.2)), row("last", score("a", 0.8)))
    with pytest.raises(PredictionWorse) as caught:
        check_loss([first], 0.05, ["a", "b"])
    assert [line.split(" is worse")[0] for line in str(caught.value).splitlines()] == ["the prediction x"] * 2
    with pytest.raises(PredictionWorse, match=r"0\.200 against 0\.800"):
        check_loss([second], 0.05, ["a"])


def test_figure_that_is_not_a_number_is_a_loss() -> None:
    with pytest.raises(PredictionWorse, match="nan against"):
        check_loss(
            [table(row("prediction", score("a", float("nan"))), row("last", score("a", 0.8)))], 1, ["a"]
        )


def test_first_figure_with_a_direction_judges_a_task() -> None:
    ours = score("a", 0.1, None, "length"), score("a", 0.8), score("a", 0.0, metric="acc_norm")
    theirs = score("a", 0.9, None, "length"), score("a", 0.8), score("a", 0.9, metric="acc_norm")
    check_loss([table(row("prediction", *ours), row("last", *theirs))], 0.0, ["a"])


def test_group_with_a_figure_speaks_for_its_members_and_a_tag_does_not() -> None:
    ours = score("group", 0.8), score("member", 0.1)
    theirs = score("group", 0.8), score("member", 0.9)
    rows = row("prediction", *ours), row("last", *theirs)
    check_loss([table(*rows)], 0.02, ["group"])
    with pytest.raises(PredictionWorse, match="on member acc"):
        check_loss([table(*rows)], 0.02, ["a_tag"])


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no last observed checkpoint"):
        check_judgeable(["prediction", "base"])
    with pytest.raises(EvaluationError, match=r"none of the models has a hubextrap\.json"):
        check_judgeable(["last", "me/other"])
    undirected = score("a", 0.5, None)
    with pytest.raises(EvaluationError, match="none of the tasks says whether higher"):
        check_loss([table(row("prediction", undirected), row("last", undirected))], 0.02, ["a"])
