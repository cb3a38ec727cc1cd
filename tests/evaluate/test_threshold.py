"""What `--max-loss`, `--min-score` and `--push-if-better` refuse: literal figures, no models."""

from __future__ import annotations

import pytest
from evaluations import SETTINGS

from hubextrap.errors import EvaluationError, PredictionWorse
from hubextrap.evaluation import EvaluationTable, Gate, GateResult, Row, Score


def score(
    task: str,
    value: float,
    higher: bool | None = True,
    metric: str = "acc",
    problems: tuple[float, ...] | None = None,
) -> Score:
    return Score(
        task=task,
        metric=metric,
        filter="none",
        value=value,
        stderr=0.01,
        higher_is_better=higher,
        problems=problems,
    )


def row(label: str, *scores: Score, step: int = 1) -> Row:
    return Row(label=label, step=step, reference=f"me/run@{label}", commit="0" * 40, scores=scores)


def table(*rows: Row) -> EvaluationTable:
    return EvaluationTable(settings=SETTINGS, rows=rows)


def judged(gate: Gate, ours: float, theirs: float = 1.0, higher: bool = True) -> GateResult:
    rows = row("prediction", score("a", ours, higher)), row("last", score("a", theirs, higher))
    return gate.judge([table(*rows)], ["a"])


def said(gate: Gate, ours: float, theirs: float = 1.0, higher: bool = True) -> tuple[bool, str]:
    (figure,) = judged(gate, ours, theirs, higher).figures
    return figure.passed, figure.sentence


def test_loss_up_to_the_threshold_is_allowed() -> None:
    assert judged(Gate(0.25), 0.75).passed
    assert judged(Gate(0.02), 0.08, 0.1).passed, "0.1 - 0.08 is a little more than 0.02"
    refused = judged(Gate(0.2), 0.75)
    with pytest.raises(PredictionWorse) as caught:
        refused.refuse("not pushed")
    assert str(caught.value).splitlines() == [
        "a acc fell by 0.250, more than --max-loss 0.2 allows (0.750, last 1.000)",
        "not pushed",
    ]
    assert refused.as_dict()["passed"] is False


def test_every_bound_in_words() -> None:
    assert said(Gate(0.3), 0.75) == (
        True,
        "a acc fell by 0.250; --max-loss 0.3 allows a loss of 0.3 (0.750, last 1.000)",
    )
    assert said(Gate(0.0), 0.75) == (
        False,
        "a acc fell by 0.250, and --max-loss 0 allows no loss (0.750, last 1.000)",
    )
    assert said(Gate(0.0), 1.0) == (
        True,
        "a acc stayed as it was; --max-loss 0 allows no loss (1.000, last 1.000)",
    )
    assert said(Gate(0.0), 0.9999)[1].startswith("a acc fell by 0.0001,")
    assert said(Gate(0.5), 3.0, 2.0, higher=False) == (
        False,
        "a acc rose by 1.000, more than --max-loss 0.5 allows (3.000, last 2.000; lower is better)",
    )
    assert said(Gate(min_score=0.8), 0.75) == (
        False,
        "a acc is 0.750, below the 0.8 that --min-score asks for",
    )
    assert said(Gate(min_score=0.75), 0.75) == (
        True,
        "a acc is 0.750, at least the 0.75 that --min-score asks for",
    )
    assert said(Gate(min_score=2), 3.0, higher=False) == (
        False,
        "a acc is 3.000, above the 2 that --min-score asks for (lower is better)",
    )


@pytest.mark.parametrize("higher", [True, False])
def test_a_negative_loss_asks_for_a_gain(higher: bool) -> None:
    sign = 1 if higher else -1
    passes, sentence = said(Gate(-0.1), 1.0 + 0.1 * sign, 1.0, higher)
    assert passes
    assert "; --max-loss -0.1 asks for a gain of at least 0.1 (" in sentence
    for gain in (0.09, 0.0, -0.5):
        assert not judged(Gate(-0.1), 1.0 + gain * sign, 1.0, higher).passed


def test_not_worse_is_not_worse_by_more_than_chance() -> None:
    def verdict(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[bool, str]:
        rows = [
            row(label, score("a", sum(one) / len(one), problems=one))
            for label, one in (("prediction", ours), ("last", theirs))
        ]
        (figure,) = Gate(push_if_better=True).judge([table(*rows)], ["a"]).figures
        return figure.passed, figure.sentence

    assert verdict((1.0,) * 40, (0.0,) * 40)[0]
    passed, sentence = verdict((0.0,) * 40, (1.0,) * 40)
    assert (passed, sentence) == (False, "a acc fell by 1.000, more than chance (0.000, last 1.000)")
    passed, sentence = verdict((0.0, 1.0, 1.0, 0.0) * 10, (1.0, 0.0, 1.0, 0.0) * 9 + (1.0,) * 4)
    assert passed
    assert "fell by 0.050, no more than chance" in sentence
    for value, passes in ((0.9, False), (1.0, True), (1.1, True)):
        ours, theirs = (score("a", each).model_copy(update={"stderr": None}) for each in (value, 1.0))
        rows = row("prediction", ours), row("last", theirs)
        (figure,) = Gate(push_if_better=True).judge([table(*rows)], ["a"]).figures
        assert figure.passed == passes
        assert ("nothing says whether that is chance" in figure.sentence) == (not passes)


def test_each_task_has_its_own_bound() -> None:
    rows = row("prediction", score("a", 0.5), score("b", 0.5)), row("last", score("a", 0.0), score("b", 0.0))
    gate = Gate(min_score=0.4, min_scores={"b": 0.6})
    result = gate.judge([table(*rows)], ["a", "b"])
    assert [(figure.task, figure.passed) for figure in result.figures] == [("a acc", True), ("b acc", False)]
    assert len(Gate(0.0, 0.4).judge([table(*rows)], ["a", "b"]).figures) == 4
    with pytest.raises(EvaluationError, match="--min-score c=…: c is not evaluated, but a, b"):
        Gate(min_scores={"c": 0.1}).check(["prediction"], ["a", "b"])
    with pytest.raises(EvaluationError, match="only the tasks of a_tag have figures"):
        Gate(min_scores={"a_tag": 0.1}).judge([table(*rows)], ["a_tag"])


def test_every_task_table_and_prediction_is_told_of() -> None:
    first = table(
        row("prediction x", score("a", 0.1), score("b", 9.0, higher=False), step=7),
        row("prediction y", score("a", 0.9), score("b", 1.0, higher=False), step=8),
        row("last", score("a", 0.8), score("b", 2.0, higher=False)),
        row("base", score("a", 0.0), score("b", 99.0, higher=False)),
    )
    second = table(row("prediction", score("a", 0.2), step=9), row("last", score("a", 0.8)))
    failures = Gate(0.05).judge([first], ["a", "b"]).failures
    assert [line.split(" by ")[0] for line in failures] == ["step 7: a acc fell", "step 7: b acc rose"]
    failures = Gate(0.05).judge([table(first.rows[1], first.rows[2]), second], ["a"]).failures
    assert [line.split(" by ")[0] for line in failures] == ["step 9: a acc fell"]


@pytest.mark.parametrize("gate", [Gate(1), Gate(-1), Gate(min_score=-1), Gate(push_if_better=True)])
def test_figure_that_is_not_a_number_does_not_pass(gate: Gate) -> None:
    passed, sentence = said(gate, float("nan"), 0.8)
    assert not passed
    assert "nan" in sentence
    with pytest.raises(EvaluationError, match="no number"):
        Gate(float("nan"))


def test_first_figure_with_a_direction_judges_a_task() -> None:
    ours = score("a", 0.1, None, "length"), score("a", 0.8), score("a", 0.0, metric="acc_norm")
    theirs = score("a", 0.9, None, "length"), score("a", 0.8), score("a", 0.9, metric="acc_norm")
    assert Gate(0.0).judge([table(row("prediction", *ours), row("last", *theirs))], ["a"]).passed


def test_group_with_a_figure_speaks_for_its_members_and_a_tag_does_not() -> None:
    ours = score("group", 0.8), score("member", 0.1)
    theirs = score("group", 0.8), score("member", 0.9)
    rows = row("prediction", *ours), row("last", *theirs)
    assert Gate(0.02).judge([table(*rows)], ["group"]).passed
    (failure,) = Gate(0.02).judge([table(*rows)], ["a_tag"]).failures
    assert failure.startswith("member acc")


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="--max-loss: there is no last observed checkpoint"):
        Gate(0.1).check(["prediction", "base"], ["a"])
    Gate(min_score=0.1).check(["prediction", "base"], ["a"])
    for gate, option in ((Gate(0.1), "--max-loss"), (Gate(min_score=0.1), "--min-score")):
        with pytest.raises(EvaluationError, match=rf"{option}: none of the models has a hubextrap\.json"):
            gate.check(["last", "me/other"], ["a"])
    undirected = score("a", 0.5, None)
    with pytest.raises(EvaluationError, match="none of the tasks says whether higher"):
        Gate(0.02).judge([table(row("prediction", undirected), row("last", undirected))], ["a"])
