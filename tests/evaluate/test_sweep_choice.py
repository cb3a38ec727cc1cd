"""Choosing on one half of the problems and reporting on the other, on literal figures."""

from __future__ import annotations

from pathlib import Path

import evaluations
import pytest

from hubextrap.errors import EvaluationError
from hubextrap.evaluation import EvaluationTable, Row, Score, TaskRecord
from hubextrap.evaluation.curve import draw_sweep
from hubextrap.evaluation.halves import halves, main_figures
from hubextrap.evaluation.sweep_report import GridPoint, SweepResult, report_sweep, sweep_markdown

RECORD = TaskRecord(version="1", sha256="", num_fewshot=0, documents=40)
SETTINGS = evaluations.SETTINGS.model_copy(update={"tasks": dict.fromkeys(("radd", "loss", "other"), RECORD)})
N = 40
DECIDING, REPORTING = halves(N)


def score(right_deciding: int, right_reporting: int, task: str = "radd", higher: bool | None = True) -> Score:
    problems = [0.0] * N
    for index in (*DECIDING[:right_deciding], *REPORTING[:right_reporting]):
        problems[index] = 1.0
    return Score(
        task=task,
        metric="acc",
        filter="none",
        value=sum(problems) / N,
        stderr=0.1,
        higher_is_better=higher,
        problems=tuple(problems),
    )


def row(label: str, *scores: Score, step: int = 200) -> Row:
    return Row(label=label, step=step, reference=label, commit=None, scores=scores)


def report(*rows: Row) -> SweepResult:
    candidates = [
        GridPoint(label=each.label, step=each.step or 0, damping=1.0)
        for each in rows
        if each.label.startswith("prediction")
    ]
    return report_sweep(EvaluationTable(settings=SETTINGS, rows=rows), candidates)


def test_halves_share_nothing_miss_nothing_and_stay_the_same() -> None:
    for n in (4, 5, 30, 501):
        deciding, reporting = halves(n)
        assert len(deciding) == n // 2
        assert sorted(deciding + reporting) == list(range(n))
        assert halves(n) == (deciding, reporting)
    assert halves(30)[0] != tuple(range(15))


def test_the_other_half_has_no_say() -> None:
    """The one that decides well and reports badly is chosen, and is reported as bad as it is."""
    result = report(
        row("last", score(10, 10)),
        row("prediction 300", score(12, 20), step=300),
        row("prediction 400", score(15, 2), step=400),
    )
    assert result.chosen == "prediction 400"
    assert result.is_better
    assert [each.label for each in result.reporting.rows] == ["prediction", "last"]
    chosen = result.reporting.rows[0].scores[0]
    assert chosen.value == 2 / 20
    assert chosen.problems == tuple([1.0] * 2 + [0.0] * 18)
    difference = result.reporting.difference(result.reporting.rows[0], ("radd", "acc", "none"))
    assert difference is not None
    assert difference.verdict == "worse"
    markdown = sweep_markdown(result)
    assert "| prediction 400 (chosen) | 400 | 0.750 ± 0.099 |" in markdown
    assert (
        "The prediction is worse than the last observed checkpoint on radd acc: 0.100 against 0.500"
        in markdown
    )


def test_nothing_beats_the_last_checkpoint() -> None:
    result = report(row("last", score(15, 15)), row("prediction 300", score(15, 20), step=300))
    assert not result.is_better
    assert (
        "On the half of the problems that decides, no prediction does better than the last observed "
        "checkpoint; prediction 300 comes nearest." in sweep_markdown(result)
    )


def test_of_equals_the_nearest_is_chosen() -> None:
    result = report(
        row("last", score(1, 1)),
        row("prediction 400", score(9, 9), step=400),
        row("prediction 300", score(9, 9), step=300),
        row("prediction 500", score(9, 9), step=500),
    )
    assert result.chosen == "prediction 300"


def test_several_tasks_count_alike_and_lower_may_be_better() -> None:
    result = report(
        row("last", score(0, 0), score(20, 20, "loss", higher=False)),
        row("prediction 300", score(8, 0), score(4, 0, "loss", higher=False), step=300),
        row("prediction 400", score(20, 0), score(18, 0, "loss", higher=False), step=400),
    )
    assert result.figures == (("radd", "acc", "none"), ("loss", "acc", "none"))
    assert result.chosen == "prediction 300"


def test_a_group_does_not_bring_its_members_problems_a_second_time() -> None:
    """Halved anew among those of the other members, a problem that decides would report as well."""
    member, other = score(9, 3), score(2, 8, "other")
    assert member.problems is not None
    assert other.problems is not None
    both = (*member.problems, *other.problems)
    group = member.model_copy(update={"task": "group", "problems": both, "value": sum(both) / 80})
    result = report(row("last", group, member, other), row("prediction 300", group, member, other, step=300))
    assert result.figures == (("radd", "acc", "none"), ("other", "acc", "none"))
    assert [key[0] for key in result.all_problems.keys] == ["group", "radd", "other"]


def test_what_cannot_be_chosen_by() -> None:
    with pytest.raises(EvaluationError, match=r"none of the tasks .* a mean over problems"):
        main_figures(row("last", score(1, 1, higher=None)), ["radd"])
    few = score(1, 1).model_copy(update={"problems": (1.0, 0.0, 1.0)})
    with pytest.raises(EvaluationError, match="radd acc: 3 problems cannot be halved"):
        main_figures(row("last", few), ["radd"])


def test_results_come_back_as_they_were_and_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = report(
        row("last", score(10, 10), score(1, 1, "other")),
        row("prediction 300", score(12, 20), score(2, 1, "other"), step=300),
    )
    assert SweepResult.model_validate_json(result.model_dump_json()) == result
    draw_sweep(result, tmp_path / "sweep.png")
    own = GridPoint(label="prediction 300", step=300, damping="auto")
    draw_sweep(result.model_copy(update={"candidates": (own,)}), tmp_path / "auto.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
