"""Scans of a sample as files: they grow with the run, lose nothing, and spare reading the sample again."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import Lines

from hubextrap import LogProbRequest, api
from hubextrap.api.grid import point_of
from hubextrap.errors import HubExtrapError, OutputError, RecipeError
from hubextrap.localhub import LocalHub
from hubextrap.logits import recipe_mixture
from hubextrap.opening import ReadingOptions
from hubextrap.recipe import Recipe, parse_recipe
from hubextrap.scans import Scan
from hubextrap.tensors import LocalSource
from hubextrap.trajectory import TrajectoryOptions, find_trajectory

DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
STEPS = (0, 40, 80, 100, 120)
SIZE = 256


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for step in STEPS:
        shutil.copytree(DEMO / f"step_{step}", folder / f"step_{step}")
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes of tensors that are read of each checkpoint."""
    plain, found = LocalSource.read, Counter[str]()

    def counted(self: LocalSource, file: str, offset: int, buffer: memoryview) -> None:
        if file.endswith(".safetensors") and offset > 0:
            found[self.folder.name] += buffer.nbytes
        plain(self, file, offset, buffer)

    monkeypatch.setattr(LocalSource, "read", counted)
    return found


def sampled(run: Path, out: Path, *steps: int, sample: Any = SIZE, **how: Any) -> Scan:
    return api.scan(str(run), out=out, sample=sample, options=TrajectoryOptions(steps=steps or None), **how)


@pytest.mark.parametrize("first", [(0, 40), (40, 120), (80, 100, 120), (0, 120)])
def test_a_grown_run_costs_its_new_checkpoints_and_gives_the_file_of_the_whole(
    first: tuple[int, ...], run: Path, tmp_path: Path, read: Counter[str]
) -> None:
    grown, whole = tmp_path / "grown.safetensors", tmp_path / "whole.safetensors"
    sampled(run, grown, *first)
    assert set(read) == {f"step_{step}" for step in first}
    read.clear()
    found = sampled(run, grown, sample="auto")
    assert set(read) == {f"step_{step}" for step in set(STEPS) - set(first)}
    assert found.steps == STEPS
    sampled(run, whole)
    assert grown.read_bytes() == whole.read_bytes()
    read.clear()
    lines = Lines()
    sampled(run, grown, progress=lines)
    assert not read
    assert "holds a scan of these checkpoints already" in "\n".join(lines.said)


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (lambda run: shutil.copytree(run / "step_0", run / "step_40", dirs_exist_ok=True), 40),
        (lambda run: shutil.rmtree(run / "step_80"), 80),
    ],
    ids=["changed", "gone"],
)
def test_a_checkpoint_that_is_not_what_it_was_is_named(
    change: Callable[[Path], object], step: int, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    sampled(run, out, 0, 40, 80)
    before = out.read_bytes()
    change(run)
    with pytest.raises(OutputError, match=rf"of other checkpoints.*\(step {step} differs\)"):
        sampled(run, out)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("held", "asked", "said"),
    [
        (
            SIZE,
            512,
            "holds a sample of 256 weights per tensor, and there is room for one; leave --sample out",
        ),
        (SIZE, "exact", "holds a sample of 256 weights per tensor, .* leave --exact out to go on with it"),
        ("exact", SIZE, "holds a scan of all weights, which says more than a sample; leave --sample out"),
    ],
)
def test_a_file_holds_one_thing(held: Any, asked: Any, said: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    sampled(run, out, 0, 40, 80, sample=held)
    before = out.read_bytes()
    with pytest.raises(OutputError, match=f"{said}.*, or choose another --out"):
        sampled(run, out, 0, 40, 80, sample=asked)
    assert out.read_bytes() == before
    sampled(run, out, 0, 40, 80, sample="auto")  # what the message says works
    assert out.read_bytes() == before


def test_a_stop_leaves_the_file_as_it_was(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "s.safetensors"
    sampled(run, out, 0, 40, 80)
    before, plain = out.read_bytes(), LocalSource.read

    def stopped(self: LocalSource, file: str, offset: int, buffer: memoryview) -> None:
        if self.folder.name == "step_120" and offset > 0:
            raise KeyboardInterrupt
        plain(self, file, offset, buffer)

    monkeypatch.setattr(LocalSource, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        sampled(run, out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path != run] == [out.name]
    monkeypatch.undo()
    assert sampled(run, out).steps == STEPS


def test_shares_and_clusters_go_with_all_weights(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--reference-share draws from all weights.* give --exact too"):
        sampled(run, tmp_path / "s", reference_share=0.5)
    sampled(run, tmp_path / "s")
    with pytest.raises(RecipeError, match="a sample of 256 per tensor reads few of them"):
        sampled(run, tmp_path / "s", sample="auto", reference_share=0.5)
    with pytest.raises(RecipeError, match="--executor ray: a sample needs no cluster"):
        sampled(run, tmp_path / "t", settings=ReadingOptions(executor="ray"))


@pytest.mark.slow
def test_log_probabilities_are_of_all_checkpoints_or_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, prompts = tmp_path / "s.safetensors", tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "1+1=", "response": "2"}\n')
    sampled(run, out, 0, 40, logprobs=LogProbRequest(prompts))
    before = out.read_bytes()
    with pytest.raises(
        OutputError, match=r"under its 2 checkpoints, not.* give --logprobs p\.jsonl to score them"
    ):
        sampled(run, out, 0, 40, 80)
    assert out.read_bytes() == before
    with monkeypatch.context() as stopping:  # what is there stays until all is known
        stopping.setattr("hubextrap.api.scanning.measure_logprobs", _stop)
        with pytest.raises(KeyboardInterrupt):
            sampled(run, out, 0, 40, 80, logprobs=LogProbRequest(prompts))
    assert out.read_bytes() == before
    found = sampled(run, out, 0, 40, 80, logprobs=LogProbRequest(prompts))
    assert found.logprobs is not None
    assert found.logprobs.values.shape[1] == 3
    there = Scan.load(out).logprobs
    assert there is not None
    assert np.array_equal(there.values, found.logprobs.values)


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def recipe_of(run: Path, fit: object, method: str = "calibrated", **more: object) -> Recipe:
    content = {
        "trajectory": {"repo": str(run)},
        "merge_method": method,
        "parameters": {"target_step": 140, **({"fit": fit} if fit else {}), **more},
    }
    return parse_recipe(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("held", "fit", "said"),
    [
        (SIZE, None, r"write fit: \{sample: 256\} under its parameters, .* hubextrap scan RECIPE --exact"),
        (
            SIZE,
            {"sample": 512},
            r"write fit: \{sample: 256\} .* hubextrap scan RECIPE --sample 512 --out FILE",
        ),
        ("exact", {"sample": 512}, r"leave fit out .* hubextrap scan RECIPE --sample 512 --out FILE"),
    ],
)
def test_a_scan_of_other_weights_is_refused(
    held: Any, fit: object, said: str, run: Path, tmp_path: Path
) -> None:
    scan = sampled(run, tmp_path / "s.safetensors", sample=held)
    for given in (scan, tmp_path / "s.safetensors"):
        with pytest.raises(RecipeError, match=said):
            api.plan(recipe_of(run, fit), scan=given)
    with (
        api.Run.of(recipe_of(run, None, "two_point"), scan=scan) as opened,
        pytest.raises(RecipeError, match=said),
    ):
        api.merge(recipe_of(run, fit), out=tmp_path / "o", run=opened)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_a_recipe_that_fits_to_a_sample_gives_the_same_from_its_scan_and_from_a_longer_one(
    run: Path, tmp_path: Path, read: Counter[str]
) -> None:
    whole = sampled(run, tmp_path / "s.safetensors")
    recipe = recipe_of(run, {"sample": SIZE}, max_expected_error=2.0)
    shorter = recipe.model_copy(
        update={
            "trajectory": recipe.trajectory.model_copy(
                update={"steps": recipe.trajectory.steps.model_copy(update={"max": 100})}
            )
        }
    )
    for number, each in enumerate((recipe, parse_recipe(shorter.to_yaml()))):
        api.merge(each, out=tmp_path / f"read{number}")
        read.clear()
        api.merge(each, out=tmp_path / f"given{number}", scan=whole)
        assert contents(tmp_path / f"read{number}") == contents(tmp_path / f"given{number}")
        weights = (run / "step_0" / "model.safetensors").stat().st_size
        assert all(count < weights for count in read.values())  # once each, for the merge
    api.merge(recipe_of(run, None, max_expected_error=2.0), out=tmp_path / "exact")
    exact, given = (tmp_path / name / "model.safetensors" for name in ("exact", "given0"))
    assert exact.read_bytes() != given.read_bytes()


def test_plans_mixtures_and_grids_fit_to_the_sample(run: Path, read: Counter[str]) -> None:
    recipe = recipe_of(run, {"sample": SIZE})
    report, lines = api.plan(recipe), Lines()
    assert [note for note in report.notes if note.startswith("256 weights of each tensor of all checkpoints")]
    read.clear()
    logits = recipe.model_copy(update={"space": "logits"})
    with api.Run.of(logits, progress=lines) as opened:
        mixture = recipe_mixture(logits, run=opened)
    weights = sum((run / f"step_{step}" / "model.safetensors").stat().st_size for step in STEPS)
    assert sum(read.values()) < weights
    said = "\n".join(lines.said)
    assert "reading a sample of every checkpoint: the coefficients follow from the weights" in said
    assert re.search(r"a sample of 256 weights per tensor: [\d.]+ of 10\.0 MB in \d+ reads of 5 checkp", said)
    exact = recipe_of(run, None).model_copy(update={"space": "logits"})
    assert mixture != recipe_mixture(exact)
    keys = set()
    with api.Run.of(recipe) as opened:
        for each in (recipe, recipe_of(run, {"sample": 512}), recipe_of(run, None)):
            keys.add(point_of(each, opened, ["a"] * len(STEPS), "measured with").key)
    assert len(keys) == 3


def test_a_recipe_that_needs_no_weights_takes_either(run: Path, tmp_path: Path) -> None:
    errors = set()
    for sample in (SIZE, "exact"):
        scan = sampled(run, tmp_path / f"{sample}.safetensors", sample=sample)
        report = api.plan(recipe_of(run, None, "late_lines"), scan=scan)
        errors.add(report.expected_relative_errors[0])
    assert None not in errors
    assert len(errors) == 2
    assert max(errors) < 1.1 * min(errors)


@pytest.mark.parametrize("command", [api.backtest, api.report, lambda run, **how: api.predict(run, **how)])
def test_a_wrong_sample_is_told(command: Callable[..., object], run: Path) -> None:
    for wrong, said in ((63, "must be from 64 to"), (0.001, "reference_share"), ("all", '"auto" or "exact"')):
        with pytest.raises(HubExtrapError, match=said):
            command(str(run), sample=wrong)


def test_folders_of_one_branch_have_another_commit_after_each_push_and_are_known_by_their_weights(
    run: Path, hub: LocalHub, repo_id: str, logged_in: str, tmp_path: Path
) -> None:
    hub.create_repo(repo_id)
    whole, grown = tmp_path / "whole.safetensors", tmp_path / "grown.safetensors"
    for step in STEPS:
        files = {f"step_{step}/{file.name}": file for file in (run / f"step_{step}").iterdir()}
        hub.commit(repo_id, files)
        if step == 80:
            sampled(Path(repo_id), grown)
    hub.requests.clear()
    found = sampled(Path(repo_id), grown)
    read = {request.path.rpartition("/step_")[2] for request in hub.requests if "/resolve/" in request.path}
    assert read == {"100/model.safetensors", "120/model.safetensors", *not_weights(read)}
    assert found.steps == STEPS
    sampled(Path(repo_id), whole)
    assert grown.read_bytes() == whole.read_bytes()
    hub.commit(repo_id, {"step_40/model.safetensors": run / "step_80" / "model.safetensors"})
    with pytest.raises(OutputError, match=r"of other checkpoints.*\(step 40 differs\)"):
        sampled(Path(repo_id), grown)


def not_weights(paths: set[str]) -> set[str]:
    return {path for path in paths if not path.endswith(".safetensors")}


def test_a_sample_larger_than_any_tensor_stays_what_it_is(tmp_path: Path) -> None:
    """What is asked for, not what small tensors have: a recipe from its backtest goes with its scan."""
    size, steps = 40_000, TrajectoryOptions(max_step=200)
    trajectory = find_trajectory(str(DEMO), steps)
    scan = api.scan(trajectory, sample=size)
    found = api.backtest(scan)
    assert scan.sampled == found.sampled == size
    draft = api.Draft.of_reference(str(DEMO), steps, trajectory, None)
    advised = api.advised_recipe(found, draft)
    assert advised is not None
    assert advised.fit_sample == size
    assert api.plan(advised, scan=scan).expected_relative_errors[0]
