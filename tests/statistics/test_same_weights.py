"""Steps between which nothing moved show in a scan, and so in all that is read off it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.scans import Scan
from hubextrap.trajectory import find_trajectory

TOLD = "steps 20 and 30 hold the same weights as step 40: nothing was trained between them"


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stands still from step 20 to 40, and comes back to step 10 at step 60."""
    root = tmp_path_factory.mktemp("still")
    for step, seed in {10: 1, 20: 2, 30: 2, 40: 2, 50: 3, 60: 1}.items():
        generator = torch.Generator().manual_seed(seed)
        (root / f"step_{step}").mkdir()
        tensors = {
            "a.weight": torch.randn(300, 70, generator=generator).bfloat16(),
            "b.weight": torch.randn(70, generator=generator),
            "c.weight": torch.ones(5),
        }
        save_file(tensors, root / f"step_{step}" / "model.safetensors")
    api.scan(find_trajectory(str(root)), out=root / "scan.safetensors")
    return root / "scan.safetensors"


def test_neighbours_that_do_not_differ(scanned: Path) -> None:
    scan = Scan.load(scanned)
    assert scan.gram_table.same_weights() == ((20, 30, 40),)
    assert scan.as_dict()["same_weights"] == [[20, 30, 40]]
    assert api.backtest(scan).same_weights == ((20, 30, 40),)


def test_a_tensor_that_moves_is_enough(scanned: Path) -> None:
    table = Scan.load(scanned).gram_table
    row = table.tensors.index("b.weight")
    gram = table.gram.copy()
    gram[row, 1, 1] += 1e-9
    assert type(table)(table.steps, table.tensors, table.elements, gram).same_weights() == ((30, 40),)


@pytest.mark.slow
def test_what_commands_say(scanned: Path, tmp_path: Path) -> None:
    def said(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    assert TOLD in said("scan", scanned.parent, "--out", scanned, "--quiet")
    assert TOLD in said("backtest", scanned)
    assert TOLD in said("report", scanned, "--out", tmp_path / "page.html")
    assert TOLD in (tmp_path / "page.html").read_text()
    assert "step 10 holds the same weights as step 60" in said("steps", scanned.parent)
