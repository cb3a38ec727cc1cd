"""What the package's functions may be given: names in place of things, and one clear error for the rest."""

from __future__ import annotations

import inspect
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import hubextrap
from hubextrap import api
from hubextrap.errors import HubExtrapError, RecipeError, WrongArgument
from hubextrap.evaluation import EvaluationOptions, EvaluationTable, TaskFile
from hubextrap.executors.slurm import SlurmExecutor
from hubextrap.given import run_of, sample_choice
from hubextrap.hub.target import push_targets
from hubextrap.localhub import LocalHub

WRONG = {
    "none": None,
    "number": 3,
    "mapping": {"repo": "run"},
    "list": [3],
    "object": object(),
    "absent": "absent.yaml",
    "absent path": Path("absent.yaml"),
    "empty": "",
    "folder": "run/step_0/config.json",
}
FIRST: dict[Callable[..., Any], Callable[[Any], object]] = {
    # by function: a call of it, all right but for what is given
    hubextrap.backtest: hubextrap.backtest,
    hubextrap.complete: lambda wrong: hubextrap.complete(wrong, ["x"]),
    hubextrap.evaluate: lambda wrong: hubextrap.evaluate(wrong, ["absent_task"]),
    hubextrap.evaluate_steps: hubextrap.evaluate_steps,
    hubextrap.find_trajectory: hubextrap.find_trajectory,
    hubextrap.load_recipe: hubextrap.load_recipe,
    hubextrap.load_reground_recipe: hubextrap.load_reground_recipe,
    hubextrap.load_watch_recipe: hubextrap.load_watch_recipe,
    hubextrap.merge: lambda wrong: hubextrap.merge(wrong, out="made"),
    hubextrap.parse_recipe: hubextrap.parse_recipe,
    hubextrap.plan: hubextrap.plan,
    hubextrap.predict: lambda wrong: hubextrap.predict(wrong, 45, out="made"),
    hubextrap.push: lambda wrong: hubextrap.push(wrong, "me/x"),
    hubextrap.reground: lambda wrong: hubextrap.reground(wrong, "made"),
    hubextrap.report: hubextrap.report,
    hubextrap.resolve_checkpoint: hubextrap.resolve_checkpoint,
    hubextrap.run: lambda wrong: hubextrap.run(wrong, out="made"),
    hubextrap.scan: hubextrap.scan,
    hubextrap.sweep: lambda wrong: hubextrap.sweep(wrong, "made"),
    hubextrap.submit: lambda wrong: hubextrap.submit(wrong, SlurmExecutor(), out="made"),
    hubextrap.finish: hubextrap.finish,
    hubextrap.worker: hubextrap.worker,
    hubextrap.verify: hubextrap.verify,
    hubextrap.walk: lambda wrong: hubextrap.walk(wrong, "problems.jsonl", out="made"),
    hubextrap.watch: lambda wrong: list(hubextrap.watch(wrong, "made", every=None)),
}
NAMED: dict[str, Callable[[Any], object]] = {
    # by argument: the same for what stands behind the first one
    "predict push": lambda wrong: hubextrap.predict("run", 45, push=wrong),
    "predict evaluate": lambda wrong: hubextrap.predict("run", 45, out="made", evaluate=wrong),
    "predict walk": lambda wrong: hubextrap.predict("run", 45, out="made", walk=wrong),
    "predict out": lambda wrong: hubextrap.predict("run", 45, out=wrong),
    "predict to": lambda wrong: hubextrap.predict("run", wrong, out="made"),
    "plan out": lambda wrong: hubextrap.plan("recipe.yaml", out=wrong),
    "plan push": lambda wrong: hubextrap.plan("recipe.yaml", push=wrong),
    "plan settings": lambda wrong: hubextrap.plan("recipe.yaml", settings=wrong),
    "plan scan": lambda wrong: hubextrap.plan("recipe.yaml", scan=wrong),
    "plan run": lambda wrong: hubextrap.plan("recipe.yaml", run=wrong),
    "merge out": lambda wrong: hubextrap.merge("recipe.yaml", out=wrong),
    "merge push": lambda wrong: hubextrap.merge("recipe.yaml", push=wrong),
    "run out": lambda wrong: hubextrap.run("recipe.yaml", out=wrong),
    "run output": lambda wrong: hubextrap.run("recipe.yaml", out="made", output=wrong),
    "backtest options": lambda wrong: hubextrap.backtest("run", options=wrong),
    "backtest settings": lambda wrong: hubextrap.backtest("run", settings=wrong),
    "backtest clock": lambda wrong: hubextrap.backtest("run", clock=wrong),
    "scan out": lambda wrong: hubextrap.scan("run", out=wrong),
    "scan sample": lambda wrong: hubextrap.scan("run", sample=wrong),
    "backtest sample": lambda wrong: hubextrap.backtest("run", sample=wrong),
    "report sample": lambda wrong: hubextrap.report("run", sample=wrong),
    "predict sample": lambda wrong: hubextrap.predict("run", 45, out="made", sample=wrong),
    "scan reference_share": lambda wrong: hubextrap.scan("run", reference_share=wrong),
    "scan logprobs": lambda wrong: hubextrap.scan("run", logprobs=wrong),
    "push target": lambda wrong: hubextrap.push("run/step_0", wrong),
    "sweep out": lambda wrong: hubextrap.sweep("recipe.yaml", wrong),
    "sweep horizons": lambda wrong: hubextrap.sweep("evaluate.yaml", "made", horizons=wrong),
    "sweep damping": lambda wrong: hubextrap.sweep("evaluate.yaml", "made", damping=wrong),
    "walk prompts": lambda wrong: hubextrap.walk("recipe.yaml", wrong, out="made"),
    "walk push": lambda wrong: hubextrap.walk("recipe.yaml", "absent.jsonl", push=wrong),
    "watch out": lambda wrong: hubextrap.watch("run", wrong, every=None),
    "watch sample": lambda wrong: hubextrap.watch("run", "made", every=None, sample=wrong),
    "reground out": lambda wrong: hubextrap.reground("recipe.yaml", wrong),
    "complete prompts": lambda wrong: hubextrap.complete("logits.yaml", wrong),
    "complete sampling": lambda wrong: hubextrap.complete("logits.yaml", "x", sampling=wrong),
    "evaluate options": lambda wrong: hubextrap.evaluate("run/step_0", wrong),
    "report evaluations": lambda wrong: hubextrap.report("scan.safetensors", evaluations=wrong),
    "report out": lambda wrong: hubextrap.report("absent.safetensors", out=wrong),
    "find_trajectory options": lambda wrong: hubextrap.find_trajectory("run", wrong),
    "PushTarget": lambda wrong: hubextrap.PushTarget(wrong),
    "PushTarget revision": lambda wrong: hubextrap.PushTarget("me/x", wrong),
    "LogProbRequest": lambda wrong: hubextrap.LogProbRequest(wrong),
    "TaskFile": lambda wrong: TaskFile(wrong, "exact"),
    "EvaluationOptions": lambda wrong: EvaluationOptions(wrong),
    "EvaluationOptions task_files": lambda wrong: EvaluationOptions(task_files=wrong),
    "Run.of": lambda wrong: hubextrap.Run.of(wrong),
    "Scan.load": lambda wrong: hubextrap.Scan.load(wrong),
}


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("given")
    for step in (0, 10, 20, 30):
        (folder := tmp_path / "run" / f"step_{step}").mkdir(parents=True)
        weights = {"model.norm.weight": np.linspace(1, 1 + step * step, 64, dtype=np.float32)}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    recipe = {"trajectory": {"repo": "run"}, "merge_method": "two_point", "parameters": {"target_step": 45}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "logits.yaml").write_text(yaml.safe_dump(recipe | {"space": "logits"}))
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(recipe | {"evaluate": {"task_files": "f"}}))
    return tmp_path


@pytest.fixture
def place(_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run of four checkpoints and recipes."""
    monkeypatch.chdir(_place)
    return _place


@pytest.fixture
def own_place(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write into."""
    folder = Path(shutil.copytree(place, tmp_path / "own"))
    monkeypatch.chdir(folder)
    return folder


def test_every_public_function_is_in_the_table() -> None:
    public = {getattr(hubextrap, name) for name in hubextrap.__all__ if name != "__version__"}
    assert {one for one in public if inspect.isfunction(one)} == set(FIRST)


def refused(call: Callable[[Any], object], wrong: Any) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(HubExtrapError) as caught:
        call(wrong)
    said = str(caught.value)
    assert said.strip()
    assert "object at 0x" not in said
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(one, id=one.__name__, marks=[pytest.mark.slow] if one.__name__ == "evaluate" else [])
        for one in FIRST
    ],
)
def test_the_wrong_thing_is_one_clear_error(function: Callable[..., Any], place: Path) -> None:
    for wrong in WRONG.values():
        refused(FIRST[function], wrong)


@pytest.mark.parametrize("argument", NAMED)
def test_so_it_is_by_name(argument: str, place: Path) -> None:
    for kind in ("number", "mapping", "object"):
        if kind != "number" or argument not in ("sweep horizons", "sweep damping"):  # for which one will do
            refused(NAMED[argument], WRONG[kind])


def test_the_error_names_the_argument_and_what_it_has_to_be() -> None:
    with pytest.raises(
        WrongArgument, match=r"^recipe: has to be a Recipe, or the path of a recipe file, and is None"
    ):
        hubextrap.merge(None, out="made")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^push: .* of the class int"):
        push_targets([3])  # type: ignore[list-item]
    assert pickle.loads(pickle.dumps(WrongArgument("x"))).args == ("x",)


def test_paths_and_names_do_for_what_they_name(own_place: Path) -> None:
    """As text and as paths; what comes out is the same."""
    recipe = hubextrap.load_recipe("recipe.yaml")
    plans = [
        hubextrap.plan(one, out=out)
        for one in (recipe, "recipe.yaml", own_place / "recipe.yaml")
        for out in ("q", Path("q"))
    ]
    assert len({repr(plan.as_dict()) for plan in plans}) == 1
    assert not plans[0].problems
    made = hubextrap.merge("recipe.yaml", out="made").predictions[0]
    assert made.folder == Path("made")
    assert hubextrap.verify("made").problems == hubextrap.verify(Path("made")).problems == ()
    found = hubextrap.find_trajectory(Path("run"))
    assert found == hubextrap.find_trajectory("run")
    assert hubextrap.resolve_checkpoint(Path("run/step_10")).step == 10
    scan = hubextrap.scan("run", out="run.safetensors")
    some = hubextrap.TrajectoryOptions(max_step=20)
    assert hubextrap.scan(Path("run"), options=some).steps == (0, 10, 20)
    by = [hubextrap.backtest(one) for one in (scan, "run.safetensors", Path("run.safetensors"), "run", found)]
    assert all(one.rows == by[0].rows for one in by)
    assert "recipe" in hubextrap.backtest("recipe.yaml").methods
    assert hubextrap.backtest("run", options=some).steps == (0, 10, 20)


@pytest.mark.parametrize("what", ["recipe.yaml", "run.safetensors", "run"])
def test_options_count_for_a_reference_alone(what: str, own_place: Path) -> None:
    hubextrap.scan("run", out="run.safetensors")
    given = hubextrap.find_trajectory("run") if what == "run" else what
    with pytest.raises(RecipeError, match="options"):
        hubextrap.backtest(given, options=hubextrap.TrajectoryOptions(max_step=20))


def test_push_takes_a_name(own_place: Path, hub: LocalHub, repo_id: str, logged_in: str) -> None:
    target = f"{repo_id}@step_45"
    planned = hubextrap.plan("recipe.yaml", push=target)
    assert (planned.problems, planned.outputs) == ((), (f"hf://{target}",))
    made = hubextrap.merge("recipe.yaml", push=target).predictions[0]
    assert made.target == hubextrap.PushTarget(repo_id, "step_45")
    assert push_targets([target, made.target]) == [made.target, made.target]
    assert hubextrap.verify(target).problems == ()


def test_a_run_is_a_reference_a_recipe_or_its_file(own_place: Path, hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    for folder in Path("run").iterdir():
        hub.commit(repo_id, {file.name: file for file in folder.iterdir()}, revision=folder.name)
    assert run_of("run", repo_id).steps == (0, 10, 20, 30)  # type: ignore[union-attr]
    assert run_of("run", "recipe.yaml") == hubextrap.load_recipe("recipe.yaml")
    Path("odd.yaml").mkdir()
    with pytest.raises(HubExtrapError, match=r"odd\.yaml"):
        run_of("run", "odd.yaml")


def test_one_in_place_of_several() -> None:
    assert EvaluationOptions("gsm8k").names == ["gsm8k"]
    file = TaskFile("problems.jsonl", "exact")  # type: ignore[arg-type]
    assert EvaluationOptions(task_files=file).names == ["problems"]  # type: ignore[arg-type]
    assert hubextrap.LogProbRequest("p.jsonl").prompts == Path("p.jsonl")  # type: ignore[arg-type]


def test_results_are_saved_and_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubExtrapError, match="absent"):
        EvaluationTable.load("absent.json")
    with pytest.raises(WrongArgument, match=r"^out: "):
        api.sweep_files(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["predict", "walk", "sweep"])
def test_a_further_argument_that_there_is_not_is_refused_before_anything_is_read(name: str) -> None:
    """Those of a TypedDict, too, which Python lets through."""
    for unknown in ("max_step", "n_workers"):
        with pytest.raises(
            WrongArgument, match=rf"{name}\(\) got an unexpected .*'{unknown}'.* it takes "
        ) as found:
            getattr(hubextrap, name)("absent.yaml", out="made", **{unknown: 3})
        assert isinstance(found.value, TypeError)


def test_a_size_may_be_any_whole_number() -> None:
    size = sample_choice(np.int64(4096))
    assert type(size) is int
    assert size == 4096
    for wrong in (True, np.True_, "4096", None, 4096.0, np.float64(4096)):
        with pytest.raises(HubExtrapError):
            sample_choice(wrong)
