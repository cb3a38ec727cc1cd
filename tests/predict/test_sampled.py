"""Predictions from a sample of the weights: the recipe says so, and makes the same bytes from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_lines import run_main
from harness import Lines
from kinds_of_runs import DEMO

from hubextrap import MergeOptions, api
from hubextrap.errors import RecipeError
from hubextrap.localhub import LocalHub
from hubextrap.recipe import load_recipe, parse_recipe
from hubextrap.trajectory import TrajectoryOptions

UP_TO_200 = TrajectoryOptions(max_step=200)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def on_the_hub(hub: LocalHub, repo_id: str) -> str:
    """The demo's run as branches."""
    hub.create_repo(repo_id)
    for folder in sorted(DEMO.glob("step_*")):
        hub.commit(repo_id, {file.name: file for file in folder.iterdir()}, revision=folder.name)
    hub.requests.clear()
    return repo_id


def weights(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def test_the_recipe_says_from_how_many_and_the_sample_is_read_once() -> None:
    lines = Lines()
    done = api.predict(DEMO, 400, options=UP_TO_200, out="p", sample=256, progress=lines)
    assert done.recipe is not None
    assert done.recipe.rules[0].needs_gram_matrix
    assert done.recipe.fit_sample == load_recipe("p.yaml").fit_sample == 256
    assert len([line for line in lines.said if "reading a sample" in line]) == 1
    assert not [line for line in lines.said if "every checkpoint once" in line]
    assert done.backtest is not None
    assert done.backtest.sampled == 256
    assert done.prediction is not None
    provenance = done.prediction.provenance
    assert provenance.parameters["fit"] == {"sample": 256}
    api.merge("p.yaml", out="again")
    assert weights("again") == weights("p")
    assert Path("again", "hubextrap.json").read_bytes() == Path("p", "hubextrap.json").read_bytes()
    assert api.verify("p").problems == ()
    exact = api.predict(DEMO, 400, options=UP_TO_200, out="q", sample="exact")
    assert exact.recipe is not None
    assert exact.recipe.fit_sample is None
    assert weights("q") != weights("p")


def test_locally_all_weights_are_the_default() -> None:
    done = api.predict(DEMO, 400, options=UP_TO_200, dry_run=True)
    assert done.recipe is not None
    assert "fit" not in done.recipe.text


@pytest.mark.slow
def test_folder_ranges_and_cache_give_the_same_bytes(on_the_hub: str) -> None:
    api.predict(DEMO, 400, options=UP_TO_200, out="local", sample=256)
    recipe = Path("local.yaml").read_text().replace(str(DEMO), on_the_hub)
    for name, settings in (("ranges", MergeOptions()), ("cache", MergeOptions(cache=True))):
        api.merge(parse_recipe(recipe), out=name, settings=settings)
        assert weights(name) == weights("local")
    api.predict(on_the_hub, 400, options=UP_TO_200, out="hub", sample=256)
    assert weights("hub") == weights("local")
    assert Path("hub.yaml").read_text() == recipe


def test_a_large_run_on_the_hub_is_sampled_of_its_own_accord(
    on_the_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(**how: Any) -> int | None:
        found = api.predict(on_the_hub, 400, options=UP_TO_200, dry_run=True, **how)
        assert found.recipe is not None
        return found.recipe.fit_sample

    assert fit() is None
    monkeypatch.setattr("hubextrap.sampling.LARGE", 10**6)
    assert fit() == 4096
    assert fit(sample="exact") is None
    assert fit(settings=MergeOptions(cache=True)) is None


def test_a_scan_of_a_sample_says_what_to_fit_to() -> None:
    api.scan(DEMO, out="s.safetensors", sample=256)
    lines = Lines()
    done = api.predict(DEMO, 400, options=UP_TO_200, out="p", scan="s.safetensors", progress=lines)
    assert done.recipe is not None
    assert done.recipe.fit_sample == 256
    assert not [line for line in lines.said if line.startswith("reading ")]
    api.predict(DEMO, 400, options=UP_TO_200, out="q", sample=256)
    assert weights("q") == weights("p")
    with pytest.raises(RecipeError, match=r"--sample 256 \(sample\) has no effect on a scan"):
        api.predict(DEMO, 400, dry_run=True, scan="s.safetensors", sample=256)
    with pytest.raises(RecipeError, match=r"--exact \(sample\) has no effect on a scan"):
        api.predict(DEMO, 400, dry_run=True, scan="s.safetensors", sample="exact")


def test_a_backtest_s_recipe_says_it_too() -> None:
    run = str(DEMO)
    line = ("backtest", run, "--sample", "256", "--json", "-q", "--write-recipe")
    assert run_main(*line, "b.yaml").code == 0
    assert run_main("scan", run, "--sample", "256", "--out", "s.safetensors", "-q").code == 0
    ended = run_main("backtest", "s.safetensors", "--json", "-q", "--write-recipe", "c.yaml")
    assert ended.code == 0, ended
    for file in ("b.yaml", "c.yaml"):
        recipe = load_recipe(file)
        needs = any(rule.needs_gram_matrix for rule in recipe.rules)
        assert recipe.fit_sample == (256 if needs else None)
    said = json.loads(ended.out)
    assert said["recipe"] == Path("c.yaml").read_text()
    assert said["sampled"] == 256


@pytest.mark.parametrize("option", [["--sample", "256"], ["--exact"]])
@pytest.mark.parametrize("command", ["backtest", "predict", "report", "scan"])
def test_json_says_how_many_weights_were_looked_at(command: str, option: list[str]) -> None:
    own = {"predict": ["--dry-run"], "scan": ["--out", "s.safetensors"], "report": ["--out", "r.html"]}
    line = [command, str(DEMO), *option, *own.get(command, []), "--max-step", "120", "--json", "-q"]
    ended = run_main(*line)
    assert ended.code == 0, ended
    assert json.loads(ended.out).get("sampled") == (256 if option[0] == "--sample" else None)
