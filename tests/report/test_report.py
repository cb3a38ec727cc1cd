"""What the report says is what the scan, the backtest and the evaluations say."""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.clocks import STEPS as BY_STEPS
from hubextrap.errors import EvaluationError, HubExtrapError, OutputError, ReferenceNotFound
from hubextrap.evaluation.table import EvaluationTable
from hubextrap.reporting import Page, build_sections, collect_accuracy, weights
from hubextrap.reporting.page import LARGEST
from hubextrap.reporting.style import to_png, to_svg
from hubextrap.scans import Scan
from hubextrap.statistics import GramTable, backtest_table, horizon_means, judge_run, plain_name
from hubextrap.statistics.linearity import random_walk
from hubextrap.trajectory import find_trajectory

STEPS = (0, 10, 20, 35, 50, 60, 80, 100)


def gram_table(weights_at: np.ndarray, steps: tuple[int, ...] = STEPS) -> GramTable:
    """Of one tensor, from its weights (K, n)."""
    deltas = weights_at - weights_at[0]
    return GramTable(steps, ("w",), np.array([weights_at.shape[1]]), (deltas @ deltas.T)[None])


def test_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    without_scripts = re.sub(r"(?s)<script.*?</script>", "", text)
    assert not re.search(r"<link|<img|<image|@import|src=|url\((?!#)", without_scripts)
    assert not re.search(r"<script[^>]*src", text)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', without_scripts))
    ids = re.findall(r'\bid="([^"]*)"', without_scripts)
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", without_scripts)) <= set(ids)
    assert "<h1>&lt;b&gt;&amp;</h1>" in text
    assert without_scripts.count("<svg") == 8
    assert len(text.encode()) < 1_000_000
    assert str(Path(__file__).parents[2]) not in text, "says where the checkpoints lie on this machine"


def test_page_allows_its_own_scripts_alone(page: Path) -> None:
    text = page.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    allowed = set(re.findall(r"'sha256-([^']*)'", policy))
    scripts = re.findall(r"(?s)<script>(.*?)</script>", text)
    assert {b64encode(sha256(script.encode()).digest()).decode() for script in scripts} == allowed
    assert len(scripts) == 4
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")


def test_the_library_is_what_its_licence_says() -> None:
    """It is that of the registry, byte for byte, behind the licence that goes with each copy."""
    folder = files("hubextrap.reporting") / "vendor"
    licence, charts = ((folder / name).read_text() for name in ("LICENSE", "charts.min.js"))
    beginning = f"/*!\n{licence}*/\n"
    assert charts.startswith(beginning)
    rest, plot = charts.removeprefix(beginning).split("// @observablehq/plot", 1)
    shipped = [rest.removesuffix("\n"), f"// @observablehq/plot{plot}"]
    assert [sha256(text.encode()).hexdigest() for text in shipped] == re.findall(r"sha256 (\w{64})", licence)


def test_a_page_keeps_to_its_size(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run of many tensors too: the table takes what is left."""
    table = scan.gram_table
    many = replace(
        table,
        tensors=tuple(f"w{number}" for number in range(9000)),
        elements=np.tile(table.elements, 300),
        gram=np.tile(table.gram, (300, 1, 1)),
    )
    large = replace(scan, gram_table=many)
    backtest = backtest_table(table)
    page = Page("large", large, backtest, judge_run(backtest), [], [(BY_STEPS, None)])
    monkeypatch.setattr(Page, "sections", [])
    text = page.render()
    assert 1_900_000 < len(text.encode()) <= LARGEST
    assert "takes the" in text
    assert "tensors that moved least as one" in text


def test_page_says_what_was_found(page: Path, scan: Scan) -> None:
    text = page.read_text()
    whole = scan.linearity()
    assert f"of {whole.kept:,} weights. The median is {whole.median:.2f}" in text
    for entry in horizon_means(backtest_table(scan.gram_table)):
        cells = "".join(f"<td>{mean:.2f}</td>" for mean in (*entry.means, entry.worst))
        assert f'<th scope="row">{entry.method.replace("(", "(<wbr>")}</th>{cells}' in text
    assert "prediction scores 0.982, the last observed checkpoint 0.828, the real one 0.984" in text
    verdict = judge_run(backtest_table(scan.gram_table))
    assert f"use the {plain_name(verdict.method or '')}, up to step 800" in text


def test_plots_for_the_card(page: Path) -> None:
    plots = {path.stem: path.read_bytes() for path in (page.parent / "png").iterdir()}
    assert set(plots) == set(re.findall(r'<section id="([\w-]+)"><details>', page.read_text()))
    for content in plots.values():
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20], "big") == 1040


def test_same_input_same_bytes(page: Path, scan: Scan) -> None:
    sections = build_sections(scan, backtest_table(scan.gram_table), [])
    assert to_svg(sections[0].draw, sections[0].height, sections[0].name) in page.read_text()
    for section in sections:
        if section.name in ("r-squared", "backtest"):
            drawn = to_png(section.draw, section.height)
            assert drawn == (page.parent / "png" / f"{section.name}.png").read_bytes()


def test_two_checkpoints(short_scan_file: Path, tmp_path: Path) -> None:
    found = api.report(short_scan_file, out=tmp_path / "a.html", png=tmp_path)
    assert found.headline == "2 checkpoints cannot be judged: a rehearsal needs 3"
    assert found.pngs == ()


def straight(rng: np.random.Generator) -> np.ndarray:
    return np.array(STEPS)[:, None] * rng.standard_normal(500) + 3 * rng.standard_normal((8, 500))


def wandering(rng: np.random.Generator) -> np.ndarray:
    moves = np.sqrt(np.diff(STEPS, prepend=0))[:, None] * rng.standard_normal((8, 500))
    return np.cumsum(moves, axis=0)


@pytest.mark.parametrize(
    ("trajectory", "level", "headline"),
    [
        (straight, "good", "Extrapolation looks promising: use "),
        (wandering, "bad", "Keep the last checkpoint"),
        (lambda rng: straight(rng) + 3 * wandering(rng), "care", "Extrapolate with care: "),
    ],
)
def test_answer(trajectory: Callable[[np.random.Generator], np.ndarray], level: str, headline: str) -> None:
    table = gram_table(trajectory(np.random.default_rng(1)))
    found = judge_run(backtest_table(table))
    assert (found.level, found.headline[: len(headline)]) == (level, headline)
    assert found.sentences[-1].startswith("All this is about weights. Evaluate")


def test_few_rehearsals_call_for_care() -> None:
    table = gram_table(straight(np.random.default_rng(1))[:4], STEPS[:4])
    found = judge_run(backtest_table(table))
    assert found.level == "unknown"
    assert found.headline.startswith("Too few rehearsals to judge: only ")


def test_rounding_is_told_apart(tmp_path: Path) -> None:
    """A straight run whose steps are as small as the rounding to bf16: both errors are on the page."""
    generator = torch.Generator().manual_seed(0)
    start, slope = 0.02 * torch.randn(2, 256, 64, generator=generator)
    for step in range(0, 200, 20):
        folder = tmp_path / "run" / f"step_{step}"
        folder.mkdir(parents=True)
        tensors = {"model.layers.0.mlp.up_proj.weight": (start + 6e-5 * step * slope).bfloat16()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scan = api.scan(find_trajectory(str(tmp_path / "run")), out=tmp_path / "run.safetensors")
    backtest = api.backtest(scan)
    assert backtest.rounded
    found = api.report(tmp_path / "run.safetensors", out=tmp_path / "a.html")
    verdict = judge_run(backtest)
    assert verdict.method is not None
    near = [row for row in backtest.shared_rows()[verdict.method] if row.horizon <= 1]
    signal, total = (np.mean([row.error for row in near]), np.mean([row.relative_error for row in near]))
    assert signal < total - 0.1
    assert f"Rounding makes up {backtest.rounding_share:.0%}" in found.sentences[0]
    assert (
        f"With the rounding in it, the mean error of the {plain_name(verdict.method)} is {total:.2f}"
        in found.sentences[0]
    )
    assert f"on average {signal:.2f} times as far" in found.sentences[1]
    page = (tmp_path / "a.html").read_text()
    assert "those of the signal, without the rounding to 16 bits" in page
    means = {entry.method: entry for entry in horizon_means(backtest)}
    for entry in means.values():
        assert f"<td>{entry.expected:.2f}</td><td>{entry.total:.2f}</td></tr>" in page
    printed = CliRunner().invoke(app, ["backtest", str(tmp_path / "run.safetensors")]).stdout
    assert "mean relative error of the signal by" in printed
    assert re.search(
        rf"^{re.escape(plain_name(verdict.method))} .* {means[verdict.method].total:.3f}$", printed, re.M
    )
    assert "total is the mean error against the checkpoints as they are stored" in " ".join(printed.split())
    _, from_first, _ = weights.direction(scan)
    _, of_signal, _ = weights.direction(scan, rounded=True)
    assert from_first[-1] < 0.5 < 0.9 < of_signal[-1]


def test_explained_is_svd(scan: Scan) -> None:
    rng = np.random.default_rng(2)
    deltas = np.concatenate([np.zeros((1, 50)), rng.standard_normal((7, 50))])
    squares = np.linalg.svd(deltas, compute_uv=False) ** 2
    found = weights.explained((deltas @ deltas.T)[None])
    assert found == pytest.approx((np.cumsum(squares) / squares.sum())[:7], abs=1e-12)
    walk = weights.walk_explained(STEPS)
    steps = np.sqrt(np.diff(STEPS, prepend=0))[:, None]
    simulated = np.cumsum(steps * rng.standard_normal((8, 200_000)), axis=0)
    assert weights.explained(simulated @ simulated.T) == pytest.approx(walk, abs=0.01)


def test_direction_is_the_cosine(scan: Scan) -> None:
    origins, from_first, from_half = weights.direction(scan)
    assert origins == [80, 100, 120, 160, 200]
    from safetensors.numpy import load_file

    models = {
        step: np.concatenate(
            [
                tensor.ravel().astype(np.float64)
                for tensor in load_file(Path(scan.checkpoints[place].path, "model.safetensors")).values()
            ]
        )
        for place, step in enumerate(scan.steps)
    }

    def cosine(base: int, last: int) -> float:
        past, future = models[last] - models[base], models[400] - models[last]
        return float(past @ future / np.linalg.norm(past) / np.linalg.norm(future))

    assert from_first == pytest.approx([cosine(0, last) for last in origins], abs=1e-8)
    assert from_half[-1] == pytest.approx(cosine(100, 200), abs=1e-8)
    assert from_half[0] == pytest.approx(cosine(40, 80), abs=1e-8)


def test_heat_map_cells(scan: Scan) -> None:
    kinds, layers, values = weights.heat_map(scan)
    assert layers == ["–", "0", "1", "2"]
    row = scan.tensors.index("model.layers.1.self_attn.q_proj.weight")
    assert values[kinds.index("q_proj"), 2] == scan.linearity([row]).median
    assert np.isnan(values[kinds.index("q_proj"), 0])
    assert values[kinds.index("lm_head"), 0] == scan.linearity([scan.tensors.index("lm_head.weight")]).median


def test_walk_histogram_is_the_scans_yardstick() -> None:
    shares, walk = weights.walk_shares(STEPS), random_walk(STEPS)
    assert shares.sum() == pytest.approx(1)
    assert shares[28:].sum() == pytest.approx(walk.share_linear, abs=0.01)


def test_accuracy_joins_files(results: list[Path]) -> None:
    (accuracy,) = collect_accuracy({path: EvaluationTable.load(path) for path in results})
    assert [(point.label, point.step) for point in accuracy.points] == [
        ("base", 0),
        ("last", 200),
        ("target", 400),
        ("prediction", 400),
    ]
    assert [point.label for point in accuracy.predicted] == ["prediction"]


def test_accuracy_measured_differently(results: list[Path], tmp_path: Path, scan_file: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(results[0].read_text().replace("a" * 64, "b" * 64))
    with pytest.raises(EvaluationError, match=r"other.json and .*a.json: measured radd"):
        api.report(scan_file, evaluations=[results[0], other], out=tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_errors(short_scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReferenceNotFound, match=r"no such file; make it with `hubextrap scan`"):
        api.report(tmp_path / "none.safetensors", out=tmp_path / "a.html")
    with pytest.raises(OutputError, match=r"cannot be written: .* --out or --png"):
        api.report(short_scan_file, out=tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HubExtrapError, match=r"needs matplotlib: .*hubextrap\[report\]"):
        api.report(short_scan_file, out=tmp_path / "a.html")
