"""The table's arithmetic, its sentences and its three forms, on literal figures."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from hubextrap.errors import EvaluationError, OutputError
from hubextrap.evaluate import (
    EvaluationTable,
    Row,
    Score,
    Settings,
    check_writable,
    format_figure,
    to_markdown,
    to_rich,
    verdicts,
)

ACCURACY = ("radd", "exact_match", "none")
PERPLEXITY = ("text", "word_perplexity", "none")
SETTINGS = Settings(
    seed=0,
    batch_size=16,
    limit=None,
    num_fewshot=None,
    apply_chat_template=False,
    device="cpu",
    dtype="auto",
    versions={},
    tasks={},
)


def score(
    value: float,
    stderr: float | None = 0.01,
    key: tuple[str, str, str] = ACCURACY,
    higher: bool | None = True,
) -> Score:
    task, metric, filter_name = key
    return Score(
        task=task, metric=metric, filter=filter_name, value=value, stderr=stderr, higher_is_better=higher
    )


def row(label: str, *scores: Score, step: int | None = 200) -> Row:
    return Row(label=label, step=step, reference=f"me/run@{label}", commit="0123456789" * 4, scores=scores)


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
    ours = row("prediction", score(0.9, 0.03))
    evaluation = table(ours, row("last", score(0.8, 0.04)))
    difference = evaluation.difference(ours, ACCURACY)
    assert difference is not None
    assert difference.value == pytest.approx(0.1)
    assert difference.stderr == pytest.approx(0.05)
    assert not difference.is_worse
    assert evaluation.difference(evaluation.rows[1], ACCURACY) is None
    assert evaluation.difference(ours, PERPLEXITY) is None
    assert table(ours).difference(ours, ACCURACY) is None


def test_no_stderr_is_no_stderr() -> None:
    ours = row("prediction", score(0.7, None))
    evaluation = table(ours, row("last", score(0.8, 0.04)))
    difference = evaluation.difference(ours, ACCURACY)
    assert difference is not None
    assert difference.stderr is None
    assert not difference.within_noise
    (sentence,) = verdicts(evaluation)
    assert sentence.endswith("on radd exact_match: 0.700 against 0.800 (-0.100).")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.37, "0.370 against 0.828 (-0.458 ± 0.014)."),
        (0.82, "0.820 against 0.828 (-0.008 ± 0.014), within the noise of this evaluation."),
        (0.828, None),
        (0.9, None),
    ],
)
def test_a_worse_prediction_is_said_in_a_sentence(value: float, expected: str | None) -> None:
    evaluation = table(row("prediction", score(value)), row("last", score(0.828)), row("base", score(0.1)))
    start = "The prediction is worse than the last observed checkpoint on radd exact_match: "
    assert verdicts(evaluation) == ((start + expected,) if expected else ())
    for text in (to_markdown(evaluation), " ".join(as_text(evaluation).split())):
        assert ("worse" in text) == (expected is not None)


def test_where_lower_is_better_more_is_worse() -> None:
    evaluation = table(
        row("prediction", score(12.0, None, PERPLEXITY, False)),
        row("last", score(11.0, None, PERPLEXITY, False)),
    )
    assert len(verdicts(evaluation)) == 1
    assert "text word_perplexity (lower is better)" in to_markdown(evaluation)


def test_a_figure_of_unknown_direction_is_not_judged() -> None:
    evaluation = table(row("prediction", score(0.1, higher=None)), row("last", score(0.9, higher=None)))
    assert verdicts(evaluation) == ()


def test_markdown() -> None:
    evaluation = table(
        row("prediction", score(0.982, 0.006), step=400), row("last", score(0.828, None)), notes=("A note.",)
    )
    assert to_markdown(evaluation) == (
        "| checkpoint | step | radd exact_match | vs last | reference |\n"
        "|---|--:|--:|--:|---|\n"
        "| prediction | 400 | 0.982 ± 0.006 | +0.154 | me/run@prediction (01234567) |\n"
        "| last | 200 | 0.828 |  | me/run@last (01234567) |\n"
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
    assert text.count("prediction (") == text.count("│ prediction") == 3
    assert all(f"task{number} acc" in text for number in range(5))


def test_figures_with_a_filter_name_it() -> None:
    evaluation = table(row("x", score(0.5, key=("gsm8k", "exact_match", "flexible-extract"))))
    assert "gsm8k exact_match (flexible-extract)" in to_markdown(evaluation)


def test_saved_tables_come_back_as_they_were(tmp_path: Path) -> None:
    evaluation = table(
        row("prediction", score(1 / 3, 0.01), score(math.inf, None, PERPLEXITY, False)), notes=("A note.",)
    )
    evaluation.save(tmp_path / "results.json")
    assert EvaluationTable.load(tmp_path / "results.json") == evaluation
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_loading_something_else_names_file_and_field(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(EvaluationError, match=r"results\.json: the results cannot be read"):
        EvaluationTable.load(file)
    file.write_text('{"rows": [], "colour": "red"}')
    with pytest.raises(
        EvaluationError, match=r"results\.json: not a results file of .*: settings: Field req"
    ):
        EvaluationTable.load(file)


def test_where_results_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a folder; name the file that the results go to"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match=r"results\.json: there is no folder .*/absent; make it"):
        check_writable(tmp_path / "absent" / "results.json")
    check_writable(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []
