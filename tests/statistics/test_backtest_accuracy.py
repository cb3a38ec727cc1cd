"""What weights cannot say: predictions of the full run, sampled on its task."""

from __future__ import annotations

import shutil
from pathlib import Path

import backtest_runs as runs
import pytest
import torch
from safetensors.torch import load_file, save_file

from hubextrap import api
from hubextrap.recipe import parse_recipe


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("last", "target", "least"), [(200, 400, 0.625), (400, 500, 0.675)])
def test_calibrated_beats_the_last_checkpoint_at_the_task(
    tmp_path: Path, dtype: str, last: int, target: int, least: float
) -> None:
    """Sampled, 500 problems: step 200 has .597 and 400 .663; the real steps 400 and 500 .663 and .690."""
    folder = runs.full_run("rlvr-C")
    run = folder if dtype == "float32" else _cast(folder, tmp_path / "run", last)
    recipe = parse_recipe(
        f"trajectory: {{repo: '{run}', steps: {{max: {last}}}}}\n"
        f"merge_method: calibrated\nparameters: {{target_step: {target}, max_expected_error: 0.9}}\n"
    )
    result = api.merge(recipe, out=tmp_path / "out")
    assert result.predictions[0].provenance.expected_relative_error is not None
    assert runs.sampled_accuracy(tmp_path / "out", folder / "problems.jsonl") >= least


def _cast(folder: Path, out: Path, last: int) -> Path:
    """The run up to ``last`` as it would lie on the Hub."""
    for source in folder.glob("step_*"):
        if int(source.name[5:]) <= last:
            shutil.copytree(source, out / source.name)
            state = load_file(source / "model.safetensors")
            (out / source.name / "model.safetensors").unlink()
            save_file(
                {name: value.to(torch.bfloat16) for name, value in state.items()},
                out / source.name / "model.safetensors",
                {"format": "pt"},
            )
    return out
