"""The recipes that come with hubextrap: each is valid, listed and copied; the command says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hubextrap.errors import OutputError, RecipeError
from hubextrap.recipe import (
    bundled_names,
    copy_shipped,
    load_recipe,
    load_reground_recipe,
    load_watch_recipe,
    shipped,
    shipped_recipes,
)
from hubextrap.trajectory import find_trajectory

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "merge_configs").glob("*.yaml"))
REGROUND = [path for path in FILES if path.stem.startswith("reground_")]
WATCH = [path for path in FILES if path.stem == "watch"]
MERGE = [path for path in FILES if path not in (*REGROUND, *WATCH)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_recipe_is_valid_and_says_what_it_is(path: Path) -> None:
    if path in REGROUND:
        assert load_reground_recipe(path).reground.window
    elif path in WATCH:
        assert load_watch_recipe(path).watch.predict
    else:
        assert load_recipe(path).target_steps
    first = path.read_text().partition("\n")[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("path", MERGE, ids=lambda path: path.stem)
def test_those_on_bundled_data_have_the_steps_they_need(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path)
    repo = (recipe.trajectory.repo or "").replace("demo/rlvr-C", "demo/data/rlvr-C")
    if not repo.startswith("demo/data"):
        return
    chosen = recipe.trajectory.steps
    trajectory = find_trajectory(repo, pattern=chosen.pattern, max_step=chosen.max)
    for rule in recipe.rules:
        rule.check(trajectory.steps, recipe.target_steps)


def test_public_trajectories_are_among_them() -> None:
    repos = {load_recipe(path).trajectory.repo for path in MERGE}
    assert repos >= {
        "relex-rlvr/RLVR-Qwen2.5-Math-1.5B",
        "relex-rlvr/RLVR-Qwen3-4B-Base",
        "Miaow-Lab/RLVR-Linearity-Checkpoints",
        "arkilpatel/olmo2-1b-traj-s1-252b",
    }


def test_each_command_says_whose_recipe_it_was_given() -> None:
    mergeable, trainable = (ROOT / "merge_configs" / f"{name}.yaml" for name in ("two_point", "reground_trl"))
    with pytest.raises(RecipeError, match="no reground section") as caught:
        load_reground_recipe(mergeable)
    assert caught.value.file == str(mergeable)
    with pytest.raises(RecipeError, match="for `hubextrap reground`") as caught:
        load_recipe(trainable)
    assert caught.value.file == str(trainable)


def test_listing_holds_every_file() -> None:
    assert [recipe.path for recipe in shipped_recipes()] == FILES
    assert {recipe.name for recipe in shipped_recipes()} >= {"demo", "two_point", "least_squares"}


def test_in_a_wheel_they_lie_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "hubextrap"
    (package / "merge_configs").mkdir(parents=True)
    (package / "merge_configs" / "only.yaml").write_text("# The only one.\n")
    monkeypatch.setattr(shipped, "__file__", str(package / "recipe" / "shipped.py"))
    assert [(recipe.name, recipe.summary) for recipe in shipped_recipes()] == [("only", "The only one.")]
    (package / "merge_configs" / "only.yaml").unlink()
    (package / "merge_configs").rmdir()
    with pytest.raises(RecipeError, match="are not installed; reinstall it"):
        shipped_recipes()


def test_copies_are_new_files(tmp_path: Path) -> None:
    original = (ROOT / "merge_configs" / "two_point.yaml").read_text()
    assert copy_shipped("two_point", tmp_path) == tmp_path / "two_point.yaml"
    assert copy_shipped("two_point.yaml", tmp_path / "mine.yaml") == tmp_path / "mine.yaml"
    assert (tmp_path / "two_point.yaml").read_text() == (tmp_path / "mine.yaml").read_text() == original
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(OutputError, match="is there already") as caught:
        copy_shipped("two_point", tmp_path / "mine.yaml")
    assert caught.value.file == str(tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    with pytest.raises(OutputError, match="cannot be written"):
        copy_shipped("two_point", tmp_path / "none" / "x.yaml")
    with pytest.raises(RecipeError, match=r"did you mean two_point\?"):
        copy_shipped("two_pint", tmp_path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_only_the_sources_have_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert bundled_names(path) == {}
    monkeypatch.chdir(tmp_path)
    found = bundled_names(path)
    lines = path.read_text().splitlines()
    assert all(name in lines[number - 1].partition("#")[0] for name, number in found.items())
    read = "".join(line.partition("#")[0] for line in lines)
    assert {name.partition("/")[0] for name in found} == ({"demo"} if "demo/" in read else set())


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = "from hubextrap.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "recipes", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    listed = run("ls", cwd=tmp_path)
    assert listed.returncode == 0
    assert any(line.startswith("demo ") for line in listed.stdout.splitlines())
    copied = run("cp", "two_point", cwd=tmp_path)
    assert copied.stdout == "two_point.yaml\n"
    assert "not here: demo/data/rlvr-C (line 7)." in copied.stderr
    assert run("validate", "two_point.yaml", cwd=tmp_path).stdout == "two_point.yaml: ok\n"
    again = run("cp", "two_point", cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr.startswith("error: two_point.yaml is there already;")


def test_validate_shows_all_problems_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "merge_method: two_point\nparameters: {target_step: x}\ntrajectory: {repo: a/b}\n"
    )
    (tmp_path / "b.yaml").write_text("a: [\n")
    run("cp", "two_point", "good.yaml", cwd=tmp_path)
    result = run("validate", "a.yaml", "b.yaml", "good.yaml", "c.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    first, second, third = result.stderr.splitlines()
    assert first.startswith("error: a.yaml:2: parameters.target_step[0]: ")
    assert second.startswith("b.yaml:2: not valid YAML: ")
    assert third.startswith("c.yaml: no such file; ")
