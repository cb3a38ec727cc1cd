"""From which figures the verdict, the report and the warnings of a merge change; literal, as documented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from harness import Lines
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scan_runs import scan_folder

from hubextrap import api
from hubextrap.errors import CorruptFile, MethodError
from hubextrap.recipe import parse_recipe
from hubextrap.scans import Scan
from hubextrap.statistics import Backtest, BacktestRow, GramTable, backtest_table, judge_run, random_walk
from hubextrap.statistics.linearity import Linearity, count_linearity, r_squared

BELOW, ABOVE = 1 - 1e-9, 1 + 1e-9


def backtest(
    *errors: float, horizons: Sequence[float] = (0.25,), expected: float | None = None, rounded: bool = False
) -> Backtest:
    """One method's rows with these errors; the horizons are taken in turn. Observed were steps 0 to 400."""
    rows = [
        BacktestRow(
            "two_point",
            last_step=100 + index,
            target_step=200 + index,
            horizon=horizons[index % len(horizons)],
            relative_error=error,
            expected_relative_error=expected,
            signal_error=error if rounded else None,
            expected_signal_error=expected if rounded else None,
        )
        for index, error in enumerate(errors)
    ]
    return Backtest((0, 100, 400), tuple(rows), 0.25, rounded, (), None)


@pytest.mark.parametrize(
    ("errors", "reach"),
    [
        ((0.6, 0.6, 0.6), 1.0),
        ((0.6, 0.6, 0.6 * ABOVE), 0.5),
        ((0.6, 0.61, 0.1), 0.25),
        ((0.6 * ABOVE, 0.1, 0.1), None),
        ((0.75, 0.75, 0.75), None),
    ],
)
def test_a_method_is_trusted_up_to_a_mean_error_of_six_tenths(
    errors: tuple[float, ...], reach: float | None
) -> None:
    verdict = judge_run(backtest(*errors, horizons=(0.25, 0.5, 1.0)))
    assert verdict.reach == reach
    assert verdict.reach_step == (None if reach is None else 400 + reach * 400)
    assert (verdict.rehearsals.count, verdict.rehearsals.near) == (3, 3)


@pytest.mark.parametrize(("error", "named"), [(BELOW, True), (1.0, False), (ABOVE, False)])
def test_a_method_as_bad_as_doing_nothing_is_no_method(error: float, named: bool) -> None:
    found = judge_run(backtest(error, error, error))
    assert (found.method is not None) == named
    assert found.level == ("care" if named else "bad")


def test_a_failure_is_worse_than_doing_nothing_and_as_bad_is_none() -> None:
    assert judge_run(backtest(1.0, 0.1, 0.1)).rehearsals.worse == 0
    assert judge_run(backtest(ABOVE, 0.1, 0.1)).rehearsals.worse == 1


@pytest.mark.parametrize(("horizon", "place"), [(0.25, 0), (0.2501, 1), (0.5, 1), (0.5001, 2), (1.0, 2)])
def test_horizons_end_at_a_quarter_a_half_and_one(horizon: float, place: int) -> None:
    found = judge_run(backtest(0.1, 0.1, 0.1, horizons=(horizon,)))
    assert found.reach == (0.25, 0.5, 1.0)[place]


def test_a_horizon_beyond_one_is_trusted_by_nobody() -> None:
    found = judge_run(backtest(0.1, 0.1, 0.1, horizons=(1.0001,)))
    assert (found.method, found.level) == (None, "unknown")
    assert "only 3, beyond step 800 (horizon 1)" in found.headline


@pytest.mark.parametrize(("trials", "level"), [(5, "care"), (6, "good"), (7, "good")])
def test_six_rehearsals_are_ground_for_trust_and_five_are_few(trials: int, level: str) -> None:
    found = judge_run(backtest(*[0.3] * trials))
    assert found.level == level
    assert any("few to judge by" in sentence for sentence in found.sentences) == (trials < 6)


@pytest.mark.parametrize(("error", "level"), [(0.5 * BELOW, "good"), (0.5, "good"), (0.5 * ABOVE, "care")])
def test_a_mean_error_of_a_half_looks_promising_and_none_above(error: float, level: str) -> None:
    assert judge_run(backtest(*[error] * 6)).level == level


def test_one_failure_calls_for_care() -> None:
    assert judge_run(backtest(*[0.1] * 9, 1.0)).level == "good"
    assert judge_run(backtest(*[0.1] * 9, ABOVE)).level == "care"


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (0.0, 0.1, "can be believed"),
        (0.1, 0.0, "can be believed"),
        (0.0, 0.1 * ABOVE, "too high"),
        (0.1 * ABOVE, 0.0, "too low"),
    ],
)
def test_expected_errors_a_tenth_off_can_be_believed(found: float, expected: float, said: str) -> None:
    sentences = judge_run(backtest(*[found] * 6, expected=expected)).sentences
    assert any(said in sentence for sentence in sentences if sentence.startswith("Beforehand"))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "BF16/F32"])
@pytest.mark.parametrize(("share", "rounded"), [(0.19999, False), (0.20001, True), (0.25, True)])
def test_rounding_matters_from_a_share_of_a_fifth_in_16_bits(share: float, rounded: bool, dtype: str) -> None:
    times = np.arange(8.0)
    # a straight run with white noise of that share; both matrices refer to the first checkpoint
    noise = np.eye(8) + 1.0
    noise[0] = noise[:, 0] = 0.0
    gram = np.outer(times, times) * 2 * (1 - share) / share + noise
    table = GramTable(tuple(range(8)), ("w",), np.array([9]), gram[None])
    found = backtest_table(table, dtypes=[dtype])
    assert found.rounding_share == pytest.approx(share)
    assert found.rounded is rounded
    assert not backtest_table(table, dtypes=["F32"]).rounded


def straight(folder: Path, steps: Sequence[int]) -> Path:
    """A run whose line is right: the expected error of `two_point` is what its damping leaves out."""
    slope = np.random.default_rng(0).normal(size=(4, 8))
    for step in steps:
        checkpoint = folder / f"step_{step}"
        checkpoint.mkdir(parents=True)
        save_file({"w": (step * slope).astype(np.float64)}, checkpoint / "model.safetensors")
        (checkpoint / "config.json").write_text("{}")
    return folder


def merged(folder: Path, target: int, damping: float, limit: float) -> list[str]:
    """What a merge says."""
    recipe = parse_recipe(
        f"trajectory: {{repo: '{folder}'}}\nmerge_method: two_point\n"
        f"parameters: {{target_step: {target}, damping: {damping}, max_expected_error: {limit}}}\n"
    )
    lines = Lines()
    api.merge(recipe, out=folder.parent / f"out-{target}-{damping}-{limit}", progress=lines)
    return lines.said


def test_what_an_expected_error_has_meant_is_said_from_one_half_on_and_a_limit_is_allowed_itself(
    tmp_path: Path,
) -> None:
    run = straight(tmp_path / "run", (0, 100, 200, 300, 400))
    assert not any("warning" in line for line in merged(run, 600, 0.5001, 2))  # expects 0.4999
    for damping, share in ((0.4999, "13%"), (0.3999, "61%"), (0.1999, "all with an error above 0.8")):
        (line,) = (line for line in merged(run, 600, damping, 2) if "at the task" in line)
        assert line.startswith(f"warning: step 600: the expected error is {1 - damping:.3f}, and below 1 is")
        assert share in line
    merged(run, 600, 0.75, 0.25)  # expects 0.25, to the last bit
    with pytest.raises(MethodError, match=r"0\.250 .* above max_expected_error 0\.2499"):
        merged(run, 600, 0.75, 0.24999)


@pytest.mark.parametrize(
    ("steps", "target", "origins"),
    [((0, 100, 200), 400, 1), ((0, 100, 200, 300), 600, 2), ((0, 100, 200, 300, 400), 800, 3)],
)
def test_fewer_than_three_origins_are_little_to_rest_on(
    steps: tuple[int, ...], target: int, origins: int, tmp_path: Path
) -> None:
    said = merged(straight(tmp_path / "run", steps), target, 0.5, 2)
    some = f"only {origins} earlier checkpoint{'s' * (origins > 1)} could rehearse it"
    assert any(some in line for line in said) == (origins < 3)
    assert any("could rehearse" in line for line in said) == (origins < 3)


def placed(*values: float) -> str:
    """Where `count_linearity` counts one weight with these values."""
    found = Linearity.from_counts(count_linearity(range(len(values)), np.array([values])))
    places = {
        "unmoved": found.unmoved,
        "small": found.small_range,
        "few": found.few_values,
        "kept": found.kept,
    }
    return next(place for place, count in places.items() if count)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ((1.0, 1.0, 1.0, 1.0), "unmoved"),
        ((0.0, 1e-5, 2e-5, 1e-4), "small"),
        ((0.0, 1e-5, 2e-5, 1e-4 * ABOVE), "kept"),
        ((0.0, 0.0, 1e-5, 1e-4 * ABOVE), "few"),
        ((0.0, -0.5, 0.25, 1.0), "kept"),
        ((0.0, 1.0, 0.0, 1.0, 0.5, 0.5), "few"),
        ((0.0, 1e-30, 0.0, 0.0), "small"),
    ],
)
def test_weights_count_that_span_more_than_1e_4_and_take_four_values(
    values: tuple[float, ...], place: str
) -> None:
    assert placed(*values) == place


@pytest.mark.parametrize("values", [(0.0, 1.0, 2.0, 3.0), (0.0, 1.0, 0.25, 0.75), (1.0, 0.0, -0.5, -0.125)])
def test_a_weight_is_counted_in_the_bin_of_its_r_squared(values: tuple[float, ...]) -> None:
    square = np.corrcoef(range(4), values)[0, 1] ** 2
    (place,) = np.flatnonzero(count_linearity(range(4), np.array([values])))
    assert place == min(int(square * 200 + 1e-9), 199)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 1e-162, 1e-155, 1e155, 1e300])
def test_r_squared_has_no_scale(scale: float) -> None:
    """Squares of such values are 0 or infinite."""
    values = np.array([[0.0, 1.0, 0.25, 0.75], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(r_squared(range(4), values * scale), r_squared(range(4), values), rtol=1e-12)
    assert r_squared(range(4), values * 2.0**-400).tobytes() == r_squared(range(4), values).tobytes()


def test_the_compiled_pass_has_the_same_edges(tmp_path: Path) -> None:
    """The float32 next to 1e-4 on either side, and three and four values."""
    low = np.float32(1e-4)
    high = np.nextafter(low, np.float32(1), dtype=np.float32)
    assert float(low) < 1e-4 < float(high)
    rows = np.array(
        [[0, 1e-5, 2e-5, low], [0, 1e-5, 2e-5, high], [0, 0, 1e-5, high], [3, 3, 3, 3]], dtype=np.float32
    )
    for step, column in enumerate(rows.T):
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        save_file({"w.weight": column.copy()}, folder / "model.safetensors")
    found = scan_folder(tmp_path).linearity()
    assert (found.small_range, found.kept, found.few_values, found.unmoved) == (1, 1, 1, 1)


def histogram(**places: int) -> Linearity:
    counts = np.zeros(203, dtype=np.int64)
    for place, count in places.items():
        counts[int(place[1:])] = count
    return Linearity.from_counts(counts)


def test_figures_of_a_histogram() -> None:
    found = histogram(p139=1, p140=2, p200=3, p201=4, p202=6)
    assert (found.unmoved, found.small_range, found.few_values) == (3, 4, 6)
    assert (found.kept, found.elements) == (3, 16)
    assert found.share_kept == 3 / 16
    assert found.share_linear == pytest.approx(2 / 3), "an R² of 0.7 begins at the 141st of 200 bins"
    assert histogram(p139=5).share_linear == 0.0
    assert histogram(p199=5).share_linear == 1.0
    assert histogram(p10=2, p20=2).median == pytest.approx(11 / 200)
    assert histogram(p10=1, p20=2).median == pytest.approx(20.25 / 200)
    assert histogram(p0=4).median == pytest.approx(0.5 / 200)
    empty = histogram(p200=3)
    assert (empty.median, empty.share_linear, empty.share_kept) == (None, None, 0.0)
    assert histogram().share_kept == 0.0


def test_r_squared_of_what_does_not_vary_is_0_and_of_a_line_1() -> None:
    values: NDArray[np.float64] = np.array([[2, 2, 2], [0, 10, 30], [30, 20, 0], [1, 0, 0.25]])
    expected = [0, 1, 1, np.corrcoef([0, 10, 30], [1, 0, 0.25])[0, 1] ** 2]
    assert r_squared([0, 10, 30], values) == pytest.approx(expected)
    assert r_squared([0, 10, 30], values).max() <= 1.0


def test_random_walks_are_counted_as_linear_above_seven_tenths() -> None:
    found = random_walk([0, 1, 3], walks=1000)
    # of two moves a and b·√2 the R² is that of three points; every figure is from the same seed
    moves = np.random.default_rng(0).standard_normal((1000, 2)) * np.sqrt([1.0, 2.0])
    walks = np.cumsum(np.column_stack([np.zeros(1000), moves]), axis=1)
    exact = np.array([np.corrcoef([0, 1, 3], walk)[0, 1] ** 2 for walk in walks])
    assert found.median == pytest.approx(np.median(exact))
    assert found.share_linear == pytest.approx((exact > 0.7).mean())


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({(1, 2): 0.9e-6}, None),
        ({(1, 2): 1.1e-6}, "not symmetric"),
        ({(1, 1): -0.9e-4 - 1.0, (1, 2): 0.0}, None),
        ({(1, 1): -1.1e-4 - 1.0, (1, 2): 0.0}, "not positive semi-definite"),
        ({(0, 1): 1e-300, (1, 0): 1e-300}, "is not 0 at the base"),
    ],
)
def test_a_scans_gram_matrix_may_be_off_by_rounding_alone(
    change: dict[tuple[int, int], float], refusal: str | None, tmp_path: Path
) -> None:
    """Of the largest entry: halves 1e-6 apart, an eigenvalue 1e-4 below 0. Here that is 1."""
    straight(tmp_path / "run", (0, 10, 20, 30))
    scan = scan_folder(tmp_path / "run")
    gram = np.diag([0.0, 1.0, 1.0, 1.0])
    for place, value in change.items():
        gram[place] += value
    scan.gram_table.gram[0] = gram
    scan.save(tmp_path / "scan")
    if refusal is None:
        assert Scan.load(tmp_path / "scan").gram_table.gram[0].tolist() == gram.tolist()
    else:
        with pytest.raises(CorruptFile, match=refusal):
            Scan.load(tmp_path / "scan")
