"""A scan in the place of a pass over the weights: the same bytes come out, and each weight is read once."""

from __future__ import annotations

import ast
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import Lines

import hubextrap
from hubextrap import api
from hubextrap.engine import scan_plan
from hubextrap.engine.comparison import compare
from hubextrap.engine.scan import scan_trajectory
from hubextrap.errors import CheckpointMismatch, RecipeError, SourceError
from hubextrap.logits import recipe_mixture
from hubextrap.recipe import Recipe, parse_recipe
from hubextrap.scans import Scan
from hubextrap.statistics import GramTable
from hubextrap.statistics.linearity import BINS
from hubextrap.tensors import LocalSource

DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
STEPS = (0, 40, 80, 100, 120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scanned") / "run"
    for step in (*STEPS, 160):
        shutil.copytree(DEMO / f"step_{step}", folder / f"step_{step}")
    return folder


def recipe_of(run: Path, until: int = 120, **sections: Any) -> Recipe:
    content: dict[str, Any] = {
        "trajectory": {"repo": str(run), "steps": {"max": until}},
        "merge_method": "calibrated",
        "parameters": {"target_step": 140, "max_expected_error": 2.0},
    }
    return parse_recipe(yaml.safe_dump(content | sections))


@pytest.fixture(scope="module")
def scan_file(run: Path) -> Path:
    path = run.parent / "run.safetensors"
    api.scan(recipe_of(run), out=path)
    return path


@pytest.fixture(scope="module")
def merged(run: Path) -> dict[str, bytes]:
    """What a merge without a scan writes."""
    api.merge(recipe_of(run), out=run.parent / "merged")
    return contents(run.parent / "merged")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes of tensors that sources read of each checkpoint; headers are read from offset 0 on."""
    read, found = LocalSource.read, Counter[str]()

    def counted(self: LocalSource, file: str, offset: int, buffer: memoryview) -> None:
        if file.endswith(".safetensors") and offset > 0:
            found[self.folder.name] += buffer.nbytes
        read(self, file, offset, buffer)

    monkeypatch.setattr(LocalSource, "read", counted)
    return found


def weights(run: Path) -> dict[str, int]:
    found = {}
    for step in STEPS:
        file = run / f"step_{step}" / "model.safetensors"
        found[file.parent.name] = file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
    return found


@pytest.mark.parametrize("how", ["object", "file", "mergekit", "run"])
def test_with_a_scan_each_weight_is_read_once_and_the_same_comes_out(
    how: str,
    run: Path,
    scan_file: Path,
    merged: dict[str, bytes],
    bytes_read: Counter[str],
    tmp_path: Path,
) -> None:
    recipe, lines = recipe_of(run), Lines()
    if how == "run":
        api.run(recipe, out=tmp_path / "out", scan=scan_file, progress=lines)
    else:
        if how == "mergekit":
            recipe = mergekit_form(run)
        scan = Scan.load(scan_file) if how == "object" else scan_file
        api.merge(recipe, out=tmp_path / "out", scan=scan, progress=lines)
    made = contents(tmp_path / "out")
    assert made["model.safetensors"] == merged["model.safetensors"]
    if how != "mergekit":  # its card and provenance quote another recipe
        assert made == merged
    assert bytes_read == weights(run)
    assert not [line for line in lines.said if "reading every checkpoint" in line]


def mergekit_form(run: Path) -> Recipe:
    models = [{"model": str(run / f"step_{step}"), "parameters": {"step": step}} for step in STEPS]
    parameters = {"target_step": 140, "max_expected_error": 2.0}
    content = {"models": models, "merge_method": "calibrated", "parameters": parameters}
    return parse_recipe(yaml.safe_dump(content | {"dtype": "float32"}))


def test_without_one_it_is_read_twice(run: Path, bytes_read: Counter[str], tmp_path: Path) -> None:
    """So the counter above counts."""
    api.merge(recipe_of(run), out=tmp_path / "out")
    assert bytes_read == {name: 2 * size for name, size in weights(run).items()}


def test_a_plan_and_a_mixture_read_no_weight(run: Path, scan_file: Path, bytes_read: Counter[str]) -> None:
    report = api.plan(recipe_of(run), scan=scan_file)
    assert report.problems == ()
    assert report.expected_relative_errors[0] is not None
    assert not [note for note in report.notes if "are read once more before the merge" in note]
    mixed = recipe_of(run, space="logits", parameters={"target_step": 140})
    with api.Run.of(mixed, scan=scan_file) as opened:
        fast = recipe_mixture(mixed, run=opened)
    assert not bytes_read
    assert fast == recipe_mixture(mixed)


def test_one_run_for_a_plan_and_a_merge_is_scanned_once(
    run: Path, merged: dict[str, bytes], bytes_read: Counter[str], tmp_path: Path
) -> None:
    recipe, lines = recipe_of(run), Lines()
    with api.Run.of(recipe, progress=lines) as opened:
        assert api.plan(recipe, run=opened).expected_relative_errors == (None,)
        api.merge(recipe, out=tmp_path / "a", run=opened)
        api.merge(recipe, out=tmp_path / "b", run=opened)
        assert api.plan(recipe, run=opened).expected_relative_errors != (None,)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == merged
    assert sum("reading every checkpoint once" in line for line in lines.said) == 1
    assert bytes_read == {name: 3 * size for name, size in weights(run).items()}


def test_a_later_write_to_an_open_run_is_noticed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = recipe_of(tmp_path / "run")
    with api.Run.of(recipe) as opened:
        api.plan(recipe, run=opened)
        shutil.copy(run / "step_40" / "model.safetensors", tmp_path / "run" / "step_80")
        with pytest.raises(SourceError, match="changed while"):
            api.merge(recipe, out=tmp_path / "out", run=opened)


def test_a_scan_that_goes_on_after_the_last_checkpoint(
    run: Path, merged: dict[str, bytes], tmp_path: Path
) -> None:
    """Its matrices are sums of moves from the first checkpoint on: its first rows are a shorter one's."""
    longer, shorter = (api.scan(recipe_of(run, until=until)).gram_table for until in (160, 120))
    assert longer.gram[:, : len(STEPS), : len(STEPS)].tobytes() == shorter.gram.tobytes()
    api.scan(recipe_of(run, until=160), out=tmp_path / "long.safetensors")
    api.merge(recipe_of(run), out=tmp_path / "out", scan=tmp_path / "long.safetensors")
    assert contents(tmp_path / "out") == merged


@pytest.mark.parametrize("count", range(2, 20))
def test_the_first_rows_do_not_depend_on_what_follows(count: int, tmp_path: Path) -> None:
    from hubextrap.statistics.elements import BlockScanner

    generator = np.random.default_rng(count)
    rows = list(generator.normal(size=(20, 3000)).astype(np.float32).cumsum(axis=0))
    whole = BlockScanner(range(20)).scan(rows, np.zeros(BINS + 3, np.int64))
    part = BlockScanner(range(count)).scan(rows[:count], np.zeros(BINS + 3, np.int64))
    assert whole is not None
    assert part is not None
    assert np.ascontiguousarray(whole[:, :count, :count]).tobytes() == part.tobytes()


def test_a_scan_of_other_checkpoints_is_refused_with_the_way_out(
    run: Path, scan_file: Path, tmp_path: Path
) -> None:
    def refused(recipe: Recipe, scan: Path) -> CheckpointMismatch:
        for command in (api.plan, api.run, api.merge):
            given = {"out": tmp_path / "out", "scan": scan}
            with pytest.raises(CheckpointMismatch) as caught:
                command(recipe, **given)  # type: ignore[operator]
            assert caught.value.file == str(scan)
        assert not (tmp_path / "out").exists()
        return caught.value

    error = refused(recipe_of(run, until=160), scan_file)
    assert error.step == 160
    assert "no step 160" in str(error)
    error = refused(recipe_of(run, trajectory={"repo": str(run), "steps": {"only": [0, 40, 100]}}), scan_file)
    assert error.step == 80
    shutil.copytree(run, tmp_path / "run")
    error = refused(recipe_of(tmp_path / "run"), scan_file)
    assert error.step == 0
    assert "hubextrap scan RECIPE --out FILE" in str(error)
    again = tmp_path / "again.safetensors"
    api.scan(recipe_of(tmp_path / "run"), out=again)
    assert api.plan(recipe_of(tmp_path / "run"), scan=again).problems == ()


def test_a_scan_that_lacks_a_tensor_decides_nothing(run: Path, scan_file: Path, tmp_path: Path) -> None:
    scan = Scan.load(scan_file)
    table = scan.gram_table
    kept = GramTable(table.steps, table.tensors[1:], table.elements[1:], table.gram[1:])
    with pytest.raises(CheckpointMismatch) as caught:
        api.merge(recipe_of(run), out=tmp_path / "out", scan=replace(scan, gram_table=kept))
    assert caught.value.tensor == table.tensors[0]
    assert not (tmp_path / "out").exists()


def test_a_scan_says_what_to_expect_of_any_method(run: Path, scan_file: Path, tmp_path: Path) -> None:
    plain = recipe_of(run, merge_method="two_point", parameters={"target_step": 140})
    (unknown,) = api.merge(plain, out=tmp_path / "unknown").predictions
    (known,) = api.merge(plain, out=tmp_path / "known", scan=scan_file).predictions
    assert unknown.provenance.expected_relative_error is unknown.provenance.trusted is None
    assert "--scan FILE" in unknown.notes[0]
    assert known.provenance.expected_relative_error is not None
    assert known.provenance.trusted is None  # so few checkpoints
    assert "too few rehearsals to judge: only 2" in known.notes[0]
    with_scan, without = (contents(tmp_path / name)["model.safetensors"] for name in ("known", "unknown"))
    assert with_scan == without


def test_a_scan_that_nothing_needs_is_refused(run: Path, scan_file: Path, tmp_path: Path) -> None:
    section = {"task_files": str(tmp_path / "problems.jsonl")}
    parameters = {"target_step": 140}
    mixed = recipe_of(run, merge_method="two_point", parameters=parameters, space="logits", evaluate=section)
    with pytest.raises(RecipeError, match=r"--scan: .* has no effect"):
        api.plan(mixed, scan=scan_file)
    plain = recipe_of(run, merge_method="two_point", parameters=parameters)
    with api.Run.of(plain) as opened, pytest.raises(RecipeError, match="no effect on a run that is open"):
        api.merge(plain, out=tmp_path / "out", run=opened, settings=api.MergeOptions(workers=1))


def test_the_commands_take_a_file(
    run: Path, scan_file: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_of(run).to_yaml())
    planned = cli("plan", recipe, "--scan", scan_file)
    assert (planned.code, "are read once more" in planned.out) == (0, False)
    assert cli("merge", recipe, "--out", tmp_path / "a", "--scan", scan_file).code == 0
    assert cli("run", recipe, "--out", tmp_path / "b", "--scan", scan_file).code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_merge_plans_its_scan_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def noted(*args: Any, **options: Any) -> Any:
        planned.append(args)
        return compare(*args, **options)

    monkeypatch.setattr(scan_plan, "compare", noted)
    api.merge(recipe_of(run), out=tmp_path / "out")
    assert len(planned) == 1


def test_the_old_name_of_the_options_still_works() -> None:
    for module in (hubextrap, api):
        with pytest.warns(DeprecationWarning, match="MergeOptions") as caught:
            assert module.Settings is api.MergeOptions
        assert caught[0].filename == __file__, "else python does not show it"


def test_runs_are_looked_for_in_one_place() -> None:
    package = Path(hubextrap.__file__).parent
    callers = {
        (name.id, path.relative_to(package).as_posix())
        for path in package.rglob("*.py")
        for name in ast.walk(ast.parse(path.read_text()))
        if isinstance(name, ast.Name) and name.id in ("find_recipe_trajectory", scan_trajectory.__name__)
    }
    assert callers == {("find_recipe_trajectory", "opening.py"), ("scan_trajectory", "opening.py")}
