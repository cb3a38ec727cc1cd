"""How far from 1 a sum of coefficients may be, wherever one is read, and how far from its parts a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from evaluations import SETTINGS

from hubextrap.engine.plan import combination
from hubextrap.errors import CorruptFile, EvaluationError, MethodError, PredictionWorse
from hubextrap.evaluation import EvaluationTable, Gate, Row, Score
from hubextrap.hub import CoefficientRule, build_provenance, read_provenance
from hubextrap.logits import Mixture
from hubextrap.trajectory.checkpoint import Checkpoint

CHECKPOINTS = [Checkpoint(step, "me/run", f"step_{step}", f"{step:040x}", "") for step in (0, 100, 200)]


def provenance(values: list[float], **changes: Any) -> Any:
    """As it is read back, of a prediction with these coefficients."""
    arguments: dict[str, Any] = {
        "checkpoints": CHECKPOINTS,
        "merge_method": "two_point",
        "parameters": {"target_step": 400},
        "target_step": 400,
        "coefficients": [
            CoefficientRule(
                match="*", method="two_point", coefficients=dict(zip((0, 100, 200), values, strict=True))
            )
        ],
        "shards": [],
        "dtype": "float32",
        "out_dtype": None,
        "recipe": "",
    }
    return read_provenance(build_provenance(**(arguments | changes)).to_bytes())


READERS: dict[str, tuple[Callable[[list[float]], Any], type[Exception]]] = {
    "logits": (lambda values: Mixture.of(CHECKPOINTS, values), MethodError),
    "hubextrap.json": (provenance, CorruptFile),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("largest", [0.25, 1.0, 50.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_coefficients_may_sum_to_1_within_a_millionth_of_the_largest_or_of_1(
    reader: str, largest: float, sign: int
) -> None:
    read, refusal = READERS[reader]
    allowed = 1e-6 * max(1.0, largest)
    rest = (1 - largest) / 2
    assert read([largest, rest, rest])
    assert read([largest, rest, rest + sign * 0.9 * allowed])
    for wrong in (1.1 * allowed, 1e-2):
        with pytest.raises(refusal, match="sum to"):
            read([largest, rest, rest + sign * max(wrong, 1.1 * allowed)])


@pytest.mark.parametrize(
    ("error", "taken"), [(0.9e-9, True), (1.1e-9, False), (-0.9e-9, True), (-1.1e-9, False)]
)
def test_the_stated_horizon_is_that_of_the_steps(error: float, taken: bool) -> None:
    found = provenance([0.0, -1.0, 2.0])
    assert found.horizon == 1.0
    changed = found.model_copy(update={"horizon": 1.0 + error})
    if taken:
        assert read_provenance(changed.to_bytes()).horizon == 1.0 + error
    else:
        with pytest.raises(CorruptFile, match="horizon"):
            read_provenance(changed.to_bytes())


@pytest.mark.parametrize("largest", [1.5, 1000.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_two_coefficients_are_a_line_when_they_sum_to_1_within_rounding(largest: float, sign: int) -> None:
    """1e-12 of their sizes together: a line is computed otherwise, so this decides the bytes."""
    size = 2 * largest - 1
    for share, kind in ((0.0, "line"), (0.8, "line"), (1.25, "sum"), (1e6, "sum")):
        row = np.array([1 - largest + sign * share * 1e-12 * size, largest])
        found = combination(row, (0, 1))
        assert (found.kind, found.indices, found.weights) == (kind, (0, 1), tuple(row))


def test_forms_of_a_row_of_coefficients() -> None:
    def form(
        *row: float, read: tuple[int, ...] | None = None
    ) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
        found = combination(np.array(row), read or tuple(range(len(row))))
        return found.kind, found.indices, found.weights

    assert form(0.0, 1.0) == ("copy", (1,), (1.0,))
    assert form(0.0, 2.0) == ("sum", (1,), (2.0,))
    assert form(1.0) == ("copy", (0,), (1.0,))
    assert form(0.5, 0.5) == ("line", (0, 1), (0.5, 0.5))
    assert form(0.5, 0.0, 0.5) == ("line", (0, 2), (0.5, 0.5))
    assert form(0.5, 0.25, 0.25) == ("sum", (0, 1, 2), (0.5, 0.25, 0.25))
    assert form(-1.0, -1.0) == ("sum", (0, 1), (-1.0, -1.0))
    # what is not read has no place among the inputs
    assert form(0.0, -1.0, 0.0, 2.0, read=(1, 3)) == ("line", (0, 1), (-1.0, 2.0))


def table(value: float, problems: tuple[float, ...] | None, stderr: float | None = None) -> EvaluationTable:
    score = Score(
        task="a",
        metric="acc",
        filter="none",
        value=value,
        stderr=stderr,
        higher_is_better=True,
        problems=problems,
    )
    row = Row(label="last", step=1, reference="me/run@a", commit="0" * 40, scores=(score,))
    return EvaluationTable(settings=SETTINGS, rows=(row,))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [0.5, 500.0])
def test_a_figure_is_the_mean_of_its_problems_within_a_millionth(size: float, sign: int) -> None:
    """Of itself, or of 1."""
    allowed = 1e-6 * max(1.0, size)
    problems = (0.0, 2 * size)
    table(size + sign * 0.9 * allowed, problems).check()
    with pytest.raises(ValueError, match="the mean of its problems"):
        table(size + sign * 1.1 * allowed, problems).check()
    table(math.inf, None).check()
    table(0.7, None).check()
    with pytest.raises(ValueError, match="standard error below 0"):
        table(size, problems, stderr=-1e-300).check()
    table(size, problems, stderr=0.0).check()


@pytest.mark.parametrize("higher", [True, False])
def test_a_loss_may_be_the_threshold_within_rounding(higher: bool) -> None:
    def judged(loss: float) -> None:
        values = {"prediction": 0.5 - loss if higher else 0.5 + loss, "last": 0.5}
        rows = tuple(
            Row(
                label=label,
                step=1,
                reference="me/run@a",
                commit="0" * 40,
                scores=(
                    Score(
                        task="a",
                        metric="acc",
                        filter="none",
                        value=value,
                        stderr=0.01,
                        higher_is_better=higher,
                    ),
                ),
            )
            for label, value in values.items()
        )
        Gate(0.125).judge([EvaluationTable(settings=SETTINGS, rows=rows)], ["a"]).refuse()

    for allowed in (-0.1, 0.0, 0.125, 0.125 + 0.9e-9):
        judged(allowed)
    for refused in (0.125 + 1.1e-9, 0.13, math.nan):
        with pytest.raises((PredictionWorse, EvaluationError)):
            judged(refused)
