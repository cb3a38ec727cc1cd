"""The scan of adapters: that of their merged weights in float64, and the same however it is run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_runs import merged, write_adapter_run
from harness import Lines
from numpy.typing import NDArray
from opened_adapters import open_adapters
from safetensors.numpy import load_file, save_file

from hubextrap.adapters import scanning
from hubextrap.adapters.run import AdapterRun
from hubextrap.adapters.scanning import scan_adapters
from hubextrap.engine.budget import NO_LIMIT, Budget
from hubextrap.engine.defaults import MiB
from hubextrap.errors import CorruptFile, NonFinite, OutputError
from hubextrap.scans import Scan
from hubextrap.scans.tensor_scan import ScanJournal
from hubextrap.statistics.linearity import BINS, count_linearity
from hubextrap.trajectory import Trajectory

STEPS = (0, 10, 20, 40, 50)
FACTORED = "model.layers.0.self_attn.q_proj.weight"
ADAPTER = "adapter_model.safetensors"


def scan_run(run: AdapterRun, memory: int = NO_LIMIT, workers: int = 2, **how: Any) -> Scan:
    trajectory = Trajectory(run.checkpoints, "step_{step}")
    return scan_adapters(run, trajectory, budget=Budget(memory, workers), **how)


def weights(root: Path, tensor: str, steps: Sequence[int] = STEPS) -> NDArray[np.float64]:
    """(K, n): what peft merges."""
    return np.stack([merged(root, step)[tensor].numpy().reshape(-1) for step in steps])


def check_grams(root: Path, scan: Scan, steps: Sequence[int], within: float) -> None:
    for row, tensor in enumerate(scan.tensors):
        values = weights(root, tensor, steps)
        moves = values - values[0]
        wanted = moves @ moves.T
        assert wanted.max() > 0
        assert np.abs(scan.gram_table.gram[row] - wanted).max() <= within * wanted.max(), tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"dtype": "bfloat16", "use_rslora": True},
        {"rank": {0: 2, 10: 2, 20: 4, 40: 4, 50: 3}},
        {"architecture": "gpt2", "fan_in_fan_out": True},
        {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"q_proj": 3}},
        {"architecture": "mixtral", "target_parameters": ["mlp.experts.down_proj"]},
        {"bias": "lora_only", "lora_bias": False, "model": {"attention_bias": True}},
    ],
    ids=["linear", "bfloat16", "ranks", "transposed", "embedding", "experts", "biases"],
)
def test_gram_matrices_are_those_of_what_peft_merges(tmp_path: Path, how: dict[str, Any]) -> None:
    root = write_adapter_run(tmp_path, STEPS, **how)
    scan = scan_run(open_adapters(root, STEPS))
    check_grams(root, scan, STEPS, 1e-7)
    assert scan.sampled == scanning.SAMPLED


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which norms are trained whole, and step 40 is the same as step 50."""
    root = write_adapter_run(
        tmp_path_factory.mktemp("run"), (10, 20, 50), modules_to_save=["norm"], model={"hidden_size": 48}
    )
    shutil.copytree(root / "step_50", root / "step_40")
    return root


def test_moves_are_those_from_the_first_checkpoint_which_is_no_base(run_folder: Path) -> None:
    """And the base is not opened: it takes no part."""
    steps = (10, 20, 40, 50)
    scan = scan_run(open_adapters(run_folder, steps, with_base=False))
    assert {"model.norm.weight", FACTORED} <= set(scan.tensors)
    check_grams(run_folder, scan, steps, 1e-6)
    assert scan.gram_table.same_weights() == ((40, 50),)
    assert not scan.gram_table.gram[:, 0].any()


def test_what_was_trained_whole_begins_at_the_base(run_folder: Path) -> None:
    scan = scan_run(open_adapters(run_folder, (0, 10, 20)))
    values = load_file(run_folder / "base" / "model.safetensors")["model.norm.weight"]
    kept = [load_file(run_folder / f"step_{step}" / ADAPTER) for step in (10, 20)]
    values = np.stack([values, *(one["base_model.model.model.norm.weight"] for one in kept)])
    row = scan.tensors.index("model.norm.weight")
    moves = (values - values[0]).astype(np.float64)
    np.testing.assert_allclose(scan.gram_table.gram[row], moves @ moves.T, rtol=1e-5)
    np.testing.assert_array_equal(scan.counts[row], count_linearity((0, 10, 20), values.T))


def test_single_weights_are_what_they_moved_by(run_folder: Path) -> None:
    scan = scan_run(open_adapters(run_folder, STEPS), reference_share=0.1)
    values = np.stack(
        [np.zeros(48 * 48), *(weights(run_folder, FACTORED, STEPS[1:]) - base_of(run_folder, FACTORED))]
    )
    row = scan.tensors.index(FACTORED)
    places = scan.example_places[row]
    np.testing.assert_allclose(scan.example_values[row], values[:, places].T, rtol=1e-5, atol=1e-9)
    drawn = scanning.draw(FACTORED, 48 * 48, scanning.SAMPLED, seed=2)
    counts = count_linearity(STEPS, values[:, drawn].T)
    assert len(drawn) == scanning.SAMPLED < scan.gram_table.elements[row] == scan.counts[row].sum()
    np.testing.assert_allclose(scan.counts[row], counts * 48 * 48 / len(drawn), atol=3)
    assert scan.reference is not None
    assert scan.reference.counts[row].sum() == 230
    assert scan.as_dict()["sampled"] == scanning.SAMPLED


def base_of(root: Path, tensor: str) -> NDArray[np.float64]:
    return load_file(root / "base" / "model.safetensors")[tensor].astype(np.float64).reshape(-1)


def test_neither_memory_nor_threads_nor_a_stop_change_it(run_folder: Path, tmp_path: Path) -> None:
    run = open_adapters(run_folder, STEPS)
    scan_run(run, reference_share=0.01).save(tmp_path / "wanted")
    least = 400 * MiB
    # a tensor's factors are not held; one thread
    scan_run(run, least, 1, reference_share=0.01).save(tmp_path / "least")
    fingerprint = {"it": "is"}
    journal = ScanJournal(tmp_path / "journal", fingerprint)
    stopped = Stopping(journal, 2)
    with pytest.raises(KeyboardInterrupt):
        scan_run(run, reference_share=0.01, journal=stopped)
    journal.close()
    again = ScanJournal(tmp_path / "journal", fingerprint)
    assert len(again.finished) == 2
    scan_run(run, reference_share=0.01, journal=again).save(tmp_path / "resumed")
    again.close()
    wanted = (tmp_path / "wanted").read_bytes()
    assert (tmp_path / "least").read_bytes() == wanted
    assert (tmp_path / "resumed").read_bytes() == wanted


class Stopping(ScanJournal):
    """Ends the scan once so many tensors are kept."""

    def __init__(self, journal: ScanJournal, count: int) -> None:
        self.finished, self._journal, self._count = journal.finished, journal, count

    def record(self, found: Any) -> None:
        self._journal.record(found)
        if len(self.finished) == self._count:
            raise KeyboardInterrupt


def test_factors_that_do_not_fit_are_read_again(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_adapters(run_folder, STEPS)
    wanted = scan_run(run)
    monkeypatch.setattr(scanning._Need, "most", property(lambda self: NO_LIMIT))
    read: list[str] = []
    term = AdapterRun.term
    monkeypatch.setattr(
        AdapterRun, "term", lambda self, k, name, *room: read.append(name) or term(self, k, name, *room)
    )
    found = scan_run(run)
    assert len(read) > 2 * 4 * len(run.last.factors)
    np.testing.assert_array_equal(found.gram_table.gram, wanted.gram_table.gram)
    np.testing.assert_array_equal(found.counts, wanted.counts)


def test_too_little_memory_is_refused(run_folder: Path) -> None:
    with pytest.raises(OutputError, match=r"memory: 100 MiB are not enough .* at least \d+ MiB"):
        scan_run(open_adapters(run_folder, (10, 20), with_base=False), 100 * MiB)


def damaged(root: Path, folder: Path, value: float, step: int = 20) -> Path:
    """A copy with one number of one factor replaced."""
    shutil.copytree(root, folder)
    path = folder / f"step_{step}" / ADAPTER
    factors = load_file(path)
    name = next(name for name in factors if "q_proj.lora_B" in name)
    factors[name][0, 0] = value
    save_file(factors, path)
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(run_folder: Path, tmp_path: Path, value: float) -> None:
    folder = damaged(run_folder, tmp_path / "copy", value)
    with pytest.raises(NonFinite, match=r"q_proj.*step 20.* holds NaN or infinity") as caught:
        scan_run(open_adapters(folder, (10, 20, 50), with_base=False))
    assert (caught.value.step, caught.value.tensor) == (20, FACTORED)


def test_moves_beyond_float32_are_refused(run_folder: Path, tmp_path: Path) -> None:
    folder = damaged(run_folder, tmp_path / "copy", 1e30)
    with pytest.raises(NonFinite, match="squares exceed float32"):
        scan_run(open_adapters(folder, (10, 20, 50), with_base=False))


def test_the_file_says_that_it_is_of_a_sample(run_folder: Path, tmp_path: Path) -> None:
    scan = scan_run(open_adapters(run_folder, (10, 20, 50), with_base=False))
    scan.save(tmp_path / "scan")
    again = Scan.load(tmp_path / "scan")
    assert again.sampled == scanning.SAMPLED
    assert again.as_dict() == scan.as_dict()
    replace(scan, sampled=None).save(tmp_path / "all")
    assert Scan.load(tmp_path / "all").sampled is None
    replace(scan, sampled=-1).save(tmp_path / "wrong")
    with pytest.raises(CorruptFile, match="sampled"):
        Scan.load(tmp_path / "wrong")


def test_of_a_sample_none_need_have_moved(run_folder: Path, tmp_path: Path) -> None:
    scan = scan_run(open_adapters(run_folder, (10, 20, 50), with_base=False))
    still = np.zeros_like(scan.counts)
    still[:, BINS] = scan.gram_table.elements
    replace(scan, counts=still).save(tmp_path / "scan")
    assert Scan.load(tmp_path / "scan").linearity().share_kept == 0
    replace(scan, counts=still, sampled=None).save(tmp_path / "scan")
    with pytest.raises(CorruptFile, match="not 0 although no weight moved"):
        Scan.load(tmp_path / "scan")


def test_progress_counts_the_factors(run_folder: Path, lines: Lines) -> None:
    scan_run(open_adapters(run_folder, (10, 20), with_base=False), progress=lines)
    assert lines.said == []


def test_the_summary_and_the_page_say_that_it_is_a_sample(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from hubextrap.cli.scan import print_scan
    from hubextrap.reporting.sections import build_sections
    from hubextrap.statistics import backtest_table

    scan = scan_run(open_adapters(run_folder, STEPS))
    said = "from a sample of 2,048 weights per tensor"
    for sampled in (scanning.SAMPLED, None):
        shown = replace(scan, sampled=sampled)
        print_scan("run", shown)
        assert (said in capsys.readouterr().out) == (sampled is not None)
        sections = {one.name: one.shows for one in build_sections(shown, backtest_table(scan.gram_table), ())}
        for name in ("r-squared", "heat-map"):
            assert (said in sections[name]) == (sampled is not None)


@pytest.mark.slow
def test_a_real_run(rlvr: Path) -> None:
    """Of rlvr-F, all tensors: the Gram matrices are those of its merged weights to 1e-7, and far better."""
    root, steps = rlvr / "rlvr-F", (0, 50, 100, 200, 390, 400)
    run = open_adapters(root, steps)
    scan = scan_run(run)
    for row, tensor in enumerate(scan.tensors):
        deltas = np.zeros((len(steps), int(scan.gram_table.elements[row])))
        for k, step in enumerate(steps[1:], 1):
            stored = load_file(root / f"step_{step}" / ADAPTER)
            a, b = (
                stored[f"base_model.model.{tensor.removesuffix('.weight')}.lora_{one}.weight"].astype(
                    np.float64
                )
                for one in "AB"
            )
            deltas[k] = (2.0 * b @ a).reshape(-1)
        wanted = deltas @ deltas.T
        assert np.abs(scan.gram_table.gram[row] - wanted).max() <= 1e-12 * wanted.max()
