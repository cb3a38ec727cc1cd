"""The streaming pass, held to plain float64 on whole tensors, and to one result however it is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Lines
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_runs import STEPS, make_run, scan_folder, weights, write_checkpoint

from hubextrap.engine.defaults import MiB
from hubextrap.errors import CheckpointMismatch, NonFinite, OutputError, StepError
from hubextrap.scans import Scan
from hubextrap.statistics import Linearity, random_walk
from hubextrap.statistics.elements import BlockScanner
from hubextrap.statistics.linearity import BINS, FEW_VALUES, SMALL_RANGE, UNMOVED, count_linearity, r_squared
from hubextrap.statistics.table import SCAN_BLOCK

DTYPES = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "float32 base, bfloat16 run": (torch.float32, *(torch.bfloat16,) * 4),
    "all in turn": (torch.float64, torch.bfloat16, torch.float32, torch.float16),
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_scan_is_what_float64_says_of_whole_tensors(tmp_path: Path, dtypes: tuple[torch.dtype, ...]) -> None:
    folder = make_run(tmp_path, dtypes)
    scan = scan_folder(folder)
    assert scan.steps == STEPS
    for row, tensor in enumerate(scan.tensors):
        values = weights(folder, tensor).astype(np.float32).astype(np.float64)
        deltas = values - values[0]
        exact = deltas @ deltas.T
        assert scan.gram_table.elements[row] == values.shape[1]
        np.testing.assert_allclose(scan.gram_table.gram[row], exact, rtol=0, atol=1e-6 * exact.max())
        plain = count_linearity(STEPS, values.T)
        # left out and kept are exact; R² is float32, so a weight at the edge of a bin may be next door: in
        # bfloat16 many lie exactly there
        np.testing.assert_array_equal(scan.counts[row, BINS:], plain[BINS:])
        assert np.abs(np.cumsum(scan.counts[row]) - np.cumsum(plain)).max() <= 20
    norms = np.sqrt(np.diagonal(scan.gram_table.total()))
    np.testing.assert_allclose(np.sqrt((scan.delta_norms() ** 2).sum(axis=0)), norms, rtol=1e-12)
    assert norms[0] == 0
    assert norms[-1] > norms[1] > 0


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 9, 12, 18])
def test_any_number_of_checkpoints(tmp_path: Path, count: int) -> None:
    steps = [0, *np.cumsum(np.arange(1, count)).tolist()]
    folder = make_run(tmp_path, (torch.bfloat16,), steps, {"w.weight": (70_000,)})
    scan = scan_folder(folder)
    values = weights(folder, "w.weight")
    deltas = values - values[0]
    np.testing.assert_allclose(
        scan.gram_table.gram[0], deltas @ deltas.T, rtol=0, atol=1e-7 * (deltas**2).sum(axis=1).max()
    )
    np.testing.assert_array_equal(scan.counts[0, BINS:], count_linearity(steps, values.T)[BINS:])
    assert (scan.linearity().median is None) == (count < 4)  # fewer cannot take four values


def test_the_same_bits_whatever_threads_memory_and_reads(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (torch.float32, torch.bfloat16))
    reference = scan_folder(folder, reference_share=0.01)
    reference.save(tmp_path / "reference")
    least = scan_folder_minimum(folder)
    for number, options in enumerate(
        [
            {"workers": 1},
            {"workers": 3, "memory": 2048 * MiB},
            {"workers": 1, "memory": least},
            {"workers": 2, "read_size": 1},
            {"workers": 2, "remote": True, "read_size": 2**26},
        ]
    ):
        scan_folder(folder, reference_share=0.01, **options).save(tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == (tmp_path / "reference").read_bytes(), options


def scan_folder_minimum(folder: Path) -> int:
    """The least memory that is enough, as the error for too little says."""
    with pytest.raises(OutputError, match="are not enough for 5 checkpoints") as caught:
        scan_folder(folder, workers=1, memory=100 * MiB)
    return int(str(caught.value).split("give at least ")[1].split()[0]) * MiB


def test_the_sampled_protocol_agrees(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    scan = scan_folder(folder, reference_share=0.2)
    assert scan.reference is not None
    drawn = Linearity.from_counts(scan.reference.counts.sum(axis=0))
    whole = scan.linearity()
    assert drawn.elements == sum(min(n, max(50, int(n * 0.2))) for n in scan.gram_table.elements)
    assert drawn.median == pytest.approx(whole.median, abs=0.01)
    assert drawn.share_kept == pytest.approx(whole.share_kept, abs=0.01)
    everything = scan_folder(folder, reference_share=1.0)
    assert everything.reference is not None
    np.testing.assert_array_equal(everything.reference.counts[:, BINS:], everything.counts[:, BINS:])


def test_examples_are_weights_of_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path, (torch.bfloat16,))
    scan = scan_folder(folder)
    for row, tensor in enumerate(scan.tensors):
        values = weights(folder, tensor)
        for place, shown in zip(scan.example_places[row], scan.example_values[row], strict=True):
            if place < 0:
                assert np.isnan(shown).all()
            else:
                np.testing.assert_array_equal(shown, values[:, place])
    assert (scan.example_places >= 0).sum(axis=1).tolist() == [min(4, n) for n in scan.gram_table.elements]


def test_unusual_tensors(tmp_path: Path) -> None:
    for step in (0, 1, 2, 3):
        write_checkpoint(
            tmp_path / f"step_{step}",
            {
                "a.weight": torch.full((5,), float(step)),
                "empty.weight": torch.zeros(0, 3),
                "ids": torch.arange(4),
                "scalar": torch.tensor(step**2 / 10),
            },
        )
    scan = scan_folder(tmp_path)
    assert sorted(scan.tensors) == ["a.weight", "empty.weight", "scalar"]  # integers are left out
    row = scan.tensors.index("a.weight")
    assert scan.gram_table.gram[row].tolist() == [[5.0 * i * j for j in range(4)] for i in range(4)]
    assert scan.counts[row, BINS - 1] == 5  # R² of exactly 1 is in the last bin
    assert not scan.counts[scan.tensors.index("empty.weight")].any()


def test_reasons_for_leaving_out() -> None:
    cases = {  # values at steps 0, 10, 30, 40, 70 → where they are counted
        (1.0, 1.0, 1.0, 1.0, 1.0): UNMOVED,
        (0.0, -0.0, 0.0, -0.0, 0.0): UNMOVED,
        (0.0, 2e-5, 4e-5, 6e-5, 1e-4 - 1e-9): SMALL_RANGE,
        (0.0, 2e-5, 4e-5, 6e-5, 1.001e-4): None,
        (1.0, 2.0, 3.0, 2.0, 1.0): FEW_VALUES,
        (1.0, 2.0, 3.0, 4.0, 1.0): None,
        (4.0, 1.0, 1.0, 2.0, 3.0): None,
        (1.0, 1.0, 5.0, 5.0, 5.0): FEW_VALUES,
    }
    columns = np.array(list(cases), dtype=np.float32).T.copy()
    scanner = BlockScanner(STEPS)
    for column, expected in enumerate(cases.values()):
        counts = np.zeros(BINS + 3, np.int64)
        scanner.scan(list(np.ascontiguousarray(columns[:, column : column + 1])), counts)
        place = int(np.flatnonzero(counts)[0])
        assert counts.sum() == 1
        if expected is None:
            fit = float(r_squared(STEPS, columns[:, column]))
            assert place == int(fit * BINS)
            assert fit == pytest.approx(np.corrcoef(STEPS, columns[:, column])[0, 1] ** 2)
        else:
            assert place == expected


@pytest.mark.parametrize("count", [6, 11])  # few checkpoints take one loop, many take several
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_few_distinct_values_are_counted_exactly(count: int, data: st.DataObject) -> None:
    row = st.lists(st.integers(-3, 3), min_size=count, max_size=count)
    rows = data.draw(st.lists(row, min_size=1, max_size=40))
    values = np.array(rows, dtype=np.float32)
    counts = np.zeros(BINS + 3, np.int64)
    BlockScanner(range(count)).scan(list(np.ascontiguousarray(values.T)), counts)
    distinct = [len(set(row)) for row in rows]
    assert counts[UNMOVED] == distinct.count(1)
    assert counts[FEW_VALUES] == distinct.count(2) + distinct.count(3)
    assert counts[:BINS].sum() == sum(number >= 4 for number in distinct)


@pytest.mark.parametrize("count", [2, 3, 8, 9, 16])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_bfloat16_as_it_is_gives_the_bits_of_the_same_numbers_in_float32(
    count: int, data: st.DataObject
) -> None:
    elements = data.draw(st.sampled_from([1, 511, 513, SCAN_BLOCK, SCAN_BLOCK + 700]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    spread = data.draw(st.sampled_from([1e-5, 1e-3, 1.0]))
    first = torch.randn(elements, generator=generator) * 0.02
    moved = torch.randn(count, elements, generator=generator) * spread
    values = (first + moved).to(torch.bfloat16)
    values[:, data.draw(st.integers(0, elements - 1))] *= 0  # 0 and -0
    bits = list(values.view(torch.int16).numpy().view(np.uint16))
    widened = list(values.float().numpy())
    scanner = BlockScanner(range(count))
    found, expected = np.zeros(BINS + 3, np.int64), np.zeros(BINS + 3, np.int64)
    grams, plain = scanner.scan(bits, found), scanner.scan(widened, expected)
    assert np.array_equal(grams, plain)
    assert len(grams) == -(-elements // SCAN_BLOCK)
    assert np.array_equal(found, expected)
    assert found.sum() == elements
    deltas = np.array(widened, dtype=np.float64) - np.array(widened[0], dtype=np.float64)
    assert grams.sum(axis=0) == pytest.approx(deltas @ deltas.T, rel=1e-5, abs=1e-6 * (deltas**2).sum())
    counted = count_linearity(range(count), np.array(widened).T)  # plainly, in float64
    assert np.array_equal(found[BINS:], counted[BINS:])
    # R² is float32: a weight at the edge of two bins may be next door
    assert abs(np.cumsum(found) - np.cumsum(counted)).max() <= 2 + elements // 1000


@pytest.mark.parametrize("count", [3, 9])
def test_weights_too_far_apart_are_no_counts(count: int) -> None:
    scanner = BlockScanner(range(count))
    for size, finite in ((1e18, True), (1e19, False), (3e38, False)):
        counts = np.zeros(BINS + 3, np.int64)
        values = np.full((count, 5), -size, np.float32)
        values[::2] = size
        gram = scanner.scan(list(values), counts)
        assert (gram is not None) == finite
        assert counts.sum() == (5 if finite else 0)


def test_nan_and_infinity_are_errors_that_name_their_place(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf")):
        folder = make_run(tmp_path / str(bad), shapes={"a.weight": (SCAN_BLOCK + 9,), "b.weight": (4,)})
        state = {"a.weight": torch.zeros(SCAN_BLOCK + 9), "b.weight": torch.zeros(4)}
        state["a.weight"][SCAN_BLOCK + 3] = bad
        write_checkpoint(folder / "step_40", state)
        with pytest.raises(NonFinite, match="NaN or infinite") as found:
            scan_folder(folder)
        assert (found.value.tensor, found.value.step) == ("a.weight", 40)


def test_what_cannot_be_scanned(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one" / "step_5", {"a": torch.zeros(1)})
    with pytest.raises(StepError, match="only step 5 is there; choose more steps"):
        scan_folder(tmp_path / "one")
    write_checkpoint(tmp_path / "two" / "step_1", {"a": torch.zeros(2)})
    write_checkpoint(tmp_path / "two" / "step_2", {"a": torch.zeros(3)})
    with pytest.raises(CheckpointMismatch, match=r"a has shape \[2\] .* \[3\]"):
        scan_folder(tmp_path / "two")


def test_tied_embeddings_count_once_and_are_checked(tmp_path: Path) -> None:
    for step in (0, 1, 2):
        same = torch.full((3, 2), float(step))
        state = {"model.embed_tokens.weight": same, "lm_head.weight": same.clone()}
        write_checkpoint(tmp_path / f"step_{step}", state)
    assert scan_folder(tmp_path, tied=True).tensors == ("model.embed_tokens.weight",)
    assert len(scan_folder(tmp_path).tensors) == 2
    state["lm_head.weight"][0, 0] = 9
    write_checkpoint(tmp_path / "step_2", state)
    with pytest.raises(CheckpointMismatch, match=r"tied, but lm_head\.weight differs"):
        scan_folder(tmp_path, tied=True)


def test_random_walk_reference() -> None:
    walk = random_walk(range(0, 501, 20))
    assert walk.median == pytest.approx(0.44, abs=0.01)
    assert walk.share_linear == pytest.approx(0.26, abs=0.01)
    assert random_walk(range(0, 501, 20)) == walk
    assert random_walk([0, 7]).median == pytest.approx(1)  # two points are always on a line
    assert random_walk([0, 1, 1000]).median > 0.99  # nearly two points


def test_median_of_a_histogram() -> None:
    values = np.sqrt(np.random.default_rng(0).random(20_001))
    histogram = np.histogram(values, BINS, (0, 1))[0]
    found = Linearity(histogram, 1, 2, 3)
    assert found.median == pytest.approx(float(np.median(values)), abs=2e-4)
    assert found.share_linear == pytest.approx(float((values > 0.7).mean()), abs=1e-12)
    assert found.elements == 20_007
    assert Linearity(np.zeros(BINS, np.int64), 0, 0, 0).as_dict() == {
        "elements": 0, "share_kept": 0.0, "unmoved": 0, "small_range": 0, "few_values": 0,
        "median_r_squared": None, "share_r_squared_above_0.7": None,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["A", "C"])
def test_figures_of_the_full_runs(rlvr: Path, tmp_path: Path, name: str, dtype: str) -> None:
    folder = rlvr / f"rlvr-{name}"
    known = json.loads((folder / "results.json").read_text())
    figures = known["linearity_fp32" if dtype == "float32" else "linearity_bf16"]
    if dtype == "bfloat16":
        folder = cast_run(folder, tmp_path)
    scan = scan_folder(folder)
    # run A was measured at 26 steps, of which 14 are at hand
    complete = len(scan.steps) == len(known["steps"])
    close = 0.002 if complete else 0.02
    found = scan.linearity()
    assert found.share_kept == pytest.approx(figures["share_kept"], abs=1e-4 if complete else 0.01)
    assert found.median == pytest.approx(figures["median_r2"], abs=close)
    assert found.share_linear == pytest.approx(figures["share_r2_above_0p7"], abs=close)
    for row, tensor in enumerate(scan.tensors):
        expected, tensor_found = figures["per_tensor"][tensor], scan.linearity([row])
        if expected["median_r2"] is None:
            assert tensor_found.kept == 0
        elif complete:
            assert tensor_found.share_kept == pytest.approx(expected["kept"], abs=1e-4)
            assert tensor_found.median == pytest.approx(expected["median_r2"], abs=0.003)
    if dtype == "float32":
        norms = np.sqrt((scan.delta_norms() ** 2).sum(axis=0))
        for step, norm in zip(scan.steps, norms, strict=True):
            assert norm == pytest.approx(known["delta_norm"][str(step)], abs=1e-5)


def cast_run(folder: Path, target: Path) -> Path:
    from safetensors.torch import load_file

    for checkpoint in folder.glob("step_*"):
        state = load_file(checkpoint / "model.safetensors")
        write_checkpoint(target / checkpoint.name, {name: t.bfloat16() for name, t in state.items()})
    return target


def test_figures_of_the_bundled_run(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent.parent / "demo" / "data" / "rlvr-C"
    lines = Lines()
    scan = scan_folder(demo, progress=lines)
    assert lines.said == []
    found = scan.linearity()
    assert found.median == pytest.approx(0.955, abs=0.001)
    assert found.share_linear == pytest.approx(0.767, abs=0.001)
    assert found.share_kept == pytest.approx(0.979, abs=0.001)
    assert isinstance(scan, Scan)
