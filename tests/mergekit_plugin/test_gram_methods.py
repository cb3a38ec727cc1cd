"""Methods that read the weights get the Gram matrix of each tensor, as `hubextrap scan` computes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup

from hubextrap.engine.scan import scan_trajectory
from hubextrap.engine.scan_plan import plan_scan
from hubextrap.errors import HubExtrapError
from hubextrap.mergekit_plugin import combine, gram_matrix, sampled_gram_matrix
from hubextrap.methods import coefficients, find_method, method_names
from hubextrap.opening import Run
from hubextrap.statistics import GramTable
from hubextrap.tensors import open_source, read_layouts
from hubextrap.trajectory import find_trajectory

Config = dict[str, Any]
Weights = dict[str, torch.Tensor]
GRAM_METHODS = [(name, {}) for name in method_names() if find_method(name).needs_gram_matrix]
AUTO = [("two_point", {"base_step": "auto"}), ("least_squares", {"window": "half", "damping": "auto"})]


def scan(folder: Path) -> GramTable:
    trajectory = find_trajectory(str(folder))
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(open_source(c))) for c in trajectory.checkpoints]
        plan = plan_scan(trajectory.steps, read_layouts(sources))
        return scan_trajectory(trajectory, sources, plan).gram_table


def stored(folder: Path, weights_in: Callable[[Path], Weights]) -> dict[int, Weights]:
    return {int(path.name[5:]): weights_in(path) for path in folder.glob("step_*")}


@pytest.mark.parametrize("run", ["demo", "sharded"])
def test_gram_matrices_are_those_of_the_scan(
    run: str, demo_data: Path, sharded: Path, weights_in: Callable[[Path], Weights]
) -> None:
    folder = sharded if run == "sharded" else demo_data / "rlvr-C"
    table = scan(folder)
    found = stored(folder, weights_in)
    for name, gram in zip(table.tensors, table.gram, strict=True):
        inputs = [found[step][name] for step in table.steps]
        assert np.array_equal(gram_matrix(table.steps, inputs), gram), name
        deltas = torch.stack([tensor.double() - inputs[0].double() for tensor in inputs]).flatten(1)
        np.testing.assert_allclose(gram, (deltas @ deltas.T).numpy(), rtol=1e-5, atol=1e-6 * gram.max())


@pytest.mark.parametrize("size", [64, 4096])
def test_gram_matrices_of_a_sample_are_those_of_its_scan(
    size: int, demo_data: Path, weights_in: Callable[[Path], Weights]
) -> None:
    folder = demo_data / "rlvr-C"
    with Run(find_trajectory(str(folder))) as run:
        table = run.scan_sample(size).gram_table
    found = stored(folder, weights_in)
    for name, gram in zip(table.tensors, table.gram, strict=True):
        inputs = [found[step][name] for step in table.steps]
        assert np.array_equal(sampled_gram_matrix(name, inputs, size), gram), name
    assert not np.array_equal(table.gram, scan(folder).gram)


@pytest.mark.parametrize(("method", "parameters"), [*GRAM_METHODS, *AUTO])
def test_each_tensor_gets_its_own_coefficients(
    method: str,
    parameters: dict[str, object],
    demo_data: Path,
    config_of: Callable[..., Config],
    through_mergekit: Callable[..., Weights],
    weights_in: Callable[[Path], Weights],
) -> None:
    config = config_of(demo_data / "rlvr-C", method, target_step=500, **parameters)
    predicted = through_mergekit(config)
    table, found = scan(demo_data / "rlvr-C"), stored(demo_data / "rlvr-C", weights_in)
    damping = parameters.get("damping", 1.0)
    own = {name: value for name, value in parameters.items() if name != "damping"}
    rows = set()
    for name, gram in zip(table.tensors, table.gram, strict=True):
        row = coefficients(method, table.steps, 500, own, damping=damping, gram_matrix=gram)  # type: ignore[arg-type]
        expected = combine([found[step][name] for step in table.steps], row).to(torch.bfloat16)
        assert torch.equal(predicted[name], expected), name
        rows.add(tuple(row))
    assert parameters or len(rows) > 1


def test_one_checkpoint_and_empty_tensors_have_one() -> None:
    assert np.array_equal(gram_matrix([3], [torch.ones(2)]), [[0.0]])
    assert np.array_equal(gram_matrix([0, 1], [torch.ones(0)] * 2), np.zeros((2, 2)))
    assert np.array_equal(sampled_gram_matrix("w", [torch.ones(2)], 64), [[0.0]])
    assert np.array_equal(sampled_gram_matrix("w", [torch.ones(0)] * 2, 64), np.zeros((2, 2)))


def test_a_gram_matrix_has_no_nan() -> None:
    group = TensorGroup.from_tensors(
        [torch.ones(3), torch.tensor([1.0, torch.nan, 2.0]), torch.zeros(3)], ids=["a", "b", "c"], name="w"
    )
    settings = {"step": {"a": 0, "b": 10, "c": 20}, "target_step": 30}
    for fit in ({}, {"fit": "sample"}):
        with pytest.raises(HubExtrapError, match="w: a checkpoint holds NaN or infinity"):
            registry.get("low_rank")([group], parameters=settings | fit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fnuz])
def test_tensors_are_combined_however_they_lie_in_memory(dtype: torch.dtype) -> None:
    """Transposed, every other number, of a model in training, and of a dtype that the compiled loops lack."""
    plain = [torch.arange(60).reshape(6, 10).float().sin().to(dtype) for _ in range(2)]
    plain[1] = (plain[1].float() / 2).to(dtype)
    laid = [plain[0].t().contiguous().t(), plain[1].float().repeat_interleave(2, 1).to(dtype)[:, ::2]]
    row = np.array([-0.5, 1.5])
    expected = plain[0].float() + (plain[1].float() - plain[0].float()) * 1.5
    for inputs in (plain, laid):
        made = combine([tensor.requires_grad_() for tensor in inputs], row)
        assert made.is_contiguous()
        assert torch.equal(made.float(), expected.to(dtype).float())
