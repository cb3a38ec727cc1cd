"""The table's arithmetic, its sentences and its three forms, on literal figures."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from evaluations import SETTINGS
from rich.console import Console

from hubextrap.errors import EvaluationError, OutputError
from hubextrap.evaluation import (
    EvaluationTable,
    Row,
    Score,
    check_writable,
    format_figure,
    to_markdown,
    to_rich,
    verdicts,
)
from hubextrap.evaluation.run import Measurement, _row
from hubextrap.trajectory import Checkpoint

ACCURACY = ("radd", "exact_match", "none")
PERPLEXITY = ("text", "word_perplexity", "none")


def score(
    value: float,
    stderr: float | None = 0.01,
    key: tuple[str, str, str] = ACCURACY,
    higher: bool | None = True,
    problems: tuple[float, ...] | None = None,
) -> Score:
    task, metric, filter_name = key
    return Score(
        task=task,
        metric=metric,
        filter=filter_name,
        value=value,
        stderr=stderr,
        higher_is_better=higher,
        problems=problems,
    )


def answered(right: int, of: int = 500, key: tuple[str, str, str] = ACCURACY) -> Score:
    """A figure of which the first ``right`` problems were answered right."""
    return score(right / of, problems=(1.0,) * right + (0.0,) * (of - right), key=key)


def row(label: str, *scores: Score, step: int | None = 200) -> Row:
    return Row(label=label, step=step, reference=f"me/run@{label}", commit="0123456789" * 4, scores=scores)


def test_names_that_are_no_utf8_can_be_saved(tmp_path: Path) -> None:
    """A folder may be called anything; the figures are not lost for it."""
    name = "run\udcff/step_1"
    measured = Measurement(
        row=_row(name, Checkpoint(1, None, "", None, name), (score(0.5),)), tasks={}, generation_defaults={}
    )
    found = table(measured.row, measured.labelled("last\udcff").row)
    found.save(tmp_path / "figures.json")
    loaded = EvaluationTable.load(tmp_path / "figures.json")
    assert [one.label for one in loaded.rows] == ["run\\udcff/step_1", "last\\udcff"]
    assert loaded.rows[0].reference == "run\\udcff/step_1"


def table(*rows: Row, notes: tuple[str, ...] = ()) -> EvaluationTable:
    return EvaluationTable(settings=SETTINGS, rows=rows, notes=notes)


def as_text(evaluation: EvaluationTable, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(to_rich(evaluation))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_are_written_in_one_way() -> None:
    assert format_figure(0.828) == "0.828"
    assert format_figure(0.828, 0.01689) == "0.828 ± 0.017"
    assert format_figure(0.1544, signed=True) == "+0.154"
    assert format_figure(-0.458, 0.0271, signed=True) == "-0.458 ± 0.027"
    assert format_figure(math.inf, math.nan) == "inf"


def test_difference_to_the_last_observed_checkpoint() -> None:
    ours = row("prediction", answered(450))
    evaluation = table(ours, row("last", answered(400)))
    difference = evaluation.difference(ours, ACCURACY)
    assert difference is not None
    assert difference.value == pytest.approx(0.1)
    assert difference.interval is not None
    assert 0.07 < difference.interval[0] < 0.1 < difference.interval[1] < 0.13
    assert difference.verdict == "better"
    assert evaluation.difference(evaluation.rows[1], ACCURACY) is None
    assert evaluation.difference(ours, PERPLEXITY) is None
    assert table(ours).difference(ours, ACCURACY) is None


def test_without_problems_there_is_no_interval_and_no_verdict() -> None:
    ours = row("prediction", score(0.7))
    evaluation = table(ours, row("last", answered(400)))
    difference = evaluation.difference(ours, ACCURACY)
    assert difference is not None
    assert difference.interval is None
    assert difference.verdict is None
    (sentence,) = verdicts(evaluation)
    assert sentence == (
        "The prediction beside the last observed checkpoint on radd exact_match: 0.700 against 0.800 "
        "(-0.100); the figure is no mean over problems, so nothing here says whether that is chance."
    )
    assert "| -0.100 (no interval) |" in to_markdown(evaluation)


ON = "the last observed checkpoint on radd exact_match:"


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (185, f"The prediction is worse than {ON} 0.370 against 0.828 (-0.458, 95 % interval "),
        (412, f"No difference seen between the prediction and {ON} 0.824 against 0.828 (-0.004, 95 % int"),
        (450, f"The prediction is better than {ON} 0.900 against 0.828 (+0.072, 95 % interval "),
    ],
)
def test_a_verdict_is_said_in_a_sentence(right: int, sentence: str) -> None:
    evaluation = table(
        row("prediction", answered(right)), row("last", answered(414)), row("base", answered(50))
    )
    (said,) = verdicts(evaluation)
    assert said.startswith(sentence)
    for text in (to_markdown(evaluation), " ".join(as_text(evaluation).split())):
        assert said in text
    assert " worse |" in to_markdown(evaluation)  # the row of the base has a verdict too


def test_where_lower_is_better_more_is_worse() -> None:
    high, low = (1.0,) * 40, (0.0,) * 40
    evaluation = table(
        row("prediction", score(1.0, None, PERPLEXITY, False, high)),
        row("last", score(0.0, None, PERPLEXITY, False, low)),
    )
    assert verdicts(evaluation)[0].startswith("The prediction is worse")
    assert "text word_perplexity (lower is better)" in to_markdown(evaluation)


def test_a_figure_of_unknown_direction_is_not_judged() -> None:
    high, low = (1.0,) * 40, (0.0,) * 40
    evaluation = table(
        row("prediction", score(1.0, higher=None, problems=high)),
        row("last", score(0.0, higher=None, problems=low)),
    )
    (sentence,) = verdicts(evaluation)
    assert sentence.startswith(
        "The prediction differs from the last observed checkpoint on radd exact_match: "
    )


def test_markdown() -> None:
    evaluation = table(
        row("prediction", score(0.75, 0.006, problems=(1, 1, 1, 0)), step=400),
        row("last", score(0.5, None, problems=(1, 0, 1, 0))),
        notes=("A note.",),
    )
    assert to_markdown(evaluation) == (
        "| checkpoint | step | radd exact_match | vs last | reference |\n"
        "|---|--:|--:|--:|---|\n"
        "| prediction | 400 | 0.750 ± 0.006 | +0.250 [-0.667, +0.833] no difference seen "
        "| me/run@prediction (01234567) |\n"
        "| last | 200 | 0.500 |  | me/run@last (01234567) |\n"
        "\n"
        "No difference seen between the prediction and the last observed checkpoint on radd exact_match: "
        "0.750 against 0.500 (+0.250, 95 % interval -0.667 to +0.833).\n"
        "\n"
        "A note.\n"
    )


def test_local_folders_are_shown_by_name_only() -> None:
    local = Row(
        label="x", step=None, reference="/home/someone/runs/step_5", commit=None, scores=(score(1.0),)
    )
    assert "| x |  | 1.000 ± 0.010 | step_5 |" in to_markdown(table(local))


def test_many_figures_go_into_tables_below_each_other() -> None:
    keys = [(f"task{number}", "acc", "none") for number in range(5)]
    evaluation = table(row("prediction", *(score(0.5, key=key) for key in keys)))
    text = as_text(evaluation, width=100)
    assert text.count("│ prediction") == 3
    assert text.endswith("prediction: me/run@prediction (01234567)\n")
    assert all(f"task{number} acc" in text for number in range(5))


def test_figures_with_a_filter_name_it() -> None:
    evaluation = table(row("x", score(0.5, key=("gsm8k", "exact_match", "flexible-extract"))))
    assert "gsm8k exact_match (flexible-extract)" in to_markdown(evaluation)


def test_saved_tables_come_back_as_they_were(tmp_path: Path) -> None:
    evaluation = table(
        row("prediction", score(1 / 3, problems=(1.0, 0.0, 0.0)), score(math.inf, None, PERPLEXITY, False)),
        notes=("A note.",),
    )
    evaluation.save(tmp_path / "results.json")
    assert EvaluationTable.load(tmp_path / "results.json") == evaluation
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert '"problems": "1 0 0"' in (tmp_path / "results.json").read_text()


def test_problems_are_kept_to_the_last_digit_in_one_line() -> None:
    kept = score(0.5, problems=(1.0, 0.0, 1 / 3, 0.1 + 0.2, 2e-300, -7.0))
    text = kept.model_dump_json()
    assert '"1 0 0.3333333333333333 0.30000000000000004 2e-300 -7"' in text
    assert Score.model_validate_json(text) == kept


def test_loading_something_else_names_file_and_field(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(EvaluationError, match=r"cannot be read"):
        EvaluationTable.load(file)
    file.write_text('{"rows": [], "colour": "red"}')
    with pytest.raises(EvaluationError, match=r"not a results file .*: settings: Field"):
        EvaluationTable.load(file)


def test_where_results_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a folder; name the file"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match=r"there is no folder .*/absent; make it"):
        check_writable(tmp_path / "absent" / "results.json")
    check_writable(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_errors_carry_the_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.json"
    with pytest.raises(EvaluationError) as caught:
        EvaluationTable.load(path)
    assert caught.value.file == str(path)
    with pytest.raises(OutputError) as refused:
        check_writable(tmp_path)
    assert refused.value.file == str(tmp_path)
