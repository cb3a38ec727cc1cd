"""A sample of a run of adapters: the elements of what peft merges, at the places of a model's sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from adapter_runs import merged, write_adapter_run
from numpy.typing import NDArray
from opened_adapters import open_adapters
from safetensors.numpy import load_file, save_file

from hubextrap.adapters.run import AdapterRun
from hubextrap.adapters.sampling import sample_adapters
from hubextrap.adapters.scanning import scan_adapters
from hubextrap.engine.budget import Budget
from hubextrap.engine.defaults import MiB
from hubextrap.errors import NonFinite, OutputError
from hubextrap.scans import Scan
from hubextrap.scans.places import places_of
from hubextrap.statistics.linearity import count_linearity
from hubextrap.trajectory import Trajectory

STEPS = (0, 10, 20, 50)
FACTORED, WHOLE = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
SIZE = 256


def sampled(run: AdapterRun, size: int = SIZE, memory: int = 2000 * MiB, workers: int = 2) -> Scan:
    trajectory = Trajectory(run.checkpoints, "step_{step}")
    return sample_adapters(run, trajectory, size, budget=Budget(memory, workers))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which norms are trained whole."""
    folder = tmp_path_factory.mktemp("run")
    return write_adapter_run(folder, STEPS[1:], modules_to_save=["norm"], model={"hidden_size": 48})


def moved(root: Path, tensor: str, steps: Sequence[int]) -> NDArray[np.float64]:
    """(K, n): what peft merges, less the base."""
    base = load_file(root / "base" / "model.safetensors")[tensor].astype(np.float64).reshape(-1)
    after = [merged(root, step)[tensor].numpy().reshape(-1) - base for step in steps if step]
    return np.stack([np.zeros_like(base), *after] if 0 in steps else after)


@pytest.mark.parametrize("steps", [STEPS, STEPS[1:]], ids=["from the base", "from an adapter"])
def test_elements_of_products_at_the_places(root: Path, tmp_path: Path, steps: Sequence[int]) -> None:
    scan = sampled(open_adapters(root, steps, with_base=0 in steps))
    scan.save(tmp_path / "scan")
    Scan.load(tmp_path / "scan")
    assert scan.weights is not None
    assert scan.block_counts is not None
    elements = scan.gram_table.elements.tolist()
    row = scan.tensors.index(FACTORED)
    places = places_of(FACTORED, elements[row], SIZE).in_tensor()
    values = moved(root, FACTORED, steps)[:, places]
    for k in range(len(steps)):
        assert scan.weights.dtypes[k][row] == "F32"
        stored = scan.weights.of_tensor(k, row, elements).view(np.float32)
        np.testing.assert_allclose(stored, values[k], rtol=1e-4, atol=1e-9)
    values = values - values[0]
    wanted = values @ values.T * elements[row] / len(places)
    np.testing.assert_allclose(scan.gram_table.gram[row], wanted, rtol=0, atol=1e-4 * wanted.max())
    np.testing.assert_allclose(scan.example_values[row], values[:, :4].T, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(
        scan.block_counts[row].sum(axis=0), count_linearity(steps, values.T), atol=SIZE // 20
    )


def test_a_sample_of_all_elements_is_the_exact_scan(root: Path) -> None:
    run = open_adapters(root, STEPS)
    exact = scan_adapters(run, Trajectory(run.checkpoints, "step_{step}"), budget=Budget(2000 * MiB))
    scan = sampled(run, size=10**5)
    assert scan.tensors == exact.tensors
    assert WHOLE in scan.tensors
    for row in range(len(scan.tensors)):
        gram = exact.gram_table.gram[row]
        np.testing.assert_allclose(scan.gram_table.gram[row], gram, rtol=0, atol=1e-5 * gram.max())


def test_neither_memory_nor_threads_change_it(root: Path, tmp_path: Path) -> None:
    run = open_adapters(root, STEPS)
    sampled(run).save(tmp_path / "wanted")
    with pytest.raises(OutputError, match=r"memory: 1 MiB are not enough .* at least \d+ MiB") as caught:
        sampled(run, memory=MiB)
    least = int(str(caught.value).split("at least ")[1].split(" MiB")[0])
    sampled(run, memory=least * MiB, workers=2).save(tmp_path / "least")
    sampled(run, workers=1).save(tmp_path / "alone")
    assert (tmp_path / "wanted").read_bytes() == (tmp_path / "least").read_bytes()
    assert (tmp_path / "wanted").read_bytes() == (tmp_path / "alone").read_bytes()


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    root = write_adapter_run(tmp_path, (10, 20))
    file = root / "step_20" / "adapter_model.safetensors"
    state = load_file(file)
    name = next(name for name in state if "q_proj.lora_B" in name)
    state[name][:] = np.nan
    save_file(state, file)
    with pytest.raises(NonFinite, match="step 20 ") as caught:
        sampled(open_adapters(root, (10, 20), with_base=False))
    assert (caught.value.tensor, caught.value.step) == (FACTORED, 20)
