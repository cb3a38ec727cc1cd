"""What results show in a notebook and at Python's prompt: one line, a small table, and nothing that acts."""

from __future__ import annotations

import copy
import pickle
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import hubextrap
from hubextrap.api.merging import MergeResult, Prediction
from hubextrap.api.planning import PlanReport
from hubextrap.evaluation.table import EvaluationTable, MeasurementSettings, Row, Score
from hubextrap.evaluation.walk_report import WalkPoint, WalkReport
from hubextrap.notebooks import LISTED, html_table, one_line
from hubextrap.statistics import judge_run
from hubextrap.trajectory import Checkpoint, Trajectory

ACTING = '<script>alert(1)</script>" onload="x" & \x1b[31m \u202e'


class Shown(HTMLParser):
    """Its elements and texts; fails on an element that is none of a table's."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows, self.text, self.open = 0, "", []  # type: ignore[var-annotated]
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td", "p")
        assert [name for name, _ in attrs] in ([], ["scope"])
        self.rows += tag == "tr"
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(demo_run: Path) -> Trajectory:
    return hubextrap.find_trajectory(demo_run)


@pytest.fixture(scope="module")
def demo_run() -> Path:
    return Path(__file__).parents[1] / "demo" / "data" / "rlvr-C"


def table_of(*labels: str) -> EvaluationTable:
    score = Score(task=ACTING, metric="acc", filter="none", value=0.5, stderr=0.1, higher_is_better=True)
    settings = MeasurementSettings(
        seed=0, batch_size=1, limit=None, num_fewshot=None, apply_chat_template=False, device="cpu",
        dtype="auto", versions={}, tasks={},
    )  # fmt: skip
    rows = [Row(label=one, step=1, reference=ACTING, commit=None, scores=(score,)) for one in labels]
    return EvaluationTable(settings=settings, rows=tuple(rows), notes=(ACTING,))


@pytest.fixture(scope="module")
def results(run: Trajectory, demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    (recipe := folder / "recipe.yaml").write_text(
        f"trajectory: {{repo: {demo_run}}}\nmerge_method: two_point\nparameters: {{target_step: 500}}\n"
    )
    scan = hubextrap.scan(run)
    made = hubextrap.merge(recipe, out=folder / "made")
    backtest = hubextrap.backtest(scan)
    walk = WalkReport(
        by="own_answers", up_to=500, prompts=4, answers=4, answer_tokens=9, chosen=400, method="persistence",
        curve=(WalkPoint(step=400, horizon=0.0, value=1.0),),
    )  # fmt: skip
    return {
        "Trajectory": run,
        "Scan": scan,
        "GramTable": scan.gram_table,
        "Backtest": backtest,
        "RunVerdict": judge_run(backtest),
        "Recipe": hubextrap.load_recipe(recipe),
        "PlanReport": hubextrap.plan(recipe, out=folder / "q"),
        "MergeResult": made,
        "Prediction": made.predictions[0],
        "Provenance": made.predictions[0].provenance,
        "Verification": hubextrap.verify(folder / "made"),
        "RunResult": hubextrap.RunResult(made.predictions, ()),
        "EvaluationTable": table_of("last", "prediction"),
        "WalkReport": walk,
        "WalkResult": hubextrap.WalkResult(walk, None, folder),
    }


KINDS = (
    "Trajectory", "Scan", "GramTable", "Backtest", "RunVerdict", "Recipe", "PlanReport", "MergeResult",
    "Prediction", "Provenance", "Verification", "RunResult", "EvaluationTable", "WalkReport", "WalkResult",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_one_line_at_the_prompt(kind: str, results: dict[str, Any]) -> None:
    result = results[kind]
    for shown in (repr(result), str(result)):
        assert shown.startswith(f"<{kind}: ")
        assert shown.endswith(">")
        assert len(shown) < 320
        assert shown.isprintable()


def test_what_the_lines_say(results: dict[str, Any]) -> None:
    backtest = results["Backtest"]
    predictions = len(backtest.rows)
    assert repr(backtest) == f"<Backtest: 8 checkpoints, steps 0–400, 11 methods, {predictions} predictions>"
    assert repr(results["GramTable"]) == "<GramTable: 8 checkpoints, steps 0–400, 30 tensors>"
    assert "two_point" in repr(results["Recipe"])
    assert "step 500 from 8 checkpoints, no problems" in repr(results["PlanReport"])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_thing_when_it_was_pickled(kind: str, results: dict[str, Any]) -> None:
    result = results[kind]
    again = pickle.loads(pickle.dumps(result))
    assert repr(again) == repr(result)
    if kind not in ("Scan", "GramTable"):  # hold arrays
        assert again == result == copy.copy(result)


@pytest.mark.parametrize("kind", ["Trajectory", "Backtest", "PlanReport", "EvaluationTable"])
def test_a_notebook_shows_a_table(kind: str, results: dict[str, Any]) -> None:
    shown = Shown(results[kind]._repr_html_())
    assert shown.rows > 1
    assert "<caption>" in results[kind]._repr_html_()
    assert 'scope="col"' in results[kind]._repr_html_()


def test_the_table_of_a_backtest_has_the_verdict_and_plain_names(results: dict[str, Any]) -> None:
    shown = Shown(results["Backtest"]._repr_html_()).text
    assert judge_run(results["Backtest"]).headline in shown
    assert "last-half line, damped" in shown
    assert "to 1 (step 800)" in shown


def test_what_others_wrote_does_not_act() -> None:
    checkpoint = Checkpoint(1, ACTING, ACTING, None, ACTING, note=ACTING)
    report = PlanReport(
        ((1, ACTING, None, 1),), (2,), (None,), (None,), problems=(ACTING,), outputs=(ACTING,)
    )
    for result in (Trajectory((checkpoint,), ACTING), report, table_of("prediction", ACTING)):
        html = result._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert html.isprintable()
        assert Shown(html).rows
        assert repr(result).isprintable()
    assert one_line(3, ACTING).isprintable()


def test_long_lists_are_cut() -> None:
    checkpoints = tuple(Checkpoint(step, None, "", None, f"/run/step_{step}") for step in range(1234))
    shown = Shown(Trajectory(checkpoints, "step_{step}")._repr_html_())
    assert shown.rows == 1 + LISTED
    assert "… 1,234 in all" in shown.text
    assert "1,234 in all" not in html_table("few", ("a",), [("b",)] * LISTED)


def test_nothing_made_is_shown_too() -> None:
    assert repr(MergeResult(())) == "<MergeResult: 0 predictions, no steps>"
    assert repr(Trajectory((), "x")) == "<Trajectory: 0 checkpoints, no steps>"
    assert Prediction.__repr__ is not object.__repr__
