"""The base install: all commands that move weights work where neither torch nor transformers is there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluations import SETTINGS
from harness import ROOT, Warm
from installations import beyond, without

from hubextrap.evaluation.table import EvaluationTable, Row, Score, TaskRecord
from hubextrap.hub import read_provenance
from hubextrap.localhub import LocalHub

RUN = ROOT / "demo" / "data" / "rlvr-C"
RECIPE = """
trajectory: {{repo: {run}, steps: {{max: 200}}}}
merge_method: {method}
parameters: {{target_step: 400}}
evaluate: {{tasks: [gsm8k], against: [last]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


def installation(folder: Path, *extras: str) -> Iterator[Warm]:
    """`hubextrap` where nothing can be imported that these extras, and hubextrap itself, do not bring."""
    place = folder / ("-".join(extras) or "base")
    place.mkdir()
    lacking = beyond(*extras)
    assert {"torch", "transformers", "lm_eval", "accelerate"} <= lacking
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", without(lacking, place))
        patch.chdir(folder)
        warm = Warm(place)
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def base(folder: Path) -> Iterator[Warm]:
    yield from installation(folder)


@pytest.fixture
def recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(run=RUN, method="two_point"))
    return path


def ok(warm: Warm, *arguments: str | Path) -> str:
    done = warm.run(*arguments)
    assert done.code == 0, done.output
    return done.output


def test_torch_cannot_be_imported_there(folder: Path) -> None:
    """Nor found installed, whose version would be written down; what is needed can."""
    program = (
        "import importlib, importlib.metadata, numba, numpy, huggingface_hub\n"
        "for name in ('torch', 'transformers', 'lm_eval', 'pygit2', 'ray'):\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError: pass\n"
        "    else: raise SystemExit(name)\n"
        "    try: importlib.metadata.version(name)\n"
        "    except importlib.metadata.PackageNotFoundError: pass\n"
        "    else: raise SystemExit(name)\n"
    )
    environment = os.environ | {"PYTHONPATH": without(beyond(), folder)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_recipes(base: Warm, folder: Path) -> None:
    """The shipped ones are checked whole, what they evaluate included."""
    assert "low_rank" in ok(base, "recipes", "ls")
    ok(base, "recipes", "cp", "two_point")
    shipped = sorted((ROOT / "merge_configs").glob("*.yaml"))
    assert ok(base, "recipes", "validate", "two_point.yaml", *shipped).count(": ok\n") == 1 + len(shipped)


def test_steps_plan_merge_verify(base: Warm, folder: Path, recipe: Path) -> None:
    assert "200" in ok(base, "steps", RUN)
    assert "no problems found" in ok(base, "plan", recipe)
    (folder / "mixed.yaml").write_text(recipe.read_text() + "space: logits\n")
    assert "no problems found" in ok(base, "plan", "mixed.yaml")
    ok(base, "merge", recipe, "--out", "out")
    ok(base, "verify", "out")
    assert read_provenance(folder / "out").versions.keys() == {
        "hubextrap", "numba", "safetensors", "huggingface_hub"
    }  # fmt: skip


@pytest.mark.parametrize("method", ["low_rank", "calibrated"])
def test_fitted_merges(method: str, base: Warm, folder: Path) -> None:
    (folder / f"{method}.yaml").write_text(RECIPE.format(run=RUN, method=method))
    ok(base, "merge", f"{method}.yaml", "--out", method)
    ok(base, "verify", method)


@pytest.mark.slow
def test_from_the_hub_and_to_it(base: Warm, folder: Path, hub: LocalHub, repo_id: str, token: str) -> None:
    hub.create_repo(repo_id)
    for step in (100, 200):
        files = {file.name: file for file in (RUN / f"step_{step}").iterdir()}
        hub.commit(repo_id, files, revision=f"step_{step}")
    (folder / "remote.yaml").write_text(RECIPE.format(run=repo_id, method="two_point"))
    base.environment = {"HF_TOKEN": token}
    assert "step_100" in ok(base, "steps", repo_id)
    ok(base, "merge", "remote.yaml", "--out", "remote")
    assert "pushed to" in ok(base, "push", "remote", f"{repo_id}@step_400")
    assert "predicted" in ok(base, "merge", "remote.yaml", "--push", f"{repo_id}@straight")


def test_scan_and_backtest(base: Warm) -> None:
    ok(base, "scan", RUN, "--reference-share", "0.01", "--out", "scan.safetensors")
    assert "calibrated" in ok(base, "backtest", "scan.safetensors")


def test_reground(base: Warm, folder: Path) -> None:
    """Its trainer is another program, with libraries of its own."""
    trainer = f'mkdir -p "$0" && cp -r {RUN}/step_$1 "$0"'
    train = ["sh", "-c", trainer, "{output}", "{steps}", "{model}"]
    section: dict[str, object] = {"model": str(RUN / "step_0"), "train": train}
    section |= {"checkpoint": "step_{step}", "window": 40, "jump": 40, "iterations": 1}
    section |= {"guard": {"max_error": "off"}}
    (folder / "reground.yaml").write_text(json.dumps({"reground": section}))
    assert "finished" in ok(base, "reground", "reground.yaml", "--out", "regrounded")


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("eval", ("run", "recipe.yaml", "--out", "never")),
        ("eval", ("sweep", "recipe.yaml", "--out", "never", "--horizons", "1.5")),
        ("cuda", ("merge", "recipe.yaml", "--out", "never", "--device", "cuda")),
        ("ray", ("merge", "recipe.yaml", "--out", "never", "--executor", "ray")),
        ("logits", ("generate", "mixture.yaml", "1+1=")),
        ("logits", ("scan", RUN, "--out", "never", "--logprobs", "responses.jsonl")),
        ("mergekit", ("mergekit-yaml", "recipe.yaml", "never")),
        ("eval", ("lm-eval", "run", "--tasks", "gsm8k")),
        ("eval", ("eval", RUN / "step_200", "--no-against", "--tasks", "gsm8k", "--output", "never")),
        ("eval", ("eval", "nobody/nothing", "--tasks", "gsm8k")),
        ("report", ("report", "scan.safetensors", "--out", "never")),
        ("localhub", ("hub", "serve", "never")),
    ],
)
def test_what_needs_more_says_so_before_it_begins(
    extra: str, arguments: tuple[str | Path, ...], base: Warm, folder: Path, recipe: Path
) -> None:
    (folder / "responses.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n')
    (folder / "mixture.yaml").write_text(recipe.read_text() + "space: logits\n")
    done = base.run(*arguments)
    assert done.code == 1
    assert f"pip install 'hubextrap[{extra}]'" in done.output, done.output
    assert not (folder / "never").exists()
    assert not list(folder.glob(".never*"))


def test_a_plan_lists_it_among_the_problems(folder: Path, recipe: Path) -> None:
    program = (
        "import hubextrap\n"
        "options = hubextrap.MergeOptions(device='cuda')\n"
        "print(*hubextrap.plan(hubextrap.load_recipe('recipe.yaml'), settings=options).problems)\n"
    )
    environment = os.environ | {"PYTHONPATH": without(beyond(), folder)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.stdout == "device cuda needs torch: pip install 'hubextrap[cuda]'\n", done.stderr


def test_the_names_of_the_package(folder: Path) -> None:
    """All are there; the one that is made of torch's classes names its extra."""
    program = (
        "import importlib, json, hubextrap\n"
        "from hubextrap.errors import MissingExtra\n"
        "rooms = ('', '.api', '.engine', '.evaluation', '.hub', '.logits', '.methods', '.recipe', '.scans',\n"
        "         '.regrounding', '.statistics', '.tensors', '.trajectory', '.localhub', '.reporting')\n"
        "found = {}\n"
        "for room in rooms:\n"
        "    try: importlib.import_module('hubextrap' + room)\n"
        "    except MissingExtra as error: found[room] = error.extra; continue\n"
        "    for name in getattr(importlib.import_module('hubextrap' + room), '__all__', ()):\n"
        "        try: getattr(importlib.import_module('hubextrap' + room), name)\n"
        "        except MissingExtra as error: found[name] = error.extra\n"
        "print(json.dumps(found))\n"
    )
    environment = os.environ | {"PYTHONPATH": without(beyond(), folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "ExtrapolatedForCausalLM": "logits",
        "ExtrapolationCallback": "train",
        ".reporting": "report",
        **dict.fromkeys(("Fault", "LocalHub", "Request"), "localhub"),
    }


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Warm]:
    yield from installation(folder, "localhub", "report")


@pytest.mark.slow
def test_report_and_hub_serve(base: Warm, serving: Warm, folder: Path) -> None:
    """With the extras of their own, which bring no torch either."""
    ok(base, "scan", RUN, "--out", "reported.safetensors")
    scores = (
        Score(task="radd", metric="exact_match", filter="none", value=0.5, stderr=0.1, higher_is_better=True),
    )
    row = Row(label="last", step=200, reference="step_200", commit=None, scores=scores)
    tasks = {"radd": TaskRecord(version="1", sha256="a" * 64, num_fewshot=0, documents=25)}
    table = EvaluationTable(settings=SETTINGS.model_copy(update={"tasks": tasks}), rows=(row,))
    table.save(folder / "results.json")
    done = ok(serving, "report", "reported.safetensors", "--evaluation", "results.json")
    assert "wrote report.html" in done
    pid = serving.start("hub", "serve", "hub", "--port", "0")
    try:
        deadline = time.monotonic() + 30
        while not re.search(r"HF_ENDPOINT=http", serving.printed()):
            assert time.monotonic() < deadline, serving.printed()
            time.sleep(0.05)
    finally:
        ended = serving.end(pid, after=0, sign=signal.SIGTERM)
    assert ended.code in (0, 143), ended.output


def test_where_it_is_installed_it_is_not_imported(folder: Path, recipe: Path) -> None:
    """A merge, and all that the command imports with it, leave torch alone: it takes seconds and memory."""
    program = (
        "import sys\n"
        "from hubextrap.cli.main import run\n"
        "sys.argv = ['hubextrap', 'merge', 'recipe.yaml', '--out', 'beside', '-q']\n"
        "try: run()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'pandas', 'matplotlib', 'pygit2', 'ray'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "arguments"),
    [
        ("torch", ("lm-eval", "run", "--tasks", "gsm8k")),
        ("datasets", ("lm-eval", "run", "--tasks", "gsm8k")),
        ("torch", ("mergekit-yaml", "recipe.yaml", "never")),
        ("transformers", ("mergekit-yaml", "recipe.yaml", "never")),
    ],
)
def test_other_programs_where_a_library_is_broken(
    broken: str, arguments: tuple[str, ...], tmp_path: Path, recipe: Path
) -> None:
    """It is no fault of hubextrap's, whatever the library raises as it is imported."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("mergekit")
    (tmp_path / broken).mkdir()
    (tmp_path / broken / "__init__.py").write_text("raise OSError('no libthat.so')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-m", "hubextrap", *arguments],
        env=environment,
        cwd=recipe.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "no libthat.so" in done.stderr
