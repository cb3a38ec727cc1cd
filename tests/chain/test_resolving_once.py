"""A checkpoint that lands while a command runs takes no part in it, and every repo is looked at once."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubextrap import api
from hubextrap.api import chain
from hubextrap.errors import SourceError
from hubextrap.evaluation import Harness, compared_checkpoints
from hubextrap.hub import PushTarget
from hubextrap.localhub import LocalHub
from hubextrap.localhub.faults import Fault
from hubextrap.logits.completing import Sampling
from hubextrap.progress import SilentProgress, Stage
from hubextrap.recipe import load_recipe

pytestmark = pytest.mark.slow

SHA = "[0-9a-f]{40}"


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_no_garbage() -> None:
    """Garbage is collected after each measurement, and most of its time goes into looking at libraries."""
    import_module("hubextrap.evaluation.model")
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "problems.jsonl"
    lines = [json.dumps({"question": f"{n}+{n}=", "answer": str(2 * n)}) for n in range(4)]
    file.write_text("\n".join(lines))
    return file


def listings(hub: LocalHub, repo: str) -> list[str]:
    """Our requests that ask what is in ``repo`` now; what is asked of a commit is always answered alike.

    transformers 5.6 lists main whenever it loads a tokenizer, to find vocabularies of other names.
    """
    moving = rf"/api/models/{re.escape(repo)}(?:/refs|/(?:revision|commits|tree)/(?!{SHA}).*)?(?:\?.*)?"
    ours = [request for request in hub.requests if "hubextrap/" in request.headers.get("User-Agent", "")]
    return [request.path for request in ours if re.fullmatch(moving, request.path)]


class Landing:
    """As soon as the run was looked at, step 60 lands on the hub, and step 30 is trained anew."""

    def __init__(self, hub: LocalHub, repo: str, checkpoints: Path) -> None:
        self.repo = repo
        self._hub = hub
        self._weights = checkpoints

    @contextmanager
    def while_it_runs(self, landed: dict[str, str]) -> Iterator[None]:
        strike = self._hub.faults.strike

        def strike_and_land(method: str, path: str) -> Fault | None:
            if not landed and listings(self._hub, self.repo):
                for step, weights in ((30, 10), (60, 20)):
                    folder = self._weights / f"step_{weights}"
                    files = {file.name: file for file in folder.iterdir()}
                    landed[f"step_{step}"] = self._hub.commit(self.repo, files, revision=f"step_{step}")
            return strike(method, path)

        self._hub.requests.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._hub.faults, "strike", strike_and_land)
            yield

    def changes_nothing(self, command: Callable[[str], Any]) -> Any:
        """What a command gives when it is left alone; it gives the same when a checkpoint lands meanwhile."""
        alone = command("alone")
        landed: dict[str, str] = {}
        with self.while_it_runs(landed):
            disturbed = command("disturbed")
        assert landed
        assert disturbed == alone
        assert len(asked := listings(self._hub, self.repo)) == 1, asked
        return alone


@pytest.fixture
def landing(hub: LocalHub, checkpoints: Path, on_hub: Callable[..., str]) -> Landing:
    return Landing(hub, on_hub(checkpoints), checkpoints)


@pytest.fixture
def evaluated(recipe_file: Callable[..., Path], problems: Path) -> Callable[..., Path]:
    """A recipe that is evaluated on four problems."""

    def write(repo: str | Path, **sections: Any) -> Path:
        against = ["last", "target"] + ([f"{repo}@step_20"] if isinstance(repo, str) else [])
        section = {"task_files": [str(problems)], "max_tokens": 2, "batch_size": 4, "against": against}
        return recipe_file(repo, **{"evaluate": section, **sections})

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}


@pytest.mark.parametrize("command", ["steps", "steps --fast", "backtest", "plan", "plan --memory 1MB"])
def test_commands_that_print(
    command: str, cli: Callable[..., Any], landing: Landing, recipe_file: Callable[..., Path]
) -> None:
    verb, *options = command.split()
    place = landing.repo if verb == "steps" else recipe_file(landing.repo, merge_method="calibrated")
    found = landing.changes_nothing(lambda _: cli(verb, place, *options, "--json", "-q"))
    assert ("at least" in found.out) == (found.code == 1) == (command == "plan --memory 1MB")


def test_scan(cli: Callable[..., Any], landing: Landing, problems: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "response": "2"}\n')

    def scan(name: str) -> bytes:
        out = tmp_path / name
        assert cli("scan", landing.repo, "--out", out, "--logprobs", prompts, "-q").code == 0
        return out.read_bytes()

    landing.changes_nothing(scan)


def test_merge(landing: Landing, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(landing.repo, merge_method="calibrated"))

    def merge(name: str) -> dict[str, bytes]:
        api.merge(recipe, out=tmp_path / name)
        return contents(tmp_path / name)

    landing.changes_nothing(merge)


def test_run(landing: Landing, evaluated: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(evaluated(landing.repo))

    def run(name: str) -> Any:
        (table,) = api.run(recipe, out=tmp_path / name).tables
        rows = [row.model_copy(update={"reference": ""}) if not row.commit else row for row in table.rows]
        return rows, contents(tmp_path / name)

    rows, _ = landing.changes_nothing(run)
    assert [row.label for row in rows] == ["prediction", "last", f"{landing.repo}@step_20"]


def test_run_of_logits(landing: Landing, evaluated: Callable[..., Path]) -> None:
    recipe = load_recipe(evaluated(landing.repo, space="logits", out_dtype=None))
    rows = landing.changes_nothing(lambda _: api.run(recipe).tables[0].rows)
    assert [row.label for row in rows] == ["prediction", "last", f"{landing.repo}@step_20"]


def test_sweep(landing: Landing, evaluated: Callable[..., Path], tmp_path: Path) -> None:
    """What is kept under a key means the same at all times, and so does the key."""
    recipe = load_recipe(evaluated(landing.repo))

    def sweep(name: str) -> Any:
        result = api.sweep(recipe, tmp_path / name, horizons=[2])
        kept = {file.name: json.loads(file.read_text()) for file in (tmp_path / name / "measured").iterdir()}
        for measurement in kept.values():
            if "row" in measurement:  # beside them lie what the past says, and own answers
                measurement["row"]["reference"] = ""
        return {row.label: row.scores for row in result.all_problems.rows}, kept

    landing.changes_nothing(sweep)


def test_generate(landing: Landing, recipe_file: Callable[..., Path]) -> None:
    recipe = load_recipe(recipe_file(landing.repo, space="logits", out_dtype=None))
    landing.changes_nothing(lambda _: api.complete(recipe, ["1+1="], sampling=Sampling(max_new_tokens=4)))


def test_lm_eval_model(landing: Landing) -> None:
    from hubextrap.lm_eval_plugin import HubextrapLM

    def load(_: str) -> str:
        model = HubextrapLM(trajectory=landing.repo, target_step=60, method="two_point", device="cpu")
        return str(model.get_model_info()["model_made_from"])

    landing.changes_nothing(load)


def test_eval_of_several_predictions(
    landing: Landing, recipe_file: Callable[..., Path], hub: LocalHub, logged_in: str
) -> None:
    """The real target of one prediction is not looked for at another time than that of the next."""
    recipe = load_recipe(recipe_file(landing.repo))
    predicted = [f"{landing.repo}-predicted@{name}" for name in ("one", "two")]
    for target in predicted:
        api.merge(recipe, push=[PushTarget.parse(target)])
    rows = landing.changes_nothing(lambda _: compared_checkpoints(predicted, ["last", "target"]))
    assert [label for label, _ in rows] == [*(f"prediction {one}" for one in predicted), "last"]


def test_what_run_pushed_is_evaluated_whatever_its_branch_holds_by_now(
    hub: LocalHub,
    landing: Landing,
    checkpoints: Path,
    evaluated: Callable[..., Path],
    logged_in: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = f"{landing.repo}-predicted"
    recipe = load_recipe(evaluated(landing.repo, push={"repo": target, "revision": "step_60"}))
    make = chain.make

    def merge_and_be_overtaken(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        files = {file.name: file for file in (checkpoints / "step_0").iterdir()}
        hub.commit(target, files, revision="step_60")
        return made

    monkeypatch.setattr(chain, "make", merge_and_be_overtaken)
    result = api.run(recipe)
    assert result.predictions[0].pushed is not None
    row = result.tables[0].rows[0]
    assert row.commit == result.predictions[0].pushed.commit
    assert (row.label, row.step, row.reference) == ("prediction", 60, f"{target}@step_60")


@pytest.mark.parametrize("out", [True, False])
def test_a_pull_request_of_run_is_evaluated_whatever_comes_into_it(
    hub: LocalHub,
    landing: Landing,
    checkpoints: Path,
    evaluated: Callable[..., Path],
    logged_in: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: bool,
) -> None:
    target = f"{landing.repo}-predicted"
    hub.create_repo(target)
    hub.commit(target, {"notes.md": b"mine"})
    push = {"repo": target, "create_pr": True}
    make, client = chain.make, HfApi()

    def merge_and_be_overtaken(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        for file in (checkpoints / "step_0").iterdir():
            client.upload_file(
                path_or_fileobj=file, path_in_repo=file.name, repo_id=target, revision="refs/pr/1"
            )
        return made

    alone = api.run(load_recipe(evaluated(landing.repo)), out=tmp_path / "alone").tables[0].rows[0]
    recipe = load_recipe(evaluated(landing.repo, push=push))
    monkeypatch.setattr(chain, "make", merge_and_be_overtaken)
    result = api.run(recipe, out=tmp_path / "out" if out else None)
    pushed = result.predictions[0].pushed
    assert pushed is not None
    row = result.tables[0].rows[0]
    assert row.commit == pushed.commit != client.model_info(target, revision="refs/pr/1").sha
    assert row.scores == alone.scores


class Arrival(SilentProgress):
    """At the start of a stage, a step lands in a local run."""

    def __init__(self, stage: str, source: Path, place: Path) -> None:
        self._at, self._source, self._place = stage, source, place

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Stage]:
        if label == self._at:
            shutil.copytree(self._source, self._place)
        with super().stage(label, total, unit) as stage:
            yield stage


@pytest.mark.parametrize(("command", "stage"), [("run", "merge"), ("sweep", "last: generate")])
def test_a_local_step_that_arrives(
    command: str, stage: str, checkpoints: Path, evaluated: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoints, run)
    recipe = load_recipe(evaluated(run, parameters={"target_step": 45}))

    def labels(name: str, progress: SilentProgress) -> Any:
        if command == "run":
            table = api.run(recipe, out=tmp_path / name, progress=progress).tables[0]
        else:
            table = api.sweep(recipe, tmp_path / name, progress=progress).all_problems
        return [(row.label, row.step, row.scores) for row in table.rows]

    alone = labels("alone", SilentProgress())
    arrival = Arrival(stage, checkpoints / "step_10", run / "step_60")
    assert labels("disturbed", arrival) == alone
    assert (run / "step_60").is_dir()
    assert [(label.split()[0], step) for label, step, _ in alone if label != "last"] == [("prediction", 45)]


def test_a_sweep_keeps_nothing_of_a_checkpoint_that_changed_in_place(
    checkpoints: Path, evaluated: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoints, run)
    recipe = load_recipe(evaluated(run))
    measure = Harness.measure

    def measure_too_late(self: Harness, label: str, checkpoint: Any) -> Any:
        for file in (run / "step_30").glob("*.safetensors"):
            os.utime(file, ns=(0, 0))
        return measure(self, label, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Harness, "measure", measure_too_late)
        with pytest.raises(SourceError, match="step_30: changed while"):
            api.sweep(recipe, tmp_path / "sweep")
    assert list((tmp_path / "sweep" / "measured").iterdir()) == []
