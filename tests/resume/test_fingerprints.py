"""What a stopped run was made for: a change of any part of it, and of that alone, begins anew."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from harness import Lines, scan_stopped_after

import hubextrap
from hubextrap import api
from hubextrap.errors import OutputError
from hubextrap.localhub import LocalHub
from hubextrap.trajectory import find_trajectory

Recipe = Callable[..., Path]
PARTS = {
    "the journal's format",
    "the recipe",
    "the checkpoint of step 0",
    "the checkpoint of step 10",
    "the coefficients",
    "the output's files",
    "--allow-non-finite",
    "the version of hubextrap",
    "the version of numba",
}
"""As docs/resume.md lists them."""


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture
def stopped(run: Path, recipe_file: Recipe, full_disk: Callable[[], AbstractContextManager[None]]) -> Path:
    """The recipe of a merge into ``out`` beside it that was stopped half-way."""
    recipe = recipe_file(run)
    with full_disk(), pytest.raises(OutputError, match="no room"):
        hubextrap.merge(hubextrap.load_recipe(recipe), out=recipe.parent / "out")
    return recipe


def changed(recipe: Path, **options: Any) -> set[str]:
    """What the same command says has changed; empty where it resumes."""
    lines = Lines()
    hubextrap.merge(hubextrap.load_recipe(recipe), out=recipe.parent / "out", progress=lines, **options)
    if lines.said and lines.said[0].startswith("resuming: 6 of 12"):
        return set()
    (line,) = [line for line in lines.said if "starting over, as " in line]
    said = line.partition("starting over, as ")[2].removesuffix(" changed since the run that was stopped")
    return set(said.replace(" and ", ", ").split(", "))


def other_version(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if another version of it were installed."""
    real = importlib.metadata.Distribution.version.fget
    assert real is not None

    def version(of: importlib.metadata.Distribution) -> str:
        return "0.0" if of.metadata["Name"] == package else str(real(of))

    monkeypatch.setattr(importlib.metadata.Distribution, "version", property(version))


def other_hubextrap(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "hubextrap" and "__version__" in vars(module):
            monkeypatch.setattr(module, "__version__", "0.0")


def test_the_parts_are_those_that_the_documentation_lists(stopped: Path) -> None:
    (journal,) = stopped.parent.glob(".out.partial/journal-0.jsonl")
    assert json.loads(journal.read_text().splitlines()[0])["fingerprint"].keys() == PARTS


def test_unchanged_it_resumes(stopped: Path) -> None:
    assert changed(stopped) == set()


def test_another_numba(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_version(monkeypatch, "numba")
    assert changed(stopped) == {"the version of numba"}


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_other_versions_are_no_change(package: str, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_version(monkeypatch, package)
    assert changed(stopped) == set()


def test_another_hubextrap(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_hubextrap(monkeypatch)
    assert changed(stopped) == {"the version of hubextrap"}


def test_results_that_are_not_finite_allowed(stopped: Path) -> None:
    assert changed(stopped, settings=hubextrap.MergeOptions(allow_non_finite=True)) == {"--allow-non-finite"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("target_step: 20", "target_step: 30", {"the recipe", "the coefficients"}),
        ("merge_method: two_point", "merge_method: least_squares", {"the recipe", "the coefficients"}),
        ("merge_method", "out_dtype: float32\nmerge_method", {"the recipe", "the output's files"}),
    ],
)
def test_another_recipe(stopped: Path, old: str, new: str, expected: set[str]) -> None:
    text = stopped.read_text()
    assert old in text
    stopped.write_text(text.replace(old, new))
    assert changed(stopped) == expected


@pytest.mark.parametrize("step", [0, 10])
def test_another_header_of_a_local_checkpoint(stopped: Path, run: Path, step: int) -> None:
    """The same tensors, in the same places, behind a header of the same length."""
    path = run / f"step_{step}" / "model-00003-of-00012.safetensors"
    content, old = path.read_bytes(), b'"dtype":"BF16","shape":[128,256]'
    assert old in content
    path.write_bytes(content.replace(old, b'"shape":[128,256],"dtype":"BF16"', 1))
    assert changed(stopped) == {f"the checkpoint of step {step}"}


def test_a_local_checkpoint_in_another_place(stopped: Path, run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    stopped.write_text(stopped.read_text().replace(str(run), str(moved)))
    assert changed(stopped) == {"the recipe", "the checkpoint of step 0", "the checkpoint of step 10"}


@pytest.mark.parametrize("what", ["the same commit", "another commit"])
def test_a_checkpoint_on_the_hub_counts_by_its_commit(
    what: str,
    hub: LocalHub,
    run_on_hub: str,
    recipe_file: Recipe,
    full_disk: Callable[[], AbstractContextManager[None]],
) -> None:
    recipe = recipe_file(run_on_hub)
    with full_disk(), pytest.raises(OutputError, match="no room"):
        hubextrap.merge(hubextrap.load_recipe(recipe), out=recipe.parent / "out")
    if what == "another commit":
        hub.commit(run_on_hub, {"notes.txt": b"of another commit"}, revision="step_10")
    assert changed(recipe) == ({"the checkpoint of step 10"} if what == "another commit" else set())


def stopped_scan(run: Path, out: Path, **options: Any) -> list[str]:
    """Stop a scan at its fifth tensor; what the same command says then, with ``options``."""
    with scan_stopped_after(5):
        api.scan(find_trajectory(str(run)), out=out)
    change = options.pop("change", lambda: None)
    change()
    lines = Lines()
    api.scan(find_trajectory(str(run)), out=out, progress=lines, **options)
    return [
        line.partition(": ")[2] for line in lines.said if "of the scan" in line or "the scan that" in line
    ]


def test_a_scan_begins_anew_for_each_part_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scan"
    said = "starting over, as {} changed since the scan that was stopped"
    assert stopped_scan(run, out) == ["going on after 5 tensors of the scan that was stopped"]
    out.unlink()
    assert stopped_scan(run, out, reference_share=0.5) == [said.format("--reference-share")]
    out.unlink()
    for change, part in (
        (lambda: other_version(monkeypatch, "numba"), "the version of numba"),
        (lambda: other_hubextrap(monkeypatch), "the version of hubextrap"),
    ):
        assert stopped_scan(run, out, change=change) == [said.format(part)]
        monkeypatch.undo()
        out.unlink()
